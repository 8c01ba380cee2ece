"""How fast a batch pulls and buys: no faster than slots are free and outcomes are taken."""

import asyncio
import gc
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest

from nanobanana_async import Batch, ConcurrencyPolicy, PollPolicy
from nanobanana_async.testing import FakeTransport, run_virtual
from tests.batch.fakes import CountingInput, PromptGateway, all_of, slots
from tests.support.fakes import apimall, now, virtually

pytestmark = pytest.mark.slow

# What may be pulled beyond the held jobs: rows that wait to be sent, and outcomes that wait to be taken.
AHEAD, READY = 8, 64


async def paced(batch: Batch, seconds: float) -> AsyncIterator[int]:
    """Take outcomes with a pause after each."""
    async for outcome in batch:
        yield outcome.index
        await asyncio.sleep(seconds)


@virtually
async def test_a_row_is_not_a_task() -> None:
    policy = ConcurrencyPolicy(max_jobs=100, learn=False, max_requests=8)
    most = 0
    async with apimall(FakeTransport(PromptGateway(job_s=60).answer), concurrency=policy) as session:
        async for _ in session.generate_many(CountingInput(400)):
            most = max(most, len(asyncio.all_tasks()))
    assert most < 40  # of 100 jobs at a time


@virtually
async def test_rows_wait_in_the_input_until_there_is_room() -> None:
    input_ = CountingInput()
    async with (
        apimall(FakeTransport(PromptGateway(job_s=100).answer), concurrency=slots(5)) as session,
        session.generate_many(input_),
    ):
        await asyncio.sleep(50)
        assert 5 <= input_.pulled <= 5 + AHEAD


@pytest.mark.parametrize("ordered", [False, True])
def test_little_is_bought_if_no_outcome_is_taken(ordered: bool) -> None:
    @virtually
    async def stays_bounded() -> None:
        gateway, input_ = PromptGateway(), CountingInput()
        async with (
            apimall(FakeTransport(gateway.answer), concurrency=slots(20)) as session,
            session.generate_many(input_, ordered=ordered),
        ):
            await asyncio.sleep(2000)
            assert len(gateway.sold) < 20 + 4 + AHEAD
            assert input_.pulled < 20 + 4 + 2 * AHEAD

    stays_bounded()


@virtually
async def test_endless_invalid_rows_wait_to_be_taken() -> None:
    pulled = 0

    def empty_prompts() -> Iterator[str]:
        nonlocal pulled
        while True:
            pulled += 1
            yield ""

    async with (
        apimall(FakeTransport(PromptGateway().answer)) as session,
        session.generate_many(empty_prompts()) as batch,
    ):
        await asyncio.sleep(100)
        assert pulled < READY
        assert not (await anext(batch)).ok


@virtually
async def test_slow_consumer_sets_the_pace_at_constant_memory() -> None:
    gateway, input_ = PromptGateway(job_s=10), CountingInput(300)
    sizes: list[int] = []
    begun = now()
    async with apimall(FakeTransport(gateway.answer, keep=10), concurrency=slots(20)) as session:
        tracemalloc.start()
        taken = 0
        async for _ in paced(session.generate_many(input_), 1.0):
            taken += 1
            assert input_.pulled - taken <= 20 + READY + AHEAD
            if taken % 100 == 0:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    # The slots could have made 600 in this time: the batch waits for its consumer only.
    assert now() - begun < 1.05 * 300 + 30
    assert sizes[-1] - sizes[0] < 400_000  # the fake gateway itself remembers prompts and keys


async def _makespan(pause_s: float) -> float:
    begun = now()
    async with apimall(FakeTransport(PromptGateway(job_s=10).answer), concurrency=slots(20)) as session:
        async for _ in paced(session.generate_many(CountingInput(600)), pause_s):
            pass
    return now() - begun


@virtually
async def test_consumer_faster_than_the_slots_keeps_them_full() -> None:
    idle = await _makespan(0.0)
    saving = await _makespan(0.4)  # the slots give one outcome every half second
    assert saving < 1.1 * idle


@virtually
async def test_batch_fills_a_learned_limit() -> None:
    gateway = PromptGateway(job_s=60, limit=50)
    most = 0
    async with apimall(FakeTransport(gateway.answer)) as session:
        begun = now()
        async for _ in session.generate_many(CountingInput(600)):
            most = max(most, gateway.running)
        took = now() - begun
    assert most == 50
    assert took < 1.5 * 600 / 50 * 60


@virtually
async def test_nothing_is_pulled_while_a_throttled_row_waits() -> None:
    gateway, input_ = PromptGateway(job_s=500, limit=1), CountingInput()
    async with apimall(FakeTransport(gateway.answer)) as session, session.generate_many(input_):
        await asyncio.sleep(400)
        assert input_.pulled <= 1 + AHEAD + 1
        assert len(gateway.sold) == 1


@virtually
async def test_generate_works_beside_an_unread_batch() -> None:
    async with (
        apimall(FakeTransport(PromptGateway().answer), concurrency=slots(5)) as session,
        session.generate_many(CountingInput()),
    ):
        await asyncio.sleep(100)
        result = await session.generate("in between", timeout=30)
    assert result.images


@virtually
async def test_slow_input_is_bought_row_by_row() -> None:
    async def rows() -> AsyncIterator[str]:
        for number in range(5):
            await asyncio.sleep(100)
            yield f"image {number}"

    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        begun = now()
        ends = [now() - begun async for _ in session.generate_many(rows())]
    assert all(100 * number < at < 100 * number + 60 for number, at in enumerate(ends, 1))


def test_ordered_batch_keeps_the_slots_full() -> None:
    chance = random.Random(7)
    prompts = [f"{chance.lognormvariate(3.0, 0.4):.2f} s" for _ in range(300)]
    seldom = PollPolicy(target_delay_s=2.0, min_gap_s=2.0)

    async def makespan(ordered: bool) -> float:
        begun = now()
        async with apimall(FakeTransport(PromptGateway().answer), concurrency=slots(25), polling=seldom) as session:
            assert len(await all_of(session.generate_many(prompts, ordered=ordered))) == 300
        return now() - begun

    assert run_virtual(makespan(True)) < 1.25 * run_virtual(makespan(False))
