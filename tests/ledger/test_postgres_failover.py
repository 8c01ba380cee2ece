"""A standby is promoted that had not received the last commits: what living owners know, and what dead ones knew."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal

import pytest

from nanobanana_async import JobState, PostgresLedger, Session
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.errors import JobUncertain
from nanobanana_async.jobs import JobRecord
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.postgres import failover
from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.policy.prices import Price
from tests.batch.fakes import slots
from tests.ledger.child import line
from tests.ledger.postgres_child import host
from tests.support.ledger_contract import NOON, job
from tests.support.loopback import BOTH, QUICK_POLLS, GatewayName, gateway_of, until
from tests.support.mutations import patched
from tests.support.postgres import SHORT, Pair, Server, new_schema, running_pair, running_server, why_no_server

pytestmark = pytest.mark.slow

EIGHT = Price("fox", Decimal(8))
SPRING = batch_key_prefix("spring")


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may kill."""
    if (reason := why_no_server()) is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


@pytest.fixture
def pair(own_server: Server) -> Iterator[Pair]:
    """A primary and its standby, which was just made."""
    with running_pair(own_server) as pair:
        yield pair


@asynccontextmanager
async def opened(url: str, schema: str) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(url, schema=schema, lease=SHORT, patience_s=60)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


async def submitted(ledger: PostgresLedger, record: JobRecord) -> JobRecord:
    after = record.transition_to(JobState.SUBMITTING, first_sent_at=NOON, sent_at=NOON)
    if record.is_counted:
        assert (await ledger.advance_and_reserve(record, after, EIGHT, Decimal(80))).refusal is None
    else:
        await ledger.advance(record, after)
    return after


async def accepted(ledger: PostgresLedger, record: JobRecord) -> JobRecord:
    after = record.transition_to(JobState.RUNNING, task_id=f"t-{record.key}", running_since=NOON)
    await ledger.advance(record, after)
    return after


async def succeeded(ledger: PostgresLedger, record: JobRecord, price: int) -> JobRecord:
    after = record.transition_to(JobState.SUCCEEDED, ended_at=NOON, credits_used=Decimal(price))
    await ledger.advance(record, after)
    return after


async def test_living_owner_writes_again_what_the_new_server_lost(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    schema = new_schema()
    names = ("known", "released")
    waiting, ended = job("waiting", batch=SPRING), job("ended", batch=SPRING)
    async with opened(pair.url, schema) as ledger:
        for record in (*map(job, names), waiting):
            await ledger.claim(record)
        pair.standby.catch_up()
        pair.standby.lose_primary()
        known = await submitted(ledger, job("known"))
        released = await submitted(ledger, job("released"))
        await ledger.release("released")
        running = await accepted(ledger, await submitted(ledger, waiting))
        await ledger.claim(ended)
        ended = await succeeded(ledger, await accepted(ledger, await submitted(ledger, ended)), 5)
        await ledger.claim(job("new"))
        with caplog.at_level(logging.WARNING):
            pair.fail_over()
            async with opened(pair.url, schema) as other:  # it may be the first on the new server
                for record in (known, running, ended, job("new")):
                    claim = await other.claim(job(record.key))
                    assert (claim.record, claim.is_new, claim.is_ours) == (record, False, False)
                claim = await other.claim(job("released"))
                assert (claim.record, claim.is_ours) == (released, True)
                assert await other.spent_or_reserved("spring") == 13
        await accepted(ledger, known)
        await succeeded(ledger, running, 6)
        assert await ledger.spent_or_reserved("spring") == 11
    assert "5 records that it had lost were written again" in caplog.text
    assert [record for record in caplog.records if record.name.startswith("psycopg")] == []


@pytest.mark.parametrize("gateway", BOTH)
async def test_living_hosts_buy_nothing_twice_and_lose_nothing(pair: Pair, gateway: GatewayName) -> None:
    schema = new_schema()
    async with Emulator(duration=Fixed(0.4)) as emulator:

        def session() -> Session:
            ledger = PostgresLedger(pair.url, schema=schema, lease=SHORT)
            return Session(gateway_of(emulator, gateway), ledger=ledger, concurrency=slots(3))

        async with session() as one, session() as two, asyncio.TaskGroup() as group:
            calls = [
                group.create_task((one, two)[number % 2].generate(f"image {number}", idempotency_key=f"row-{number}"))
                for number in range(24)
            ]
            await until(lambda: emulator.stats().creates_accepted >= 4, timeout_s=30)
            await asyncio.to_thread(pair.standby.catch_up)
            await asyncio.to_thread(pair.standby.lose_primary)
            before = emulator.stats().creates_accepted
            await until(lambda: emulator.stats().creates_accepted >= before + 6, timeout_s=30)
            await asyncio.to_thread(pair.fail_over)
            async with session() as new:  # a third host asks for rows whose records were lost
                await asyncio.gather(  # noqa: TID251
                    *(new.generate(f"image {number}", idempotency_key=f"row-{number}") for number in range(24))
                )
        assert all(call.result().url for call in calls)
        assert sorted(each.prompt for each in emulator.jobs()) == sorted(f"image {number}" for number in range(24))


@pytest.mark.parametrize("gateway", BOTH)
async def test_waiting_jobs_of_a_host_that_died_across_it_are_bought_once_or_parked(
    pair: Pair, gateway: GatewayName
) -> None:
    schema, keys = new_schema(), [f"row-{number}" for number in range(8)]
    async with Emulator(duration=Fixed(0.4)) as emulator:
        async with host("generate", pair.url, schema, f"{gateway} {emulator.url} {len(keys)}") as other:
            assert await line(other) == "claimed"
            await until(lambda: emulator.stats().creates_accepted >= 1, timeout_s=30)
            await asyncio.to_thread(pair.standby.catch_up)
            await asyncio.to_thread(pair.standby.lose_primary)
            before = emulator.stats().creates_accepted
            await until(lambda: emulator.stats().creates_accepted >= before + 2, timeout_s=30)
            other.kill()
            await other.wait()
        await asyncio.to_thread(pair.fail_over)
        bought = sorted(each.prompt for each in emulator.jobs())
        ledger = PostgresLedger(pair.url, schema=schema, lease=SHORT)
        async with Session(gateway_of(emulator, gateway), ledger=ledger, polling=QUICK_POLLS) as session:
            parked = []
            for key in keys:
                try:
                    await session.generate(key, idempotency_key=key)
                except JobUncertain:
                    parked.append(key)
            assert sorted(parked) == sorted(
                [record.key async for record in ledger.uncertain(gateway_of(emulator, gateway).account)]
            )
        now = sorted(each.prompt for each in emulator.jobs())
        assert len(now) == len(set(now))
        if gateway == "apimall":
            assert (parked, now) == ([], keys)
        else:
            assert now == bought
            assert set(bought[before:]) <= set(parked)


# The server's timeline as a test sets it: the rest is done with SQL by hand.


@contextmanager
def timeline_of(server: Server, schema: str) -> Iterator[None]:
    server.execute(f"CREATE TABLE public.timeline_{schema} AS SELECT '1' AS now")
    with patched([(failover, "TIMELINE", f"(SELECT now FROM public.timeline_{schema})")]):
        yield


def move(server: Server, schema: str, *changes: str) -> None:
    """Move the server's timeline, and change what the new one has."""
    server.execute(f"UPDATE public.timeline_{schema} SET now = now || '1'", *changes, schema=schema)


async def test_number_that_was_given_again_does_not_let_its_first_owner_write(postgres: Server) -> None:
    schema = new_schema()
    with timeline_of(postgres, schema):
        async with opened(postgres.url, schema) as ledger:
            await ledger.claim(job("a"))
            again = (
                "INSERT INTO owners (id, host, process, client, lease_s, timeline) OVERRIDING SYSTEM VALUE"
                " VALUES (1, 'another', 1, '1', 10, '11')"
            )
            move(postgres, schema, "DELETE FROM owners", "DELETE FROM jobs", again)
            assert not (await ledger.claim(job("a"))).is_new  # it was written again
            owned = postgres.execute("SELECT owner FROM jobs", schema=schema)
            owners = postgres.execute("SELECT id, host = 'another' FROM owners ORDER BY id", schema=schema)
            assert owned == [(2,)]
            assert owners == [(1, True), (2, False)]


async def test_job_of_a_dead_owner_counts_as_sent_at_the_dearest_price(postgres: Server) -> None:
    schema = new_schema()
    with timeline_of(postgres, schema):
        async with opened(postgres.url, schema) as ledger:
            await ledger.set_budget(Budget(name="art", max_credits=100))
            bought = job("bought", batch=SPRING, budget="art")
            await ledger.claim(bought)
            await submitted(ledger, bought)
            async with host("hold", postgres.url, schema) as other:
                assert await line(other) == "held"
                other.kill()
                await other.wait()
            postgres.execute(
                f"UPDATE jobs SET gateway = 'defapi', batch = '{SPRING}', budget = 'art' WHERE key = 'x-1'",
                schema=schema,
            )
            move(postgres, schema)
            async with asyncio.timeout(20):
                while (found := await ledger.find("x-1")) is None or found.state is JobState.PENDING:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (found.state, found.revision, found.in_doubt) == (JobState.SUBMITTING, 1, False)
            assert found.sent_at is not None
            assert await ledger.spent_or_reserved("spring") == 16
            assert [budget.spent + budget.reserved for budget in await ledger.budgets(NOON)] == [16]
            adopted = await ledger.adopt("x-1")
            assert adopted is not None
            assert adopted.is_ours
            await succeeded(ledger, await accepted(ledger, found), 5)
            assert await ledger.spent_or_reserved("spring") == 13


async def test_task_that_a_late_host_knows_ends_the_doubt(postgres: Server) -> None:
    schema = new_schema()
    with timeline_of(postgres, schema):
        async with opened(postgres.url, schema) as ledger:
            await ledger.claim(job("a"))
            running = await accepted(ledger, await submitted(ledger, job("a")))
            parked = "UPDATE jobs SET state = 'uncertain', in_doubt = true, revision = 4, task_id = NULL, owner = NULL"
            move(postgres, schema, parked, "UPDATE owners SET buried_by = 99")
            claim = await ledger.claim(job("a"))
            assert (claim.record.state, claim.record.task_id) == (JobState.RUNNING, running.task_id)
            assert (claim.record.revision, claim.is_ours) == (5, True)


async def test_what_others_wrote_later_is_kept(postgres: Server) -> None:
    schema = new_schema()
    with timeline_of(postgres, schema):
        async with opened(postgres.url, schema) as ledger:
            await ledger.claim(job("a"))
            await submitted(ledger, job("a"))
            move(postgres, schema, "UPDATE jobs SET state = 'running', revision = 2, task_id = 't', owner = 99")
            found = await ledger.find("a")
            assert found is not None
            assert (found.revision, found.task_id) == (2, "t")
            assert postgres.execute("SELECT owner FROM jobs", schema=schema) == [(99,)]


async def test_owner_that_closes_first_writes_again_what_it_knows(postgres: Server) -> None:
    schema = new_schema()
    with timeline_of(postgres, schema):
        async with opened(postgres.url, schema) as ledger:
            await ledger.claim(job("a"))
            sent = await submitted(ledger, job("a"))
            move(postgres, schema, "UPDATE jobs SET state = 'pending', revision = 0")
        assert postgres.execute("SELECT state, revision, owner FROM jobs", schema=schema) == [
            ("submitting", sent.revision, None)
        ]
        assert postgres.execute("SELECT count(*) FROM owners", schema=schema) == [(0,)]


async def test_server_that_hides_its_timeline_can_be_used(postgres: Server) -> None:
    schema = new_schema()
    with patched([(failover, "TIMELINE", "no_such_function()")]):
        async with opened(postgres.url, schema) as ledger:
            assert (await ledger.claim(job("a"))).is_ours
            await submitted(ledger, job("a"))
        assert postgres.execute("SELECT timeline FROM timelines", schema=schema) == [("",)]
