"""Flushes of the ledger on PostgreSQL: many calls become few statements, and each call ends as if it ran alone."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from attrs import evolve

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Allowance, Claim, TaskTaken
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.policy.prices import Price
from tests.support.ledger_contract import EIGHT, GUESS, NOON, job, sent
from tests.support.postgres import Server, new_schema

pytestmark = pytest.mark.slow


@pytest.fixture
async def ledger(postgres: Server) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(postgres.url, schema=new_schema(), patience_s=10)
    await ledger.open()
    yield ledger
    await ledger.aclose()


async def ends_of(calls: Iterable[Any]) -> list[Any]:
    """Make calls in one turn of the event loop, so that they share a flush; return their results and errors."""
    return await asyncio.gather(*calls, return_exceptions=True)


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


async def test_one_bad_row_among_a_hundred_writes_fails_alone(ledger: PostgresLedger) -> None:
    records = [job(f"k{number}") for number in range(100)]
    assert all(claim.is_new for claim in await ends_of(map(ledger.claim, records)))
    wanted = [submitting(record) for record in records]
    wanted[40] = evolve(wanted[40], attempts=2**40)  # no integer of PostgreSQL
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


async def test_hosts_that_claim_the_same_keys_in_opposite_orders_do_not_deadlock(postgres: Server) -> None:
    schema, keys = new_schema(), [f"k{number:03}" for number in range(200)]
    (before,) = postgres.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    async with AsyncExitStack() as stack:
        ledgers = [PostgresLedger(postgres.url, schema=schema) for _ in range(2)]
        for ledger in ledgers:
            await ledger.open()
            stack.push_async_callback(ledger.aclose)
        for turn in range(10):
            mine = [f"{turn}-{key}" for key in keys]
            ends = await asyncio.gather(
                *(
                    ends_of(ledger.claim(job(key)) for key in ordered)
                    for ledger, ordered in zip(ledgers, (mine, mine[::-1]), strict=True)
                )
            )
            assert all(isinstance(end, Claim) for end in ends[0] + ends[1])
            new = [one.is_new + other.is_new for one, other in zip(ends[0], reversed(ends[1]), strict=True)]
            assert new == [1] * 200
    # The server counts a connection's deadlocks at its end, if not before.
    after = postgres.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert after == [before]


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
