"""Random sessions on one ledger: they buy, cancel, die, are buried, resume and resolve; none buys twice or loses."""

import asyncio
import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from nanobanana_async import ApiMall, JobState, Session, Timeouts
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import API_KEY, FakeGateway, Opening, defapi, virtually
from tests.support.ledger_contract import SCENES, Scene
from tests.support.shared_ledger import LOST, FakeProcess, LedgerView, SharedLedger

KEYS = ("a", "b", "c")
SEEDS = 40


@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
@virtually
async def test_shared_ledger_keeps_the_ledger_contract(scene: Scene) -> None:
    ledger: Ledger = LedgerView(SharedLedger())
    await ledger.open()
    try:
        await scene(ledger)
    finally:
        await ledger.aclose()


class RandomGateway(FakeGateway):
    """A fake gateway that loses answers before or after a sale, and knows the tasks of each prompt."""

    def __init__(self, dice: random.Random, *, limit: int | None) -> None:
        super().__init__(job_s=3.0, limit=limit)
        self._dice = dice
        self.losing = True
        self.bought: defaultdict[str, list[str]] = defaultdict(list)
        """Prompt -> task ids."""

    def answer(self, request: HttpRequest) -> Reply:
        luck = self._dice.random() if self.losing else 1.0
        if luck < 0.1:
            return LOST
        sold = self.sold
        reply = super().answer(request)
        if self.sold > sold:
            self.bought[json.loads(request.body or b"")["prompt"]].append(f"t{self.sold}")
        return LOST if luck < 0.25 else reply


class RandomRun:
    """Up to three fake processes on one shared ledger, and random actions on them."""

    def __init__(self, seed: int, session_of: Opening) -> None:
        self.dice = random.Random(seed)
        self.shared = SharedLedger()
        self.gateway = RandomGateway(self.dice, limit=self.dice.choice([None, 2]))
        self.session_of = session_of
        self.delay_s = self.dice.choice([0.0, 0.0, 0.02])
        self.processes: list[FakeProcess] = []
        self.tasks: defaultdict[FakeProcess, list[asyncio.Task[Any]]] = defaultdict(list)
        self.deliberate: Counter[str] = Counter()
        """How often a key was bought again by hand."""

        self.human = asyncio.Lock()

    async def another(self, _: FakeProcess) -> None:
        if len(self.processes) < 3:
            await self.open()

    async def open(self) -> FakeProcess:
        process = FakeProcess(
            self.shared,
            self.gateway.answer,
            session_of=self.session_of,
            delay_s=self.delay_s,
            timeouts=Timeouts(close_s=1.0),
        )
        await process.session.open()
        self.processes.append(process)
        return process

    async def play(self, steps: int) -> None:
        """Do so many random actions."""
        for _ in range(steps):
            process = self.dice.choice(self.processes) if self.processes else await self.open()
            await self.dice.choice(ACTIONS)(self, process)
            await asyncio.sleep(self.dice.choice([0.0, 0.0, 0.01, 0.03, 0.3, 1.5]))

    def start(self, process: FakeProcess, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.tasks[process].append(asyncio.Task(coroutine))

    async def generate(self, process: FakeProcess) -> None:
        key = self.dice.choice(KEYS)
        timeout = self.dice.choice([None, None, 0.5])
        self.start(process, process.session.generate(key, idempotency_key=key, timeout=timeout))

    async def submit(self, process: FakeProcess) -> None:
        async def submit(key: str) -> None:
            await (await process.session.submit(key, idempotency_key=key))

        self.start(process, submit(self.dice.choice(KEYS)))

    async def find_job(self, process: FakeProcess) -> None:
        async def use_job(key: str, *, cancels: bool) -> None:
            job = await process.session.job(key)
            if job is not None:
                await (job.cancel() if cancels else job.result())

        self.start(process, use_job(self.dice.choice(KEYS), cancels=self.dice.random() < 0.5))

    async def resume(self, process: FakeProcess) -> None:
        self.start(process, process.session.resume(buy=self.dice.random() < 0.5))

    async def leave(self, process: FakeProcess) -> None:
        if self.tasks[process]:
            self.dice.choice(self.tasks[process]).cancel()

    async def trouble(self, process: FakeProcess) -> None:
        process.ledger.fails[self.dice.choice(["claim", "advance", "adopt", "find"])] += 1

    async def bury(self, process: FakeProcess) -> None:
        process.ledger.bury(unnoticed=self.dice.random() < 0.5)

    async def cut_off(self, process: FakeProcess) -> None:
        """Cut a process off from the ledger for so long that it is buried."""

        async def cut_off() -> None:
            try:
                async with process.ledger._turn:
                    process.ledger.surely_owns = False
                    await asyncio.sleep(self.dice.uniform(0.0, 2.0))
                    process.ledger.bury(unnoticed=True)
                    await asyncio.sleep(self.dice.uniform(0.0, 4.0))
            finally:
                if not process.ledger.killed:
                    process.ledger.come_back()

        self.start(process, cut_off())

    async def resolve(self, process: FakeProcess) -> None:
        self.start(process, self._resolve(process, self.dice.choice(KEYS), again=self.dice.random() < 0.3))

    async def _resolve(self, process: FakeProcess, key: str, *, again: bool) -> None:
        """Resolve a job by the gateway's own list of tasks; with `again`, buy it again in any case."""
        async with self.human:
            await asyncio.sleep(1.0)  # requests in flight have arrived
            if self.shared.states().get(key) is not JobState.UNCERTAIN:
                return
            if again:
                self.deliberate[key] += 1
                await process.session.resolve(key, buy_again=True)
            elif self.gateway.bought[key]:
                await process.session.resolve(key, task_id=self.gateway.bought[key][-1])
            else:
                await process.session.resolve(key, not_bought=True)

    async def close(self, process: FakeProcess) -> None:
        self.processes.remove(process)
        await process.session.aclose()
        await self._ended(process)

    async def kill(self, process: FakeProcess) -> None:
        self.processes.remove(process)
        process.kill()
        for task in self.tasks[process]:
            task.cancel()
        await process.session.aclose()  # of the dead: only so that no task of it is left here
        await self._ended(process)

    async def _ended(self, process: FakeProcess) -> None:
        """Check that no caller hangs, and that every failure is an error of the library."""
        tasks = self.tasks.pop(process, [])
        if tasks:
            _, hanging = await asyncio.wait(tasks, timeout=30.0)
            assert not hanging
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, NanoBananaError)

    async def wind_up(self) -> None:
        """Stop the faults, then bring every job to its end."""
        self.gateway.losing = False
        last = await self.open()
        for process in self.processes:
            process.ledger.fails.clear()
        await asyncio.sleep(1800.0)
        for process in self.processes:
            assert all(task.done() for task in self.tasks[process])
            stats = process.session.stats()
            assert (stats.slots_held, stats.queued, stats.requests_in_flight) == (0, 0, 0)
        for process in list(self.processes):
            if process is not last:
                await self.close(process)
        for job in await last.session.resume(buy=True):
            self.start(last, job.result())
        await asyncio.sleep(100.0)
        for key in KEYS:
            await self._resolve(last, key, again=False)
        await asyncio.sleep(100.0)
        assert last.held == 0
        await self.close(last)


Move = Callable[[RandomRun, FakeProcess], Awaitable[None]]
ACTIONS: list[Move] = [
    *[RandomRun.generate] * 5,
    RandomRun.submit,
    RandomRun.find_job,
    RandomRun.find_job,
    RandomRun.resume,
    RandomRun.leave,
    RandomRun.trouble,
    RandomRun.resolve,
    RandomRun.resolve,
    RandomRun.close,
    RandomRun.kill,
    RandomRun.bury,
    RandomRun.cut_off,
    RandomRun.another,
]


def keyed(transport: FakeTransport, **settings: Any) -> Session:
    """API Mall, whose keys are trusted for a moment only: so that jobs are uncertain there, too."""
    return Session(ApiMall(api_key=API_KEY, key_lifetime_s=3.0), http=transport, **settings)


@virtually
async def played(seed: int, session_of: Opening) -> None:
    run = RandomRun(seed, session_of)
    await run.play(30)
    await run.wind_up()
    for key, row in run.shared.rows.items():
        tasks, again = run.gateway.bought[key], run.deliberate[key]
        assert len(tasks) <= 1 + again
        if tasks and not again:
            assert (row.record.state, row.record.task_id) == (JobState.SUCCEEDED, tasks[0])
    assert {key for key, tasks in run.gateway.bought.items() if tasks} <= run.shared.rows.keys()


@pytest.mark.parametrize("session_of", [keyed, defapi])
@pytest.mark.parametrize(
    "first", [0, 10, *(pytest.param(first, marks=pytest.mark.slow) for first in range(20, SEEDS, 10))]
)
def test_random_sessions_buy_once_and_never_hang(
    session_of: Opening, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for seed in range(first, first + 10):
        try:
            played(seed, session_of)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert not caplog.records
