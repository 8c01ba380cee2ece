"""A day of jobs while the system's clock is set forwards and back: `python -m tests.faults day`.

The day is virtual. It runs twice with the same chances, with and without the jumps: every request must leave at the
same time in both, so nothing but the monotonic clock decides.
"""

import asyncio
import itertools
import logging
import random
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from attrs import define, field

from nanobanana_async import ConcurrencyPolicy
from nanobanana_async.engine import poller, submitter
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply, run_virtual
from tests.support.fakes import FakeGateway, apimall, now, virtual_loop
from tests.support.mutations import patched

DAY_S = 86_400.0
PER_MINUTE = 30
JOBS = 250


@define
class Day:
    """The requests of one day, in order."""

    requests: list[tuple[float, str]] = field(factory=list)
    sold: int = 0
    ended: int = 0
    jumps: int = 0

    def most_in_a_minute(self) -> int:
        """Return the largest number of requests within any sixty seconds."""
        times, first, most = [at for at, _ in self.requests], 0, 0
        for last, at in enumerate(times):
            while times[first] <= at - 60.0:
                first += 1
            most = max(most, last - first + 1)
        return most


async def _day(seed: int, *, jumping: bool) -> Day:
    day, rng, gateway = Day(), random.Random(seed), FakeGateway(job_s=90.0)
    clock = random.Random(f"{seed} clock")

    def answer(request: HttpRequest) -> Reply:
        day.requests.append((now(), request.method))
        return gateway.answer(request)

    async def set_clock() -> None:
        while True:
            await asyncio.sleep(clock.uniform(60.0, 2400.0))
            if jumping:
                hours = clock.choice((-240.0, -25.0, -1.0, -0.01, 0.01, 1.0, 25.0, 240.0))
                virtual_loop().wall_clock_offset += timedelta(hours=hours)
                day.jumps += 1

    limits = ConcurrencyPolicy(max_requests_per_minute=PER_MINUTE)
    async with apimall(FakeTransport(answer, keep=1), concurrency=limits) as session:
        async with asyncio.TaskGroup() as group:
            setting = group.create_task(set_clock())
            async with asyncio.TaskGroup() as jobs:
                for number in range(JOBS):
                    await asyncio.sleep(rng.expovariate(JOBS / DAY_S) if rng.random() < 0.7 else 0.0)
                    jobs.create_task(session.generate(f"fox {number}", idempotency_key=f"order-{number}"))
            setting.cancel()
        day.ended = session.stats().succeeded
    day.sold = gateway.sold
    return day


def play(seed: int) -> tuple[Day, list[str]]:
    """Run a day with jumps and one without; return the first, and what went wrong."""
    days = []
    for jumping in (True, False):
        numbers = itertools.count()
        chance: Any = SimpleNamespace(Random=lambda numbers=numbers: random.Random(f"{seed} {next(numbers)}"))
        with patched([(submitter, "random", chance), (poller, "random", chance)]):
            days.append(run_virtual(_day(seed, jumping=jumping)))
    jumping_day, calm_day = days
    breaches = []
    if jumping_day.requests != calm_day.requests:
        pairs = zip(jumping_day.requests, calm_day.requests, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), "one has more requests")
        breaches.append(f"seed {seed}: the jumps changed the requests: {first}")
    if jumping_day.most_in_a_minute() > PER_MINUTE:
        breaches.append(f"seed {seed}: {jumping_day.most_in_a_minute()} requests in a minute")
    if (jumping_day.sold, jumping_day.ended) != (JOBS, JOBS):
        breaches.append(f"seed {seed}: {jumping_day.sold} jobs bought, {jumping_day.ended} ended, wanted {JOBS}")
    return jumping_day, breaches


def main(count: int | None) -> dict[str, Any]:
    """Run many days."""
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    began, days = time.process_time(), [play(seed) for seed in range(count or 50)]
    return {
        "days": len(days),
        "jumps of the clock": sum(day.jumps for day, _ in days),
        "requests": sum(len(day.requests) for day, _ in days),
        "most requests in a minute": max(day.most_in_a_minute() for day, _ in days),
        "allowed in a minute": PER_MINUTE,
        "processor seconds for a day": round((time.process_time() - began) / len(days) / 2, 2),
        "breaches": [breach for _, breaches in days for breach in breaches],
    }
