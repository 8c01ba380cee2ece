"""Closing a session while a batch is open."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from nanobanana_async import Batch, JobState
from nanobanana_async.emulator.faults import Script, stall
from nanobanana_async.errors import ConfigurationError, SessionClosed
from nanobanana_async.testing import FakeTransport
from tests.batch.fakes import CountingInput, PromptGateway, all_of, slots, slowly
from tests.support.fakes import RecordingLedger, apimall, virtually
from tests.support.loopback import emulated, quick, until


async def taken_until_closed(batch: Batch) -> int:
    """Take outcomes until the session is closed, and count them."""
    taken = 0
    with suppress(SessionClosed):
        async for _ in batch:
            taken += 1
        raise AssertionError("the batch came to its end")
    return taken


@pytest.mark.parametrize("ordered", [False, True])
def test_consumer_gets_session_closed(ordered: bool) -> None:
    @virtually
    async def check() -> None:
        session = apimall(FakeTransport(PromptGateway(job_s=60).answer), concurrency=slots(5))
        await session.open()
        batch = session.generate_many(CountingInput(), ordered=ordered)
        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            waiting = [group.create_task(taken_until_closed(batch)) for _ in range(3)]
            await asyncio.sleep(10)
            await session.aclose()
        assert [task.result() for task in waiting] == [0, 0, 0]
        with pytest.raises(SessionClosed):
            await anext(batch)
        await batch.aclose()

    check()


@virtually
async def test_outcomes_ended_before_closing_are_yielded() -> None:
    ledger = RecordingLedger(keep_ended=True)
    async with apimall(FakeTransport(PromptGateway(job_s=5).answer), ledger=ledger, concurrency=slots(5)) as session:
        batch = session.generate_many(CountingInput())
        await anext(batch)
        await asyncio.sleep(100)
    ended = list(ledger.states().values()).count(JobState.SUCCEEDED)
    assert await taken_until_closed(batch) == ended - 1 > 0


@virtually
async def test_closing_ends_a_waiting_input() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        batch = session.generate_many(slowly(["one", "two"], 1000.0))
        async with batch:
            await asyncio.sleep(1)
            await session.aclose()
            assert await taken_until_closed(batch) == 0


@virtually
async def test_batch_started_after_closing_raises_each_time() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        batch = session.generate_many(["one"])
    async with asyncio.timeout(10):
        for _ in range(2):
            with pytest.raises(SessionClosed):
                await anext(batch)
        with pytest.raises(SessionClosed):
            async with batch:
                raise AssertionError("it was entered")
    with pytest.raises(SessionClosed):
        session.generate_many(["one"])


@virtually
async def test_a_batch_needs_an_open_session() -> None:
    session = apimall(FakeTransport(PromptGateway().answer))
    with pytest.raises(ConfigurationError, match="not open"):
        session.generate_many(["one"])


@virtually
async def test_ended_batch_stays_ended_after_closing() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        batch = session.generate_many(["one", "two"])
        assert len(await all_of(batch)) == 2
    with pytest.raises(StopAsyncIteration):
        await anext(batch)


async def test_closing_while_images_are_saved_does_not_hang(tmp_path: Path) -> None:
    silent = Script({"cdn": [stall(30)]}, repeat_last=True)
    async with emulated(script=silent) as emulator, quick(emulator) as session:
        batch = session.generate_many(["one", "two", "three"], save_to=tmp_path)
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            waiting = group.create_task(taken_until_closed(batch))
            await until(lambda: emulator.stats().requests.get("cdn", 0) >= 3)
            await session.aclose()
        assert waiting.result() == 0
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 - nothing else runs


async def test_cancelled_close_still_closes() -> None:
    async with emulated() as emulator:
        session = quick(emulator)
        await session.open()
        batch = session.generate_many(CountingInput())
        await anext(batch)
        closing = asyncio.get_running_loop().create_task(session.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await taken_until_closed(batch)
