"""The applications of docs/web.md behind real servers: unfinished orders at a stop, and refused orders."""

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from nanobanana_async import JobState
from nanobanana_async.emulator import Emulator, Fixed, RandomFault, faults
from tests.support.held import BUYING_S, HeldJobs
from tests.support.ledger_file import written
from tests.support.loopback import received
from tests.web.orders import all_ended, check_paid, headers_of, ordered
from tests.web.pages import put
from tests.web.servers import Server, free_port, pointed_at, running, uvicorn

pytestmark = pytest.mark.slow

APPS = ("fastapi_app", "litestar_app", "aiohttp_app")


def server_of(name: str, folder: Path, emulator: Emulator) -> Server:
    """Return the server of one of the page's applications."""
    file = put(f"{name}.py", folder)
    if name == "aiohttp_app":
        port = free_port()
        return Server([str(file)], port, {**pointed_at(emulator), "PORT": str(port)}, folder)
    return uvicorn(f"{name}:app", folder, emulator)


@pytest.mark.parametrize("name", APPS)
async def test_unfinished_jobs_are_finished_by_the_next_server(name: str, tmp_path: Path) -> None:
    slow = RandomFault(1.0, faults.delay(0.4), "apimall.create")  # so the stop meets creates in flight
    held = HeldJobs()
    async with Emulator(job_limit=4, duration=held, image_scale=0.02, random_faults=[slow]) as emulator:
        server = server_of(name, tmp_path, emulator)
        async with running(server), aiohttp.ClientSession() as http:
            first = await ordered(http, server.url, 0)
            assert (await ordered(http, server.url, 0))["key"] == first["key"]
            for number in range(1, 10):
                await ordered(http, server.url, number)
            await received(emulator)
            await server.stop()
            left = Counter(record.state for record in (await written(tmp_path / "jobs.sqlite")).values())
            assert left[JobState.RUNNING] >= 1  # answered and written down while it closed
            assert left[JobState.PENDING] >= 1
            assert set(left) == {JobState.PENDING, JobState.RUNNING}
            held.release(emulator)
            await server.start()
            records = await all_ended(tmp_path / "jobs.sqlite")
            assert await check_paid(emulator, records) == {JobState.SUCCEEDED: 10}
            async with http.get(f"{server.url}/jobs/{first['key']}") as answer:
                assert (await answer.json())["state"] == "succeeded"
            async with http.get(f"{server.url}/jobs/nobody-knows-this-key") as answer:
                assert answer.status == 404
        assert "Traceback" not in server.log_text()


async def test_fastapi_gives_the_reason_of_a_refusal(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.05), image_scale=0.02) as emulator:
        server = server_of("fastapi_app", tmp_path, emulator)
        async with running(server), aiohttp.ClientSession() as http:
            await ordered(http, server.url, 0)
            for request, number, status in (({"prompt": "another fox"}, 0, 409), ({"prompt": " "}, 1, 400)):
                async with http.post(f"{server.url}/jobs", json=request, headers=headers_of(number)) as answer:
                    assert answer.status == status
            async with http.post(f"{server.url}/jobs", json={"prompt": "a fox"}) as answer:
                assert answer.status == 422
        assert emulator.stats().creates_accepted <= 1


async def test_aiohttp_answers_202_for_a_slow_image_that_still_arrives(
    tmp_path: Path,
) -> None:
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.02) as emulator:
        file = put("aiohttp_app.py", tmp_path)
        soon = file.read_text("utf-8").replace("timeout=20", f"timeout={BUYING_S}")
        await asyncio.to_thread(file.write_text, soon, "utf-8")
        port = free_port()
        server = Server([str(file)], port, {**pointed_at(emulator), "PORT": str(port)}, tmp_path)
        async with running(server), aiohttp.ClientSession() as http:
            request = {"prompt": "a slow fox"}
            async with http.post(f"{server.url}/images", json=request, headers=headers_of(1)) as answer:
                assert answer.status == 202
            held.release(emulator)
            records = await all_ended(tmp_path / "jobs.sqlite")
            assert await check_paid(emulator, records) == {JobState.SUCCEEDED: 1}
