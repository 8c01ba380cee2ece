"""Hosts that share one account through one ledger, all on one virtual clock: who fills how many slots, at what cost."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from attrs import evolve, frozen

from benchmarks.accounts import SMALL, WINDOWS, Account, Found, run_cold
from benchmarks.ideal import Drawn, quantile
from benchmarks.measured import jain, utilisation
from benchmarks.pool import side_by_side
from benchmarks.report import Cell, Check, Section, Table
from benchmarks.simulating import WatchedSimulator, buy
from nanobanana_async import ApiMall, ConcurrencyPolicy, Session
from nanobanana_async.emulator import API_KEY, EmulatorSettings, EmulatorStats, JobFacts
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import JobState
from nanobanana_async.testing import EmulatorTransport, run_virtual
from tests.support.shared_ledger import LedgerView, SharedLedger

RTT_S = 0.05
LEDGER_S = 0.004
"""A write or an exchange, there and back."""
RESUME_EVERY_S = 2.0


@frozen(kw_only=True)
class Plan:
    """Some hosts that always have work, and what happens to them."""

    name: str
    hosts: int
    limit: int
    median_s: float = 10.0
    sigma: float = 0.4
    warm_s: float = 30.0
    until_s: float = 210.0
    stagger_s: float = 0.0
    schedule: tuple[tuple[float, int], ...] = ()
    kill_every_s: float = 0.0
    lease_s: float = 10.0
    web: int = 0
    """So many hosts more have no backlog, but get 0.4 jobs a second together."""
    reserve: int = 0
    interactive: bool = True
    states_429_kind: bool = True
    seed: int = 1


class HostTransport(EmulatorTransport):
    """A host's connection to the account, which counts what the host bought, until it dies."""

    def __init__(self, simulator: WatchedSimulator) -> None:
        super().__init__(simulator, api_key=API_KEY, latency_s=RTT_S)
        self.killed = False
        self.bought: list[float] = []

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Send a request; no answer comes to a dead host."""
        if self.killed:
            await asyncio.Event().wait()
        response = await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)
        if self.killed:
            await asyncio.Event().wait()
        if request.method == "POST" and response.status == 200:
            self.bought.append(asyncio.get_running_loop().time())
        return response


class Host:
    """One process with a session on the shared ledger."""

    def __init__(self, run: "Run", number: int, concurrency: ConcurrencyPolicy) -> None:
        self._run = run
        self.number = number
        self.ledger = LedgerView(run.ledger, LEDGER_S)
        self.transport = HostTransport(run.simulator)
        gateway = ApiMall(api_key=API_KEY, base_url="http://127.0.0.1")
        self.session = Session(
            gateway, http=self.transport, ledger=self.ledger, concurrency=concurrency, observers=[self._observe]
        )
        self.tasks: list[asyncio.Task[Any]] = []
        self.waits: list[float] = []
        self._asked: dict[str, float] = {}

    def _observe(self, event: Event) -> None:
        if isinstance(event, JobStateChanged) and event.record.state is JobState.SUBMITTING:
            asked_at = self._asked.pop(event.record.key, None)
            if asked_at is not None:
                self.waits.append(asyncio.get_running_loop().time() - asked_at)

    async def _work(self) -> None:
        for prompt in self._run.prompts:
            await buy(self.session, prompt)

    async def _adopt(self) -> None:
        while True:
            await asyncio.sleep(RESUME_EVERY_S)
            await self.session.resume(buy=True)

    async def _serve(self, per_s: float, rng: random.Random) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count():
            await asyncio.sleep(rng.expovariate(per_s))
            key = f"web-{self.number}-{number}"
            self._asked[key] = loop.time()
            self.tasks.append(loop.create_task(self._buy_one(key)))

    async def _buy_one(self, key: str) -> None:
        await self.session.generate(key, idempotency_key=key)

    async def start(self, *, workers: int = 0, per_s: float = 0.0, adopts: bool = False) -> None:
        """Open the session and begin to work, or to serve."""
        await self.session.open()
        loop = asyncio.get_running_loop()
        self.tasks += [loop.create_task(self._work()) for _ in range(workers)]
        if per_s:
            self.tasks.append(
                loop.create_task(self._serve(per_s, random.Random(f"{self._run.plan.seed} {self.number}")))
            )
        if adopts:
            self.tasks.append(loop.create_task(self._adopt()))

    async def stop(self) -> None:
        """Stop working and close the session."""
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        await self.session.aclose()

    def kill(self) -> None:
        """Die: no write, no request and no answer from now on."""
        self.ledger.kill()
        self.transport.killed = True


class Run:
    """All hosts of a plan on one account and one ledger."""

    def __init__(self, plan: Plan, settings: EmulatorSettings, prompts: Iterator[str] | None = None) -> None:
        self.plan = plan
        self.ledger = SharedLedger()
        self.ledger.lease_s = plan.lease_s
        self.simulator = WatchedSimulator(settings)
        self.prompts = (f"image {number}" for number in itertools.count()) if prompts is None else prompts
        self.hosts: list[Host] = []
        self.dead: list[Host] = []
        self.taken: list[tuple[float, int]] = []

    async def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0.5)
            self.taken.append((loop.time(), sum(host.session.stats().slots_held for host in list(self.hosts))))

    async def add(self, number: int, **how: Any) -> Host:
        """Start a host."""
        web = number >= self.plan.hosts
        concurrency = ConcurrencyPolicy()
        if web and self.plan.interactive:
            concurrency = ConcurrencyPolicy(interactive=True, reserve=self.plan.reserve)
        host = Host(self, number, concurrency)
        await host.start(**how)
        self.hosts.append(host)
        return host

    async def watch(self) -> "Seen":
        """Run until the end of the plan."""
        plan, loop = self.plan, asyncio.get_running_loop()
        workers = 2 * max(plan.limit, *(limit for _, limit in plan.schedule), 0) // max(1, plan.hosts // 2) + 4
        how = {"workers": workers, "adopts": plan.kill_every_s > 0}
        for number in range(plan.hosts):
            await self.add(number, **how)
            await asyncio.sleep(plan.stagger_s)
        for number in range(plan.web):
            await self.add(plan.hosts + number, per_s=0.4 / plan.web)
        sampler = loop.create_task(self._sample())
        rng = random.Random(f"{plan.seed} kills")
        while plan.kill_every_s and loop.time() + plan.kill_every_s < plan.until_s:
            await asyncio.sleep(plan.kill_every_s)
            host = rng.choice(self.hosts)
            host.kill()
            self.hosts.remove(host)
            self.dead.append(host)
            await self.add(host.number, **how)
        await asyncio.sleep(plan.until_s - loop.time())
        sampler.cancel()
        seen = self._seen(loop.time())
        async with asyncio.TaskGroup() as group:
            for host in self.hosts + self.dead:
                group.create_task(host.stop())
        return seen

    def _seen(self, now: float) -> "Seen":
        plan = self.plan
        since = plan.warm_s + plan.stagger_s * plan.hosts
        bought: Counter[int] = Counter(dict.fromkeys(range(plan.hosts), 0))
        for host in self.hosts + self.dead:
            if host.number < plan.hosts:
                bought[host.number] += sum(at >= since for at in host.transport.bought)
        waits = [wait for host in self.hosts for wait in host.waits]
        exchanges = sum(host.ledger.calls["exchange"] for host in self.hosts + self.dead)
        return Seen(
            stats=self.simulator.stats(now),
            jobs=tuple(self.simulator.jobs(now)),
            refused_at=tuple(self.simulator.refused_at),
            bought=tuple(bought.values()),
            waits=tuple(waits),
            exchanges=exchanges,
            taken=tuple(self.taken),
            since=since,
        )


@frozen(kw_only=True)
class Seen:
    """What a run has shown."""

    stats: EmulatorStats
    jobs: tuple[JobFacts, ...]
    refused_at: tuple[float, ...]
    bought: tuple[int, ...]
    waits: tuple[float, ...]
    exchanges: int
    taken: tuple[tuple[float, int], ...]
    """The times of the samples, and how many slots the living hosts held."""
    since: float

    def fill(self, begin: float, end: float, limit: int) -> float:
        """Return the share of the slots that was in use."""
        return utilisation(((job.created_at, job.ends_at) for job in self.jobs), begin, end, limit)

    @property
    def jain(self) -> float:
        """Jain's index of fairness of what each host bought after the ramp."""
        return jain(self.bought)


@frozen(kw_only=True)
class Figures:
    """The figures of one run."""

    fill: float
    taken: float
    """Slots that the hosts count as taken, as a share of the limit."""
    refused_per_100: float
    refused_after_per_100: float
    most: int
    jain: float
    exchanges_per_job: float
    wait_s: float = 0.0
    wait_p95_s: float = 0.0


def run(plan: Plan) -> Figures:
    """Run a plan."""
    settings = EmulatorSettings(
        seed=plan.seed,
        job_limit=plan.limit,
        limit_schedule=plan.schedule,
        duration=Drawn(plan.seed, plan.median_s, plan.sigma),
        states_429_kind=plan.states_429_kind,
    )

    async def watch() -> Seen:
        return await Run(plan, settings).watch()

    seen = run_virtual(watch())
    limit, begin = plan.limit, seen.since
    if plan.schedule:
        at, limit = plan.schedule[-1]
        begin = at + 6 * plan.median_s
    accepted = max(1, seen.stats.creates_accepted)
    refused_after = sum(at >= seen.since for at in seen.refused_at)
    accepted_after = max(1, sum(job.created_at >= seen.since for job in seen.jobs))
    return Figures(
        fill=seen.fill(begin, plan.until_s, limit),
        taken=fmean(taken for at, taken in seen.taken if at >= begin) / limit,
        refused_per_100=100 * len(seen.refused_at) / accepted,
        refused_after_per_100=100 * refused_after / accepted_after,
        most=most_at_once(seen.jobs),
        jain=seen.jain,
        exchanges_per_job=seen.exchanges / accepted,
        wait_s=fmean(seen.waits) if seen.waits else 0.0,
        wait_p95_s=quantile(seen.waits, 0.95),
    )


@frozen(kw_only=True)
class Sold:
    """An account as it is sold, whose jobs some hosts buy from one pile."""

    account: Account
    hosts: int

    async def _buy_all(self) -> Found:
        account, loop = self.account, asyncio.get_running_loop()
        plan = Plan(name=account.title, hosts=self.hosts, limit=account.limit)
        pile = Run(plan, account.settings(), (f"image {number}" for number in range(account.jobs)))
        for number in range(self.hosts):
            await pile.add(number, workers=account.limit)
        for host in pile.hosts:
            await asyncio.wait(host.tasks)
        ended_at = loop.time()
        found = Found.of(account, pile.simulator.stats(ended_at), ended_at)
        for host in pile.hosts:
            await host.stop()
        return found

    def run(self) -> Found:
        """Buy them all; with 0 hosts by one session that shares nothing."""
        return run_virtual(self._buy_all()) if self.hosts else run_cold(self.account)


def most_at_once(jobs: Sequence[JobFacts]) -> int:
    """Return how many jobs ran at once at most."""
    changes = sorted([(job.created_at, 1) for job in jobs] + [(job.ends_at, -1) for job in jobs])
    return max(itertools.accumulate(change for _, change in changes))


FULL = Plan(name="8 hosts, limit 50", hosts=8, limit=50)
KILLED = Plan(name="8 hosts, limit 50, one killed every 10 s", hosts=8, limit=50, kill_every_s=10.0, until_s=230.0)
WEB = Plan(name="4 web replicas beside 4 hosts", hosts=4, limit=20, web=4, median_s=20.0, warm_s=60.0, until_s=360.0)
PLANS = (
    evolve(FULL, name="1 host, limit 50", hosts=1),
    FULL,
    evolve(FULL, name="8 hosts, limit 50, jobs of 10 s all alike", sigma=0.02),
    evolve(FULL, name="8 hosts, limit 50, kind of a 429 not stated", states_429_kind=False),
    evolve(FULL, name="8 hosts that come 15 s apart, limit 50", stagger_s=15.0, until_s=270.0),
    evolve(FULL, name="32 hosts, limit 10", hosts=32, limit=10),
    evolve(FULL, name="32 hosts, limit 200", hosts=32, limit=200, until_s=120.0),
    evolve(FULL, name="8 hosts, limit 50 -> 25", schedule=((90.0, 25),), until_s=270.0),
    evolve(FULL, name="8 hosts, limit 50 -> 100", schedule=((90.0, 100),), until_s=270.0),
    KILLED,
    evolve(KILLED, name="the same, lease of 4 s", lease_s=4.0),
    evolve(KILLED, name="the same, lease of 4 s, jobs of 20 s", lease_s=4.0, median_s=20.0, warm_s=60.0),
    evolve(WEB, name="4 web replicas beside 4 hosts, limit 20", limit=20),
    evolve(WEB, name="the same, reserve 2", limit=20, reserve=2),
    evolve(WEB, name="4 web replicas beside 4 hosts, limit 50", limit=50),
    evolve(WEB, name="the same, reserve 2", limit=50, reserve=2),
)
COLUMNS = (
    *("hosts", "running / limit", "taken / limit", "429s per 100 jobs", "after the ramp", "most at once", "Jain"),
    *("exchanges a job", "wait s", "p95 s"),
)


def _checks(plan: Plan, seen: Figures) -> list[Check]:
    checks = [Check(what=f"{plan.name}: most at once", value=seen.most, target=max([plan.limit, *_moves(plan)]))]
    if plan.web:
        targets = {(20, 0): 4.0, (50, 0): 2.0, (20, 2): 1.5, (50, 2): 0.5}
        target = targets[plan.limit, plan.reserve]
        return [*checks, Check(what=f"{plan.name}, limit {plan.limit}: wait s", value=seen.wait_s, target=target)]
    least = 0.93 if plan.kill_every_s else 0.95
    checks.append(Check(what=f"{plan.name}: running / limit", value=seen.fill, target=least, at_least=True))
    if not plan.schedule:
        checks.append(Check(what=f"{plan.name}: 429s per 100 jobs", value=seen.refused_per_100, target=3.0))
    if plan.hosts == FULL.hosts:
        checks.append(Check(what=f"{plan.name}: Jain", value=seen.jain, target=0.98, at_least=True))
    return checks


def _moves(plan: Plan) -> list[int]:
    return [limit for _, limit in plan.schedule]


def _sold(plan: Sold) -> Found:
    return plan.run()


def section(*, seeds: int, quick: bool) -> Section:
    """Run all plans, each once, and the small account by one host and by four."""
    plans = PLANS[:2] if quick else PLANS
    outcomes = side_by_side(run, plans)
    rows: list[Sequence[Cell]] = [
        (
            plan.name,
            seen.fill,
            seen.taken,
            seen.refused_per_100,
            seen.refused_after_per_100,
            seen.most,
            seen.jain,
            seen.exchanges_per_job,
            *((seen.wait_s, seen.wait_p95_s) if plan.web else (None, None)),
        )
        for plan, seen in zip(plans, outcomes, strict=True)
    ]
    checks = [check for plan, seen in zip(plans, outcomes, strict=True) for check in _checks(plan, seen)]
    accounts = [evolve(SMALL, window=window) for window in WINDOWS[: 1 if quick else None]]
    sold = [
        Sold(account=evolve(account, seed=seed), hosts=hosts)
        for account in accounts
        for hosts in (0, 1, 4)
        for seed in range(1, seeds + 1)
    ]
    found = iter(side_by_side(_sold, sold))
    sold_rows: list[Sequence[Cell]] = []
    for account in accounts:
        alone = 0.0
        for hosts in (0, 1, 4):
            runs = [next(found) for _ in range(seeds)]
            ratio, refused = fmean(each.ratio for each in runs), fmean(each.refused for each in runs)
            alone = alone or ratio
            sold_rows.append((account.title, hosts or "1, sharing nothing", ratio, 100 * refused))
        checks.append(Check(what=f"{account.title}: 4 hosts, makespan over one", value=ratio - alone, target=0.03))
        checks.append(Check(what=f"{account.title}: 4 hosts, refused", value=refused, target=0.04))
    title = "Hosts on one virtual clock, durations LN(10 or 20 s, 0.4)"
    sold_title = f"5 jobs, 60 requests a minute, bought by several hosts: means of {seeds} seeds"
    sold_columns = ("account", "hosts", "makespan / ideal", "refused %")
    tables = [
        Table(title=title, columns=COLUMNS, rows=rows),
        Table(title=sold_title, columns=sold_columns, rows=sold_rows),
    ]
    return Section(name="hosts-simulated", tables=tables, checks=checks)
