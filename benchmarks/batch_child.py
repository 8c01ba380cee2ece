"""In a process of its own: a batch of so many prompts, and the memory and time that it took."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from benchmarks.children import orders, peak_mb, reply
from benchmarks.ideal import Drawn
from benchmarks.lean_gate import LeanGate
from nanobanana_async import ApiMall, Batch, PollPolicy, Session
from nanobanana_async.testing import run_virtual

LIMIT = 100
LONG = Drawn(1, 20.0, 0.4)
SHORT = Drawn(1, 0.05, 0.4)
QUICK_POLLS = PollPolicy(target_delay_s=0.02, min_gap_s=0.02, max_gap_s=0.2)


def _prompts(rows: int) -> Iterator[str]:
    return (f"image {number}" for number in range(rows))


def _gateway(expected_job_s: float) -> ApiMall:
    return ApiMall(api_key="benchmark", base_url="http://127.0.0.1", expected_job_s=expected_job_s)


async def _taken(batch: Batch, sleep_s: float) -> AsyncIterator[bool]:
    async for outcome in batch:
        yield outcome.ok
        if sleep_s:
            await asyncio.sleep(sleep_s)


async def _measured(session: Session, gate: LeanGate, batch: Batch, sleep_s: float = 0.0) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    begun, begun_cpu, begun_wall = loop.time(), time.process_time(), time.perf_counter()
    well = 0
    async for ok in _taken(batch, sleep_s):
        well += ok
    return {
        "well": well,
        "took_s": loop.time() - begun,
        "wall_s": time.perf_counter() - begun_wall,
        "cpu_s": time.process_time() - begun_cpu,
        "creates": gate.creates,
    }


async def _unnamed(rows: int, ordered: bool, sleep_s: float) -> dict[str, Any]:
    """Buy on virtual time, and sleep after each outcome."""
    gate = LeanGate(asyncio.get_running_loop().time, limit=LIMIT, durations=LONG)
    async with Session(_gateway(20.0), http=gate) as session:
        return await _measured(session, gate, session.generate_many(_prompts(rows), ordered=ordered), sleep_s)


async def _named(rows: int, path: str) -> dict[str, Any]:
    """Buy in real time, each row written down first."""
    gate = LeanGate(asyncio.get_running_loop().time, limit=LIMIT, durations=SHORT)
    async with Session(_gateway(0.05), ledger=path, http=gate, polling=QUICK_POLLS) as session:
        return await _measured(session, gate, session.generate_many(_prompts(rows), batch="benchmark"))


def main() -> None:
    """Do what was ordered."""
    options = orders()
    rows = int(options["rows"])
    if "path" in options:
        result = asyncio.run(_named(rows, options["path"]))
    else:
        result = run_virtual(_unnamed(rows, bool(options.get("ordered")), float(options.get("sleep_s", 0.0))))
    reply({**result, "rows": rows, "peak_mb": peak_mb()})


if __name__ == "__main__":
    main()
