"""In a process of its own: what a session costs as work grows, on the virtual clock and on real event loops."""

import asyncio
import gc
import importlib
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.children import orders, peak_mb, reply
from benchmarks.ideal import Drawn, quantile
from benchmarks.lean_gate import LeanGate
from benchmarks.simulating import feed
from nanobanana_async import ApiMall, ConcurrencyPolicy, PollPolicy, Session
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import run_virtual

LIMIT = 100
GAP_S = 5.0
AT_ONCE = 25
HOLD_S = 30.0


def _gateway() -> ApiMall:
    return ApiMall(api_key="benchmark", base_url="http://127.0.0.1")


async def _grow(jobs: int) -> dict[str, Any]:
    """Buy so many jobs, twice the limit in sight at a time."""
    gate = LeanGate(asyncio.get_running_loop().time, limit=LIMIT, durations=Drawn(1, 20.0, 0.4))
    async with Session(_gateway(), http=gate) as session:
        begun = time.process_time()
        well = await feed(session, (f"image {number}" for number in range(jobs)), 2 * LIMIT)
        cpu_s = time.process_time() - begun
    return {"jobs": jobs, "well": well, "cpu_s": cpu_s, "requests": gate.creates + gate.queries + gate.refused}


async def _hold(jobs: int) -> dict[str, Any]:
    """Hold so many jobs that never end, and weigh them; then let as many wait for a slot."""
    gate = LeanGate(asyncio.get_running_loop().time)
    policy = ConcurrencyPolicy(max_jobs=jobs, learn=False)
    polling = PollPolicy(min_gap_s=1000.0, max_gap_s=1000.0)
    async with Session(_gateway(), http=gate, concurrency=policy, polling=polling) as session:
        await session.submit("the first")
        await asyncio.sleep(1.0)
        gc.collect()
        tracemalloc.start()
        for number in range(jobs - 1):
            await session.submit(f"image {number}")
        while session.stats().slots_held < jobs:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.1)
        gc.collect()
        held_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return {"jobs": jobs, "bytes_per_job": held_bytes / (jobs - 1)}


class _Punctual(LeanGate):
    """Knows how late each poll is: with one fixed gap, each poll is due one gap after the last answer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._answered: dict[str, float] = {}
        self.late_s: list[float] = []

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Answer at once, and note how late the question was."""
        now = self._clock()
        if request.method == "GET":
            if (last := self._answered.get(request.url)) is not None:
                self.late_s.append(now - last - GAP_S)
            self._answered[request.url] = now
        return await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)


async def _be_late(jobs: int) -> dict[str, Any]:
    """Hold so many jobs in real time, looked at every few seconds, and see how late the polls are."""
    gate = _Punctual(asyncio.get_running_loop().time)
    policy = ConcurrencyPolicy(max_jobs=jobs, learn=False)
    polling = PollPolicy(target_delay_s=0.001, min_gap_s=GAP_S, max_gap_s=GAP_S)
    async with Session(_gateway(), http=gate, concurrency=policy, polling=polling) as session:
        for number in range(jobs):
            await session.submit(f"image {number}")
            if number % AT_ONCE == 0:  # spread over the gap; uvloop knows no part of a millisecond
                await asyncio.sleep(0.8 * GAP_S * AT_ONCE / jobs)
        await asyncio.sleep(GAP_S)
        gate.late_s.clear()
        begun, begun_cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(HOLD_S)
        busy = (time.process_time() - begun_cpu) / (time.perf_counter() - begun)
    return {"jobs": jobs, "p50_s": quantile(gate.late_s, 0.5), "p99_s": quantile(gate.late_s, 0.99), "busy": busy}


def _on_uvloop(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def main() -> None:
    """Do what was ordered, and answer with the result."""
    options = orders()
    jobs = int(options["jobs"])
    match options["what"], options.get("loop"):
        case "grow", _:
            result = run_virtual(_grow(jobs))
        case "hold", _:
            result = run_virtual(_hold(jobs))
        case "late", "uvloop":
            result = _on_uvloop(_be_late(jobs))
        case _:
            result = asyncio.run(_be_late(jobs))
    reply({**result, "peak_mb": peak_mb()})


if __name__ == "__main__":
    main()
