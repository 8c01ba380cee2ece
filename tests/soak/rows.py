"""A ledger of very many rows: open it, resume its jobs, list them. `python -m tests.soak.rows FILE` measures one."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from nanobanana_async import ApiMall, ImageRequest, JobState, Session, SqliteLedger
from nanobanana_async.failures import Failure
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.jobs import JobRecord
from nanobanana_async.testing import FakeTransport, Reply
from tests.soak.readings import rss_mb
from tests.support.fakes import API_KEY, REAL_TIME
from tests.support.records import NOON, record
from tests.support.replies import completed, refused

ROOT = Path(__file__).absolute().parents[2]
SHARES = {JobState.FAILED: 100, JobState.UNCERTAIN: 100, JobState.RUNNING: 100}
"""One row of so many is in this state; the others have succeeded."""
AT_ONCE = 2000


def state_of(number: int) -> JobState:
    """Return the state of a row."""
    turns = dict(enumerate(SHARES, 1))
    return turns.get(number % min(SHARES.values()), JobState.SUCCEEDED)


async def fill(path: Path, rows: int) -> None:
    """Write so many rows; this process ends, so that running ones have no owner any more."""
    ledger = SqliteLedger(path)
    await ledger.open()
    for start in range(0, rows, AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for number in range(start, min(start + AT_ONCE, rows)):
                group.create_task(ledger.claim(_row(number)))
    await ledger.aclose()


def _row(number: int) -> JobRecord:
    state, when = state_of(number), NOON + timedelta(seconds=number)
    facts: dict[str, Any] = {
        "key": f"row-{number}",
        "account": ApiMall(api_key=API_KEY).account,
        "request": ImageRequest(f"a lighthouse in fog, number {number}", model="nano-banana-pro", resolution="2K"),
        "body": b"",
        "created_at": when,
        "state": state,
        "revision": 3,
        "attempts": 1,
        "first_sent_at": when,
        "sent_at": when,
    }
    if state is not JobState.UNCERTAIN:
        facts |= {"task_id": f"img_{number}", "running_since": when, "credits_used": Decimal(8)}
    if state is JobState.SUCCEEDED:
        facts |= {"ended_at": when, "images": (f"https://cdn.example/images/{number}.png",)}
    if state is JobState.FAILED:
        facts |= {"ended_at": when, "failure": Failure(kind="JobFailed", message="The model has failed")}
    return record(**facts)


async def measure(path: Path) -> dict[str, Any]:
    """Open the ledger in a session, resume its jobs and list them; return seconds and MB for each step."""
    figures: dict[str, Any] = {"MB before": rss_mb()}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began_at = time.perf_counter()
        yield
        figures[f"{name}, s"] = time.perf_counter() - began_at
        figures[f"{name}, MB after"] = rss_mb()

    session = Session(ApiMall(api_key=API_KEY), ledger=path, http=FakeTransport(_answer, keep=1), polling=REAL_TIME)
    with step("open"):
        await session.open()
    with step("resume"):
        jobs = await session.resume()
    figures["resumed"] = len(jobs)
    with step("wait for what was resumed"):
        while jobs:
            await jobs.pop(0)
    await session.aclose()
    ledger = SqliteLedger(path, read_only=True)
    await ledger.open()
    with step("list the newest 50"):
        figures["listed"] = len([record.key async for record in ledger.jobs(limit=50)])
    with step("list the uncertain ones"):
        figures["uncertain"] = len([record.key async for record in ledger.jobs(JobState.UNCERTAIN)])
    with step("count by state"):
        counts = await ledger.count_by_state()
    with step("list all"):
        figures["rows"] = await _count(ledger)
    await ledger.aclose()
    return {**figures, "by state": {state.name: count for state, count in sorted(counts.items())}}


async def _count(ledger: SqliteLedger) -> int:
    count = 0
    async for _ in ledger.jobs():
        count += 1
    return count


def _answer(request: HttpRequest) -> Reply:
    task_id = request.url.rpartition("/")[2]
    return completed(task_id) if task_id.startswith("img_") else refused(404, "not_found", "No such endpoint")


def command_s(path: Path) -> float:
    """Return how long `nanobanana jobs` takes for its newest rows, the start of the interpreter included."""
    began_at = time.perf_counter()
    command = [sys.executable, "-m", "nanobanana_async", "jobs", "--limit", "50", "--ledger", str(path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
    return time.perf_counter() - began_at


if __name__ == "__main__":
    if sys.argv[2:]:
        asyncio.run(fill(Path(sys.argv[1]), int(sys.argv[2])))
    else:
        print(json.dumps(asyncio.run(measure(Path(sys.argv[1])))))
