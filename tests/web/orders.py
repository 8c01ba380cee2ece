"""Helpers of the tests of web applications: orders, the wait for all of them, and the jobs in the ledger."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from nanobanana_async import JobState
from nanobanana_async.emulator import Emulator
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord
from tests.support.ledger_file import written


def headers_of(number: int) -> dict[str, str]:
    """Return what an order is sent with."""
    return {"Idempotency-Key": f"order-{number:012d}"}


async def ordered(http: aiohttp.ClientSession, url: str, number: int) -> Mapping[str, Any]:
    """Order a fox; return what was answered with 202."""
    request = {"prompt": f"a fox, number {number}"}
    async with http.post(f"{url}/jobs", json=request, headers=headers_of(number)) as answer:
        assert answer.status == 202, await answer.text()
        accepted: dict[str, Any] = await answer.json()
        assert answer.headers["Location"].endswith(f"/jobs/{accepted['key']}")
        return accepted


async def all_ended(ledger: Path, *, timeout_s: float = 20) -> dict[str, JobRecord]:
    """Wait until no job is unfinished; return all of them by key."""
    async with asyncio.timeout(timeout_s):
        while True:
            records = await written(ledger)
            if not any(record.state in ACTIVE_STATES for record in records.values()):
                return records
            await asyncio.sleep(0.05)


async def check_paid(emulator: Emulator, records: Mapping[str, JobRecord]) -> Counter[JobState]:
    """Fail unless each job was charged once, withdrawn ones never, and each has its image; count them by state."""
    charged = Counter(job.prompt for job in emulator.jobs())
    bought = [record for record in records.values() if record.state is not JobState.WITHDRAWN]
    assert charged == Counter(record.request.prompt for record in bought if record.request is not None)
    assert emulator.stats().double_charges == 0
    async with aiohttp.ClientSession() as http:
        for record in bought:
            assert record.state is JobState.SUCCEEDED, record
            async with http.get(record.images[0]) as image:
                assert image.status == 200
                assert (await image.read()).startswith(b"\x89PNG")
    return Counter(record.state for record in records.values())
