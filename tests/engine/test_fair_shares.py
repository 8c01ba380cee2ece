"""Priorities and fair shares in a session: who waits how long beside a large batch, on virtual time."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import pytest

from nanobanana_async import ConcurrencyPolicy, Session
from nanobanana_async.errors import ConfigurationError, NanoBananaError
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.policy.fair_queue import FLOOR_EVERY
from nanobanana_async.testing import FakeTransport, run_virtual
from tests.batch.fakes import PromptGateway, all_of, slots
from tests.support.fakes import RecordingLedger, apimall, now, virtually
from tests.support.replies import refused
from tests.support.shared_ledger import LedgerView, SharedLedger

LIMIT = 10


def rows(count: int, name: str = "row", *, mean_s: float = 20.0) -> list[str]:
    """Return prompts of jobs that take about so long."""
    dice = random.Random(count)
    return [f"{dice.uniform(0.75, 1.25) * mean_s:.2f} s, {name} {number}" for number in range(count)]


async def all_done(*calls: Coroutine[Any, Any, Any]) -> None:
    """Run calls that begin in this order."""
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call)


def most_ahead(sold: Sequence[str]) -> int:
    """Return by how many jobs one of the groups a and b was ahead at most, while both had some to be sold."""
    names = [prompt[0] for prompt in sold]
    last = min(len(names) - names[::-1].index(each) for each in "ab")
    return max(abs(names[:count].count("a") - names[:count].count("b")) for count in range(last))


async def batch(session: Session) -> None:
    await all_of(session.generate_many(rows(500)))


async def calls_of_one_user(session: Session) -> None:
    await all_done(*(session.generate(prompt, group="busy") for prompt in rows(500)))


async def nothing(_: Session) -> None:
    pass


async def mean_time_of_nine_users(other: Callable[[Session], Coroutine[Any, Any, None]]) -> float:
    """Return how long the calls of nine users take in the mean, beside what another one does."""
    took: list[float] = []

    async def buy(session: Session, user: int) -> None:
        for prompt in rows(4, f"user {user}"):
            await asyncio.sleep(15.0 + 2.0 * user)
            begun = now()
            await session.generate(prompt, group=f"user {user}")
            took.append(now() - begun)

    gateway = PromptGateway()
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(LIMIT)) as session:
        tenth = asyncio.Task(other(session))
        async with asyncio.TaskGroup() as group:
            for user in range(9):
                group.create_task(buy(session, user))
        assert other is nothing or not tenth.done()
        tenth.cancel()
        await asyncio.wait([tenth])
    return sum(took) / len(took)


@pytest.mark.slow
@pytest.mark.parametrize("other", [batch, calls_of_one_user])
def test_nine_users_hardly_wait_longer_beside_500_rows(other: Callable[[Session], Coroutine[Any, Any, None]]) -> None:
    alone, beside = (run_virtual(mean_time_of_nine_users(each)) for each in (nothing, other))
    assert beside <= 1.5 * alone


@pytest.mark.parametrize("turn", [{}, {"group": "web"}, {"priority": 1}])
@virtually
async def test_single_request_gets_the_next_free_slot_beside_a_batch(turn: dict[str, Any]) -> None:
    gateway = PromptGateway()
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(LIMIT)) as session:
        running = asyncio.Task(batch(session))
        for _ in range(5):
            await asyncio.sleep(33.0)
            sold = len(gateway.sold)
            job = await session.submit("1 s, single", **turn)
            await job.wait_for_task_id()
            assert gateway.sold[sold:].index("1 s, single") <= 1  # a create may have been in flight already
        running.cancel()
        await asyncio.wait([running])


@virtually
async def test_group_is_served_in_order_and_beside_others() -> None:
    gateway = PromptGateway(job_s=5.0)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        a = [session.generate(f"a{number}", group="a") for number in range(9)]
        b = [session.generate(f"b{number}", group="b") for number in range(6)]
        await all_done(*a, *b)
    assert most_ahead(gateway.sold) <= 2
    for group in "ab":
        assert [prompt for prompt in gateway.sold if prompt[0] == group] == sorted(
            prompt for prompt in gateway.sold if prompt[0] == group
        )


@virtually
async def test_group_weights_share_the_slots() -> None:
    gateway = PromptGateway(job_s=5.0)
    policy = ConcurrencyPolicy(max_jobs=1, learn=False, group_weights={"b": 2.0})
    async with apimall(FakeTransport(gateway.answer), concurrency=policy) as session:
        calls = [session.generate(f"{group}{number}", group=group) for group in "ab" for number in range(20)]
        await all_done(*calls)
    assert abs(sum(prompt[0] == "b" for prompt in gateway.sold[:24]) - 16) <= 2


@virtually
async def test_slow_class_of_jobs_gets_fewer_slots() -> None:
    gateway = PromptGateway()
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(2)) as session:
        for _ in range(10):  # the durations of both classes are learned
            await session.generate("5 s", resolution="1K")
            await session.generate("40 s", resolution="4K")
        learned = len(gateway.sold)
        slow = [asyncio.Task(session.generate("40 s", resolution="4K", group="slow")) for _ in range(30)]
        quick = [asyncio.Task(session.generate("5 s", resolution="1K", group="quick")) for _ in range(60)]
        await asyncio.wait(quick)
        share = gateway.sold[learned:].count("40 s")
        for call in slow:
            call.cancel()
        await asyncio.wait(slow)
    assert 5 <= share <= 12  # 60 * 5 s of slots for each


@virtually
async def test_higher_priority_goes_first_and_a_tenth_to_the_others() -> None:
    gateway = PromptGateway(job_s=5.0)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        low = [session.generate(f"low {number}", priority=-1) for number in range(20)]
        high = [session.generate(f"high {number}", priority=3) for number in range(40)]
        await all_done(*low, *high)
    # The first call found a free slot.
    assert [number for number, prompt in enumerate(gateway.sold[1:45]) if prompt.startswith("low")] == [
        FLOOR_EVERY * turn - 1 for turn in range(1, 5)
    ]


@virtually
async def test_same_key_with_a_higher_priority_moves_ahead() -> None:
    gateway = PromptGateway(job_s=5.0)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        jobs = [await session.submit(f"job {number}", idempotency_key=f"key-{number}") for number in range(5)]
        again = await session.submit("job 4", idempotency_key="key-4", priority=1)
        lower = await session.submit("job 3", idempotency_key="key-3", priority=-1, group="other")
        await all_done(*(job.result() for job in [*jobs, again, lower]))
    assert gateway.sold == ["job 0", "job 4", "job 1", "job 2", "job 3"]


@virtually
async def test_withdrawn_jobs_are_no_debt_of_their_group() -> None:
    gateway = PromptGateway(job_s=5.0)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        first = asyncio.Task(session.generate("first"))
        await asyncio.sleep(1.0)
        left = [asyncio.Task(session.generate(f"left {number}", group="a")) for number in range(30)]
        await asyncio.sleep(1.0)
        for call in left:
            call.cancel()
        await asyncio.wait([first, *left])
        calls = [session.generate(f"{group}{number}", group=group) for group in "ab" for number in range(6)]
        await all_done(*calls)
        assert session.stats().queued == 0
    assert most_ahead(gateway.sold[1:]) <= 2


@virtually
async def test_refused_creates_are_no_debt_of_their_group() -> None:
    gateway = PromptGateway(job_s=5.0, says=lambda prompt: refused(400, "no") if "blocked" in prompt else None)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        jobs = [await session.submit(f"blocked {number}", group="a") for number in range(10)]
        jobs += [await session.submit(f"{group}{number}", group=group) for group in "ab" for number in range(6)]
        for job in jobs:
            with suppress(NanoBananaError):
                await job
    assert len(gateway.sold) == 12
    assert most_ahead(gateway.sold) <= 2


@virtually
async def test_learning_the_limit_keeps_order_and_shares() -> None:
    gateway = PromptGateway(job_s=5.0, limit=4)
    async with apimall(FakeTransport(gateway.answer)) as session:
        calls = [session.generate(f"{group}{number:02}", group=group) for group in "ab" for number in range(40)]
        await all_done(*calls)
        assert session.stats().throttled > 0
    sold = gateway.sold[20:60]  # once the limit is known
    assert abs(sum(prompt.startswith("a") for prompt in sold) - 20) <= 2


@virtually
async def test_priority_and_group_outlive_the_session() -> None:
    gateway, ledger = PromptGateway(job_s=5.0), RecordingLedger(keep_ended=True)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1), ledger=ledger) as session:
        turns: list[dict[str, Any]] = [{}, {}, {"group": "a"}, {"priority": 2, "group": "b"}]
        for number, turn in enumerate(turns):
            await session.submit(f"job {number}", idempotency_key=f"key-{number}", **turn)
        await asyncio.sleep(1.0)
    record = ledger.record("key-3")
    assert (record.priority, record.group_name) == (2, "b")
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1), ledger=ledger) as session:
        jobs = await session.resume(buy=True)
        await all_done(*(job.result() for job in jobs))
    assert gateway.sold == ["job 0", "job 3", "job 1", "job 2"]


@pytest.mark.parametrize("turn", [{"priority": 1.5}, {"priority": 1000}, {"group": ""}, {"group": 5}])
@virtually
async def test_other_priorities_and_groups_are_refused_before_a_purchase(turn: dict[str, Any]) -> None:
    gateway = PromptGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        for call in (session.generate, session.submit):
            with pytest.raises(ConfigurationError, match=next(iter(turn))):
                await call("a fox", **turn)
        with pytest.raises(ConfigurationError, match=next(iter(turn))):
            session.generate_many(["a fox"], **turn)
    assert not gateway.sold


@virtually
async def test_batches_without_a_group_take_turns() -> None:
    gateway = PromptGateway(job_s=5.0)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        await all_done(*(all_of(session.generate_many([f"{name}{number}" for number in range(30)])) for name in "ab"))
    assert most_ahead(gateway.sold) <= 3


@virtually
async def test_batches_of_one_group_share_its_turns() -> None:
    gateway = PromptGateway(job_s=5.0)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        await all_done(
            *(all_of(session.generate_many([f"{name}{number}" for number in range(20)], group="x")) for name in "ab"),
            all_of(session.generate_many([f"c{number}" for number in range(20)], group="y")),
        )
    assert abs(sum(prompt[0] == "c" for prompt in gateway.sold[:30]) - 15) <= 2


@virtually
async def test_stats_count_the_jobs_that_wait_by_group() -> None:
    gateway, ledger = PromptGateway(job_s=5.0), LedgerView(SharedLedger())
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1), ledger=ledger) as session:
        await (await session.submit("first")).wait_for_task_id()
        for group in ("ann", "ann", "ben", None):
            await session.submit("a fox", group=group)
        raised = await session.submit("an owl", group="ann", idempotency_key="owl")
        await session.submit("an owl", idempotency_key="owl", priority=5)
        spring = asyncio.Task(all_of(session.generate_many(["a hen", "a crow"], batch="spring")))
        await asyncio.sleep(1.0)
        stats = session.stats()
        assert stats.queued_by_group == {"ann": 3, batch_key_prefix("spring"): 2, "ben": 1, "": 1}
        assert next(iter(stats.queued_by_group)) == "ann"
        assert stats.queued == 7
        await asyncio.sleep(8.0)
        assert session.stats().queued_by_group["ann"] == 2
        assert (await raised).url
        await spring
        assert session.stats().queued_by_group.get("ann", 0) <= 1
