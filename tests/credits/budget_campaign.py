"""One random campaign of named budgets: two processes on one ledger, and three restarts of both.

Each process buys single jobs for two people, and the rows of a batch for one of them. The budgets count each day for
itself, or all that was ever spent; their values change from one round to the next. Else it is as in `campaign.py`:
answers are lost, processes are killed between two steps, jobs are bought again, pruned and resolved by hand. What was
sold is the fake gateway's own count; the day of a purchase is that of the durable intent before its create.
"""

import asyncio
import random
import tempfile
from collections import Counter
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from nanobanana_async import Budget, CreditLimitReached, LedgerError, NanoBananaError, Session, SqliteLedger
from nanobanana_async.batch.rows import RowReader
from nanobanana_async.jobs import JobState
from nanobanana_async.testing import Reply
from tests.credits.campaign import NAME, PATIENCE_S, Campaign, CampaignGateway, Plan
from tests.credits.campaign import plan_of as plan_of_caps
from tests.support.disk import Disk, deterministic, memory_folder
from tests.support.machine import Machine, Process

ROUNDS = 4
MOST_ROWS = 8
PEOPLE = ("alice", "bob")
DAY_S = 86_400.0


@frozen(kw_only=True)
class BudgetPlan:
    """What the number of a campaign of budgets stands for."""

    number: int
    caps: Plan
    """What it has in common with a campaign of caps: prices, faults, rows."""
    budgets: tuple[dict[str, Budget], ...]
    """Person -> the budget, in each round."""
    calls: int
    """How many jobs each process wants for each person in a round."""
    apart_s: tuple[float, ...]
    """How long no process runs between two rounds."""

    @property
    def calm(self) -> bool:
        """Whether nothing is in the way of buying all that fits in the end."""
        same = all(budgets == self.budgets[0] for budgets in self.budgets)
        return self.caps.calm and same and all(budget.per is None for budget in self.budgets[0].values())


def plan_of(number: int) -> BudgetPlan:
    """Draw a campaign."""
    draw = random.Random(f"budgets {number}")
    caps = plan_of_caps(number)
    caps = evolve(caps, expected=None, session_cap=None, beside=0, rows=caps.rows[:MOST_ROWS], cap=caps.cap / 4)
    first = {
        person: Budget(name=person, max_credits=caps.cap * draw.choice((1, 2)), per=draw.choice((None, "day")))
        for person in PEOPLE
    }
    rounds = [first]
    for _ in range(ROUNDS - 1):
        changes = {person: Decimal(draw.choice(("1", "1", "1", "0.5", "2"))) for person in PEOPLE}
        rounds.append(
            {
                person: evolve(budget, max_credits=budget.max_credits * changes[person])
                for person, budget in rounds[-1].items()
            }
        )
    apart_s = tuple(draw.choice((1.0, 0.3 * DAY_S, 0.7 * DAY_S)) for _ in range(ROUNDS))
    calls = draw.choice((1, 2, 4))
    return BudgetPlan(number=number, caps=caps, budgets=tuple(rounds), calls=calls, apart_s=apart_s)


@frozen(kw_only=True)
class BudgetVerdict:
    """What became of a campaign."""

    plan: BudgetPlan
    faults: tuple[str, ...]
    sold: int
    passed: Decimal
    """By how much a budget was passed; within one job's difference that is no fault."""
    counts: "Counter[str]"


def play(number: int) -> BudgetVerdict:
    """Run a campaign to its end."""
    plan = plan_of(number)
    machine = Machine()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        disk = Disk(machine, Path(folder) / "jobs.sqlite", random.Random(f"{number} disk"))
        campaign = BudgetCampaign(plan, machine, disk)
        with deterministic(number, disk), asyncio.Runner(loop_factory=lambda: machine) as runner:
            runner.run(campaign.run())
        disk.close()
    campaign.faults += [f"crashed: {crash!r}" for crash in machine.crashes]
    return BudgetVerdict(
        plan=plan,
        faults=tuple(campaign.faults),
        sold=campaign.gateway.sold,
        passed=max(campaign.gateway.excess, default=Decimal(0)),
        counts=campaign.counts,
    )


class BudgetGateway(CampaignGateway):
    """The fake gateway: of each person and day it knows what was taken when the next job was sold."""

    def __init__(self, plan: BudgetPlan, draw: random.Random, disk: Disk) -> None:
        super().__init__(plan.caps, draw)
        self._plans, self._disk = plan, disk
        self.round = 0
        self.days: dict[str, date | None] = {}
        """Task id -> the day that counts it; None if all days are one."""
        self.excess: list[Decimal] = []
        """By how much each sale passed the budget of its person."""

    def _served(self, request: Any, buyer: str) -> Reply:
        known = set(self.sales)
        reply = super()._served(request, buyer)
        for task_id in self.sales.keys() - known:
            person = person_of(self.sales[task_id].prompt)
            self.days[task_id] = self._day_of(self.sales[task_id].prompt)
            self.excess.append(self.taken_of(person, self.days[task_id]) - self._allowed(person))
        return reply

    def taken_of(self, person: str, day: date | None) -> Decimal:
        """Return what was taken for a person on a day, and not given back."""
        sales = [(task_id, sale) for task_id, sale in self.sales.items() if person_of(sale.prompt) == person]
        counted = [sale for task_id, sale in sales if self.days[task_id] == day and not self._refunded(sale)]
        return sum((sale.price for sale in counted), Decimal(0))

    def _day_of(self, prompt: str) -> date | None:
        if self._plans.budgets[0][person_of(prompt)].per is None:
            return None
        record = self._disk.record(key_of(prompt, self._plans.caps))
        assert record is not None
        assert record.sent_at is not None
        return record.sent_at.astimezone(UTC).date()

    def _allowed(self, person: str) -> Decimal:
        """Return the value of a budget; a create in doubt may have been reserved under an earlier, higher one."""
        values = [budgets[person].max_credits for budgets in self._plans.budgets[: self.round + 1]]
        doubts = self._plans.caps.lost or self._plans.caps.kills
        return max(values) if doubts else values[-1]


def person_of(prompt: str) -> str:
    """Return for whom a job is."""
    return prompt.rpartition(" ")[2]


def key_of(prompt: str, caps: Plan) -> str:
    """Return the key of the job with a prompt."""
    if " row " in prompt:
        reader = RowReader(NAME)
        return next(key for row in rows_of(caps) if (key := reader.read(row).key) and row["prompt"] == prompt)
    return f"call-{prompt.replace(' ', '-')}"


def rows_of(caps: Plan) -> list[dict[str, Any]]:
    """Return the rows of the batch, which are all for one person."""
    return [{**row, "prompt": f"{row['prompt']} row for alice"} for row in caps.rows]


class BudgetCampaign(Campaign):
    """The rounds of a campaign of budgets, and the judgement."""

    gateway: BudgetGateway

    def __init__(self, plan: BudgetPlan, machine: Machine, disk: Disk) -> None:
        super().__init__(plan.caps, machine, disk)
        self._plans = plan
        self.gateway = BudgetGateway(plan, self._draw, disk)

    async def run(self) -> None:
        """Play it."""
        for number in range(ROUNDS):
            self.gateway.round = number
            processes = [self._process(f"p{number}.{each}") for each in range(2)]
            await asyncio.wait([process.ended for process in processes], timeout=PATIENCE_S)
            if not all(process.ended.done() for process in processes):
                self.faults.append(f"a run of round {number} hangs")
                break
            await self._alone(f"between {number}", self._between())
            await asyncio.sleep(self._plans.apart_s[number])
        await self._alone("judge", self._judge())
        for process in self._processes:
            await process.bury()

    async def _run(self, process: Process, after_s: float) -> None:
        caps, draw = self._plans.caps, self._draw
        await asyncio.sleep(after_s)
        budgets = self._plans.budgets[self.gateway.round]
        async with self._session(process, budgets=budgets) as session:
            await session.budgets()
            if draw.random() < 0.3:
                await session.resume(buy=draw.random() < 0.5)
            rows = rows_of(caps) if self._plans.calm or draw.random() < 0.7 else rows_of(caps)[::2]
            retry_failed = draw.random() < 0.5
            async with asyncio.TaskGroup() as group:
                batch = session.generate_many(rows, batch=NAME, retry_failed=retry_failed, budget=budgets["alice"])
                group.create_task(self._taken(batch))
                for person in PEOPLE:
                    for number in range(self._plans.calls):
                        row = draw.choice(caps.rows)
                        call = self._call(session, row, f"{row['prompt']} {number} for {person}", budgets[person])
                        group.create_task(call)

    async def _call(self, session: Session, row: dict[str, Any], prompt: str, budget: Budget) -> None:
        key = key_of(prompt, self._plans.caps)
        try:
            await session.generate({**row, "prompt": prompt}, idempotency_key=key, budget=budget)
        except CreditLimitReached as refused:
            if refused.budget != budget.name:
                self.faults.append(f"{prompt} was refused by budget {refused.budget}")
            self.counts["refused"] += 1
        except NanoBananaError:
            self.counts["errors"] += 1
        else:
            self.counts["calls"] += 1

    async def _between(self) -> None:
        """Resolve and buy by hand, and prune, while no other process runs."""
        process = self._processes[-1]
        if self._plans.caps.by_hand:
            async with self._session(process, budgets=self._plans.budgets[self.gateway.round]) as session:
                await session.budgets()
                for sale in list(self.gateway.sales.values()):
                    await self._decided_by_hand(session, sale.prompt)
        if self._plans.caps.prunes and self._draw.random() < 0.5:
            await self._prune()

    async def _decided_by_hand(self, session: Session, prompt: str) -> None:
        key = key_of(prompt, self._plans.caps)
        job = await session.job(key)
        if job is not None and job.state in (JobState.UNCERTAIN, JobState.FAILED) and self._draw.random() < 0.5:
            self.counts["by hand"] += 1
            with suppress(NanoBananaError):
                await (await session.resolve(key, buy_again=True)).result()

    async def _prune(self) -> None:
        ledger = SqliteLedger(self._disk.path)
        await ledger.open()
        try:
            self.counts["pruned"] += await ledger.prune(datetime(2100, 1, 1, tzinfo=UTC))
            # The gateway forgets the keys of pruned jobs only: it must remember the key of a job in doubt.
            pruned = set()
            for task_id, sale in self.gateway.sales.items():
                if await ledger.find(key_of(sale.prompt, self._plans.caps)) is None:
                    pruned.add(task_id)
            self.gateway.forget(pruned)
        finally:
            await ledger.aclose()

    async def _judge(self) -> None:
        caps, gateway = self._plans.caps, self.gateway
        difference = max(
            (Decimal(0), *(caps.price(images) - caps.estimate(images) for images in gateway.images.values()))
        )
        passed = max(gateway.excess, default=Decimal(0))
        if passed > difference:
            self.faults.append(f"a budget was passed by {passed}, one job's difference is {difference}")
        ledger = SqliteLedger(self._disk.path)
        try:
            await ledger.open()
            states = {state.name: state for state in await ledger.budgets(self._machine.utcnow())}
            await ledger.aclose()
        except LedgerError as error:
            self.faults.append(f"the ledger can't be read: {error}")
            return
        today = self._machine.utcnow().date()
        for person, budget in self._plans.budgets[-1].items():
            counted = states[person].spent + states[person].reserved
            taken = gateway.taken_of(person, None if budget.per is None else today)
            untold = len(caps.factors) * difference if caps.says == "never" else difference
            if counted < taken - untold:
                self.faults.append(f"the ledger counts {counted} for {person}, the gateway took {taken}")
        rows = len(caps.rows)
        cheapest = min(caps.price(int(row.get("num_images", 1))) for row in caps.rows)
        of_rows = sum(" row " in sale.prompt for sale in gateway.sales.values())
        left = self._plans.budgets[-1]["alice"].max_credits - gateway.taken_of("alice", None)
        if self._plans.calm and cheapest <= left and of_rows < rows:
            self.faults.append(f"{left} of alice's budget are left, and nothing was in the way")
