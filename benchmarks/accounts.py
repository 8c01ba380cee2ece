"""Accounts as they are sold: a few jobs at once and a budget of requests, both unknown to the client.

Beside each, a loop written by hand that knows everything: a semaphore of the true limit, a pause between any two
requests, and one fixed poll interval, the shortest that the budget allows.
"""

import asyncio
import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attrs import evolve, frozen

from benchmarks.ideal import Drawn, list_schedule_s, mean_of
from benchmarks.plots import draw_accounts
from benchmarks.pool import side_by_side
from benchmarks.report import Cell, Check, Section, Table
from benchmarks.simulating import RTT_S, simulate
from nanobanana_async import ApiMall, MemoryLedger
from nanobanana_async.emulator import API_KEY, EmulatorOptions, EmulatorSettings, EmulatorStats, GatewaySimulator
from nanobanana_async.emulator.rates import RateWindow, make_rate
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import TERMINAL_STATES
from nanobanana_async.models import ImageRequest
from nanobanana_async.testing import EmulatorTransport, run_virtual

SIGMA = 0.4
WAYS = ("cold", "warm", "by hand")
"""A session without knowledge, one on the ledger of an earlier one, and the loop written by hand."""
WINDOWS: tuple[RateWindow, ...] = ("sliding", "clock", "bucket")
POLL_SHARE = 0.32
"""Polls a job times the mean delay, as a share of the mean duration, for the best schedule and sigma 0.4."""


@frozen(kw_only=True)
class Account:
    """An account, and the jobs that are bought through it."""

    name: str
    limits: tuple[tuple[str, float], ...]
    limit: int
    median_s: float
    jobs: int
    cold: float
    """The target for makespan / ideal of a session without knowledge."""
    refused: float
    """The target for the share of all requests that are refused."""
    warm: tuple[float, float] | None = None
    """The same targets for a session that knows what an earlier one learned."""
    window: RateWindow = "sliding"
    stated: bool = True
    seed: int = 1

    @property
    def title(self) -> str:
        """Name the account and how it counts."""
        return f"{self.name}; {self.window}, {'stated' if self.stated else 'one word'}"

    def options(self) -> dict[str, Any]:
        """Return the options of the emulated account."""
        options: EmulatorOptions = {
            "seed": self.seed,
            "job_limit": self.limit,
            "rate_window": self.window,
            "states_429_kind": self.stated,
            "duration": Drawn(self.seed, self.median_s, SIGMA),
        }
        return {**options, **dict(self.limits)}

    def settings(self) -> EmulatorSettings:
        """Return the emulated account."""
        return EmulatorSettings(**self.options())

    @property
    def per_minute(self) -> float | None:
        """The budget of all requests."""
        return dict(self.limits).get("requests_per_minute")

    @property
    def polls_left(self) -> float | None:
        """How many polls a job the budget leaves when the slots are full."""
        if self.per_minute is None:
            return None
        jobs_per_minute = 60.0 * self.limit / mean_of(self.median_s, SIGMA)
        return (self.per_minute - jobs_per_minute) / jobs_per_minute

    @property
    def bound(self) -> float | None:
        """The least makespan / ideal for a client that learns of free slots by polls alone."""
        return None if self.polls_left is None else 1.0 + POLL_SHARE / self.polls_left

    def ideal_s(self) -> float:
        """Return the makespan of a client that knows all, and sees each end at once."""
        durations = Drawn(self.seed, self.median_s, SIGMA).take(self.jobs)
        rate = dict(self.limits).get("creates_per_minute")
        if rate is None:
            return list_schedule_s(durations, self.limit)
        counted = make_rate(self.window, rate, 60.0, None)
        ends: list[float] = []
        start = 0.0
        for duration in durations:
            start = max(start, heapq.heappop(ends) if len(ends) == self.limit else 0.0)
            start += counted.wait_s(start)
            counted.take(start)
            heapq.heappush(ends, start + duration)
        return max(ends)


@frozen(kw_only=True)
class Found:
    """What one run cost."""

    ratio: float
    refused: float
    polls: float
    delay_s: float

    @classmethod
    def of(cls, account: Account, stats: EmulatorStats, makespan_s: float) -> "Found":
        """Set what the emulator counted beside the ideal."""
        if stats.creates_accepted != account.jobs:
            raise RuntimeError(f"{account.title}: {stats.creates_accepted} of {account.jobs} jobs were accepted")
        return cls(
            ratio=makespan_s / account.ideal_s(),
            refused=sum(stats.refusals_429.values()) / sum(stats.requests.values()),
            polls=stats.polls_per_job_mean,
            delay_s=stats.notice_delay_mean_s,
        )


def run_cold(account: Account) -> Found:
    """Run a session without knowledge of the account."""
    trace = simulate(account.settings(), jobs=account.jobs)
    return Found.of(account, trace.stats, trace.ended_at)


def run_warm(account: Account) -> Found:
    """Run a session on the ledger of an earlier one."""
    ledger = MemoryLedger()
    simulate(evolve(account, seed=account.seed + 100).settings(), jobs=account.jobs, ledger=ledger)
    trace = simulate(account.settings(), jobs=account.jobs, ledger=ledger)
    return Found.of(account, trace.stats, trace.ended_at)


class HandWritten:
    """The loop written by hand."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._simulator = GatewaySimulator(account.settings())
        self._transport = EmulatorTransport(self._simulator, api_key=API_KEY, latency_s=RTT_S)
        self._gateway = ApiMall(api_key=API_KEY, base_url="http://127.0.0.1")
        self._slots = asyncio.Semaphore(account.limit)
        limits = dict(account.limits)
        self._pauses_s = {
            "GET": 60.0 / limits.get("requests_per_minute", math.inf) * 1.02,
            "POST": 60.0 / min(limits.values(), default=math.inf) * 1.02,
        }
        self._next_at = 0.0
        left = account.polls_left
        self._interval_s = 1.0 if left is None else mean_of(account.median_s, SIGMA) / left
        self._last_end = 0.0

    async def _send(self, request: HttpRequest) -> HttpResponse | None:
        loop = asyncio.get_running_loop()
        at = max(self._next_at, loop.time())
        self._next_at = at + self._pauses_s[request.method]
        await asyncio.sleep(at - loop.time())
        answer = await self._transport.send(request, timeout_s=60.0)
        return answer if answer.status == 200 else None

    async def _buy(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        body = self._gateway.encode(ImageRequest(f"image {number}"))
        async with self._slots:
            create = self._gateway.build_create(body, wire_key=f"key-{number}")
            created: HttpResponse | None = None
            while created is None:
                created = await self._send(create)
            accepted = self._gateway.read_create(created)
            while True:
                await asyncio.sleep(self._interval_s)
                polled = await self._send(self._gateway.build_query(accepted.task_id))
                if polled is not None and self._gateway.read_query(polled).state in TERMINAL_STATES:
                    self._last_end = loop.time()
                    return

    async def run(self) -> Found:
        """Buy all jobs."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._account.jobs):
                group.create_task(self._buy(number))
        return Found.of(self._account, self._simulator.stats(self._last_end), self._last_end)


def run_hand_written(account: Account) -> Found:
    """Run the loop written by hand."""

    async def run() -> Found:
        return await HandWritten(account).run()

    return run_virtual(run())


SMALL = Account(
    name="5 jobs, 60 a minute, median 45 s, 40 jobs",
    limits=(("requests_per_minute", 60),),
    limit=5,
    median_s=45.0,
    jobs=40,
    cold=1.09,
    refused=0.04,
    warm=(1.06, 0.01),
)
MEDIUM = Account(
    name="10 jobs, 120 a minute, median 20 s, 120 jobs",
    limits=(("requests_per_minute", 120),),
    limit=10,
    median_s=20.0,
    jobs=120,
    cold=1.15,
    refused=0.03,
)
LARGE = Account(
    name="100 jobs, 1,200 a minute, median 15 s, 1,500 jobs",
    limits=(("requests_per_minute", 1200),),
    limit=100,
    median_s=15.0,
    jobs=1500,
    cold=1.19,
    refused=0.015,
)
FREE = Account(
    name="20 jobs, no budget, median 10 s, 200 jobs",
    limits=(),
    limit=20,
    median_s=10.0,
    jobs=200,
    cold=1.06,
    refused=0.01,
)
CREATES = Account(
    name="20 jobs, 60 creates a minute, median 10 s, 200 jobs",
    limits=(("creates_per_minute", 60),),
    limit=20,
    median_s=10.0,
    jobs=200,
    cold=1.05,
    refused=0.03,
)


def variants_of(account: Account) -> list[Account]:
    if not account.limits:
        return [account]
    return [evolve(account, window=window, stated=stated) for stated in (True, False) for window in WINDOWS]


def _accounts(quick: bool) -> list[Account]:
    accounts = (SMALL, MEDIUM, FREE, CREATES) if quick else (SMALL, MEDIUM, LARGE, FREE, CREATES)
    return [variant for account in accounts for variant in variants_of(account)]


def _run(plan: tuple[str, Account]) -> Found:
    how, account = plan
    match how:
        case "cold":
            return run_cold(account)
        case "warm":
            return run_warm(account)
        case _:
            return run_hand_written(account)


def _middle(runs: Sequence[Found]) -> Found:
    return Found(
        ratio=median(run.ratio for run in runs),
        refused=median(run.refused for run in runs),
        polls=median(run.polls for run in runs),
        delay_s=median(run.delay_s for run in runs),
    )


def section(*, seeds: int, quick: bool, only: str | None, out: Path) -> Section:
    """Run every account with each seed: cold, warm, and by hand."""
    accounts = [account for account in _accounts(quick) if (only or "") in account.title]
    plans = [(how, evolve(account, seed=seed)) for account in accounts for how in WAYS for seed in range(1, seeds + 1)]
    outcomes = iter(side_by_side(_run, plans))
    rows: list[Sequence[Cell]] = []
    checks: list[Check] = []
    for account in accounts:
        for how in WAYS:
            runs = [next(outcomes) for _ in range(seeds)]
            middle = _middle(runs)
            rows.append(
                [
                    account.title,
                    how,
                    account.bound,
                    middle.ratio,
                    max(run.ratio for run in runs),
                    100 * middle.refused,
                    middle.polls,
                    middle.delay_s,
                ]
            )
            targets = {"cold": (account.cold, account.refused), "warm": account.warm}.get(how)
            if targets is not None:
                title = f"{account.title}, {how}"
                worst = max(run.ratio for run in runs)
                checks.append(
                    Check(what=f"{title}: makespan / ideal", value=middle.ratio, worst=worst, target=targets[0])
                )
                worst = max(run.refused for run in runs)
                checks.append(Check(what=f"{title}: refused", value=middle.refused, worst=worst, target=targets[1]))
    columns = ("account", "client", "bound", "makespan / ideal", "worst", "refused %", "polls a job", "mean delay s")
    title = f"Accounts as sold, on the virtual clock, round trip {RTT_S} s: medians of {seeds} seeds"
    table = Table(title=title, columns=columns, rows=rows)
    return Section(name="accounts", tables=[table], checks=checks, plots=[draw_accounts(table, out / "accounts.png")])
