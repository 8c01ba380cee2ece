"""The studio on several hosts: web replicas and batch workers on one ledger in PostgreSQL, with kills."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from nanobanana_async.emulator import Emulator, Fixed
from tests.support.command import ended, environment, started
from tests.support.postgres import Server as Database
from tests.support.postgres import new_schema
from tests.web.orders import headers_of
from tests.web.servers import running, studio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # a lease of ten seconds must end

ROWS, ORDERS = 12, 6


async def order(http: aiohttp.ClientSession, url: str, number: int) -> None:
    """Order an image."""
    request = {"prompt": f"order {number}"}
    async with http.post(f"{url}/api/jobs", json=request, headers=headers_of(number)) as answer:
        assert answer.status == 202, await answer.text()


async def images_of(http: aiohttp.ClientSession, url: str, number: int) -> list[str]:
    """Wait until the images of an order are saved."""
    key = headers_of(number)["Idempotency-Key"]
    async with asyncio.timeout(90):  # a burial, a round of adopting, and a busy machine
        while True:
            async with http.get(f"{url}/api/jobs/{key}?wait_s=10") as answer:
                card = await answer.json()
            if card["images"]:
                return list(card["images"])


async def test_killed_replica_and_worker_cost_no_second_purchase(postgres: Database, tmp_path: Path) -> None:
    ledger = f"{postgres.url}&schema={new_schema()}"
    (tmp_path / "spring.jsonl").write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(ROWS)))
    worker = ("worker", "--batch", "spring", "-o", "spring")
    async with Emulator(duration=Fixed(1.5), image_scale=0.05, job_limit=6) as emulator:
        environ = environment(emulator, NANOBANANA_LEDGER=ledger)
        replicas = [studio(tmp_path, emulator, ledger=ledger) for _ in range(2)]
        async with (
            running(replicas[0]) as dying,
            running(replicas[1]) as web,
            aiohttp.ClientSession() as http,
            started("batch", "spring.jsonl", "--feed-only", environ=environ, folder=tmp_path) as feeding,
        ):
            assert (await ended(feeding)).code == 0
            async with (
                started(*worker, environ=environ, folder=tmp_path) as dying_worker,
                started(*worker, environ=environ, folder=tmp_path) as living_worker,
            ):
                async with asyncio.timeout(90):  # a burial, a round of adopting, and a busy machine
                    while emulator.stats().creates_accepted < 3:  # noqa: ASYNC110 - the emulator has no event for it
                        await asyncio.sleep(0.05)
                for number in range(ORDERS):
                    await order(http, (dying.url, web.url)[number % 2], number)
                dying_worker.kill()
                await dying.kill()
                saved = [await images_of(http, web.url, number) for number in range(ORDERS)]
                said = await ended(living_worker)
            async with http.get(f"{web.url}/api/jobs") as answer:
                shown = {card["prompt"] for card in (await answer.json())["jobs"]}
        assert said.code == 0, said.err
        wanted = [*(f"row {n}" for n in range(ROWS)), *(f"order {n}" for n in range(ORDERS))]
        assert Counter(job.prompt for job in emulator.jobs()) == Counter(wanted)
        assert emulator.stats().double_charges == 0
    assert len({url for urls in saved for url in urls}) == ORDERS
    assert shown == {f"order {number}" for number in range(ORDERS)}
    folders = {path.name for path in (tmp_path / "data/images").iterdir()}
    assert folders == {headers_of(number)["Idempotency-Key"] for number in range(ORDERS)}
    assert len(list((tmp_path / "spring").glob("*.png"))) == ROWS
    assert "Traceback" not in web.log_text()
