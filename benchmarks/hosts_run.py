"""One run of several hosts on one account: processes for hosts, a PostgreSQL server of its own, and the faults."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Literal

from attrs import define, field, frozen

from benchmarks.children import Child
from benchmarks.measured import jain, utilisation
from nanobanana_async.testing import FaultProxy
from tests.support.postgres import Server, new_schema

Gateway = Literal["apimall", "defapi"]
Fault = Literal["none", "kill", "stop", "partition", "crash", "cut", "outage"]

PATIENCE_S = 900.0
LEASE = (2.0, 10.0)
SHORT_LEASE = (0.4, 2.0)


@frozen(kw_only=True)
class Plan:
    """So many hosts on one account, and what is done to them."""

    title: str
    gateway: Gateway = "apimall"
    hosts: int = 8
    limit: int = 50
    per_minute: float | None = None
    jobs: int = 900
    median_s: float = 10.0
    sigma: float = 0.4
    seed: int = 1
    lease: tuple[float, float] = LEASE
    fault: Fault = "none"
    every_s: float = 10.0
    """The time from one fault to the next."""
    lasts_s: float = 0.0
    """How long a stop, a partition or an outage lasts."""
    times: int = 1000
    """The most faults."""
    max_credits: int | None = None
    """The cap of the batch; a job costs 8."""
    arrival_s: float = 0.0
    """The time from one host's start to the next one's."""


@frozen(kw_only=True)
class Result:
    """What the gateway has counted and the ledger has afterwards."""

    plan: Plan
    filled: float
    """The share of the slots in use, from the first refusal (or the first full moment) to the last create."""
    in_flight_max: int
    refused_per_100: float
    refused_share: float
    jain: float
    faults: int
    bought: int
    twice: int
    lost: int
    uncertain: int
    makespan_s: float
    back_s: float
    """The longest time from the end of a fault until 95 % of the slots were filled again."""
    burials: int
    errors: tuple[str, ...]


@define
class _Run:
    plan: Plan
    server: Server
    proxy: FaultProxy
    url: str
    schema: str = field(factory=new_schema)
    living: dict[int, "asyncio.Task[dict[str, Any]]"] = field(factory=dict)
    pids: dict[int, int] = field(factory=dict)
    started: int = 0
    faults: int = 0
    ended_faults: list[float] = field(factory=list)
    errors: list[str] = field(factory=list)
    deaths_expected: set[int] = field(factory=set)

    def orders(self, feed: int = 0, *, through_proxy: bool = False) -> dict[str, Any]:
        """Return the orders of a host."""
        plan = self.plan
        direct = self.server.url
        ledger = f"postgresql://postgres@127.0.0.1:{self.proxy.port}/postgres" if through_proxy else direct
        return {
            "gateway": plan.gateway,
            "url": self.url,
            "ledger": ledger,
            "schema": self.schema,
            "lease": plan.lease,
            "median_s": plan.median_s,
            "batch": "spring",
            "feed": feed,
            "max_credits": plan.max_credits,
        }

    async def feed(self) -> None:
        async with Child("benchmarks.hosts_worker", self.orders(self.plan.jobs)) as child:
            await child.answer(PATIENCE_S)

    def start_host(self) -> int:
        number = self.started
        self.started += 1
        through_proxy = self.plan.fault in ("cut", "partition") and (self.plan.fault == "cut" or number == 0)
        self.living[number] = asyncio.get_running_loop().create_task(self._host(number, through_proxy))
        return number

    async def _host(self, number: int, through_proxy: bool) -> dict[str, Any]:
        try:
            async with Child("benchmarks.hosts_worker", self.orders(through_proxy=through_proxy)) as child:
                self.pids[number] = child.pid
                answer = await child.answer(PATIENCE_S)
                self.errors += answer["errors"]
                return answer
        except RuntimeError:
            if number not in self.deaths_expected:
                self.errors.append(f"host {number} died")
            return {"done": 0}
        finally:
            self.pids.pop(number, None)

    async def disturb(self) -> None:
        """Do what the plan says, again and again."""
        plan, rng = self.plan, random.Random(self.plan.seed)
        act: Callable[[random.Random], Coroutine[Any, Any, None]] | None = {
            "kill": self._kill,
            "stop": self._stop,
            "partition": self._partition,
            "crash": self._crash,
            "cut": self._cut,
            "outage": self._crash,
        }.get(plan.fault)
        while act is not None and self.faults < plan.times:
            await asyncio.sleep(plan.every_s)
            await act(rng)
            self.faults += 1
            self.ended_faults.append(asyncio.get_running_loop().time())

    async def _kill(self, rng: random.Random) -> None:
        if self.pids:
            number = rng.choice(sorted(self.pids))
            self.deaths_expected.add(number)
            os.kill(self.pids[number], signal.SIGKILL)
            self.start_host()

    async def _stop(self, rng: random.Random) -> None:
        if self.pids:
            pid = self.pids[rng.choice(sorted(self.pids))]
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(self.plan.lasts_s)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _partition(self, _: random.Random) -> None:
        self.proxy.pause()
        await asyncio.sleep(self.plan.lasts_s)
        self.proxy.resume()

    async def _crash(self, _: random.Random) -> None:
        await asyncio.to_thread(self.server.crash)
        await asyncio.sleep(self.plan.lasts_s)
        await asyncio.to_thread(self.server.start)

    async def _cut(self, _: random.Random) -> None:
        self.proxy.cut_all()


@asynccontextmanager
async def _account(plan: Plan) -> AsyncGenerator[tuple[Child, str]]:
    asked = {
        "seed": plan.seed,
        "limit": plan.limit,
        "per_minute": plan.per_minute,
        "median_s": plan.median_s,
        "sigma": plan.sigma,
    }
    async with Child("benchmarks.hosts_gateway", asked) as gateway:
        yield gateway, (await gateway.answer(30.0))["url"]  # its clock starts about now


async def run(plan: Plan, server: Server) -> Result:
    """Let the hosts work until every row has ended, and compare what the gateway counted with the ledger."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        gateway, url = await stack.enter_async_context(_account(plan))
        began_at = loop.time()
        proxy = stack.enter_context(FaultProxy(f"{server.folder}/.s.PGSQL.{server.port}"))
        work = _Run(plan, server, proxy, url)
        await work.feed()
        begun = loop.time()
        for number in range(plan.hosts):
            if number and plan.arrival_s:
                await asyncio.sleep(plan.arrival_s)
            work.start_host()
        disturbing = asyncio.get_running_loop().create_task(work.disturb())
        try:
            while work.living:
                done, _ = await asyncio.wait(work.living.values(), return_when=asyncio.FIRST_COMPLETED)
                work.living = {number: task for number, task in work.living.items() if task not in done}
        finally:
            disturbing.cancel()
            await asyncio.wait([disturbing])
            for pid in work.pids.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if not disturbing.cancelled() and (failure := disturbing.exception()) is not None:
            raise failure
        makespan_s = loop.time() - begun
        gateway.send({})
        counted = await gateway.answer(60.0)
        return _judge(work, counted, makespan_s, [at - began_at for at in work.ended_faults])


def _judge(work: _Run, counted: dict[str, Any], makespan_s: float, faults_ended: Sequence[float]) -> Result:
    plan, jobs = work.plan, [(prompt, begin, end) for prompt, _, begin, end in counted["jobs"]]
    bought = Counter(prompt for prompt, _, _ in jobs)
    states = dict(work.server.execute("SELECT state, count(*) FROM jobs GROUP BY state", schema=work.schema))
    each = [
        count for _, count in work.server.execute("SELECT owner, count(*) FROM jobs GROUP BY owner", schema=work.schema)
    ]
    ended = {
        row[0]
        for row in work.server.execute(
            "SELECT request->>'prompt' FROM jobs WHERE state IN ('succeeded', 'uncertain')", schema=work.schema
        )
    }
    buried = work.server.execute("SELECT count(*) FROM owners WHERE buried_by IS NOT NULL", schema=work.schema)[0][0]
    last = max((begin for _, begin, _ in jobs), default=0.0)
    full = _filled_at(jobs, plan.limit)
    return Result(
        plan=plan,
        filled=utilisation(((begin, end) for _, begin, end in jobs), full, last, plan.limit) if full < last else 0.0,
        in_flight_max=counted["running_max"],
        refused_per_100=100 * len(counted["refused_at"]) / plan.jobs,
        refused_share=counted["refused"] / max(1, counted["requests"]),
        jain=jain(each),
        faults=work.faults,
        bought=len(jobs),
        twice=sum(count - 1 for count in bought.values()),
        lost=sum(prompt not in ended for prompt in bought) + plan.jobs - sum(states.values()),
        uncertain=states.get("uncertain", 0),
        makespan_s=makespan_s,
        back_s=max((_back_s(jobs, at, last, plan.limit) for at in faults_ended if at < last), default=0.0),
        burials=buried,
        errors=tuple(work.errors),
    )


def _filled_at(jobs: Sequence[tuple[str, float, float]], limit: int) -> float:
    """Return when 95 % of the slots were in use for the first time; the ramp is over then."""
    running: list[float] = []
    for _, begin, end in sorted(jobs, key=lambda job: job[1]):
        running = [other for other in running if other > begin] + [end]
        if len(running) >= 0.95 * limit:
            return begin
    return float("inf")


def _back_s(jobs: Sequence[tuple[str, float, float]], since: float, last: float, limit: int) -> float:
    """Return how long it took from a moment until 95 % of the slots were in use, looking every tenth of a second."""
    at = since
    while at < last and sum(begin <= at < end for _, begin, end in jobs) < 0.95 * limit:
        at += 0.1
    return at - since
