"""The studio example: its API, several workers on one ledger, stops and kills."""

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nanobanana_async import JobState
from nanobanana_async.emulator import Emulator, Fixed, faults
from tests.support.held import HeldJobs
from tests.support.ledger_file import written
from tests.support.loopback import received, until
from tests.web.orders import all_ended, check_paid, headers_of
from tests.web.servers import ROOT, STUDIO, free_port, running, studio

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}


async def order(http: aiohttp.ClientSession, url: str, number: int, prompt: str = "a fox") -> dict[str, Any]:
    """Order an image; return its card."""
    async with http.post(f"{url}/api/jobs", json={"prompt": prompt}, headers=headers_of(number)) as answer:
        assert answer.status == 202, await answer.text()
        card: dict[str, Any] = await answer.json()
        assert answer.headers["Location"] == card["status_url"] == f"/api/jobs/{card['key']}"
        return card


async def asked(http: aiohttp.ClientSession, url: str) -> Any:
    """Ask for JSON."""
    async with http.get(url) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def until_shown(http: aiohttp.ClientSession, url: str, key: str, state: str) -> None:
    """Read the page's events until one shows the job in this state."""
    async with asyncio.timeout(20), http.get(f"{url}/api/events") as events:
        async for line in events.content:
            cards = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else []
            if any((card["key"], card["state"]) == (key, state) for card in cards):
                return
    raise AssertionError("the events have ended")


async def test_order_is_bought_once_and_its_image_served(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.2), image_scale=0.05) as emulator, aiohttp.ClientSession() as http:
        async with running(studio(tmp_path, emulator)) as server:
            async with asyncio.TaskGroup() as group:  # a retry, ten times over
                orders = [group.create_task(order(http, server.url, 1)) for _ in range(10)]
            (status_url,) = {order.result()["status_url"] for order in orders}
            card = await asked(http, f"{server.url}{status_url}?wait_s=10")
            assert (card["state"], card["prompt"], card["error"]) == ("succeeded", "a fox", None)
            assert card["progress"] is None
            async with http.get(f"{server.url}{card['images'][0]}") as image:
                assert image.content_type == "image/png"
            assert await asked(http, f"{server.url}/api/jobs") == {"jobs": [card]}

            wrong: list[tuple[int, dict[str, str], str | bytes]] = [
                (409, headers_of(1), '{"prompt": "another fox"}'),
                (400, {"Idempotency-Key": "too-short"}, '{"prompt": "a fox"}'),
                (400, {"Idempotency-Key": "../../../etc/passwd"}, '{"prompt": "a fox"}'),
                (400, {}, '{"prompt": "a fox"}'),
                (400, headers_of(2), '{"prompt": " "}'),
                (400, headers_of(2), '{"prompt": 7}'),
                (400, headers_of(2), '{"prompt": "a fox", "resolution": ["9K"]}'),
                (400, headers_of(2), '{"prompt": "a fox", "callback_url": "http://elsewhere.example"}'),
                (400, headers_of(2), "[" * 15_000),
                (400, headers_of(2), json.dumps({"prompt": "x" * 20_000})),
                (400, headers_of(2), b"\xff\x00"),
                (415, headers_of(2) | {"Content-Type": "text/plain"}, '{"prompt": "a fox"}'),
            ]
            for status, headers, body in wrong:
                async with http.post(f"{server.url}/api/jobs", data=body, headers=JSON | headers) as answer:
                    assert (answer.status, len((await answer.json())["detail"]) > 10) == (status, True), body
            for path in ("/api/jobs/nobody-knows-this-key", "/images/..%2fjobs.sqlite", "/images/"):
                async with http.get(f"{server.url}{path}") as answer:
                    assert answer.status == 404
            await server.stop()
        assert "Traceback" not in server.log_text()
        assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (1, 0)


async def test_worker_shows_and_adopts_jobs_of_another(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.05) as emulator, aiohttp.ClientSession() as http:
        ones, twos = studio(tmp_path, emulator), studio(tmp_path, emulator)
        async with running(ones) as one, running(twos) as two:
            card = await order(http, one.url, 1)
            await until_shown(http, two.url, card["key"], "running")
            for url in (one.url, two.url):  # each worker estimates it
                async with asyncio.timeout(20):
                    while not (progress := (await asked(http, f"{url}{card['status_url']}"))["progress"]):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                assert 0 < progress < 1
            held.release(emulator)
            awaited = await asked(http, f"{two.url}{card['status_url']}?wait_s=10")
            assert (awaited["state"], len(awaited["images"])) == ("succeeded", 1)

            held.hold()
            card = await order(http, one.url, 2)
            await received(emulator, 2)
            await one.kill()
            held.release(emulator)
            awaited = await asked(http, f"{two.url}{card['status_url']}?wait_s=10")
            assert (awaited["state"], len(awaited["images"])) == ("succeeded", 1)
            records = await all_ended(tmp_path / "data/jobs.sqlite")
            assert await check_paid(emulator, records) == {JobState.SUCCEEDED: 2}


async def test_workers_stop_with_open_pages_and_successors_finish(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(1.0), image_scale=0.05, job_limit=3) as emulator:
        server = studio(tmp_path, emulator, workers=2)
        async with running(server), aiohttp.ClientSession() as http:
            async with http.get(f"{server.url}/api/events"):
                for number in range(8):
                    await order(http, server.url, number)
                await server.stop(within_s=8)
            states = {record.state for record in (await written(tmp_path / "data/jobs.sqlite")).values()}
            assert JobState.SUBMITTING not in states
            await server.start()
            records = await all_ended(tmp_path / "data/jobs.sqlite")
            assert await check_paid(emulator, records) == {JobState.SUCCEEDED: 8}
            for key in records:  # also those whose job had ended when their image was not yet fetched
                card = await asked(http, f"{server.url}/api/jobs/{key}?wait_s=5")
                assert len(card["images"]) == 1


async def test_callback_to_any_worker_resolves_a_lost_answer(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.5), image_scale=0.05) as emulator, aiohttp.ClientSession() as http:
        async with running(studio(tmp_path, emulator, workers=2, gateway="defapi", callbacks=True)) as server:
            emulator.queue_faults("defapi.create", None, None, None, faults.reset(processed=True))
            for number in range(4):
                await order(http, server.url, number, f"a fox, number {number}")
            records = await all_ended(tmp_path / "data/jobs.sqlite")
            async with asyncio.timeout(10):
                while any(record.state is not JobState.SUCCEEDED for record in records.values()):
                    records = await all_ended(tmp_path / "data/jobs.sqlite")
            assert await check_paid(emulator, records) == {JobState.SUCCEEDED: 4}
            await until(lambda: emulator.stats().callbacks_sent == 4)  # a poll may have been first
        stats = emulator.stats()
        assert (stats.callbacks_sent, stats.callbacks_failed, stats.lost_creates) == (4, 0, 1)


async def test_one_command_starts_and_ctrl_c_ends_the_server(tmp_path: Path) -> None:
    command = re.search(
        r"^python (docs/examples/studio/run\.py)$", (STUDIO / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert command is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / command[1]), "--port", str(free_port()), "--job-seconds", "0.3"),
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            found = re.search(r"http://\S+", (await process.stdout.readline()).decode())
        assert found is not None
        async with aiohttp.ClientSession() as http:
            card = await order(http, found[0], 1)
            shown = await asked(http, f"{found[0]}{card['status_url']}?wait_s=15")
            assert shown["state"] == "succeeded"
            async with http.get(found[0]) as page:
                assert "<title>Studio</title>" in await page.text()
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(15):
            rest, _ = await process.communicate()
        assert (process.returncode, rest) == (0, b"")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


@pytest.mark.parametrize("name", ["index.html", "studio.js", "studio.css"])
def test_page_requests_no_other_host(name: str) -> None:
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", (STUDIO / "page" / name).read_text("utf-8")) == []
