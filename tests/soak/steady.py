"""Steady work on virtual time, with every way in which a caller may leave; what the process holds must not grow.

`python -m tests.soak.steady ORDERS` works for an hour of virtual time.
"""

import asyncio
import gc
import json
import random
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from nanobanana_async import ApiMall, ConcurrencyPolicy, JobState, Session
from nanobanana_async.errors import NanoBananaError, TransportError
from nanobanana_async.events import Observer
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply, run_virtual
from tests.soak.readings import WARM_UP, growth
from tests.support.fakes import API_KEY, now
from tests.support.replies import completed, created, refused, task

FAILING, BLOCKED = "[fail]", "[blocked]"
KEPT_TRACES = 1


@dataclass(frozen=True, kw_only=True)
class Orders:
    """How much work there is."""

    seconds: float = 3600.0
    """Of virtual time."""
    callers: int = 60
    every_s: float = 120.0
    """The time between two readings."""
    faulty: float = 0.05
    """The share of requests that go wrong."""


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What came of it."""

    jobs: int
    bytes_per_job: float
    """By how much each job adds to the traced memory, after the warm-up."""
    held: list[tuple[int, int]] = field(default_factory=list)
    """Jobs that were bought, and traced bytes, at each reading."""
    grown: list[str] = field(default_factory=list)
    """The lines of code whose memory has grown most since the warm-up."""


class StatelessGateway:
    """API Mall's answers; a task id says when its job ends and how, so that nothing is kept here."""

    def __init__(self, faulty: float) -> None:
        self._draw = random.Random(0)
        self._faulty = faulty
        self.sold = 0

    def answer(self, request: HttpRequest) -> Reply:
        """Answer a request, or spoil it."""
        if self._draw.random() < self._faulty:
            return self._draw.choice(
                (
                    TransportError("the connection was reset", possibly_sent=True),
                    refused(500, "internal_error", "Internal error"),
                    refused(503, "service_unavailable", "Unavailable"),
                    refused(429, "too_many_concurrent_jobs", "Too many concurrent jobs"),
                )
            )
        return self._create(request) if request.method == "POST" else self._query(request.url.rpartition("/")[2])

    def _create(self, request: HttpRequest) -> Reply:
        prompt = json.loads(request.body or b"{}")["prompt"]
        if BLOCKED in prompt:
            return refused(451, "content_policy_violation", "The prompt was blocked")
        self.sold += 1
        ends_at = now() + self._draw.lognormvariate(2.0, 0.4)
        return created(f"img_{self.sold}_{round(ends_at * 1000)}_{'failed' if FAILING in prompt else 'completed'}")

    def _query(self, task_id: str) -> Reply:
        match task_id.split("_"):
            case ["img", _, ends_at, end]:
                if now() * 1000 < int(ends_at):
                    return task("processing", task_id)
                return completed(task_id) if end == "completed" else task("failed", task_id, error_message="No reason")
            case _:
                return refused(404, "not_found", "No such endpoint")


async def _wait(session: Session, prompt: str) -> None:
    await session.generate(prompt)


async def _leave(session: Session, prompt: str) -> None:
    async with asyncio.timeout(2.0):
        await session.generate(prompt)


async def _give_up(session: Session, prompt: str) -> None:
    await session.generate(prompt, timeout=2.0)


async def _drop_handle(session: Session, prompt: str) -> None:
    await session.submit(prompt)


async def _withdraw(session: Session, prompt: str) -> None:
    job = await session.submit(prompt)
    await job.cancel()


async def _follow_until_running(session: Session, prompt: str) -> None:
    job = await session.submit(prompt)
    async for seen in job.updates():
        if seen.state is JobState.RUNNING:
            break


async def _fail(session: Session, prompt: str) -> None:
    await session.generate(f"{prompt} {FAILING}")


async def _be_blocked(session: Session, prompt: str) -> None:
    await session.generate(f"{prompt} {BLOCKED}")


async def _leave_batch(session: Session, prompt: str) -> None:
    async with session.generate_many(f"{prompt}, {row}" for row in range(5)) as batch:
        async for _ in batch:
            break


WAYS: Sequence[Callable[[Session, str], Awaitable[None]]] = (
    *(_wait, _wait, _leave, _give_up, _drop_handle, _withdraw, _follow_until_running, _fail, _be_blocked, _leave_batch),
)
"""What a caller may do with a job."""


async def work(orders: Orders, observers: Sequence[Observer] = ()) -> Worked:
    """Work for so long on the loop of virtual time that runs; tracing must have begun."""
    gateway, readings, base = StatelessGateway(orders.faulty), list[tuple[int, int]](), None
    draw, end_at = random.Random(1), now() + orders.seconds
    warm_at = now() + orders.seconds * WARM_UP

    async def call(caller: int) -> None:
        number = 0
        while now() < end_at:
            number += 1
            with suppress(NanoBananaError, TimeoutError):
                await draw.choice(WAYS)(session, f"a fox, {caller}, {number}")
            await asyncio.sleep(draw.uniform(0.0, 1.0))

    session = Session(
        ApiMall(api_key=API_KEY),
        http=FakeTransport(gateway.answer, keep=0),
        concurrency=ConcurrencyPolicy(max_jobs=2 * orders.callers),
        observers=observers,
    )
    async with session, asyncio.TaskGroup() as group:
        for caller in range(orders.callers):
            group.create_task(call(caller))
        while now() < end_at:
            await asyncio.sleep(orders.every_s)
            gc.collect()
            readings.append((gateway.sold, tracemalloc.get_traced_memory()[0]))
            if base is None and now() >= warm_at:
                base = tracemalloc.take_snapshot()
        compared = [] if base is None else tracemalloc.take_snapshot().compare_to(base, "lineno")
    return Worked(
        jobs=gateway.sold,
        bytes_per_job=growth(*zip(*readings, strict=True)),
        held=readings,
        grown=[str(each) for each in compared[:8]],
    )


def run(orders: Orders, observers: Sequence[Observer] = ()) -> Worked:
    """Work on virtual time, traced."""
    tracemalloc.start(KEPT_TRACES)
    try:
        return run_virtual(work(orders, observers))
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    worked: dict[str, Any] = asdict(run(Orders(**json.loads(sys.argv[1]))))
    print(json.dumps(worked))
