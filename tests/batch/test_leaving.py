"""Leaving a batch before its end: unsent rows stay unbought."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from nanobanana_async import Batch, JobState, Session
from nanobanana_async.emulator import Fixed
from nanobanana_async.testing import FakeTransport
from tests.batch.fakes import CountingInput, PromptGateway, all_of, slots, slowly
from tests.support.fakes import RecordingLedger, apimall, virtually
from tests.support.loopback import charged, emulated, quick
from tests.support.replies import refused

LIMIT, TAKEN = 20, 10
Leaves = Callable[[Session, CountingInput, bool], Awaitable[None]]


class Enough(Exception):
    """What a loop's body raises."""


async def by_break(session: Session, rows: CountingInput, ordered: bool) -> None:
    taken = 0
    async for _ in session.generate_many(rows, ordered=ordered):
        taken += 1
        if taken == TAKEN:
            break


async def by_an_exception(session: Session, rows: CountingInput, ordered: bool) -> None:
    taken = 0
    with suppress(Enough):
        async for _ in session.generate_many(rows, ordered=ordered):
            taken += 1
            if taken == TAKEN:
                raise Enough


async def by_the_end_of_async_with(session: Session, rows: CountingInput, ordered: bool) -> None:
    async with session.generate_many(rows, ordered=ordered) as batch:
        for _ in range(TAKEN):
            await anext(batch)


async def by_an_exception_in_async_with(session: Session, rows: CountingInput, ordered: bool) -> None:
    with suppress(Enough):
        async with session.generate_many(rows, ordered=ordered) as batch:
            for _ in range(TAKEN):
                await anext(batch)
            raise Enough


async def by_being_cancelled(session: Session, rows: CountingInput, ordered: bool) -> None:
    enough = asyncio.Event()

    async def take() -> None:
        taken = 0
        async for _ in session.generate_many(rows, ordered=ordered):
            taken += 1
            if taken == TAKEN:
                enough.set()
                await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(take())
    await enough.wait()
    task.cancel()
    await asyncio.wait([task])


async def by_garbage_collection_in_a_thread(session: Session, rows: CountingInput, ordered: bool) -> None:
    async def take() -> None:
        batch = session.generate_many(rows, ordered=ordered)
        ring: list[object] = [batch]
        ring.append(ring)
        for _ in range(TAKEN):
            await anext(batch)

    gc.disable()
    try:
        await take()
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "leave",
    [
        by_break,
        by_an_exception,
        by_the_end_of_async_with,
        by_an_exception_in_async_with,
        by_being_cancelled,
        by_garbage_collection_in_a_thread,
    ],
)
def test_early_leave_buys_little_more_than_the_limit(leave: Leaves, ordered: bool) -> None:
    @virtually
    async def leaves_the_rest() -> None:
        gateway, rows, ledger = PromptGateway(job_s=20, limit=LIMIT), CountingInput(), RecordingLedger(keep_ended=True)
        async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
            await leave(session, rows, ordered)
            await asyncio.sleep(0.5)
            bought, pulled = len(gateway.sold), rows.pulled
            await asyncio.sleep(1000)
            assert bought == len(gateway.sold) < LIMIT + 25
            assert pulled == rows.pulled
            assert (await session.generate("afterwards")).images
        states = list(ledger.states().values())
        assert set(states) <= {JobState.SUCCEEDED, JobState.WITHDRAWN}  # what runs is followed to its end
        assert states.count(JobState.SUCCEEDED) == bought + 1

    leaves_the_rest()


@virtually
async def test_batch_held_after_a_break_is_bounded_until_deleted() -> None:
    gateway = PromptGateway(limit=LIMIT)
    async with apimall(FakeTransport(gateway.answer)) as session:
        batch: Batch | None = session.generate_many(CountingInput())
        assert batch is not None
        async for outcome in batch:
            if outcome.index >= TAKEN:
                break
        await asyncio.sleep(1000)
        assert len(gateway.sold) < LIMIT + TAKEN + 40
        bought = len(gateway.sold)
        await all_of_the_next(batch, 30)
        batch = None
        await asyncio.sleep(0.5)
        bought = len(gateway.sold)
        await asyncio.sleep(1000)
        assert len(gateway.sold) == bought


async def all_of_the_next(batch: Batch, count: int) -> None:
    for _ in range(count):
        assert (await anext(batch)).ok


@virtually
async def test_one_worker_can_withdraw_all_rows() -> None:
    gateway, ledger = PromptGateway(job_s=20, limit=1), RecordingLedger(keep_ended=True)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        async for _ in session.generate_many(
            slowly(CountingInput(100), 1.0)
        ):  # one at a time: one worker does them all
            break
        await asyncio.sleep(200)
    assert len(gateway.sold) == 2
    assert set(ledger.states().values()) == {JobState.SUCCEEDED, JobState.WITHDRAWN}


@virtually
async def test_dropped_row_is_not_bought_after_a_refused_create() -> None:
    gateway, ledger = (
        PromptGateway(says=lambda prompt: refused(429, "too_many_concurrent_jobs")),
        RecordingLedger(keep_ended=True),
    )
    async with apimall(FakeTransport(gateway.answer, latency_s=2.0), ledger=ledger, concurrency=slots(3)) as session:
        async with session.generate_many(CountingInput()):
            await asyncio.sleep(0.5)
            assert len(gateway.posts) == 0  # on the way
        gateway.says = lambda prompt: refused(429, "too_many_concurrent_jobs") if len(gateway.posts) < 4 else None
        await asyncio.sleep(100)
        assert len(gateway.posts) == 3
    assert set(ledger.states().values()) == {JobState.WITHDRAWN}


@virtually
async def test_entering_and_leaving_at_once_buys_nothing() -> None:
    gateway, rows = PromptGateway(), CountingInput()
    async with apimall(FakeTransport(gateway.answer)) as session:
        async with session.generate_many(rows):
            pass
        await asyncio.sleep(100)
    assert (rows.pulled, gateway.posts) == (0, [])


@virtually
async def test_batch_never_started_does_nothing() -> None:
    gateway, rows = PromptGateway(), CountingInput()
    async with apimall(FakeTransport(gateway.answer)) as session:
        batch = session.generate_many(rows)
        await asyncio.sleep(100)
        await batch.aclose()
        assert await all_of(batch) == []
        session.generate_many(slowly(rows))
        gc.collect()
    assert (rows.pulled, gateway.posts) == (0, [])


@virtually
async def test_closed_batch_yields_running_rows_and_close_is_idempotent() -> None:
    gateway = PromptGateway(job_s=60)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(5)) as session:
        async with session.generate_many(CountingInput()) as batch:
            await asyncio.sleep(10)
            await batch.aclose()
            await batch.aclose()
            outcomes = await all_of(batch)
        await batch.aclose()
        assert len(outcomes) == len(gateway.sold) == 5
        assert all(outcome.ok for outcome in outcomes)
        assert (batch.done, batch.unbought) == (5, 8)


@virtually
async def test_waiting_consumer_ends_when_another_task_closes_the_batch() -> None:
    async with apimall(FakeTransport(PromptGateway(job_s=60).answer), concurrency=slots(5)) as session:
        batch = session.generate_many(slowly(CountingInput(), 1000.0))
        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            waiting = group.create_task(all_of(batch))
            await asyncio.sleep(10)
            await batch.aclose()
    assert waiting.result() == []


@pytest.mark.parametrize("between_rows", [False, True])
def test_leaving_closes_the_input(between_rows: bool) -> None:
    @virtually
    async def cleans_up() -> None:
        ended = asyncio.Event()

        async def rows() -> AsyncIterator[str]:
            try:
                while True:
                    yield "one"
                    await asyncio.sleep(1000.0 if between_rows else 0.0)
            finally:
                ended.set()

        async with apimall(FakeTransport(PromptGateway().answer), concurrency=slots(1)) as session:
            async for _ in session.generate_many(rows()):
                break
            async with asyncio.timeout(10):
                await ended.wait()

    cleans_up()


@virtually
async def test_leaving_one_batch_does_not_affect_another() -> None:
    gateway = PromptGateway(job_s=20)
    rows = [{"prompt": f"image {number}", "key": f"row-{number}"} for number in range(6)]
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        left, stays = session.generate_many(rows), session.generate_many(rows)
        async with left:
            assert (await anext(left)).ok
            assert (await anext(stays)).ok
            await asyncio.sleep(5)
        assert [outcome.ok for outcome in await all_of(stays)] == [True] * 5
    assert len(gateway.sold) == 6


@virtually
async def test_submitted_job_outlives_the_batch() -> None:
    gateway = PromptGateway(job_s=20)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        async with session.generate_many({"prompt": f"image {number}", "key": f"row-{number}"} for number in range(6)):
            await asyncio.sleep(5)
            job = await session.submit("image 3", idempotency_key="row-3")
        assert (await job).images
    assert gateway.sold == ["image 0", "image 3"]


@virtually
async def test_row_outlives_another_caller_of_its_job() -> None:
    gateway = PromptGateway(job_s=20)
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
        batch = session.generate_many({"prompt": f"image {number}", "key": f"row-{number}"} for number in range(3))
        async with batch:
            await asyncio.sleep(5)
            with pytest.raises(TimeoutError):
                await session.generate("image 2", idempotency_key="row-2", timeout=1)
            assert len(await all_of(batch)) == 3


def test_batch_collected_after_its_loop_closed_is_silent() -> None:
    held: list[Batch] = []

    @virtually
    async def begin_and_forget() -> None:
        async with apimall(FakeTransport(PromptGateway().answer)) as session:
            held.append(session.generate_many(CountingInput()))
            await anext(held[0])

    begin_and_forget()
    held.clear()
    gc.collect()
    assert not held


@pytest.mark.slow
async def test_leaving_over_sockets_leaves_no_connection() -> None:
    async with emulated(job_limit=LIMIT, duration=Fixed(0.05)) as emulator, quick(emulator) as session:
        await by_break(session, CountingInput(), ordered=False)
        await asyncio.sleep(0.3)
        stats = emulator.stats()
        assert charged(stats, stats.creates_accepted)
        assert TAKEN <= stats.creates_accepted < LIMIT + 25
        assert stats.running_now == 0
        await asyncio.sleep(0.2)
        assert emulator.stats().creates_received == stats.creates_received
