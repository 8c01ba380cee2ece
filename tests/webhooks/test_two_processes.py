"""Two processes on one ledger file with one webhook of the account: deliveries that arrive at the wrong one."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async.emulator import Fixed
from tests.support.callbacks import bound
from tests.support.loopback import emulated

pytestmark = pytest.mark.slow

PATIENCE_S = 30.0


@asynccontextmanager
async def process(*arguments: object) -> AsyncIterator[Process]:
    command = (sys.executable, "-m", "tests.webhooks.receiving_process", *map(str, arguments))
    made = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.communicate()


async def said(made: Process, word: str) -> None:
    assert made.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        assert (await made.stdout.readline()).decode().strip() == word


async def ended(made: Process) -> dict[str, Any]:
    assert made.stdin is not None
    made.stdin.close()
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await made.communicate()
    assert made.returncode == 0
    facts: dict[str, Any] = json.loads(out.splitlines()[-1])
    return facts


async def test_deliveries_at_the_wrong_process_end_the_jobs_of_the_other(tmp_path: Path) -> None:
    (first, address), (second, own_address) = bound(), bound()
    first.close()
    second.close()
    port, own_port = address.rpartition(":")[2], own_address.rpartition(":")[2]
    ledger, public_url = tmp_path / "jobs.sqlite", f"{address}/hooks"
    async with emulated(duration=Fixed(1.0)) as emulator:
        async with process(emulator.url, ledger, public_url, port, 0) as receiving:
            await said(receiving, "ready")
            await said(receiving, "bought")
            async with process(emulator.url, ledger, public_url, own_port, 6) as buying:
                await said(buying, "ready")
                await said(buying, "bought")
                buyer = await ended(buying)
            receiver = await ended(receiving)
        stats = emulator.stats()
    assert buyer["bought"] == [True] * 6
    assert (buyer["deliveries"], receiver["deliveries"]) == ([], [200] * 6)
    assert (receiver["events"], receiver["polls"]) == (0, 0)  # it only passes them on
    assert (stats.creates_accepted, stats.double_charges, stats.callbacks_failed) == (6, 0, 0)
    assert 6 <= buyer["polls"] <= 18  # one for each delivery; a poll may meet a failure
