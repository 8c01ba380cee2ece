"""Flushes of the ledger on PostgreSQL: many calls become few statements, and each call ends as if it ran alone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from attrs import evolve

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Allowance, Claim, TaskTaken
from nanobanana_async.ledger.postgres import connection, problems
from nanobanana_async.ledger.postgres.leases import Lease
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.pipeline import Work
from nanobanana_async.ledger.postgres.statements import PostgresTable
from nanobanana_async.policy.prices import Price
from tests.support.ledger_contract import EIGHT, GUESS, NOON, job, sent
from tests.support.postgres import Server, new_schema

pytestmark = pytest.mark.slow


LEASE = Lease(silence_s=600.0)
"""Longer than any transaction is held here: a host that waits for one is silent."""


async def ends_of(calls: Iterable[Any]) -> list[Any]:
    """Make calls in one turn of the event loop, so that they share a flush; return their results and errors."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(end_of(call)) for call in calls]
    return [task.result() for task in tasks]


async def end_of(call: Any) -> Any:
    try:
        return await call
    except LedgerError as error:
        return error


@asynccontextmanager
async def opened(ledger: PostgresLedger) -> AsyncIterator[PostgresLedger]:
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


def claim_and_hold(record: JobRecord, may_commit: threading.Event) -> Callable[[PostgresTable], Work[None]]:
    def work(table: PostgresTable) -> Work[None]:
        yield from table.claim(record)
        assert may_commit.wait(50)

    return work


async def until_waiting(postgres: Server, transactions: int) -> None:
    """Wait until so many transactions wait for another one, and one stands open."""
    states = (
        "SELECT count(*) FILTER (WHERE wait_event_type = 'Lock'),"
        " count(*) FILTER (WHERE state = 'idle in transaction') FROM pg_stat_activity"
    )
    async with asyncio.timeout(40):
        while await asyncio.to_thread(postgres.execute, states) != [(transactions, 1)]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.fixture
async def ledger(postgres: Server) -> AsyncIterator[PostgresLedger]:
    async with opened(PostgresLedger(postgres.url, schema=new_schema(), lease=LEASE, patience_s=60)) as ledger:
        yield ledger


def submitting(record: JobRecord) -> JobRecord:
    return record.transition_to(JobState.SUBMITTING, first_sent_at=NOON)


async def test_claim_and_write_of_one_job_in_one_flush_run_in_their_order(ledger: PostgresLedger) -> None:
    first = job()
    after = submitting(first)
    claims = await ends_of([ledger.claim(first), ledger.advance(first, after), ledger.claim(first)])
    assert claims == [Claim(record=first, is_new=True, is_ours=True), None, Claim(record=after, is_ours=True)]


async def test_writes_of_one_job_in_one_flush_run_in_their_order(ledger: PostgresLedger) -> None:
    first = job()
    await ledger.claim(first)
    second = submitting(first)
    third = second.transition_to(JobState.RUNNING, task_id="t1")
    fourth = third.transition_to(JobState.SUCCEEDED, ended_at=NOON)
    assert await ends_of([ledger.advance(first, second), ledger.advance(second, third)]) == [None, None]
    early, last = await ends_of([ledger.advance(fourth, evolve(fourth, revision=4)), ledger.advance(third, fourth)])
    assert isinstance(early, LedgerError)
    assert last is None
    assert await ledger.find(first.key) == fourth


@pytest.mark.parametrize("attempts", [2**40, "two"], ids=["refused by the server", "refused by the driver"])
async def test_one_bad_row_among_a_hundred_writes_fails_alone(ledger: PostgresLedger, attempts: Any) -> None:
    records = [job(f"k{number}") for number in range(100)]
    assert all(claim.is_new for claim in await ends_of(map(ledger.claim, records)))
    wanted = [submitting(record) for record in records]
    wanted[40] = evolve(wanted[40], attempts=attempts)
    ends = await ends_of(ledger.advance(*pair) for pair in zip(records, wanted, strict=True))
    assert isinstance(ends.pop(40), LedgerError)
    assert ends == [None] * 99
    assert await ledger.count_by_state() == {JobState.SUBMITTING: 99, JobState.PENDING: 1}
    assert await ledger.find("k40") == records[40]


async def test_stale_writes_among_a_hundred_fail_alone(ledger: PostgresLedger) -> None:
    records = [job(f"k{number}") for number in range(100)]
    await ends_of(map(ledger.claim, records))
    await ends_of(ledger.advance(record, submitting(record)) for record in records[::10])
    ends = await ends_of(ledger.advance(record, record.transition_to(JobState.WITHDRAWN)) for record in records)
    assert [number for number, end in enumerate(ends) if end is not None] == list(range(0, 100, 10))
    assert all("was changed by another owner" in str(end) for end in ends if end is not None)
    assert await ledger.count_by_state() == {JobState.SUBMITTING: 10, JobState.WITHDRAWN: 90}


async def test_two_jobs_of_one_flush_can_not_take_one_task(ledger: PostgresLedger) -> None:
    records = [sent(f"k{number}") for number in range(10)]
    await ends_of(map(ledger.claim, records))
    tasks = ["t0", "t1", "t0", *(f"t{number}" for number in range(3, 10))]
    pairs = zip(records, tasks, strict=True)
    ends = await ends_of(
        ledger.advance(record, record.transition_to(JobState.RUNNING, task_id=task)) for record, task in pairs
    )
    taken = ends.pop(2)
    assert isinstance(taken, TaskTaken)
    assert (taken.holder, taken.task_id, taken.key) == ("k0", "t0", "k2")
    assert ends == [None] * 9


async def test_attached_task_of_a_job_that_was_never_sent_is_shared(ledger: PostgresLedger) -> None:
    records = [job("a"), job("b")]
    await ends_of(map(ledger.claim, records))
    ends = await ends_of(
        ledger.advance(record, evolve(record, revision=1, state=JobState.RUNNING, task_id="t1")) for record in records
    )
    assert ends == [None, None]


async def test_hosts_that_claim_the_same_keys_in_opposite_orders_do_not_deadlock(
    ledger: PostgresLedger, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated: list[Exception] = []

    def is_transient(error: Exception) -> bool:
        repeated.append(error)
        return problems.is_transient(error)

    monkeypatch.setattr(connection, "is_transient", is_transient)
    records = [job(key) for key in "abc"]
    async with AsyncExitStack() as stack:
        other, third = [
            await stack.enter_async_context(
                opened(PostgresLedger(postgres.url, schema=ledger._url.schema, lease=LEASE))
            )
            for _ in range(2)
        ]
        may_commit = threading.Event()
        async with asyncio.TaskGroup() as group:
            # Until the third host commits "b", the two wait for it, each with its first key: they meet for certain.
            group.create_task(end_of(third._submit(claim_and_hold(records[1], may_commit), writes=True)))
            await until_waiting(postgres, 0)
            claims = [
                group.create_task(ends_of(map(host.claim, ordered)))
                for host, ordered in ((ledger, records), (other, records[::-1]))
            ]
            await until_waiting(postgres, 2)
            may_commit.set()
        ends = [end for claim in claims for end in claim.result()]
    assert sorted(claim.record.key for claim in ends if claim.is_new) == ["a", "c"]
    assert not any(isinstance(error, psycopg.errors.DeadlockDetected) for error in repeated)


async def buy(ledger: PostgresLedger, record: JobRecord, price: Price, cap: int) -> Allowance:
    return await ledger.advance_and_reserve(record, submitting(record), price, Decimal(cap))


async def test_purchases_of_one_flush_share_the_caps_of_their_batches(ledger: PostgresLedger) -> None:
    names = ("a", "b", "c")
    records = [job(f"{name}-{number}", batch=batch_key_prefix(name)) for number in range(4) for name in names]
    await ends_of(map(ledger.claim, records))
    allowances = await ends_of(buy(ledger, record, EIGHT, 16) for record in records)
    assert [allowance.refusal is None for allowance in allowances] == [True] * 6 + [False] * 6
    assert set(allowances[-1].ours_may_free) == {"c-0", "c-1"}
    assert [await ledger.spent_or_reserved(name) for name in names] == [16, 16, 16]
    accepted = [submitting(record) for record in records[:6]]
    ended = [
        record.transition_to(JobState.RUNNING, task_id=f"t-{record.key}", credits_used=Decimal(number))
        for number, record in enumerate(accepted, 1)
    ]
    assert await ends_of(ledger.advance(*pair) for pair in zip(accepted, ended, strict=True)) == [None] * 6
    assert [await ledger.spent_or_reserved(name) for name in names] == [1 + 4, 2 + 5, 3 + 6]


async def test_price_of_one_job_reprices_the_estimates_of_all_batches(ledger: PostgresLedger) -> None:
    records = [job(f"{name}-1", batch=batch_key_prefix(name)) for name in ("a", "b")]
    await ends_of(map(ledger.claim, records))
    assert [end.refusal for end in await ends_of(buy(ledger, record, GUESS, 100) for record in records)] == [None] * 2
    before = submitting(records[0])
    await ledger.advance(before, before.transition_to(JobState.RUNNING, task_id="t1", credits_used=Decimal(3)))
    assert [await ledger.spent_or_reserved(name) for name in ("a", "b")] == [3, 3]


async def test_price_that_is_known_already_is_not_locked(ledger: PostgresLedger, postgres: Server) -> None:
    async def running_at_eight(key: str) -> None:
        first = job(key, batch=batch_key_prefix("b"))
        await ledger.claim(first)
        assert (await buy(ledger, first, EIGHT, 100)).refusal is None
        after = submitting(first)
        await ledger.advance(
            after, after.transition_to(JobState.RUNNING, task_id=f"t-{key}", credits_used=EIGHT.credits)
        )

    await running_at_eight("b-1")
    with psycopg.connect(postgres.url) as db:
        locked = db.execute(f"SELECT credits FROM {ledger._url.schema}.prices FOR UPDATE".encode()).fetchall()
        assert locked == [(EIGHT.credits,)]
        await running_at_eight("b-2")
    assert await ledger.spent_or_reserved("b") == 16
