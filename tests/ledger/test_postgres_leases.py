"""Ownership on PostgreSQL: leases, burials, and owners that come back after theirs."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.base import NotOurs
from nanobanana_async.ledger.postgres import connection, leases
from nanobanana_async.ledger.postgres.connection import PostgresConnection
from nanobanana_async.ledger.postgres.leases import Beat, Lease, Tenure, Watch
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.pipeline import Statement
from tests.ledger.child import line
from tests.ledger.postgres_child import host, say_to
from tests.support.clocks import leap
from tests.support.ledger_contract import NOON, job, keys_left, running
from tests.support.mutations import patched
from tests.support.postgres import SHORT, Server, new_schema, running_server, why_no_server

LEASE = Lease(beat_s=2.0, silence_s=10.0)


def test_owner_is_dead_after_a_lease_without_a_beat() -> None:
    watch = Watch(LEASE)
    for second in range(0, 12, 2):
        assert watch.observe([Beat(1, 7, 10.0), Beat(2, second, 10.0)], second) == []
    assert watch.observe([Beat(1, 7, 10.0), Beat(2, 12, 10.0)], 12) == [Beat(1, 7, 10.0)]


def test_each_owner_has_the_lease_that_it_states() -> None:
    watch = Watch(LEASE)
    beats = [Beat(1, 0, 3.0), Beat(2, 0, 10.0)]
    assert watch.observe(beats, 0) == watch.observe(beats, 2) == []
    assert watch.observe(beats, 4) == beats[:1]


def test_silence_counts_only_while_our_own_beats_get_through() -> None:
    watch = Watch(LEASE)
    for second in (0, 2, 4, 6, 8):
        assert watch.observe([Beat(1, 7, 10.0)], second) == []
    watch.beat_failed()
    assert watch.observe([Beat(1, 7, 10.0)], 10.5) == []
    assert watch.observe([Beat(1, 7, 10.0)], 12.5) == []


def test_silence_starts_again_after_the_observer_was_suspended() -> None:
    watch = Watch(LEASE)
    assert watch.observe([Beat(1, 7, 10.0)], 0) == []
    assert watch.observe([Beat(1, 7, 10.0)], 60) == []
    assert watch.observe([Beat(1, 7, 10.0)], 62) == []


def test_lease_of_less_than_three_beats_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least three beats"):
        Lease(beat_s=2.0, silence_s=5.0)


@pytest.mark.parametrize(("beat_s", "silence_s"), [(0.4, 1.2), (0.1, 0.3), (1.1, 3.3), (2.3, 6.9)])
def test_lease_of_exactly_three_beats_is_taken(beat_s: float, silence_s: float) -> None:
    assert Lease(beat_s=beat_s, silence_s=silence_s).silence_s == silence_s


@asynccontextmanager
async def opened(
    url: str, schema: str, lease: Lease = SHORT, *, patience_s: float | None = 10
) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(url, schema=schema, lease=lease, patience_s=patience_s)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


async def until_adoptable(ledger: PostgresLedger, keys: list[str]) -> None:
    async with asyncio.timeout(20):
        while await keys_left(ledger) != keys:  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_jobs_of_a_killed_host_are_adopted(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as ledger, host("hold", postgres.url, schema) as other:
        assert await line(other) == "held"
        claim = await ledger.claim(job("x-1"))
        assert not claim.is_ours
        assert await ledger.count_foreign_slots("mine") == 1
        other.kill()
        await until_adoptable(ledger, ["x-1", "x-2"])
        for key in ("x-1", "x-2"):
            adopted = await ledger.adopt(key)
            assert adopted is not None
            assert adopted.is_ours
        record = (await ledger.claim(job("x-1"))).record
        await ledger.advance(record, record.transition_to(JobState.SUBMITTING, first_sent_at=NOON))
        assert await ledger.count_foreign_slots("mine") == 0


@pytest.mark.slow
async def test_suspended_owner_is_buried_and_may_write_nothing_of_its_jobs(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as ledger, host("hold", postgres.url, schema) as other:
        assert await line(other) == "held"
        other.send_signal(signal.SIGSTOP)
        await until_adoptable(ledger, ["x-1", "x-2"])
        await say_to(other)  # it reads this when it goes on, perhaps before it notices its burial
        other.send_signal(signal.SIGCONT)
        assert await line(other) == "NotOurs"
        await say_to(other)
        assert await line(other) == "NotOurs"
        assert await ledger.find("x-1") == job("x-1")
        await ledger.adopt("x-1")
        await say_to(other, "")
        assert await other.wait() == 0  # it closes in order, and releases nothing that is ours
        assert await keys_left(ledger) == ["x-2"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["stall", "stall_sending"])
async def test_host_suspended_within_a_flush_does_not_hold_its_jobs(postgres: Server, stop: str) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as ledger, host(stop, postgres.url, schema) as other:
        assert await line(other) == "held"
        await say_to(other)  # it writes, and stops before its commit: its row stays locked until that flush is ended
        await until_adoptable(ledger, ["x-1", "x-2"])
        other.send_signal(signal.SIGCONT)
        assert await line(other) == "written"  # by its new number: to claim a key needs no owner before
        assert await ledger.find("x-3") == job("x-3")


@pytest.mark.slow
async def test_list_waits_for_owners_that_may_be_dead(postgres: Server) -> None:
    schema = new_schema()
    async with host("hold", postgres.url, schema) as other:
        assert await line(other) == "held"
        other.kill()
        await asyncio.sleep(SHORT.silence_s + 0.2)
        async with opened(postgres.url, schema) as ledger:  # it has not watched that owner yet
            assert await keys_left(ledger) == ["x-1", "x-2"]


BURIED = ("UPDATE owners SET buried_by = 99", "UPDATE jobs SET owner = NULL")


@pytest.mark.slow
async def test_buried_owner_goes_on_under_a_new_number(postgres: Server) -> None:
    schema, burials = new_schema(), list[bool]()
    async with opened(postgres.url, schema, Lease(beat_s=60.0, silence_s=600.0)) as ledger:  # no beat finds it first
        ledger.on_burial(lambda: burials.append(ledger.surely_owns))
        await ledger.claim(running())
        assert ledger.surely_owns
        postgres.execute(*BURIED, schema=schema)
        with pytest.raises(NotOurs, match="is not owned by this ledger") as caught:
            await ledger.advance(running(), running().transition_to(JobState.SUCCEEDED))
        assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", False)
        assert burials == [True]
        assert (await ledger.claim(running())).is_ours
        await ledger.advance(running(), running().transition_to(JobState.SUCCEEDED))
        assert postgres.execute("SELECT count(*), count(buried_by) FROM owners", schema=schema) == [(2, 1)]
        assert [owner.refused for owner in (await ledger.overview()).owners] == [1]


@pytest.mark.slow
async def test_idle_owner_notices_its_burial_by_its_beat(postgres: Server) -> None:
    schema, buried = new_schema(), asyncio.Event()
    async with opened(postgres.url, schema) as ledger:
        ledger.on_burial(buried.set)
        postgres.execute(*BURIED, schema=schema)
        await asyncio.wait_for(buried.wait(), 20)
        assert (await ledger.claim(running())).is_ours


@pytest.mark.slow
async def test_refused_write_fails_alone_and_other_calls_are_made_again(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema, Lease()) as ledger:  # its next beat is far away
        await ledger.claim(running())
        postgres.execute(*BURIED, schema=schema)
        stale = ledger.advance(running(), running().transition_to(JobState.SUCCEEDED))
        refused, new, known = await asyncio.gather(  # noqa: TID251 - the error is looked at
            stale, ledger.claim(job("new")), ledger.find("order-1"), return_exceptions=True
        )
        assert isinstance(refused, NotOurs)
        assert not isinstance(new, BaseException)
        assert (new.is_new, new.is_ours, known) == (True, True, running())


@pytest.mark.slow
async def test_any_owner_may_say_that_a_parked_job_runs(postgres: Server) -> None:
    schema = new_schema()
    sent = job("a").transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    parked = sent.transition_to(JobState.UNCERTAIN, in_doubt=True)
    async with opened(postgres.url, schema) as ledger, opened(postgres.url, schema) as heir:
        await ledger.claim(job("a"))
        await ledger.advance(job("a"), sent)
        postgres.execute("UPDATE owners SET buried_by = 99 WHERE id = 1", BURIED[1], schema=schema)
        assert (await heir.claim(job("a"))).is_ours
        await heir.advance(sent, parked)
        await ledger.advance(parked, parked.transition_to(JobState.RUNNING, task_id="t1"))
        assert not (await heir.claim(job("a"))).is_ours


def test_owner_is_sure_for_a_lease_less_a_beat_since_its_last_beat() -> None:
    times = [0.0]
    tenure = Tenure(LEASE, lambda: times[0])
    assert not tenure.is_sure
    tenure.on_beat(7, sent_at=1.0)
    assert not tenure.is_sure  # the session does not know of owner 7 yet
    tenure.owner = 7
    for times[0], sure in ((1.0, True), (8.9, True), (9.0, False), (100.0, False)):
        assert tenure.is_sure is sure
    tenure.on_beat(7, sent_at=99.0)
    assert tenure.is_sure
    tenure.on_beat(8, sent_at=99.5)
    assert not tenure.is_sure  # owner 7 was buried, and the session does not know it yet


def bury_in_two_steps(self: PostgresConnection, dead: Beat) -> None:
    """Bury an owner, and release its jobs in another transaction: a deliberate bug."""
    values = {"dead": dead.owner, "count": dead.count}
    for statement in (leases.BURY, leases.RELEASES_OF_BURIED[0]):
        with self._transaction(fenced=True) as send:
            send([Statement(statement, values, returns_rows=statement is leases.BURY)])


@pytest.mark.slow
@pytest.mark.parametrize("in_two_steps", [False, True])
async def test_burial_and_release_are_one_transaction(postgres: Server, in_two_steps: bool) -> None:
    schema = new_schema()
    bury, tried = bury_in_two_steps if in_two_steps else PostgresConnection._bury, threading.Event()

    def bury_and_say(self: PostgresConnection, dead: Beat) -> None:
        try:
            bury(self, dead)
        finally:
            tried.set()

    async with opened(postgres.url, schema) as ledger, host("hold", postgres.url, schema) as other:
        assert await line(other) == "held"
        await ledger.count_by_state()
        fails = (leases, "RELEASES_OF_BURIED", ("SELECT 1 / 0",))
        with patched([fails, (PostgresConnection, "_bury", bury_and_say)]):
            other.kill()
            assert await asyncio.to_thread(tried.wait, 20)
            # A release that fails undoes the burial; the deliberate bug leaves a buried owner that has jobs.
            assert postgres.execute("SELECT count(buried_by) FROM owners", schema=schema) == [(int(in_two_steps),)]
        if not in_two_steps:
            await until_adoptable(ledger, ["x-1", "x-2"])


@pytest.mark.slow
async def test_closing_releases_all_jobs_at_once(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema, Lease()) as ledger:
        async with opened(postgres.url, schema, Lease()) as other:
            await other.claim(running())
            assert not (await ledger.claim(running())).is_ours
        assert await keys_left(ledger) == ["order-1"]
        assert postgres.execute("SELECT count(*) FROM owners", schema=schema) == [(1,)]


@pytest.mark.slow
async def test_reader_lists_the_jobs_of_a_silent_owner(postgres: Server) -> None:
    schema = new_schema()
    async with host("hold", postgres.url, schema) as other:
        assert await line(other) == "held"
        reader = PostgresLedger(postgres.url, schema=schema, read_only=True)
        await reader.open()
        assert await keys_left(reader) == []
        assert await reader.has_owner("x-1")
        other.kill()
        await until_adoptable(reader, ["x-1", "x-2"])
        assert not await reader.has_owner("x-1")
        assert (await reader.count_unowned()).total() == 2
        with pytest.raises(LedgerError, match="opened read-only"):
            await reader.claim(job("b"))
        await reader.aclose()


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may crash."""
    if (reason := why_no_server()) is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


@pytest.mark.slow
async def test_server_crash_loses_nothing_and_buries_no_living_owner(own_server: Server) -> None:
    schema, lease = new_schema(), Lease(beat_s=0.5, silence_s=4.0)  # long enough for a machine under load
    acknowledged: list[str] = []

    async def write(ledger: PostgresLedger, name: str) -> None:
        for number in range(60):
            record = job(f"{name}-{number}")
            assert (await ledger.claim(record)).is_new
            after = record.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
            await ledger.advance(record, after)
            acknowledged.append(record.key)

    async with opened(own_server.url, schema, lease) as one, opened(own_server.url, schema, lease) as two:
        async with asyncio.TaskGroup() as group:
            for writer in range(4):
                group.create_task(write(one, f"one-{writer}"))
                group.create_task(write(two, f"two-{writer}"))
            while len(acknowledged) < 100:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.to_thread(own_server.crash)
            await asyncio.sleep(1.5 * lease.silence_s)  # all are silent for longer than their leases
            await asyncio.to_thread(own_server.start)
        await asyncio.sleep(1.5 * lease.silence_s)
        assert own_server.execute("SELECT count(*), count(buried_by) FROM owners", schema=schema) == [(2, 0)]
        assert len(acknowledged) == 8 * 60
        for key in acknowledged:
            found = await one.find(key)
            assert found is not None
            assert found.state is JobState.SUBMITTING


@pytest.mark.slow
async def test_calls_wait_for_a_server_that_is_away_and_the_log_says_so(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    schema = new_schema()
    async with opened(own_server.url, schema, patience_s=None) as ledger:
        await ledger.claim(job("a"))
        await asyncio.to_thread(own_server.crash)
        try:
            waiting = asyncio.Task(ledger.claim(job("b")))
            async with asyncio.timeout(20):
                while ledger.outage is None:  # noqa: ASYNC110 - the writer's thread sets no event
                    await asyncio.sleep(0.05)
            assert "can't be reached" in ledger.outage
            assert not ledger.surely_owns
            assert "nothing is bought until it is back" in caplog.text
            assert not waiting.done()
        finally:
            await asyncio.to_thread(own_server.start)
        assert (await waiting).is_new
        assert ledger.outage is None
        assert "ledger.back" in caplog.text


@pytest.mark.slow
async def test_closing_does_not_wait_for_ever_for_a_server_that_is_away(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CLOSING_PATIENCE_S", 1.0)
    schema = new_schema()
    ledger = PostgresLedger(own_server.url, schema=schema, lease=SHORT)
    await ledger.open()
    await asyncio.to_thread(own_server.crash)
    try:
        waiting = asyncio.Task(ledger.claim(job("a")))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(30):
            await ledger.aclose()
        with pytest.raises(LedgerError, match="no success before the ledger was closed"):
            await waiting
    finally:
        await asyncio.to_thread(own_server.start)


@pytest.mark.slow
async def test_call_fails_when_the_server_stays_away(own_server: Server) -> None:
    schema = new_schema()
    ledger = PostgresLedger(own_server.url, schema=schema, lease=SHORT, patience_s=60)
    await ledger.open()
    await ledger.claim(job("a"))
    await asyncio.to_thread(own_server.crash)
    try:
        claim = asyncio.Task(ledger.claim(job("b")))
        async with asyncio.timeout(20):
            while ledger.outage is None:  # noqa: ASYNC110 - the writer's thread sets no event
                await asyncio.sleep(0.05)
        leap(60.0)
        with pytest.raises(LedgerError, match=r"can't be reached.*no success within 60 s") as caught:
            await claim
        assert (caught.value.key, caught.value.safe_to_repeat) == ("b", True)
    finally:
        await asyncio.to_thread(own_server.start)
    assert (await ledger.claim(job("b"))).is_new
    await ledger.aclose()


@pytest.mark.slow
async def test_ended_connection_is_replaced(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema, Lease()) as ledger:
        await ledger.claim(running())
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nanobanana_async'"
        )
        await ledger.advance(running(), running().transition_to(JobState.SUCCEEDED, ended_at=NOON))
        assert (await ledger.count_by_state())[JobState.SUCCEEDED] == 1
