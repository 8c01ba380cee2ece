"""Calls from other event loops, threads and forks are refused and have no other effect."""

import asyncio
import os
import threading
from pathlib import Path

import aiohttp
import pytest

from nanobanana_async import (
    ConfigurationError,
    LedgerError,
    NanoBananaError,
    Session,
    SessionClosed,
    SqliteLedger,
)
from nanobanana_async.emulator import Fixed, Script
from nanobanana_async.emulator.faults import delay
from nanobanana_async.testing import FakeTransport
from nanobanana_async.webhooks import CallbackReceiver
from tests.end_to_end.strays import beside_a_working_service
from tests.support.callbacks import ask
from tests.support.fakes import FakeGateway, apimall, apimall_now
from tests.support.loopback import emulated, quick


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_calls_from_other_loops_threads_and_forks_are_refused(tmp_path: Path) -> None:
    tally = await beside_a_working_service(92, tmp_path)  # each call four times: `python -m tests.end_to_end.strays`
    assert tally.harmed == []
    assert tally.strays == {"refused": 92}
    assert tally.bought_by_strays == 0
    assert (tally.bought, tally.served > 0) == (tally.rightful, True)


def in_a_thread_of_its_own(session: Session) -> str:
    results: list[str] = []

    def call() -> None:
        try:
            asyncio.run(session.generate("a fox"))
        except ConfigurationError as error:
            results.append(str(error))

    thread = threading.Thread(target=call, name="view-7")
    thread.start()
    thread.join()
    return results[0]


async def test_error_names_both_threads_and_the_correct_call() -> None:
    async with emulated() as emulator, quick(emulator) as session:
        said = in_a_thread_of_its_own(session)
    assert said.startswith(
        "<Session apimall> belongs to the event loop that opened it, in thread 'MainThread', and was"
    )
    assert "in another event loop, in thread 'view-7'" in said
    assert "0x" not in said
    assert "asyncio.run_coroutine_threadsafe(coroutine, loop)" in said


def test_session_left_open_in_one_run_is_closed_in_the_next() -> None:
    session = apimall(FakeTransport(FakeGateway().answer))

    async def use() -> None:
        with pytest.raises(SessionClosed):
            await session.generate("a fox")
        with pytest.raises(ConfigurationError, match="make a new one"):
            await session.open()
        await session.aclose()

    with pytest.warns(ResourceWarning, match="never closed"):
        asyncio.run(session.open())
    asyncio.run(use())


def test_session_with_a_closed_loop_says_so() -> None:
    loop = asyncio.new_event_loop()
    session = apimall_now(FakeTransport(FakeGateway(job_s=0.01).answer, latency_s=0.001))
    loop.run_until_complete(session.open())
    job = loop.run_until_complete(session.submit("a fox"))
    loop.run_until_complete(job.result())
    loop.close()

    async def use() -> None:
        for call in (session.generate("a fox"), session.aclose(), job.result(), job.cancel()):
            with pytest.raises(ConfigurationError, match="That loop is closed: open a new session"):
                await call

    asyncio.run(use())
    with pytest.warns(ResourceWarning, match="never closed"):
        session.__del__()


def test_results_of_a_closed_session_are_readable_on_any_loop() -> None:
    async def work() -> tuple[Session, object, object]:
        async with apimall_now(FakeTransport(FakeGateway(job_s=0.01).answer, latency_s=0.001)) as session:
            job = await session.submit("a fox")
            batch = session.generate_many(["one"])
            outcomes = [outcome async for outcome in batch]
            assert len(outcomes) == 1
            await job
            return session, job, batch

    async def read() -> None:
        assert (await job.result()).task_id  # type: ignore[attr-defined]
        assert [outcome async for outcome in batch] == []  # type: ignore[attr-defined]
        assert session.stats().succeeded == 2
        with pytest.raises(SessionClosed):
            await session.submit("another")

    session, job, batch = asyncio.run(work())
    asyncio.run(read())


def test_sync_calls_from_the_sessions_own_thread_need_no_running_loop() -> None:
    with asyncio.Runner() as runner:
        session = apimall_now(FakeTransport(FakeGateway(job_s=0.01).answer, latency_s=0.001))
        runner.run(session.open())
        batch = session.generate_many(["one", "two"])
        assert session.stats().queued == 0

        async def collect() -> int:
            return len([outcome async for outcome in batch])

        assert runner.run(collect()) == 2
        runner.run(session.aclose())


async def test_callback_on_another_loop_gets_503(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async with emulated(duration=Fixed(0.05)) as emulator, quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
        receiver = CallbackReceiver(session, public_url="https://app.example")
        url = await session._callback_router.make_url("order-1")
        path = url.removeprefix("https://app.example")
        assert (await asyncio.to_thread(lambda: asyncio.run(ask(receiver, path)))).status == 503
        assert (await ask(receiver, path)).status == 200
        assert (await session.generate("a fox")).task_id
    assert "belongs to the event loop that opened it" in caplog.text


async def test_ledger_used_on_another_loop_is_refused_and_stays_open(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "jobs.sqlite")
    await ledger.open()

    async def on_other_loop() -> None:
        for call in (ledger.find("key"), ledger.count_by_state(), ledger.aclose()):
            with pytest.raises(LedgerError, match="belongs to the event loop that opened it"):
                await call

    await asyncio.to_thread(lambda: asyncio.run(on_other_loop()))
    assert await ledger.find("key") is None
    await ledger.aclose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on Windows")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the ledger has a thread, and we fork
async def test_forked_child_does_not_touch_its_parents_session(tmp_path: Path) -> None:
    async with emulated(duration=Fixed(0.1)) as emulator, quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
        await session.generate("a fox")
        job = await session.submit("another fox")
        await job.wait_for_task_id()
        reading, writing = os.pipe()
        shown = repr(job)  # here the job may end while the child runs
        child = os.fork()
        if not child:
            try:
                transport = session._components.transport
                pool, fresh = transport._pool, transport._fresh  # type: ignore[attr-defined]
                runner = session._session_task.engine.scheduler  # type: ignore[union-attr]
                response = (pool.closed, fresh.closed, runner.closing, runner._timers._handle, repr(job))
                os.write(writing, repr(response).encode())
            finally:
                os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        assert os.read(reading, 1000).decode() == repr((True, True, True, None, shown))
        os.close(reading)
        os.close(writing)
        assert (await job).task_id
        assert (await session.generate("a third fox")).task_id
        assert emulator.stats().creates_accepted == 3


def test_session_can_be_made_in_another_thread_or_before_a_fork() -> None:
    session = apimall_now(FakeTransport(FakeGateway(job_s=0.01).answer, latency_s=0.001))

    async def use() -> str:
        async with session:
            return (await session.generate("a fox")).task_id

    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(use())))
    thread.start()
    thread.join()
    assert results == ["t1"]


async def test_borrowed_aiohttp_session_closed_early_fails_its_jobs() -> None:
    slow = [delay(0.3)] * 8
    async with emulated(script=Script({"apimall.create": slow})) as emulator:
        lent = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))
        async with quick(emulator, http=lent) as session:
            callers = [asyncio.Task(session.generate(f"fox {number}")) for number in range(4)]
            await asyncio.sleep(0.1)  # one is in flight, the others wait for its connection
            await lent.close()
            _, waiting = await asyncio.wait(callers[1:], timeout=5.0)
            assert waiting == set()
            for caller in callers[1:]:
                error = caller.exception()
                assert isinstance(error, ConfigurationError)
                assert "the aiohttp session you lent is closed" in str(error)
                assert error.safe_to_repeat is True
            assert "open" in repr(session)
        with pytest.raises(NanoBananaError):
            await callers[0]
        assert emulator.stats().creates_accepted <= 1


def test_ledger_with_a_closed_loop_can_be_reopened(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "jobs.sqlite")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(ledger.open())
    loop.close()

    async def again() -> None:
        with pytest.raises(LedgerError, match="belongs to the event loop that opened it"):
            await ledger.count_by_state()
        await ledger.aclose()
        await ledger.open()
        assert await ledger.count_by_state() == {}
        await ledger.aclose()

    asyncio.run(again())
