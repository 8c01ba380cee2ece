"""Opening and closing sessions: in different tasks, too early, or never."""

import asyncio
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

import nanobanana_async
from nanobanana_async import (
    ApiMall,
    ConcurrencyPolicy,
    ConfigurationError,
    JobState,
    JobUncertain,
    MemoryLedger,
    Session,
    SessionClosed,
    Timeouts,
)
from nanobanana_async.emulator import Emulator, Fault, Fixed, faults
from tests.support.clocks import leap, turns
from tests.support.loopback import (
    BOTH,
    CREATE,
    GatewayName,
    charged,
    emulated,
    outcome,
    quick,
    received,
)


async def test_session_can_be_opened_and_closed_in_different_tasks() -> None:
    async with emulated() as emulator:
        session = quick(emulator)
        loop = asyncio.get_running_loop()
        await loop.create_task(session.open())
        assert (await loop.create_task(session.generate("a fox"))).images
        assert (await session.generate("an owl")).images
        await loop.create_task(session.aclose())
        assert charged(emulator.stats(), 2)


async def test_session_outlives_the_scope_that_opened_it() -> None:
    async with emulated() as emulator:
        session = quick(emulator)
        async with anyio.create_task_group() as group:
            group.start_soon(session.open)
        assert (await session.generate("a fox")).images
        async with anyio.create_task_group() as group:
            group.start_soon(session.aclose)
        assert charged(emulator.stats(), 1)


async def test_cancelled_owner_leaves_nothing_open() -> None:
    async with emulated(duration=Fixed(30.0)) as emulator:

        async def own() -> None:
            async with quick(emulator) as session:
                await session.generate("a fox")

        owner = asyncio.get_running_loop().create_task(own())
        await received(emulator)
        owner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await owner
        await emulator.wait_for_no_connections()
        assert emulator.stats().open_connections == 0


async def test_close_is_idempotent_and_concurrent() -> None:
    async with emulated() as emulator:
        session = quick(emulator)
        await session.open()
        await session.generate("a fox")
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(session.aclose())
        await session.aclose()
        with pytest.raises(SessionClosed):
            await session.generate("an owl")
        with pytest.raises(ConfigurationError):
            await session.open()
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("fault", [faults.delay(60.0), faults.late(60.0)], ids=lambda fault: str(fault.name))
@pytest.mark.parametrize("name", BOTH)
async def test_closing_stores_answers_of_creates_in_flight(name: GatewayName, fault: Fault) -> None:
    ledger = MemoryLedger()
    keys = [f"fox-{number}" for number in range(3)]
    async with emulated() as emulator:
        emulator.queue_faults(CREATE[name], *[fault] * 3)
        three = ConcurrencyPolicy(max_jobs=3, learn=False)
        session = quick(emulator, name, ledger=ledger, timeouts=Timeouts(close_s=90.0), concurrency=three)
        async with session, asyncio.TaskGroup() as group:
            callers = [group.create_task(outcome(session, "a fox", idempotency_key=key)) for key in keys]
            await received(emulator, 3)
            closing = group.create_task(session.aclose())
            await turns()
            assert not closing.done()
            leap(60.0)
        assert [type(caller.result()) for caller in callers] == [SessionClosed] * 3
        records = [await ledger.find(key) for key in keys]
        assert [record and record.state for record in records] == [JobState.RUNNING] * 3
        async with quick(emulator, name, ledger=ledger) as other:
            for key in keys:
                job = await other.job(key)
                assert job is not None
                assert (await job).key == key
        assert emulator.stats().creates_received == 3
        assert emulator.stats().creates_accepted == 3


@pytest.mark.parametrize("name", BOTH)
async def test_closing_is_bounded_and_the_next_session_recovers_the_create(name: GatewayName) -> None:
    ledger = MemoryLedger()
    async with emulated() as emulator:
        emulator.queue_faults(CREATE[name], faults.delay(110.0))
        async with quick(emulator, name, ledger=ledger, timeouts=Timeouts(close_s=60.0)) as session:
            await session.submit("a fox", idempotency_key="fox-1")
            await received(emulator)
            closing = asyncio.Task(session.aclose())
            await turns()
            assert not closing.done()
            leap(60.0)
            await closing
        record = await ledger.find("fox-1")
        assert record is not None
        assert record.state is JobState.SUBMITTING
        async with quick(emulator, name, ledger=ledger) as other:
            job = await other.job("fox-1")
            assert job is not None
            if name == "apimall":
                assert (await job).images
            else:
                with pytest.raises(JobUncertain):
                    await job
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_running_job_is_polled_by_the_next_session(name: GatewayName) -> None:
    ledger = MemoryLedger()
    async with emulated(duration=Fixed(0.2)) as emulator:
        async with quick(emulator, name, ledger=ledger) as session:
            job = await session.submit("a fox", idempotency_key="fox-1")
            task_id = await job.wait_for_task_id()
        with pytest.raises(SessionClosed):
            await job
        async with quick(emulator, name, ledger=ledger) as other:
            assert (await other.generate("a fox", idempotency_key="fox-1")).task_id == task_id
        assert emulator.stats().creates_received == 1


async def test_unsent_jobs_are_not_bought_by_the_next_session() -> None:
    ledger = MemoryLedger()
    async with emulated() as emulator:
        emulator.set_job_limit(0)
        async with quick(emulator, ledger=ledger) as session:
            job = await session.submit("a fox", idempotency_key="fox-1")
            await received(emulator)
        assert job.state is JobState.PENDING
        emulator.set_job_limit(None)
        before = emulator.stats().creates_received
        async with quick(emulator, ledger=ledger) as other:
            await asyncio.sleep(0.1)
            assert emulator.stats().creates_received == before
            assert (await other.generate("a fox", idempotency_key="fox-1")).images
        assert charged(emulator.stats(), 1)


async def test_borrowed_aiohttp_session_stays_open() -> None:
    async with emulated() as emulator, aiohttp.ClientSession() as http:
        for name in BOTH:
            async with quick(emulator, name, http=http) as session:
                assert (await session.generate("a fox")).images
        assert not http.closed
        async with http.get(f"{emulator.url}/cdn/x") as response:
            assert response.status == 404
        assert charged(emulator.stats(), 2)


async def test_borrowed_aiohttp_session_adds_no_base_url_and_raises_for_no_status() -> None:
    async with (
        emulated() as emulator,
        aiohttp.ClientSession("http://127.0.0.1:9/", raise_for_status=True) as http,
    ):
        emulator.queue_faults("apimall.create", faults.error(503))
        async with quick(emulator, http=http) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_proxy_environment_is_ignored(name: GatewayName, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
        monkeypatch.setenv(variable.lower(), "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with emulated() as emulator:
        async with quick(emulator, name) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)


@pytest.mark.emulator(duration=Fixed(0.05), job_limit=2)
async def test_public_fixture_runs_an_emulator_with_its_marker(nanobanana_emulator: Emulator) -> None:
    async with quick(nanobanana_emulator) as session, asyncio.TaskGroup() as group:
        tasks = [group.create_task(session.generate(f"fox {number}")) for number in range(4)]
    assert all(task.result().images for task in tasks)
    assert nanobanana_emulator.stats().running_max <= 2


async def test_gateway_comes_from_the_environment(
    nanobanana_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOBANANA_GATEWAY", "defapi")
    monkeypatch.setenv("DEFAPI_API_KEY", "emulator-key")
    monkeypatch.setenv("NANOBANANA_BASE_URL", nanobanana_emulator.url)
    async with Session() as session:
        assert (await (await session.submit("a fox")).wait_for_task_id()).startswith("ta")


SCRIPT = """
import asyncio, gc
from nanobanana_async import Session
from nanobanana_async.emulator import Emulator, Fixed

async def main():
    asyncio.get_running_loop().slow_callback_duration = 30.0  # a busy machine is none of our business
    async with Emulator(duration=Fixed({duration})) as emulator:
        session = Session(emulator.{gateway}(expected_job_s=0.05))
        await session.open()
        {use}
        {lose}

asyncio.run(main())
"""


def stderr_of(script: str) -> str:
    root = str(Path(nanobanana_async.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": ""}
    command = [sys.executable, "-X", "dev", "-W", "default", "-c", script]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gateway", "use", "lose"),
    [
        ("apimall", "pass", "pass"),
        ("defapi", "await session.generate('a fox')", "pass"),
        ("apimall", "await session.generate('a fox')", "del session; gc.collect(); await asyncio.sleep(0.1)"),
        ("defapi", "job = await session.submit('a fox')", "await job.wait_for_task_id()"),
    ],
    ids=["unused", "used", "collected", "busy"],
)
def test_unclosed_session_warns_once(gateway: str, use: str, lose: str) -> None:
    duration = 30.0 if "submit" in use else 0.05
    stderr = stderr_of(SCRIPT.format(gateway=gateway, use=use, lose=lose, duration=duration))
    lines = [line for line in stderr.splitlines() if "Warning" in line]
    assert len(lines) == 1, stderr
    assert f"ResourceWarning: <Session {gateway}> was never closed" in lines[0]
    assert "aclose" in lines[0]
    for noise in ("Task was destroyed", "Unclosed", "Traceback", "never awaited", "never retrieved"):
        assert noise not in stderr


@pytest.mark.slow
def test_closed_session_has_no_warning_in_development_mode() -> None:
    script = SCRIPT.format(
        gateway="defapi", use="await session.generate('a fox')", lose="await session.aclose()", duration=0.05
    )
    assert stderr_of(script) == ""


async def test_cancelled_opening_logs_no_unretrieved_error() -> None:
    class Hanging(MemoryLedger):
        async def open(self) -> None:
            await asyncio.sleep(60)

    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Session(ApiMall(api_key="sk-a"), ledger=Hanging()).open()
    gc.collect()
    await asyncio.sleep(0)
    assert unhandled == []
