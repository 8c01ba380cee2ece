"""Owners on PostgreSQL share an account: exchanges, burials, and a server that is busy or away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.base import SharesAccount
from nanobanana_async.ledger.postgres.leases import Lease
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.policy.concurrency import Load
from nanobanana_async.policy.sharing import Allotment, Report, RequestEvent
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, apimall_now
from tests.support.ledger_contract import job, running
from tests.support.postgres import SHORT, Pooler, Server, new_schema

ACCOUNT = "mine"


@asynccontextmanager
async def opened(
    url: str, schema: str, owners: int = 1, patience_s: float = 10, lease: Lease = SHORT
) -> AsyncIterator[list[PostgresLedger]]:
    """Open so many owners of one ledger."""
    async with AsyncExitStack() as stack:
        ledgers = [PostgresLedger(url, schema=schema, lease=lease, patience_s=patience_s) for _ in range(owners)]
        for ledger in ledgers:
            await ledger.open()
            stack.push_async_callback(ledger.aclose)
        yield ledgers


def refused(at: float, held: int) -> RequestEvent:
    return RequestEvent(what="throttled", at=at, sent_at=at, load=Load(held), limit_kind="jobs")


async def with_limit(ledger: PostgresLedger, held: int) -> Allotment:
    """Let an owner that holds so many slots meet a 429."""
    first = await ledger.exchange(ACCOUNT, Report(number=1, held=held, queued=50))
    return await ledger.exchange(ACCOUNT, Report(number=2, held=held, queued=50, events=(refused(first.at, held),)))


async def check_sharing(url: str, schema: str) -> None:
    async with opened(url, schema, owners=2) as (first, second):
        assert isinstance(first, SharesAccount)
        allotment = await with_limit(first, held=20)
        assert (allotment.cap, allotment.granted) == (20.0, 20)
        assert (await second.exchange(ACCOUNT, Report(number=1, held=0, queued=50))).granted == 0
        allotment = await first.exchange(ACCOUNT, Report(number=3, held=15, queued=50))
        assert (allotment.target, allotment.granted) == (10, 15)
        assert (await second.exchange(ACCOUNT, Report(number=2, held=0, queued=50))).granted == 5


async def test_two_owners_share_the_learned_limit(postgres: Server) -> None:
    await check_sharing(postgres.url, new_schema())


async def test_two_owners_share_the_learned_limit_behind_a_pooler(pooler: Pooler) -> None:
    await check_sharing(pooler.url, new_schema())


async def test_learned_limit_outlasts_its_owners(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as (ledger,):
        await with_limit(ledger, held=12)
    async with opened(postgres.url, schema) as (ledger,):
        assert (await ledger.exchange(ACCOUNT, Report(number=1, held=0, queued=50))).granted == 12


async def test_unreadable_state_of_an_account_is_learned_again(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as (ledger,):
        await with_limit(ledger, held=12)
        postgres.execute("UPDATE accounts SET state = '{'", schema=schema)
        assert (await ledger.exchange(ACCOUNT, Report(number=3, held=0, queued=50))).cap == float("inf")


async def test_share_of_an_owner_that_leaves_is_released(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as (first,):
        async with opened(postgres.url, schema) as (second,):
            await with_limit(second, held=20)
            assert (await first.exchange(ACCOUNT, Report(number=1, held=0, queued=50))).granted == 0
        assert (await first.exchange(ACCOUNT, Report(number=2, held=0, queued=50))).granted == 20
        assert postgres.execute("SELECT count(*) FROM shares", schema=schema) == [(1,)]


async def test_jobs_without_an_owner_take_their_slots_until_adopted(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as (first,):
        async with opened(postgres.url, schema) as (second,):
            for number in range(3):
                await second.claim(running(f"order-{number}", f"t{number}", slots=1 + number))
            await second.claim(job("order-9"))
            postgres.execute("UPDATE jobs SET running_since = now()", schema=schema)
            await with_limit(second, held=20)
        assert (await first.exchange(ACCOUNT, Report(number=1, held=0, queued=50))).granted == 14
        (account,) = (await first.overview()).accounts
        assert (account.orphans, account.orphan_slots) == (3, 6)
        await first.adopt("order-0")
        assert (await first.exchange(ACCOUNT, Report(number=2, held=1, queued=50))).granted == 15
        old = Report(number=3, held=1, queued=50, max_run_s=0.0)
        assert (await first.exchange(ACCOUNT, old)).granted == 20


async def test_adopted_jobs_take_their_slots_before_their_owner_reports_them(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema, owners=2) as (first, second):
        async with opened(postgres.url, schema) as (third,):
            for number in range(3):
                await third.claim(running(f"order-{number}", f"t{number}"))
            postgres.execute("UPDATE jobs SET running_since = now()", schema=schema)
            await with_limit(third, held=20)
        assert (await first.exchange(ACCOUNT, Report(number=1, held=0))).granted == 0
        for number in range(3):
            await first.adopt(f"order-{number}")
        assert (await second.exchange(ACCOUNT, Report(number=1, held=0, queued=50))).granted == 17


async def test_exchange_of_a_buried_owner_is_refused_and_its_slots_are_free(postgres: Server) -> None:
    schema, lease = new_schema(), Lease(beat_s=60.0, silence_s=600.0)  # no beat finds it first
    async with opened(postgres.url, schema, owners=2, lease=lease) as (first, second):
        await with_limit(first, held=20)
        ((owner,),) = postgres.execute("SELECT owner FROM shares", schema=schema)
        postgres.execute(f"UPDATE owners SET buried_by = 99 WHERE id = {owner}", schema=schema)
        with pytest.raises(LedgerError, match="was buried"):
            await first.exchange(ACCOUNT, Report(number=3, held=20, queued=50))
        assert (await second.exchange(ACCOUNT, Report(number=1, held=0, queued=50))).granted == 20


@pytest.mark.slow
async def test_burial_releases_jobs_and_share_together(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as (ledger,):
        postgres.execute(
            "INSERT INTO owners (host, process, client, lease_s) VALUES ('gone', 1, '', 1)",
            "INSERT INTO shares (account, owner, granted, target, held, in_flight, queued, interactive, reserve, used,"
            " spoke_at, reports) SELECT 'mine', id, 7, 7, 7, 0, 0, false, 0, 0, 0, 1 FROM owners WHERE host = 'gone'",
            schema=schema,
        )
        assert (await ledger.exchange(ACCOUNT, Report(number=1, held=0))).granted == 0
        async with asyncio.timeout(20):
            while postgres.execute("SELECT count(*) FROM shares", schema=schema) != [(1,)]:  # noqa: ASYNC110 - a thread
                await asyncio.sleep(0.05)


async def test_exchange_waits_only_a_moment_for_another(postgres: Server) -> None:
    import psycopg

    schema = new_schema()
    async with opened(postgres.url, schema) as (ledger,):
        await ledger.exchange(ACCOUNT, Report(number=1, held=0))
        with psycopg.connect(postgres.url) as other:
            other.execute(f"SELECT FROM {schema}.accounts FOR UPDATE".encode())
            with pytest.raises(LedgerError):
                await ledger.exchange(ACCOUNT, Report(number=2, held=0))
            assert (await ledger.claim(job())).is_new
        await ledger.exchange(ACCOUNT, Report(number=2, held=0))


async def test_exchange_is_not_repeated_while_the_connection_is_lost(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema, patience_s=60) as (ledger,):
        await ledger.exchange(ACCOUNT, Report(number=1, held=0))
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state = 'idle'"
        )
        for number in range(2, 5):
            try:
                allotment = await ledger.exchange(ACCOUNT, Report(number=number, held=0, queued=3))
            except LedgerError:
                continue
            assert allotment.granted == 2
            return
        pytest.fail("no exchange over a new connection")


@pytest.mark.slow
async def test_two_sessions_buy_through_one_server(postgres: Server) -> None:
    schema, gateway = new_schema(), FakeGateway(job_s=1.0, limit=4)
    async with AsyncExitStack() as stack:
        sessions = []
        for _ in range(2):
            ledger = PostgresLedger(postgres.url, schema=schema, lease=SHORT, patience_s=10)
            session = apimall_now(FakeTransport(gateway.answer), ledger=ledger)
            sessions.append(await stack.enter_async_context(session))
        async with asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(sessions[number % 2].generate(f"fox {number}"))
        (shares,) = postgres.execute("SELECT count(*), sum(reports) > 4, sum(held) FROM shares", schema=schema)
        assert shares[:2] == (2, True)
        assert all(session.stats().job_limit for session in sessions)
    assert (gateway.sold, gateway.most_running) == (16, 4)
    assert postgres.execute("SELECT count(*) FROM shares", schema=schema) == [(0,)]
