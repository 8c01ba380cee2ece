"""Servers and networks that do not answer, that answer late, or whose settings are not ours."""

import asyncio
import logging
import random
import shutil
import string
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import psycopg
import pytest

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.postgres import connection, driver, outage
from nanobanana_async.ledger.postgres.leases import Beat, Lease, Tenure
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.pipeline import Work
from nanobanana_async.ledger.postgres.schema import current_tables
from nanobanana_async.ledger.postgres.settings import Settings
from nanobanana_async.ledger.postgres.statements import PostgresTable
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.testing import ConnectionFault, FaultProxy
from nanobanana_async.testing.fault_proxy import Side
from tests.support.ledger_contract import NOON, job, running
from tests.support.postgres import (
    QUOTED_PASSWORD,
    SHORT,
    USER,
    Server,
    new_schema,
    running_server,
    server_programs,
    server_user,
    why_no_server,
)

pytestmark = pytest.mark.slow

LEASE = Lease(beat_s=1.0, silence_s=8.0)


@asynccontextmanager
async def opened(
    url: str, schema: str | None = None, *, lease: Lease = LEASE, patience_s: float = 30
) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(url, schema=schema or new_schema(), lease=lease, patience_s=patience_s)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


@pytest.fixture
def proxy(postgres: Server) -> Iterator[FaultProxy]:
    with FaultProxy(postgres.port) as proxy:
        yield proxy


def url_of(proxy: FaultProxy) -> str:
    return f"postgresql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:{proxy.port}/postgres?sslmode=disable"


@pytest.mark.parametrize(
    ("words", "side"),
    [(b"COMMIT", "request"), (b"COMMIT", "answer"), (b"INSERT INTO jobs", "answer"), (b"UPDATE owners", "answer")],
)
async def test_connection_that_falls_silent_is_replaced_before_the_lease_ends(
    postgres: Server, proxy: FaultProxy, words: bytes, side: Side
) -> None:
    schema = new_schema()
    async with opened(url_of(proxy), schema) as ledger, opened(postgres.url, schema) as other:
        proxy.queue(ConnectionFault("stall", side=side, words=words))
        async with asyncio.timeout(30):
            while not proxy.struck:
                await ledger.claim(job())
            await ledger.claim(job("after"))
        assert not (await other.claim(job())).is_ours
        assert await other.has_owner("after")
        assert postgres.execute("SELECT count(*), count(buried_by) FROM owners", schema=schema) == [(2, 0)]


async def test_connection_that_falls_silent_during_the_opening_is_replaced(proxy: FaultProxy) -> None:
    proxy.queue(ConnectionFault("stall", side="request", words=b"pg_class"))
    async with asyncio.timeout(30), opened(url_of(proxy), new_schema(), lease=LEASE) as ledger:
        assert (await ledger.claim(job())).is_ours
    assert proxy.struck


async def test_flush_cut_off_amid_a_large_answer_is_ended_by_the_server(postgres: Server, proxy: FaultProxy) -> None:
    schema = new_schema()
    async with opened(url_of(proxy), schema, lease=Lease(beat_s=0.5, silence_s=3)) as ledger:
        await ledger.claim(job())
        postgres.execute(r"UPDATE jobs SET body = decode(repeat('00', 30000000), 'hex')", schema=schema)
        (number,) = postgres.execute("SELECT id FROM owners", schema=schema)

        def claim_and_read(table: PostgresTable) -> Work[None]:
            yield from table.claim(job("b"))
            yield from table.find("order-1")

        proxy.queue(ConnectionFault("stall", words=b"SELECT j.key"))
        call = ledger._submit(claim_and_read, writes=True)
        async with asyncio.timeout(30):
            while not proxy.struck:  # noqa: ASYNC110 - the proxy sets no event
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            while True:  # an observer could bury it
                with suppress(psycopg.errors.LockNotAvailable):
                    postgres.execute(f"SELECT FROM owners WHERE id = {number[0]} FOR UPDATE NOWAIT", schema=schema)
                    break
                await asyncio.sleep(0.2)
            await call


@pytest.mark.parametrize("kind", ["postgres", "pooler"])
async def test_statement_larger_than_the_socket_buffer_is_sent(kind: str, request: pytest.FixtureRequest) -> None:
    async with opened(request.getfixturevalue(kind).url) as ledger:
        large = job("large", body=random.Random(1).randbytes(4_000_000))
        many = [job(f"k{number}", body=b"x" * 1000) for number in range(1500)]
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            claims = [group.create_task(ledger.claim(record)) for record in (large, *many)]
        assert all(claim.result().is_new for claim in claims)
        assert await ledger.find("large") == large


SETTINGS = {
    "statement_timeout": "'20ms'",
    "lock_timeout": "'1ms'",
    "idle_in_transaction_session_timeout": "'500ms'",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "bytea_output": "escape",
    "search_path": "nothing",
}


async def test_settings_of_a_user_change_nothing(postgres: Server) -> None:
    postgres.execute("CREATE ROLE setter LOGIN", "GRANT CREATE ON DATABASE postgres TO setter")
    for name, value in SETTINGS.items():
        postgres.execute(f"ALTER ROLE setter SET {name} = {value}")
    schema = new_schema()
    slow = current_tables().script + "; SELECT pg_sleep(0.1);"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "current_tables", lambda: type(current_tables())(script=slow))
        async with opened(postgres.url.replace(f"{USER}@", "setter@"), schema) as ledger:
            first = job(body=b"\0\xff")
            await ledger.claim(first)
            after = first.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
            await ledger.advance(first, after)
            await asyncio.sleep(0.6)
            assert await ledger.find("order-1") == after


async def test_value_beyond_a_limit_of_the_server_fails_at_once(postgres: Server) -> None:
    key = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=9000))
    async with opened(postgres.url) as ledger:
        with pytest.raises(LedgerError, match="maximum size is") as caught:
            await ledger.claim(job(key))
        assert "no success within" not in caught.value.message


async def test_owner_that_can_not_be_buried_keeps_its_notices(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as one, opened(postgres.url, schema) as two:
        await one.claim(running())
        await two.notify_owner("order-1", "t1")
        clock = asyncio.get_running_loop().time
        settings = Settings(
            url=PostgresUrl.parse(postgres.url, schema),
            read_only=False,
            patience_s=10,
            lease=LEASE,
            clock=clock,
            tenure=Tenure(LEASE),
            outage=outage.ServerOutage(clock),
            closing=threading.Event(),
            on_enlisted_again=lambda *_: None,
        )
        observer = await asyncio.to_thread(connection.connect, settings)
        await asyncio.to_thread(observer._bury, Beat(1, -1, 10.0))  # it has beaten since
        await asyncio.to_thread(observer.close)
        assert await one.take_notices() == [("order-1", "t1")]


async def test_opening_waits_for_a_host_that_migrates(postgres: Server, caplog: pytest.LogCaptureFixture) -> None:
    schema = new_schema()
    lock = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
    with psycopg.connect(postgres.url) as db:
        db.execute(lock, (f"nanobanana_async {schema}",))
        ledger = PostgresLedger(postgres.url, schema=schema, lease=LEASE, patience_s=1)
        with caplog.at_level(logging.WARNING), pytest.raises(LedgerError, match="by another host that migrates"):
            await ledger.open()
        ledger = PostgresLedger(postgres.url, schema=schema, lease=SHORT, patience_s=30)
        async with asyncio.TaskGroup() as group:
            opening = group.create_task(ledger.open())
            await asyncio.sleep(4 * SHORT.beat_s)  # it waits for a lock for one beat at most
            assert not opening.done()
            db.rollback()
    await ledger.aclose()


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may stop."""
    if (reason := why_no_server()) is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


def test_driver_logs_nothing_of_an_error_that_is_raised(postgres: Server, caplog: pytest.LogCaptureFixture) -> None:
    db = driver.connect(PostgresUrl.parse(postgres.url), time.perf_counter, 10.0, read_only=False)

    def run(statement: str) -> None:
        with driver.pipeline_of(db) as pipeline:
            db.execute(statement.encode())
            db.execute(b"SELECT 1")
            pipeline.sync()

    for statement, error in (
        ("SELECT 1 / 0", psycopg.errors.DivisionByZero),
        ("SELECT pg_terminate_backend(pg_backend_pid())", psycopg.OperationalError),
    ):
        with pytest.raises(error):
            run(statement)
    assert db.closed
    assert caplog.records == []


async def test_calls_wait_at_a_standby_until_it_is_promoted(own_server: Server) -> None:
    async with opened(own_server.url, lease=SHORT) as ledger:  # all owners may write again for a lease, before calls
        await ledger.claim(job())
        own_server.crash()
        standby = own_server.folder / "data" / "standby.signal"
        standby.touch()
        if (user := server_user()) is not None:
            shutil.chown(standby, user)
        own_server.start()
        reader = PostgresLedger(own_server.url, schema=ledger._url.schema, read_only=True)
        await reader.open()
        assert await reader.find("order-1") == job()
        await reader.aclose()
        programs = server_programs()
        assert programs is not None
        promote = [str(programs / "pg_ctl"), "promote", "-D", str(own_server.folder / "data")]
        run = partial(subprocess.run, check=True, capture_output=True, cwd=own_server.folder, user=server_user())
        async with asyncio.TaskGroup() as group:
            claim = group.create_task(ledger.claim(job("b")))
            await asyncio.sleep(1)
            assert not claim.done()
            await asyncio.to_thread(run, promote)
        assert claim.result().is_new


async def test_calls_that_wait_are_reported(
    own_server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "SAY_AFTER_S", 0.1)
    async with opened(own_server.url, patience_s=2) as ledger:
        own_server.crash()
        with caplog.at_level(logging.WARNING, "nanobanana_async"), pytest.raises(LedgerError):
            await ledger.claim(job())
        own_server.start()
        said = [record.getMessage() for record in caplog.records if record.name == "nanobanana_async"]
        assert len(said) == 1
        assert said[0].startswith("ledger.away ledger postgresql://")
        assert "the server can't be reached" in said[0]
        assert {record.name for record in caplog.records} == {"nanobanana_async"}
