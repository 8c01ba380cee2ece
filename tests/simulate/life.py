"""What processes and users do in a seed: callers, resume, resolutions by hand, and a final check of all jobs."""

import asyncio
import random
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from typing import Any

from nanobanana_async import JobState, PollPolicy, RetryPolicy, Session, SqliteLedger, Timeouts
from nanobanana_async.errors import LedgerError, NanoBananaError, SessionClosed
from tests.simulate.network import Network, SimulatedTransport
from tests.simulate.oracle import Oracle, Outcome
from tests.simulate.plan import Plan
from tests.support.disk import Disk
from tests.support.leased_disk import LeasedLedger
from tests.support.machine import CancelledAt, Fate, Machine, Process

FATES = ("step", "order", "before commit", "after commit", "before request", "after request", "time")
_REACH = {"step": 900, "order": 40, "before commit": 30, "after commit": 30, "before request": 12, "after request": 12}


RUSH_S = 10.0


class Shared:
    """Everything that the processes of one seed share."""

    def __init__(self, machine: Machine, plan: Plan, disk: Disk, network: Network, oracle: Oracle) -> None:
        self.machine = machine
        self.plan = plan
        self.disk = disk
        self.network = network
        self.oracle = oracle
        self.keys = [f"key-{number}" for number in range(plan.keys)]
        self.asked: dict[str, str] = {}
        """The keys that were requested, each with its prompt."""
        self.resolved = 0

    def session(self, process: Process, *, last: bool = False) -> Session:
        """Return a session of a process on the shared ledger and the shared network."""
        return Session(
            self.plan.gateway(process.name),
            ledger=(LeasedLedger if self.plan.leases else SqliteLedger)(self.disk.path),
            http=SimulatedTransport(self.network, process, self.oracle.key_of),
            retry=RetryPolicy() if last else self.plan.retry,
            timeouts=Timeouts() if last else self.plan.timeouts,
            polling=PollPolicy(target_delay_s=2.0),
            observers=[self.oracle.observer(process)],
        )

    def world_calms_down(self) -> None:
        """Let the account have all it needs."""
        self.network.world.set_job_limit(None)
        self.network.world.add_credits(100_000)

    def prompt(self, key: str, draw: random.Random) -> str:
        """Return what is wanted under a key: always the same, but for a rare caller who uses it for something else."""
        marker = {self.plan.blocked: " [blocked]", self.plan.failing: " [fail]"}.get(int(key.rpartition("-")[2]), "")
        return f"{key} {'a crow' if draw.random() < 0.03 else 'a fox'}{marker}"


class ProcessLife:
    """One process from its start to its end: closed or killed."""

    def __init__(self, shared: Shared, name: str, draw: random.Random) -> None:
        self._shared = shared
        self._draw = draw
        self.lasts_s = draw.uniform(0.5, shared.plan.active_s / shared.plan.lives)
        self._crowd = draw.randint(1, 2 + 2 * shared.plan.keys)
        self._resumes = draw.random() < 0.6
        self._buys = draw.random() < 0.3
        self._resolves = draw.random() < 0.4
        point = draw.choice((*FATES, "close", "close", "close"))
        fate = Fate(point, draw.randint(1, _REACH[point])) if point in _REACH else None
        self.process = Process(shared.machine, name, fate)
        self._closes = point == "close" or fate is not None

    async def run(self) -> None:
        """Let it live, to its own end or to a violent one."""
        machine = self._shared.machine
        machine.note(self.process.name, f"starts; {self.process.fate or 'for a time'}")
        if not self._closes:
            machine.after(self.lasts_s, lambda: self.process.kill("its time"))
        self.process.start(self._main())
        await asyncio.wait([self.process.ended])

    async def _main(self) -> None:
        session = self._shared.session(self.process)
        self.process.session = session
        self._ends_at = self._shared.machine.time() + self.lasts_s
        try:
            await session.open()
        except LedgerError as error:
            self._shared.machine.note(self.process.name, f"does not open: {error.message[:80]}")
            return
        # Not a task group: what a caller meets must not reach the others.
        callers = [asyncio.Task(self._caller(session)) for _ in range(self._crowd)]
        if self._resumes:
            callers.append(asyncio.Task(self._resume(session)))
        if self._resolves:
            callers.append(asyncio.Task(self._resolve(session)))
        await asyncio.sleep(max(0.0, self._ends_at - self._shared.machine.time()))
        self.process.closing = True
        self._shared.machine.note(self.process.name, "closes")
        await session.aclose()
        await asyncio.wait(callers, timeout=0.5)
        if any(not caller.done() for caller in callers):
            self._shared.oracle.find_fault(
                "waits for ever", f"a caller of {self.process.name} waits on a closed session"
            )
        self._shared.machine.note(self.process.name, "is closed")

    async def _while(self) -> None:
        """Wait: not at all, for some time, or for the full ten seconds at which everybody comes."""
        next_rush_s = RUSH_S - self._shared.machine.time() % RUSH_S
        wait_s = self._draw.choice((0.0, self._draw.uniform(0.0, self.lasts_s), next_rush_s))
        await asyncio.sleep(min(wait_s, max(0.0, self._ends_at - self._shared.machine.time())))

    async def _caller(self, session: Session) -> None:
        shared, draw = self._shared, self._draw
        key = draw.choice(shared.keys)
        prompt = shared.prompt(key, draw)
        kind = draw.choices(("generate", "submit", "cancel", "look", "attach"), (8, 3, 1, 1, 1))[0]
        timeout = draw.choice((None, None, 0.05, 2.0, 30.0))
        leaves_at = draw.choice((0, 0, 0, draw.randint(1, 12)))
        leaves_after_s = draw.choice((None, None, None, draw.uniform(0.0, 10.0)))
        await self._while()
        if self.process.closing:
            return
        call: Coroutine[Any, Any, Any]
        if kind == "generate":
            shared.asked.setdefault(key, prompt)
            call = session.generate(prompt, idempotency_key=key, timeout=timeout)
        elif kind == "submit":
            shared.asked.setdefault(key, prompt)
            call = self._submit(session, key, prompt, timeout)
        elif kind == "cancel":
            shared.asked.setdefault(key, prompt)
            call = self._withdraw(session, key, prompt, draw.uniform(0.0, 0.3))
        elif kind == "look":
            call = self._await_job(session, key, timeout)
        else:
            call = self._attach(session, key, timeout)
        await self._reported(key, prompt, call, leaves_at, leaves_after_s)

    async def _reported(
        self,
        key: str,
        prompt: str,
        call: Coroutine[Any, Any, Any],
        leaves_at: int,
        leaves_after_s: float | None,
    ) -> None:
        task: asyncio.Task[Any] = asyncio.Task(_awaiting(CancelledAt(call, leaves_at)))
        if leaves_after_s is not None:
            asyncio.get_running_loop().call_later(leaves_after_s, task.cancel)
        await asyncio.wait([task])
        if task.cancelled():
            self._shared.machine.note(self.process.name, f"{key}: its caller left")
            return
        outcome: Outcome | None = task.exception() or task.result()
        if outcome is not None and self.process.alive:
            self._shared.oracle.check_outcome(self.process, key, prompt, outcome)

    async def _submit(self, session: Session, key: str, prompt: str, timeout: float | None) -> Any:
        job = await session.submit(prompt, idempotency_key=key)
        if self._draw.random() < 0.5:
            task_id = await job.wait_for_task_id()
            record = self._shared.disk.record(key)
            if key not in self._shared.disk.failed_keys and (record is None or record.task_id != task_id):
                self._shared.oracle.find_fault("reported early", f"{key} is {task_id}, and the ledger does not say so")
        return await job.result(timeout=timeout)

    async def _withdraw(self, session: Session, key: str, prompt: str, after_s: float) -> None:
        job = await session.submit(prompt, idempotency_key=key)
        await asyncio.sleep(after_s)
        taken = await job.cancel()
        self._shared.machine.note(self.process.name, f"{key}: {'withdrawn' if taken else 'too late to withdraw'}")

    async def _await_job(self, session: Session, key: str, timeout: float | None) -> Any:
        job = await session.job(key)
        return None if job is None else await job.result(timeout=timeout)

    async def _attach(self, session: Session, key: str, timeout: float | None) -> Any:
        if not (bought := self._shared.oracle.charges(key)):
            return None
        try:
            job = await session.attach(bought[0].task_id)
        except NanoBananaError as error:  # it says that attaching is safe to repeat, which is not about buying
            raise error.for_job(key, safe_to_repeat=False) from None
        return await job.result(timeout=timeout)

    async def _resume(self, session: Session) -> None:
        await self._while()
        while self._shared.plan.leases and not self.process.closing:  # a host adopts what others leave, all the time
            if self._draw.random() < 0.15:
                with suppress(SessionClosed, LedgerError):
                    await session.resume(buy=self._buys)
            await asyncio.sleep(0.4)
        try:
            jobs = await session.resume(buy=self._buys)
        except (SessionClosed, LedgerError):
            return
        self._shared.machine.note(self.process.name, f"resumed {sorted(job.key for job in jobs)}")

    async def _resolve(self, session: Session) -> None:
        await self._while()
        for key in self._shared.keys:
            record = self._shared.disk.record(key)
            if record is not None and record.state is JobState.UNCERTAIN and not self.process.closing:
                await resolve_by_hand(self._shared, self.process, session, key, self._draw)


async def _awaiting(what: Awaitable[Any]) -> Any:
    return await what


async def resolve_by_hand(shared: Shared, process: Process, session: Session, key: str, draw: random.Random) -> None:
    """Decide an uncertain job as a careful human does: by the gateway's own list, once nothing is on its way."""
    requests = shared.network.of_key(key)
    if any(request.in_flight for request in requests):
        return
    record = shared.disk.record(key)
    resolved_before = {record.task_id} if record is not None else set()
    bought = [job for job in shared.oracle.charges(key) if job.task_id not in resolved_before]
    decision: dict[str, Any]
    if random.Random(f"{shared.plan.seed} {key} {len(requests)} {shared.machine.time()}").random() < 0.15:
        decision = {"task_id": "a slip of the pen"}
    elif draw.random() < 0.3:
        decision = {"buy_again": True}
        shared.oracle.deliberate[key] += 1
    elif bought:
        decision = {"task_id": bought[-1].task_id}
    else:
        decision = {"not_bought": True}
    shared.machine.note(process.name, f"{key}: resolved by hand: {decision}")
    shared.oracle.decided[key] += 1
    try:
        await session.resolve(key, **decision)
    except NanoBananaError as error:
        shared.machine.note(process.name, f"{key}: not resolved: {type(error).__name__}: {error.message[:80]}")
    else:
        shared.resolved += 1


class FinalCheck:
    """A fresh process after everything has calmed down: it goes on with all, and asks for every job once more."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.process = Process(shared.machine, "last")
        self.outcomes: dict[str, Outcome] = {}

    async def run(self, within_s: float) -> None:
        """Let it do its work."""
        self.process.start(self._main(within_s))
        await asyncio.wait([self.process.ended])

    async def _main(self, within_s: float) -> None:
        shared = self._shared
        session = shared.session(self.process, last=True)
        self.process.session = session
        async with session:
            for job in await session.resume():
                shared.machine.note("last", f"resumed {job.key}")
            asks = {key: asyncio.Task(self._ask(session, key)) for key in sorted(shared.asked)}
            if asks:
                await asyncio.wait(asks.values(), timeout=within_s)
            for key, ask in asks.items():
                if not ask.done():
                    shared.oracle.find_fault("unfinished", f"{key}: no outcome after {within_s:.0f} s of calm")
                    ask.cancel()
            self.process.closing = True

    async def _ask(self, session: Session, key: str) -> None:
        shared = self._shared
        record = shared.disk.record(key)
        prompt = shared.asked[key]
        if record is not None and record.request is not None:
            prompt = record.request.prompt
        try:
            self.outcomes[key] = await session.generate(prompt, idempotency_key=key)
        except NanoBananaError as error:
            self.outcomes[key] = error
        shared.oracle.check_outcome(self.process, key, prompt, self.outcomes[key])
