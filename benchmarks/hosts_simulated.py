"""Hosts that share one account through one ledger, all on one virtual clock: who fills how many slots, at what cost."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from attrs import evolve, field, frozen

from benchmarks.accounts import SMALL, Account, Found, run_cold
from benchmarks.ideal import Drawn, quantile
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

    def __init__(self, plan: Plan, settings: EmulatorSettings, prompts: itertools.chain[str] | None = None) -> None:
        self.plan = plan
        self.ledger = SharedLedger()
        self.ledger.lease_s = plan.lease_s
        self.simulator = WatchedSimulator(settings)
        self.prompts = (f"image {number}" for number in itertools.count()) if prompts is None else prompts
        self.hosts: list[Host] = []
        self.dead: list[Host] = []

    async def add(self, number: int, **how: Any) -> Host:
        """Start a host."""
        web = number >= self.plan.hosts
        concurrency = ConcurrencyPolicy()
        if web and self.plan.interactive:
            concurrency = ConcurrencyPolicy(interactive=True, reserve=self.plan.reserve)
        host = Host(self, number, concurrency)
        self.hosts.append(host)
        await host.start(**how)
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
        rng = random.Random(f"{plan.seed} kills")
        while plan.kill_every_s and loop.time() + plan.kill_every_s < plan.until_s:
            await asyncio.sleep(plan.kill_every_s)
            host = rng.choice(self.hosts)
            host.kill()
            self.hosts.remove(host)
            self.dead.append(host)
            await self.add(host.number, **how)
        await asyncio.sleep(plan.until_s - loop.time())
        seen = self._seen(loop.time())
        async with asyncio.TaskGroup() as group:
            for host in self.hosts + self.dead:
                group.create_task(host.stop())
        return seen

    def _seen(self, now: float) -> "Seen":
        plan = self.plan
        since = plan.warm_s + plan.stagger_s * plan.hosts
        bought: Counter[int] = Counter({number: 0 for number in range(plan.hosts)})
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
    since: float

    def fill(self, begin: float, end: float, limit: int) -> float:
        """Return the share of the slots that was in use."""
        used = sum(max(0.0, min(end, job.ends_at) - max(begin, job.created_at)) for job in self.jobs)
        return used / (limit * (end - begin))

    @property
    def jain(self) -> float:
        """Jain's index of fairness of what each host bought after the ramp."""
        return sum(self.bought) ** 2 / (len(self.bought) * sum(each * each for each in self.bought))


@frozen(kw_only=True)
class Figures:
    """The figures of one run."""

    fill: float
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


if __name__ == "__main__":
    import sys, time

    if sys.argv[1:2] == ["sold"]:
        for window in sys.argv[3:] or ["sliding", "clock", "bucket"]:
            for stated in (True, False):
                for hosts in (0, 1, 4):
                    fs = [
                        Sold(account=evolve(SMALL, window=window, stated=stated, seed=seed), hosts=hosts).run()
                        for seed in range(1, 1 + int(sys.argv[2]))
                    ]
                    print(
                        window,
                        stated,
                        hosts,
                        *(f"{f.ratio:.3f}/{100 * f.refused:.1f}%/{f.polls:.1f}" for f in fs),
                        "mean",
                        sum(f.ratio for f in fs) / len(fs),
                        flush=True,
                    )
        sys.exit()
    for plan in (
        Plan(name="8 hosts, limit 50", hosts=8, limit=50),
        Plan(name="1 host, limit 50", hosts=1, limit=50),
        Plan(name="A8 hosts, limit 50, alike", hosts=8, limit=50, sigma=0.02),
        Plan(name="A1 host, limit 50, alike", hosts=1, limit=50, sigma=0.02),
        Plan(name="B8 hosts, limit 50, 20 s", hosts=8, limit=50, median_s=20, warm_s=60, until_s=300),
        Plan(name="8 hosts, limit 50, come one by one", hosts=8, limit=50, stagger_s=20.0, until_s=400.0),
        Plan(name="32 hosts, limit 10", hosts=32, limit=10),
        Plan(name="32 hosts, limit 200", hosts=32, limit=200),
        Plan(name="50->25", hosts=8, limit=50, schedule=((120.0, 25),), until_s=360.0),
        Plan(name="50->100", hosts=8, limit=50, schedule=((120.0, 100),), until_s=360.0),
        Plan(name="web 20", hosts=4, limit=20, web=4, median_s=20, until_s=600.0),
        Plan(name="web 50", hosts=4, limit=50, web=4, median_s=20, until_s=600.0),
        Plan(name="web 20, reserve 2", hosts=4, limit=20, web=4, reserve=2, median_s=20, until_s=600.0),
        Plan(name="web 50, reserve 2", hosts=4, limit=50, web=4, reserve=2, median_s=20, until_s=600.0),
        Plan(name="kills", hosts=8, limit=50, kill_every_s=10.0, until_s=400.0),
        Plan(name="kills, lease 4", hosts=8, limit=50, kill_every_s=10.0, lease_s=4.0, until_s=400.0),
        Plan(name="8 hosts, limit 50, one word", hosts=8, limit=50, states_429_kind=False),
    ):
        if len(sys.argv) > 1 and not any(a in plan.name for a in sys.argv[1:]):
            continue
        t = time.time()
        print(plan.name, run(plan), f"{time.time() - t:.0f}s", flush=True)
