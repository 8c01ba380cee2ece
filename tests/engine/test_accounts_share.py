"""What several accounts of a session have together: budgets, caps, priorities, groups, adoption."""

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    BatchStopped,
    Budget,
    ConcurrencyPolicy,
    ConfigurationError,
    CreditLimitReached,
    JobState,
    MemoryLedger,
    NanoBananaError,
    Session,
    TransportError,
)
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.engine.test_several_accounts import QUICK, A, Account, B, C, both
from tests.support.fakes import REAL_TIME, virtually
from tests.support.replies import refused

COST = 8
"""What each job of the fake gateway costs."""


class PromptAccount(Account):
    """An account that remembers which prompts it sold, in their order."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.prompts: list[str] = []

    def answer(self, request: HttpRequest) -> Reply:
        before = self.sold
        reply = super().answer(request)
        if self.sold > before:
            self.prompts.append(json.loads(request.body or b"")["prompt"])
        return reply


async def end_of(call: Awaitable[Any]) -> NanoBananaError | None:
    try:
        await call
    except NanoBananaError as error:
        return error
    return None


async def ends_of(*calls: Awaitable[Any]) -> list[NanoBananaError | None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(end_of(call)) for call in calls]
    return [task.result() for task in tasks]


@pytest.mark.parametrize("kind", ["budget", "session", "group"])
@virtually
async def test_cap_counts_the_jobs_of_all_accounts(kind: str) -> None:
    one, two = Account(limit=2), Account(limit=3)
    budget = Budget(name="alice", max_credits=5 * COST)
    caps: dict[str, dict[str, Any]] = {"session": {"max_credits": 5 * COST}, "group": {"budgets": {"a": budget}}}
    async with both(one, two, ledger=MemoryLedger(), **caps.get(kind, {})) as session:
        named: dict[str, dict[str, Any]] = {"budget": {"budget": budget}, "group": {"group": "a"}}
        errors = await ends_of(*(session.generate(f"fox {n}", **named.get(kind, {})) for n in range(20)))
    assert one.sold + two.sold == 5
    assert min(one.sold, two.sold) > 0
    assert [type(error) for error in errors if error is not None] == [CreditLimitReached] * 15


async def test_cap_of_a_named_batch_counts_the_jobs_of_all_accounts(tmp_path: Path) -> None:
    one, two = Account(limit=2, job_s=0.05), Account(limit=3, job_s=0.05)
    transports = [FakeTransport(each.answer, latency_s=0.001) for each in (one, two)]
    for _ in range(2):
        async with Session(QUICK, http=transports, ledger=tmp_path / "jobs.sqlite", polling=REAL_TIME) as session:
            batch = session.generate_many([f"fox {n}" for n in range(20)], batch="spring", max_credits=5 * COST)
            with pytest.raises(BatchStopped, match="40 are spent"):
                assert [outcome.ok async for outcome in batch]
        assert one.sold + two.sold == 5
    assert min(one.sold, two.sold) > 0


@virtually
async def test_job_waits_for_credits_that_the_other_account_may_free() -> None:
    one, two = Account(job_s=30.0), Account(job_s=30.0)
    budget = Budget(name="alice", max_credits=COST)
    async with both(one, two) as session:
        first = await session.submit("a fox", budget=budget)
        await first.wait_for_task_id()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(end_of(session.generate("a hare", budget=budget)))
            await asyncio.sleep(10.0)
            assert not waiting.done()
        await first
    error = waiting.result()
    assert isinstance(error, CreditLimitReached)
    assert error.budget == "alice"
    assert one.sold + two.sold == 1


@virtually
async def test_moved_job_keeps_its_budget_priority_and_group() -> None:
    one, two, ledger = Account(limit=1, job_s=60.0), Account(limit=1, job_s=20.0), MemoryLedger()
    budget = Budget(name="alice", max_credits=100)
    async with both(one, two, ledger=ledger, concurrency=ConcurrencyPolicy(max_jobs=1)) as session:
        busy = [await session.submit(f"fox {n}") for n in range(2)]
        await ends_of(*(job.wait_for_task_id() for job in busy))
        jobs = [await session.submit(f"hare {n}", idempotency_key=f"hare-{n}", priority=3, group="g") for n in range(4)]
        # A later caller names a budget for jobs that wait and have none.
        again = [await session.submit(f"hare {n}", idempotency_key=f"hare-{n}", budget=budget) for n in range(4)]
        assert await ends_of(*jobs, *again, *busy) == [None] * 10
        moved = [job.key for job in jobs if (record := await ledger.find(job.key)) and record.generation > 1]
        state = (await session.budgets())["alice"]
    assert moved
    assert state.spent == 4 * COST
    assert one.sold + two.sold == 6


@virtually
async def test_moved_job_takes_the_slots_that_its_new_account_counts() -> None:
    one, two, ledger = Account(job_s=600.0), Account(job_s=20.0), MemoryLedger()
    accounts = [ApiMall(api_key="sk-one-0123456789"), ApiMall(api_key="sk-two-0123456789", slots_per_image=True)]
    transports = [FakeTransport(each.answer) for each in (one, two)]
    six = ConcurrencyPolicy(max_jobs=6)
    async with Session(accounts, http=transports, ledger=ledger, concurrency=six) as session:
        jobs = [await session.submit(f"fox {n}", num_images=3, idempotency_key=f"fox-{n}") for n in range(12)]
        await ends_of(*(job.wait_for_task_id() for job in jobs))
        records = [await ledger.find(job.key) for job in jobs]
    moved = [record.slots for record in records if record and record.generation > 1]
    assert moved
    assert set(moved) == {3}
    assert [record.slots for record in records if record and record.account == accounts[0].account] == [1] * one.sold


@virtually
async def test_urgent_job_goes_before_those_that_wait_with_each_account() -> None:
    one, two = PromptAccount(limit=1, job_s=20.0), PromptAccount(limit=1, job_s=20.0)
    async with both(one, two, concurrency=ConcurrencyPolicy(max_jobs=1)) as session:
        slow = [await session.submit(f"fox {n}") for n in range(10)]
        await slow[0].wait_for_task_id()
        urgent = [await session.submit(f"hare {n}", priority=5) for n in range(2)]
        assert await ends_of(*urgent, *slow) == [None] * 12
    assert "hare" in one.prompts[1]
    assert "hare" in two.prompts[1]


@virtually
async def test_moves_follow_the_turns_of_groups() -> None:
    one, two = PromptAccount(limit=1, job_s=1000.0), PromptAccount(limit=2, job_s=20.0)
    two.refuses = refused(402, message="no credits")
    async with both(one, two, concurrency=ConcurrencyPolicy(max_jobs=1), prefer=["b"]) as session:
        first = await session.submit("first")  # the second account rests, and the first one has its slot taken
        await first.wait_for_task_id()
        two.refuses = None
        jobs = [await session.submit(f"a {n}", group="a") for n in range(6)]
        jobs += [await session.submit(f"b {n}", group="b") for n in range(2)]
        jobs += [await session.submit("urgent", priority=1)]
        assert await ends_of(first, *jobs) == [None] * 10
    assert one.prompts == ["first"]
    assert two.prompts[0] == "urgent"
    assert {"b 0", "b 1"} <= set(two.prompts[:5])


@virtually
async def test_session_adopts_the_jobs_of_all_its_accounts() -> None:
    one, two, ledger = Account(job_s=50.0), Account(job_s=50.0), MemoryLedger()
    async with both(one, two, ledger=ledger) as session:
        for n in range(4):
            job = await session.submit(f"fox {n}", idempotency_key=f"fox-{n}")
            await job.wait_for_task_id()
    assert one.sold + two.sold == 4
    async with both(one, two, ledger=ledger, adopt="buy", adopt_every_s=5.0) as session:
        await asyncio.sleep(100.0)
        done = session.stats().succeeded
        assert not await session.resume(buy=True)
    assert done == 4
    assert one.sold + two.sold == 4


@virtually
async def test_job_in_doubt_is_left_to_its_account_by_a_session_without_it() -> None:
    ledger, one, two = MemoryLedger(), Account(), Account()

    def loses(request: HttpRequest) -> Reply:
        one.answer(request)
        return TransportError("reset", possibly_sent=True)

    async with Session([A, B], http=[FakeTransport(loses), FakeTransport(two.answer)], ledger=ledger) as session:
        doubtful = await session.submit("a fox", idempotency_key="order-1")
        await asyncio.sleep(1.0)
        assert doubtful.state is JobState.SUBMITTING
    record = await ledger.find("order-1")
    assert record is not None
    assert (record.state, record.account) == (JobState.SUBMITTING, A.account)
    async with Session([B], http=FakeTransport(two.answer), ledger=ledger, adopt="buy") as session:
        with pytest.raises(Exception, match="apimall:a"):
            await session.generate("a fox", idempotency_key="order-1")
        assert not await session.resume(buy=True)
    async with Session(
        [B, A], http=[FakeTransport(two.answer), FakeTransport(one.answer)], ledger=ledger, prefer=["b"]
    ) as session:
        await session.generate("a fox", idempotency_key="order-1")
    assert (one.sold, two.sold) == (1, 0)


@virtually
async def test_budget_over_two_gateways_is_refused_before_anything_is_stored() -> None:
    one, two, ledger = Account(), Account(), MemoryLedger()
    budget = Budget(name="alice", max_credits=100)
    with pytest.raises(ConfigurationError, match="accounts of one gateway"):
        Session([A, C], budgets={"a": budget})
    async with Session([A, C], http=[FakeTransport(one.answer), FakeTransport(two.answer)], ledger=ledger) as session:
        with pytest.raises(ConfigurationError, match="accounts of one gateway"):
            await session.generate("a fox", budget=budget, idempotency_key="order-1")
        assert await session.job("order-1") is None
        assert not await session.budgets()
    assert one.sold + two.sold == 0
