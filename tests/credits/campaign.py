"""One random campaign: processes that buy one named batch under a cap, beside each other and one after the other.

Prices are reported at the create, at the end or never; they are those of the reference's example or three times as
high. Failures are refunded or not, answers are lost, processes are killed between two steps, rows are bought again,
jobs are pruned and resolved by hand. The checks use the fake gateway's own counts, never the library's bookkeeping.
"""

import asyncio
import json
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from attrs import frozen

from nanobanana_async import (
    ApiMall,
    Batch,
    BatchStopped,
    DefApi,
    JobState,
    LedgerError,
    NanoBananaError,
    PollPolicy,
    RetryPolicy,
    Session,
    SqliteLedger,
)
from nanobanana_async.batch.rows import RowReader
from nanobanana_async.testing import FakeTransport, Reply
from tests.credits.fakes import FIFTY, ChargingGateway, GatewayName, PriceReported, Sale
from tests.support.disk import Disk, deterministic, memory_folder
from tests.support.fakes import API_KEY
from tests.support.machine import Fate, Machine, Process

NAME = "spring"
EXAMPLE: dict[GatewayName, Decimal] = {"apimall": Decimal(8), "defapi": Decimal("0.5")}
PATIENCE_S = 6 * 3600.0
"""How long a run may take before it is said to hang."""


@frozen(kw_only=True)
class Plan:
    """What a campaign's number stands for."""

    number: int
    gateway: GatewayName
    cap: Decimal
    says: PriceReported
    factors: dict[int, Decimal]
    """Number of images -> how many times the example a job of that kind costs."""
    refunds: bool
    failing: float
    lost: float
    expected: Decimal | None
    rows: tuple[dict[str, Any], ...]
    rounds: int
    kills: float
    session_cap: Decimal | None
    beside: int
    """How many jobs each process buys in a batch without a name, under the cap of its session and one of its own."""
    by_hand: bool
    prunes: bool

    @property
    def calm(self) -> bool:
        """Whether there are no faults and all prices are the example's: then all that fits the cap is bought."""
        dull = not (self.lost or self.kills or self.failing or self.by_hand) and self.session_cap is None
        return dull and self.says != "never" and set(self.factors.values()) == {1} and self.expected is None

    def price(self, images: int) -> Decimal:
        """Return what a job costs: in truth, but by the user's own word where the gateway never says it."""
        if self.says == "never" and self.expected is not None:
            return self.expected
        return EXAMPLE[self.gateway] * images * self.factors[images]

    def estimate(self, images: int) -> Decimal:
        """Return the library's estimate before the price is reported."""
        return EXAMPLE[self.gateway] * images if self.expected is None else self.expected


def plan_of(number: int) -> Plan:
    """Draw a campaign."""
    draw = random.Random(f"campaign {number}")
    gateway: GatewayName = draw.choice(("apimall", "apimall", "defapi"))
    sizes = draw.sample(range(1, 7), draw.randint(1, 4)) if gateway == "apimall" else [1]
    factors = {size: Decimal(draw.choice(("1", "1", "3", "0.5"))) for size in sizes}
    failing = draw.choice((0.0, 0.2, 0.6))
    cap = Decimal(draw.randint(1, 500)) / (1 if gateway == "apimall" else 16)
    rows = []
    for row in range(draw.choice((3, 12, 40))):
        size = draw.choice(sizes)
        mark = "[fail] " if draw.random() < failing else ""
        rows.append({"prompt": f"{mark}fox {row}", **({"num_images": size} if gateway == "apimall" else {})})
    usual = EXAMPLE[gateway] * sizes[0]
    says: PriceReported = draw.choice(
        ("at create", "at end", "at end", "never") if gateway == "apimall" else ("at end", "never")
    )
    return Plan(
        number=number,
        gateway=gateway,
        cap=cap,
        says=says,
        factors=factors,
        refunds=draw.random() < 0.5,
        failing=failing,
        lost=draw.choice((0.0, 0.0, 0.1, 0.3)),
        expected=draw.choice((None, None, None, usual, usual * factors[sizes[0]])),
        rows=tuple(rows),
        rounds=draw.randint(1, 4),
        kills=draw.choice((0.0, 0.4, 0.8)),
        session_cap=draw.choice((None, None, cap / 2)),
        beside=draw.choice((0, 0, 12)),
        by_hand=draw.random() < 0.3,
        prunes=draw.random() < 0.3,
    )


class CampaignGateway(ChargingGateway):
    """The fake gateway of a campaign: loses some answers, and remembers which process bought each job."""

    def __init__(self, plan: Plan, draw: random.Random) -> None:
        super().__init__(
            lambda body: plan.price(int(body.get("num_images", 1))),
            says=plan.says,
            job_s=draw.choice((1.0, 20.0, 40.0)),
            refunds=plan.refunds,
        )
        self._plan = plan
        self._draw = draw
        self.images: dict[str, int] = {}
        self.buyers: dict[str, str] = {}
        self.peak_of_batch = Decimal(0)
        """The most that had ever been spent on the named batch, and not come back."""
        self.peaks: dict[str, Decimal] = defaultdict(Decimal)
        """Process -> the same of all that it bought."""
        self.peaks_beside: dict[str, Decimal] = defaultdict(Decimal)
        """Process -> the same of its batch without a name."""

    def transport_of(self, buyer: str) -> FakeTransport:
        """Return the connection of a process."""
        return FakeTransport(lambda request: self._served(request, buyer), latency_s=self._draw.choice((0.02, 0.3)))

    def _served(self, request: Any, buyer: str) -> Reply:
        if request.method == "POST" and self._draw.random() < self._plan.lost:
            self.faults.append(True)
        known = set(self.sales)
        reply = self.answer(request)
        for task_id in self.sales.keys() - known:
            self.images[task_id] = int(json.loads(request.body).get("num_images", 1))
            self.buyers[task_id] = buyer
            self.peaks[buyer] = max(self.peaks[buyer], self.net(buyer))
            self.peak_of_batch = max(self.peak_of_batch, self.net(word="fox"))
            self.peaks_beside[buyer] = max(self.peaks_beside[buyer], self.net(buyer, word="owl"))
        return reply

    def net(self, buyer: str | None = None, *, word: str = "") -> Decimal:
        """Return what was taken for such prompts, of one process or all, and not given back."""
        mine = [sale for task_id, sale in self.sales.items() if buyer in (None, self.buyers.get(task_id))]
        return sum((sale.price for sale in mine if word in sale.prompt and not self._refunded(sale)), Decimal(0))

    def of_prompt(self, prompt: str) -> list[Sale]:
        """Return the sales of one row."""
        return [sale for sale in self.sales.values() if sale.prompt == prompt]

    def forget(self, task_ids: set[str]) -> None:
        """Forget the keys of jobs: a create with one of these keys buys again."""
        self.keys = {key: task_id for key, task_id in self.keys.items() if task_id not in task_ids}


@frozen(kw_only=True)
class Verdict:
    """What became of a campaign."""

    plan: Plan
    faults: tuple[str, ...]
    sold: int
    net: Decimal
    passed: Decimal
    """By how much the cap was passed; within one job's difference that is no fault."""
    counts: "Counter[str]"


def play(number: int) -> Verdict:
    """Run a campaign to its end."""
    plan = plan_of(number)
    machine = Machine()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        disk = Disk(machine, Path(folder) / "jobs.sqlite", random.Random(f"{number} disk"))
        campaign = Campaign(plan, machine, disk)
        with deterministic(number, disk), asyncio.Runner(loop_factory=lambda: machine) as runner:
            runner.run(campaign.run())
    campaign.faults += [f"crashed: {crash!r}" for crash in machine.crashes]
    gateway = campaign.gateway
    return Verdict(
        plan=plan,
        faults=tuple(campaign.faults),
        sold=gateway.sold,
        net=campaign.net,
        passed=max(Decimal(0), gateway.peak_of_batch - plan.cap),
        counts=campaign.counts,
    )


class Campaign:
    """The rounds of a campaign, and the judgement."""

    def __init__(self, plan: Plan, machine: Machine, disk: Disk) -> None:
        self._plan = plan
        self._machine = machine
        self._disk = disk
        self._draw = random.Random(f"{plan.number} campaign")
        self._processes: list[Process] = []
        self.gateway = CampaignGateway(plan, self._draw)
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self._whole = False
        """Whether a process had all rows."""
        self.net = Decimal(0)
        """What was taken in the end, after refunds."""
        self._by_hand = Decimal(0)
        """What purchases by hand, which no cap holds back, may have cost."""

    async def run(self) -> None:
        """Play it."""
        for number in range(self._plan.rounds):
            count = self._draw.randint(1, 3)
            processes = [self._process(f"p{number}.{each}") for each in range(count)]
            await asyncio.wait([process.ended for process in processes], timeout=PATIENCE_S)
            if not all(process.ended.done() for process in processes):
                self.faults.append(f"a run of round {number} hangs")
                break
            await self._alone(f"between {number}", self._between())
        await self._alone("judge", self._judge())
        for process in self._processes:
            await process.bury()

    def _process(self, name: str) -> Process:
        draw = self._draw
        dies = draw.random() < self._plan.kills
        fate = Fate("step", draw.randint(20, 1500)) if dies and draw.random() < 0.7 else None
        process = Process(self._machine, name, fate)
        self._processes.append(process)
        if dies and fate is None:
            self._machine.after(draw.uniform(0.1, 60.0), lambda: process.kill("its time"))
        self.counts["processes"] += 1
        process.start(self._run(process, draw.uniform(0.0, 5.0)))
        return process

    def _session(self, process: Process, **settings: Any) -> Session:
        gateways = {"apimall": ApiMall, "defapi": DefApi}
        process.session = Session(
            gateways[self._plan.gateway](api_key=API_KEY, expected_job_s=5.0),
            ledger=SqliteLedger(self._disk.path),
            http=self.gateway.transport_of(process.name),
            concurrency=FIFTY,
            polling=PollPolicy(target_delay_s=2.0),
            retry=RetryPolicy(max_wait_s=60.0),
            **settings,
        )
        return process.session

    async def _run(self, process: Process, after_s: float) -> None:
        plan, draw = self._plan, self._draw
        await asyncio.sleep(after_s)
        rows = list(plan.rows) if draw.random() < 0.7 else draw.sample(plan.rows, max(1, len(plan.rows) // 2))
        self._whole |= len(rows) == len(plan.rows)
        retry_failed = draw.random() < 0.5
        async with self._session(process, max_credits=plan.session_cap) as session:
            if draw.random() < 0.3:
                await session.resume()
            options: dict[str, Any] = {"max_credits": plan.cap, "expected_credits": plan.expected}
            named = session.generate_many(rows, batch=NAME, retry_failed=retry_failed, **options)
            owls = [
                {**row, "prompt": f"owl {number}"} for number, row in enumerate(draw.choices(plan.rows, k=plan.beside))
            ]
            async with asyncio.TaskGroup() as group:
                group.create_task(self._taken(named))
                group.create_task(self._taken(session.generate_many(owls, **options)))
        if draw.random() < 0.3:
            await asyncio.sleep(draw.uniform(0.0, 30.0))

    async def _taken(self, batch: Batch) -> None:
        try:
            async for outcome in batch:
                self.counts["rows" if outcome.ok else "errors"] += 1
        except BatchStopped:
            self.counts["stops"] += 1

    async def _alone(self, name: str, main: Any) -> None:
        process = Process(self._machine, name)
        self._processes.append(process)
        process.start(main)
        await asyncio.wait([process.ended], timeout=PATIENCE_S)
        if not process.ended.done():
            main.close()
            self.faults.append(f"{name} hangs")

    async def _between(self) -> None:
        """Resolve and buy by hand, and prune, while no other process runs."""
        process = self._processes[-1]
        if self._plan.by_hand:
            async with self._session(process) as session:
                for key, row in self._keys():
                    await self._decided(session, key, row)
        if self._plan.prunes and self._draw.random() < 0.5:
            async with _opened(self._disk) as ledger:
                self.counts["pruned"] += await ledger.prune(datetime(2100, 1, 1, tzinfo=UTC))
                # The gateway forgets the keys of pruned jobs only: it must remember the key of a job in doubt.
                kept = {row["prompt"] for key, row in self._keys() if await ledger.find(key) is not None}
                sales = self.gateway.sales.items()
                self.gateway.forget(
                    {task_id for task_id, sale in sales if "fox" in sale.prompt and sale.prompt not in kept}
                )

    async def _decided(self, session: Session, key: str, row: dict[str, Any]) -> None:
        job = await session.job(key)
        if job is None or self._draw.random() < 0.5:
            return
        if job.state is JobState.UNCERTAIN and not self.gateway.of_prompt(row["prompt"]):
            await session.resolve(key, not_bought=True)
        elif job.state in (JobState.UNCERTAIN, JobState.FAILED):
            self._by_hand += self._plan.price(int(row.get("num_images", 1)))
            self.counts["by hand"] += 1
            with suppress(NanoBananaError):
                await (await session.resolve(key, buy_again=True)).result()

    @property
    def _foxes(self) -> int:
        return sum("fox" in sale.prompt for sale in self.gateway.sales.values())

    def _keys(self) -> Iterator[tuple[str, dict[str, Any]]]:
        rows = RowReader(NAME)
        for row in self._plan.rows:
            yield rows.read(row).key, row

    async def _judge(self) -> None:
        plan, gateway = self._plan, self.gateway
        self.net = gateway.net(word="fox")
        sold = [plan.price(images) - plan.estimate(images) for images in gateway.images.values()]
        difference = max((Decimal(0), *sold))
        passed = gateway.peak_of_batch - plan.cap - self._by_hand
        if passed > difference:
            self.faults.append(f"cap {plan.cap} was passed by {passed}, one job's difference is {difference}")
        for buyer, peak in gateway.peaks_beside.items():  # after a kill a process may finish what a dead one had sent
            if not plan.kills and peak > plan.cap + difference:
                self.faults.append(f"{buyer}: cap {plan.cap} of a batch without a name was passed: {peak}")
        if plan.session_cap is not None and not plan.kills:  # else it may finish what a dead process had sent
            for buyer, peak in gateway.peaks.items():
                if buyer.startswith("p") and peak > plan.session_cap + difference:
                    self.faults.append(f"{buyer}: its session's cap {plan.session_cap} was passed: {peak}")
        try:
            async with _opened(self._disk) as ledger:
                counted = await ledger.spent_or_reserved(NAME)
        except LedgerError as error:
            self.faults.append(f"the ledger can't be read: {error}")
            return
        untold = len(plan.factors) * difference if plan.says == "never" else difference
        if counted < self.net - untold - self._by_hand:
            self.faults.append(f"the ledger counts {counted}, the gateway took {self.net}")
        cheapest = min(plan.price(int(row.get("num_images", 1))) for row in plan.rows)
        if plan.calm and self._whole and self.net + cheapest <= plan.cap and self._foxes < len(plan.rows):
            self.faults.append(f"only {self.net} of {plan.cap} were spent, and nothing was in the way")


@asynccontextmanager
async def _opened(disk: Disk) -> AsyncGenerator[SqliteLedger]:
    ledger = SqliteLedger(disk.path)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()
