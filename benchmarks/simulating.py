"""A session and an emulated account on the virtual clock: hours of jobs in seconds."""

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from benchmarks.ideal import Drawn, list_schedule_s
from benchmarks.measured import Fleet, Measured, Served, utilisation
from nanobanana_async import ApiMall, Ledger, PollPolicy, Session
from nanobanana_async.emulator import (
    API_KEY,
    EmulatedRequest,
    EmulatedResponse,
    EmulatorSettings,
    EmulatorStats,
    GatewaySimulator,
    JobFacts,
)
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.testing import EmulatorTransport, run_virtual

RTT_S = 0.05


class WatchedSimulator(GatewaySimulator):
    """An emulated account that remembers when it refused a create."""

    def __init__(self, settings: EmulatorSettings) -> None:
        super().__init__(settings)
        self.refused_at: list[float] = []
        self.first_at: float | None = None

    def handle(self, now: float, request: EmulatedRequest) -> EmulatedResponse:
        """Answer, and note a 429 to a create."""
        answer = super().handle(now, request)
        if request.method == "POST":
            self.first_at = now if self.first_at is None else self.first_at
            if answer.status == 429:
                self.refused_at.append(now)
        return answer


@frozen(kw_only=True)
class Sample:
    """What the session believed at a moment."""

    at: float
    cap: float | None
    """None: it has met no limit yet."""
    held: int


@frozen(kw_only=True)
class Trace:
    """What happened in a run, by the server's clock."""

    stats: EmulatorStats
    jobs: tuple[JobFacts, ...]
    refused_at: tuple[float, ...]
    samples: tuple[Sample, ...]
    ended_well: int
    ended_at: float

    def refusals(self, begin: float, end: float) -> int:
        """Count the 429s to creates in a stretch of time."""
        return sum(begin <= at < end for at in self.refused_at)

    def utilisation(self, begin: float, end: float, limit: int) -> float:
        """Return the share of the slots that was in use in a stretch of time."""
        return utilisation(((job.created_at, job.ends_at) for job in self.jobs), begin, end, limit)

    def filled_at(self, since: float, level: float) -> float | None:
        """Return when so many jobs ran at once for the first time after a moment."""
        starts = sorted(job.created_at for job in self.jobs)
        ends = sorted(job.ends_at for job in self.jobs)
        for started, at in enumerate(starts, 1):
            if at >= since and started - bisect_right(ends, at) >= level:
                return at
        return None


async def buy(session: Session, prompt: str) -> bool:
    """Buy one job; return whether it succeeded."""
    try:
        await session.generate(prompt)
    except NanoBananaError:
        return False
    return True


async def throw_in(session: Session, jobs: int) -> int:
    """Order everything at once; return how many ended well."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(buy(session, f"image {number}")) for number in range(jobs)]
    return sum(task.result() for task in tasks)


async def feed(session: Session, prompts: Iterable[str], workers: int) -> int:
    """Order with so many jobs in sight at a time; return how many ended well."""
    source: Iterator[str] = iter(prompts)
    well = 0

    async def work() -> None:
        nonlocal well
        for prompt in source:
            ended_well = await buy(session, prompt)
            well += ended_well

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    return well


async def _sample(session: Session, every_s: float, samples: list[Sample]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        stats = session.stats()
        samples.append(Sample(at=loop.time(), cap=stats.job_limit, held=stats.slots_held))
        await asyncio.sleep(every_s)


async def _watch(
    simulator: WatchedSimulator,
    jobs: int | None,
    workers: int | None,
    until_s: float | None,
    sample_s: float | None,
    ledger: Ledger | None,
    polling: PollPolicy | None,
) -> Trace:
    loop = asyncio.get_running_loop()
    samples: list[Sample] = []
    well = 0
    transport = EmulatorTransport(simulator, api_key=API_KEY, latency_s=RTT_S)
    gateway = ApiMall(api_key=API_KEY, base_url="http://127.0.0.1")
    async with Session(gateway, http=transport, ledger=ledger, polling=polling) as session:
        sampler = None if sample_s is None else loop.create_task(_sample(session, sample_s, samples))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until_s):
                if workers is None:
                    well = await throw_in(session, jobs or 0)
                else:
                    numbers = range(10**9 if jobs is None else jobs)
                    well = await feed(session, (f"image {number}" for number in numbers), workers)
        ended_at = loop.time()
        if sampler is not None:
            sampler.cancel()
    return Trace(
        stats=simulator.stats(ended_at),
        jobs=tuple(simulator.jobs(ended_at)),
        refused_at=tuple(simulator.refused_at),
        samples=tuple(samples),
        ended_well=well,
        ended_at=ended_at,
    )


def simulate(
    settings: EmulatorSettings,
    *,
    jobs: int | None = None,
    workers: int | None = None,
    until_s: float | None = None,
    sample_s: float | None = None,
    ledger: Ledger | None = None,
    polling: PollPolicy | None = None,
) -> Trace:
    """Run so many jobs, or until a moment; without `workers` everything is ordered at once."""
    return run_virtual(_watch(WatchedSimulator(settings), jobs, workers, until_s, sample_s, ledger, polling))


def measure(fleet: Fleet, *, workers: int | None = None) -> Measured:
    """Run a fleet on the virtual clock."""
    drawn = Drawn(fleet.seed, fleet.median_s, fleet.sigma)
    settings = EmulatorSettings(seed=fleet.seed, job_limit=fleet.limit, duration=drawn)
    trace = simulate(settings, jobs=fleet.jobs, workers=workers)
    return summed_up(fleet, trace.stats, 0.0, trace.refused_at, trace.ended_well, trace.ended_at)


def summed_up(
    fleet: Fleet,
    stats: EmulatorStats,
    first_at: float,
    refused_at: Sequence[float],
    ended_well: int,
    makespan_s: float,
) -> Measured:
    """Set what was counted beside the ideal for the same durations."""
    durations = Drawn(fleet.seed, fleet.median_s, fleet.sigma).take(fleet.jobs)
    return Measured.of(
        Served.of(stats, first_at, refused_at),
        durations=durations,
        ended_well=ended_well,
        makespan_s=makespan_s,
        ideal_s=list_schedule_s(durations, fleet.limit),
    )
