"""A writer killed with SIGKILL: every acknowledged write is in the file, and the file is intact."""

import asyncio
import os
import random
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest

from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.ledger import child
from tests.support.ledger_contract import keys_left

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("NANOBANANA_LEDGER_KILLS", "6"))


async def killed_while_writing(path: Path, name: str, after_s: float) -> Mapping[str, int]:
    """Let a process write and kill it; return the last acknowledged revision of each job."""
    async with child.at(path, "write", name) as process:
        first = await child.line(process)
        await asyncio.sleep(after_s)
        process.kill()
        output, _ = await process.communicate()
    acknowledged: dict[str, int] = {}
    # The kill may have cut the last line.
    for line in [first, *output.decode().rpartition("\n")[0].splitlines()]:
        key, revision = line.split()
        acknowledged[key] = int(revision)
    return acknowledged


def written(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found = dict(connection.execute("SELECT key, revision FROM jobs").fetchall())
    connection.close()
    return found


async def test_no_acknowledged_write_is_lost_by_a_kill(tmp_path: Path) -> None:
    path, rng = tmp_path / "jobs.sqlite", random.Random(7)
    acknowledged: dict[str, int] = {}
    for kill in range(KILLS):
        acknowledged |= await killed_while_writing(path, f"k{kill}", rng.uniform(0.0, 0.3))
    found = written(path)
    assert len(acknowledged) > child.WRITERS
    assert {key: at for key, at in acknowledged.items() if found.get(key, -1) < at} == {}
    async with asyncio.timeout(20):
        ledger = SqliteLedger(path)
        await ledger.open()
        left = await keys_left(ledger)  # all their owners are dead
        assert len(left) == sum(count for state, count in (await ledger.count_by_state()).items() if state in OPEN)
        for key in left:
            assert await ledger.adopt(key) is not None
        assert await keys_left(ledger) == []
        await ledger.aclose()


OPEN = {JobState.PENDING, JobState.SUBMITTING, JobState.RUNNING}
