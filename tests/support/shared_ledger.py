"""Several sessions on one ledger in memory, each an owner that can close or be killed during its work."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, TypeVar

from attrs import define, field

from nanobanana_async import Job, JobState, Session
from nanobanana_async.engine.wall_clock import utcnow
from nanobanana_async.errors import LedgerError, TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import ACTIVE_STATES, TERMINAL_STATES, JobRecord
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Allowance, Claim, NotOurs, TaskTaken, Upload
from nanobanana_async.ledger.feeding import FedBatch
from nanobanana_async.ledger.memory_charges import MemoryCharges
from nanobanana_async.policy.account_state import AccountState, Share
from nanobanana_async.policy.named_budget import Budget, BudgetState
from nanobanana_async.policy.prices import Price
from nanobanana_async.policy.sharing import Allotment, Report, exchange
from nanobanana_async.testing import AnswerRequest, FakeTransport, Reply
from tests.support.fakes import FakeGateway, Opening
from tests.support.shared_feeding import FeedingView, Row, Stored

T = TypeVar("T")

KEY = "order-1"
CLOCK_AHEAD_S = 1.7e9
"""The ledger's clock minus that of its owners."""
LOST = TransportError("the connection was reset", possibly_sent=True)


class SharedLedger:
    """The rows of several sessions; each session reads and writes them through its own `LedgerView`."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.notices: dict[tuple[LedgerView, str], str | None] = {}
        """Owner and key -> the reported task id."""
        self.charges = MemoryCharges()
        self.learned: dict[str, str] = {}
        self.uploads: dict[tuple[str, str], Upload] = {}
        self.fed_batches: dict[str, FedBatch] = {}
        self.fed_rows: dict[str, Stored] = {}
        """By the key of the job."""
        self.lease_s = 0.0
        """How long a killed owner counts as living."""
        self.accounts: dict[str, str] = {}
        """Account -> what its owners know of it together, as JSON."""
        self.shares: dict[str, dict[int, Share]] = {}
        """Account -> the share of each owner."""
        self.owners: list[LedgerView] = []

    def owned(self, account: str, since: datetime) -> Mapping[int | None, int]:
        """Count the account's jobs that may run and began after a time, by their owner; None: no living one."""
        counts: Counter[int | None] = Counter()
        for row in self.rows.values():
            record, owner = row.record, row.owner
            if record.account != account or record.state in TERMINAL_STATES | {JobState.PENDING}:
                continue
            if record.may_run_since < since:
                continue
            if owner is None or not owner.living:
                counts[None] += 1
            elif record.state is not JobState.UNCERTAIN:
                counts[self.owners.index(owner)] += 1
        return counts

    def states(self) -> dict[str, JobState]:
        return {key: row.record.state for key, row in self.rows.items()}

    def record(self, key: str) -> JobRecord:
        return self.rows[key].record

    def owner(self, key: str) -> "LedgerView | None":
        """Return the living owner of a job, or None."""
        row = self.rows[key]
        return row.owner if row.owner is not None and row.owner.alive and row.record.state in ACTIVE_STATES else None

    def forget(self, key: str) -> None:
        """Prune one job."""
        del self.rows[key]
        self.charges.forget(key)


@define(eq=False)
class LedgerView(FeedingView):
    """One owner's ledger on the shared rows. It may be slow, fail as `fails` says, be killed, and be buried alive."""

    shared: SharedLedger
    delay_s: float = 0.0
    alive: bool = False
    killed: bool = False
    fails: Counter[str] = field(factory=Counter)
    """How often each method fails from now on."""
    calls: Counter[str] = field(factory=Counter)
    """How often each method was called."""
    changes: list[str] = field(factory=list)
    """What it changed, in order."""
    surely_owns: bool = True
    outage: str | None = None
    _turn: asyncio.Lock = field(factory=asyncio.Lock)
    _killed_at: float = -math.inf
    _notify_burial: Callable[[], None] | None = None
    _buried: bool = False
    """It was buried, and does not know that yet."""

    async def open(self) -> None:
        if self.alive:
            raise LedgerError("it is open already")
        self.alive = True
        self.shared.owners.append(self)

    @property
    def living(self) -> bool:
        """Whether its jobs are its own: it is open, or was killed less than a lease ago."""
        left_at = self._killed_at + self.shared.lease_s
        return self.alive or (self.killed and asyncio.get_running_loop().time() < left_at)

    async def aclose(self) -> None:
        self.alive = False
        for row in self.shared.rows.values():
            if row.owner is self:
                row.owner = None

    def kill(self) -> None:
        """Die: the lock is gone, and no later call is ever answered."""
        self.alive, self.killed, self._killed_at = False, True, asyncio.get_running_loop().time()

    def on_burial(self, notify: Callable[[], None]) -> None:
        self._notify_burial = notify

    def bury(self, *, unnoticed: bool = False) -> None:
        """Let all its jobs have no owner, as after a lease of silence. It goes on as a new owner, which has none.

        Unnoticed: until its next call, or until it comes back.
        """
        for row in self.shared.rows.values():
            if row.owner is self and row.record.state not in TERMINAL_STATES:
                row.owner = None
        for owner, key in list(self.shared.notices):
            if owner is self:
                del self.shared.notices[owner, key]
        for shares in self.shared.shares.values():
            shares.pop(self.shared.owners.index(self), None)
        self._buried, self.surely_owns = True, False
        if not unnoticed:
            self.come_back()

    def come_back(self) -> None:
        """Notice the burial, if there was one, and be an owner that certainly lives."""
        self.surely_owns = True
        if self._buried:
            self._buried = False
            if self._notify_burial is not None:
                self._notify_burial()

    async def claim(self, record: JobRecord) -> Claim:
        def claim() -> Claim:
            row = self.shared.rows.get(record.key)
            if row is None:
                self.shared.rows[record.key] = Row(record, self)
                self.changes.append(f"new {record.state.name}")
                return Claim(record=record, is_new=True, is_ours=record.state in ACTIVE_STATES)
            return Claim(record=row.record, is_ours=self._taken_over(row))

        return await self._run("claim", claim)

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        def advance() -> None:
            if after.task_id is not None and after.task_id != before.task_id:
                for other in self.shared.rows.values():
                    record = other.record
                    same = record.task_id == after.task_id and record.account == after.account
                    if same and record.key != after.key and record.first_sent_at is not None:
                        raise TaskTaken(after.task_id, record.key, key=after.key)
            self._swap(before, after)
            if after.is_counted:
                self.shared.charges.update_from_record(before, after)

        await self._run("advance", advance)

    async def find(self, key: str) -> JobRecord | None:
        def find() -> JobRecord | None:
            row = self.shared.rows.get(key)
            return None if row is None else row.record

        return await self._run("find", find)

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        def find_task() -> JobRecord | None:
            known = [row.record for row in self.shared.rows.values()]
            mine = [record for record in known if (record.account, record.task_id) == (account, task_id)]
            return mine[-1] if mine else None

        return await self._run("find_task", find_task)

    async def known_tasks(self, account: str, task_ids: Sequence[str]) -> Mapping[str, JobRecord | None]:
        found = {task_id: await self.find_task(account, task_id) for task_id in task_ids}
        return {task_id: record for task_id, record in found.items() if record is not None}

    async def uncertain(self, account: str) -> AsyncIterator[JobRecord]:
        for row in list(self.shared.rows.values()):
            if row.record.account == account and row.record.state is JobState.UNCERTAIN:
                yield row.record

    async def adopt(self, key: str) -> Claim | None:
        def adopt() -> Claim | None:
            row = self.shared.rows.get(key)
            return None if row is None else Claim(record=row.record, is_ours=self._taken_over(row))

        return await self._run("adopt", adopt)

    async def release(self, key: str) -> None:
        def release() -> None:
            row = self.shared.rows.get(key)
            if row is not None and row.owner is self and row.record.state in ACTIVE_STATES:
                row.owner = None
                self.changes.append(f"let go of {row.record.state.name}")

        await self._run("release", release)

    async def count_foreign_slots(self, account: str, *, since: datetime | None = None) -> int:
        def held() -> int:
            return sum(
                row.record.slots
                for row in self.shared.rows.values()
                if row.record.account == account
                and row.owner is not self
                and row.record.state not in TERMINAL_STATES | {JobState.PENDING}
                and (since is None or row.record.may_run_since >= since)
            )

        return await self._run("count_foreign_slots", held)

    async def advance_and_reserve(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        def advance_and_reserve() -> Allowance:
            allowance = self.shared.charges.allowance(after, price, max_credits, self._follower)
            if allowance.refusal is None:
                self._swap(before, after)
                self.shared.charges.reserve(after, allowance.price)
            return allowance

        return await self._run("advance", advance_and_reserve)

    async def recall(self, account: str) -> str | None:
        return self.shared.learned.get(account)

    async def remember(self, account: str, learned: str) -> None:
        if not self.killed:
            self.shared.learned[account] = learned

    async def exchange(self, account: str, report: Report) -> Allotment:
        def exchanged() -> Allotment:
            living = {number for number, owner in enumerate(self.shared.owners) if owner.living}
            shares = self.shared.shares.get(account, {})
            shares = {owner: share for owner, share in shares.items() if owner in living}
            state = AccountState.from_json(self.shared.accounts.get(account), shares)
            at = asyncio.get_running_loop().time() + CLOCK_AHEAD_S
            owned = self.shared.owned(account, utcnow() - timedelta(seconds=report.max_run_s))
            allotment = exchange(state, self.shared.owners.index(self), report, at, owned)
            self.shared.accounts[account], self.shared.shares[account] = state.to_json(), state.shares
            return allotment

        self.calls["exchange"] += 1
        await asyncio.sleep(self.delay_s / 2)
        self._check("exchange")
        allotment = exchanged()
        await asyncio.sleep(self.delay_s / 2)
        return allotment

    async def find_upload(self, account: str, digest: str) -> Upload | None:
        return await self._run("find_upload", lambda: self.shared.uploads.get((account, digest)))

    async def remember_upload(self, account: str, upload: Upload) -> None:
        def remember() -> None:
            self.shared.uploads[account, upload.digest] = upload

        await self._run("remember_upload", remember)

    async def spent_or_reserved(self, batch: str) -> Decimal:
        return await self._run("spent", lambda: self.shared.charges.spent_or_reserved(batch_key_prefix(batch)))

    async def set_budget(self, budget: Budget) -> None:
        await self._run("set_budget", lambda: self.shared.charges.set_budget(budget))

    async def budgets(self, now: datetime, names: Collection[str] | None = None) -> Sequence[BudgetState]:
        return await self._run("budgets", lambda: self.shared.charges.budgets(now, names))

    async def callback_secret(self) -> bytes:
        return bytes(32)

    async def notify_owner(self, key: str, task_id: str | None) -> None:
        def notify() -> None:
            owner = self.shared.owner(key) if key in self.shared.rows else None
            if owner is not None and owner is not self:
                self.shared.notices[owner, key] = task_id

        await self._run("notify_owner", notify)

    async def take_notices(self) -> Sequence[tuple[str, str | None]]:
        def notices() -> list[tuple[str, str | None]]:
            mine = [key for owner, key in self.shared.notices if owner is self]
            return [(key, self.shared.notices.pop((self, key))) for key in mine]

        return await self._run("take_notices", notices)

    async def adoptable_jobs(self, account: str) -> AsyncIterator[JobRecord]:
        def free() -> list[JobRecord]:
            rows = [row for row in self.shared.rows.values() if row.record.account == account]
            free_rows = [row.record for row in rows if row.record.state in ACTIVE_STATES and self._free(row)]
            waits = self.shared.fed_rows
            return [record for record in free_rows if record.state is not JobState.PENDING or record.key not in waits]

        for record in await self._run("adoptable_jobs", free):
            yield record

    async def _run(self, name: str, work: Callable[[], T]) -> T:
        """Run `work` in call order; half of the delay passes before it, half after."""
        self.calls[name] += 1
        async with self._turn:
            await asyncio.sleep(self.delay_s / 2)
            if self.killed:
                await asyncio.Event().wait()
            self._check(name)
            if self._buried:
                self.come_back()
            result = work()
            await asyncio.sleep(self.delay_s / 2)
            if self.killed:
                await asyncio.Event().wait()
        return result

    def _check(self, name: str) -> None:
        if not self.alive:
            raise LedgerError("it is not open")
        if self.fails[name] > 0:
            self.fails[name] -= 1
            raise LedgerError("the disk is full")

    def _taken_over(self, row: Row) -> bool:
        if row.record.state not in ACTIVE_STATES:
            return False
        if row.owner is not self and not self._free(row):
            return False
        row.owner = self
        return True

    def _swap(self, before: JobRecord, after: JobRecord) -> None:
        row = self.shared.rows.get(before.key)
        mine = row is not None and (row.owner is self or row.record.state not in ACTIVE_STATES)
        if row is None or row.record.revision != before.revision or not mine:
            raise NotOurs(f"job {before.key} was changed by another owner", key=before.key)
        row.record, row.owner = after, self
        self.changes.append(f"{before.state.name} -> {after.state.name}")

    def _follower(self, key: str) -> str | None:
        owner = self.shared.owner(key) if key in self.shared.rows else None
        return None if owner is None else "ours" if owner is self else "others"

    @staticmethod
    def _free(row: Row) -> bool:
        return row.owner is None or not row.owner.living


class KillableTransport(FakeTransport):
    """A process's transport; after a kill no request leaves and no answer arrives."""

    killed = False

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        if self.killed:
            await asyncio.Event().wait()
        response = await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)
        if self.killed:
            await asyncio.Event().wait()
        return response


class FakeProcess:
    """A process with one session on the shared ledger: `async with`, or killed."""

    def __init__(
        self,
        shared: SharedLedger,
        answer: AnswerRequest,
        *,
        session_of: Opening,
        delay_s: float = 0.0,
        **settings: Any,
    ) -> None:
        self.ledger = LedgerView(shared, delay_s)
        self.transport = KillableTransport(answer)
        settings = {"adopt": None, **settings}  # most tests say themselves when something is adopted
        self.session: Session = session_of(self.transport, ledger=self.ledger, **settings)

    async def __aenter__(self) -> Self:
        await self.session.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.aclose()

    def kill(self) -> None:
        """Die as with `kill -9`: no write, no request, and the jobs have no owner."""
        self.ledger.kill()
        self.transport.killed = True

    @property
    def creates(self) -> int:
        return len(self.transport.creates)

    @property
    def queries(self) -> int:
        return len(self.transport.polls)

    @property
    def held(self) -> int:
        return self.session.stats().slots_held


class LosingGateway(FakeGateway):
    """A fake gateway that loses the answer to a create after the sale, one for each True in `lost_answers`."""

    def __init__(self, *, job_s: float = 2.0, limit: int | None = None) -> None:
        super().__init__(job_s=job_s, limit=limit)
        self.lost_answers: list[bool] = []

    def answer(self, request: HttpRequest) -> Reply:
        reply = super().answer(request)
        if request.method == "POST" and self.lost_answers and self.lost_answers.pop(0):
            return LOST
        return reply


@asynccontextmanager
async def two_processes(
    shared: SharedLedger, answer: AnswerRequest, *, session_of: Opening, **settings: Any
) -> AsyncGenerator[tuple[FakeProcess, FakeProcess]]:
    """Run two processes with the same settings; the second is closed first."""
    async with (
        FakeProcess(shared, answer, session_of=session_of, **settings) as first,
        FakeProcess(shared, answer, session_of=session_of, **settings) as second,
    ):
        yield first, second


@asynccontextmanager
async def killed_process(
    shared: SharedLedger, answer: AnswerRequest, *, session_of: Opening, **settings: Any
) -> AsyncGenerator[FakeProcess]:
    """Let a process work, and kill it at the end of the block."""
    async with FakeProcess(shared, answer, session_of=session_of, **settings) as process:
        yield process
        process.kill()


async def leave_running(shared: SharedLedger, gateway: FakeGateway, *keys: str, session_of: Opening) -> None:
    """Let a process buy jobs, and kill it while they run."""
    async with killed_process(shared, gateway.answer, session_of=session_of) as process:
        for key in keys:
            await (await process.session.submit(f"a fox for {key}", idempotency_key=key)).wait_for_task_id()


async def leave_submitting(shared: SharedLedger, gateway: FakeGateway, *keys: str, session_of: Opening) -> None:
    """Let a process send its creates, and kill it before an answer comes."""
    async with killed_process(shared, gateway.answer, session_of=session_of) as process:
        for key in keys:
            await process.session.submit(f"a fox for {key}", idempotency_key=key)
            await asyncio.sleep(0.03)
            assert shared.states()[key] is JobState.SUBMITTING


async def leave_pending(shared: SharedLedger, gateway: FakeGateway, *keys: str, session_of: Opening) -> None:
    """Let processes write jobs down, and kill them before anything is sent."""
    for key in keys:
        async with killed_process(shared, gateway.answer, session_of=session_of, delay_s=1.0) as process:
            submitting = asyncio.Task(process.session.submit(f"a fox for {key}", idempotency_key=key))
            await asyncio.sleep(1.75)  # slots counted and job stored; the answer has not come yet
        submitting.cancel()
        await asyncio.wait([submitting])
        assert shared.states()[key] is JobState.PENDING


async def found(session: Session, key: str) -> Job:
    """Return the job under a key, which must be there."""
    job = await session.job(key)
    assert job is not None
    return job


def fox(session: Session) -> "asyncio.Task[str]":
    """Generate in the background; the result is the task id."""

    async def generate() -> str:
        return (await session.generate("a fox", idempotency_key=KEY)).task_id

    return asyncio.Task(generate())
