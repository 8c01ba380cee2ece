"""What a session asks of its jobs: take one in, go on with it, decide it, let it go."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from decimal import Decimal

from attrs import evolve

from nanobanana_async.engine.admission import Admission
from nanobanana_async.engine.books import Books
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.callbacks import Callbacks
from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.runner import Runner
from nanobanana_async.engine.slots import Slots
from nanobanana_async.errors import CreditLimitReached, InvalidRequest, LedgerError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import UNFINISHED, JobRecord, JobState, check_key, check_task_id, numbered
from nanobanana_async.ledger.base import TaskTaken
from nanobanana_async.loops import LoopGuard
from nanobanana_async.models import ImageRequest, with_model
from nanobanana_async.policy.caps import Budget, Cap, Consent, NamedBudget

# Jobs taken over in one go: each is a task for a moment, and one flush of the ledger serves them all.
TAKEN_AT_ONCE = 200


class Engine:
    """The commands on jobs; no await stands between a look at the live ones and the change that follows from it."""

    def __init__(
        self,
        gateway: Gateway,
        books: Books,
        slots: Slots,
        buyer: Buyer,
        follower: Follower,
        *,
        budgets: tuple[Cap, ...],
        callbacks: Callbacks,
        guard: LoopGuard,
        max_requests: int,
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self._gateway = gateway
        self.books = books
        self._budgets = budgets
        self._callbacks = callbacks
        self.guard = guard
        """What every call from outside checks first."""
        self.slots = slots
        self.follower = follower
        self._admission = Admission(gateway, books, slots, buyer, follower, clock=self.clock)
        self.runner = Runner(books, slots, buyer, follower, self._admission, max_requests=max_requests)
        self.live = self.runner.live

    def enter(
        self,
        record: JobRecord,
        *budgets: Cap,
        expected_credits: Decimal | None = None,
        retry_failed: bool = False,
    ) -> Entry:
        """Take a job in, or return the live one under its key; no await stands between look and seat."""
        self.runner.check_open(record)
        entry = self.live.get(record.key)
        if entry is None:
            entry = self.runner.seat(self.entry_for(record))
            entry.budgets += budgets
            entry.expected_credits = expected_credits
            entry.retries_failed = retry_failed
            self.runner.spawn(self.runner.claim, entry)
        else:
            self._admission.check_same(entry.record, record)
        entry.wanted = True
        return entry

    async def record(self, wish: ImageRequest, key: str, *, batch: str | None = None) -> JobRecord:
        """Return a new job as it is to be written down. Raises `InvalidRequest` for what this gateway does not take.

        Its request names its model, also where the gateway has chosen it: another model is another request.
        """
        check_key(key)
        wish = with_model(wish, self._gateway.model)
        if self._callbacks.wanted.is_set() and self._gateway.takes_callbacks and wish.callback_url is None:
            wish = evolve(wish, callback_url=await self._callbacks.url_of(key))
        self._gateway.check(wish)
        return JobRecord(
            key=key,
            gateway=self._gateway.name,
            account=self._gateway.account,
            request=wish,
            body=self._gateway.encode(wish),
            created_at=self.books.utcnow(),
            batch=batch,
        )

    def record_of_task(self, task_id: str, key: str, state: JobState, request: ImageRequest | None) -> JobRecord:
        """Return a job that was bought elsewhere, and of which the task id is known."""
        now = self.books.utcnow()
        return JobRecord(
            key=check_key(key),
            gateway=self._gateway.name,
            account=self._gateway.account,
            request=None if request is None else with_model(request, self._gateway.model),
            body=b"",
            created_at=now,
            state=state,
            task_id=task_id,
            running_since=now,
        )

    def cap(self, max_credits: Decimal, batch: str | None) -> Cap:
        """Return a cap of credits: of a named batch, which the ledger counts, or of one without a name."""
        return Budget(max_credits, self.books.purse.prices) if batch is None else NamedBudget(max_credits)

    async def look_up(self, key: str) -> Entry | None:
        """Find a job among the live ones or in the ledger."""
        entry = self.live.get(key)
        if entry is None and (record := await self.books.ledger.find(key)) is not None:
            entry = self.live.get(key) or self.entry_for(record)
            entry.written = True
        return entry

    def entry_for(self, record: JobRecord) -> Entry:
        """Return a seat for a record, not yet taken."""
        entry = Entry(record, 1 if record.request is None else self._gateway.weight(record.request))
        entry.budgets = self._budgets
        return entry

    def go_on(self, entry: Entry) -> Entry:
        """Go on with a job whose following had stopped, or that was only looked up; return its live entry."""
        record = entry.record
        if record.key in self.live:
            return self.live[record.key]
        if record.state not in UNFINISHED:
            return entry
        self.runner.check_open(record)
        self._admission.check_account(record)
        if record.state is not JobState.PENDING or not entry.stopped:
            entry.failures, entry.imageless_at = 0, NEVER
            entry.stopped, entry.written = None, False
            self.runner.spawn(self.runner.look_elsewhere, self.runner.seat(entry))
        return entry

    async def refresh(self, entry: Entry) -> Entry:
        """Go on with a job, also with one that somebody may have settled, or taken up where it was given up here."""
        given_up = entry.stopped is not None and entry.record.state is JobState.PENDING
        if (given_up or entry.record.state is JobState.UNCERTAIN) and not (entry.live or self.runner.closing):
            record = await self.books.ledger.find(entry.key)
            moved_on = record is not None and record.revision != entry.stored.revision
            if record is not None and moved_on and not (given_up and record.state is JobState.PENDING):
                entry.stored, entry.stopped = record, None
                entry.moved(record)
                self.books.purse.let_go(entry)
        return self.go_on(entry)

    async def take_over(self, records: AsyncIterator[JobRecord]) -> list[Entry]:
        """Go on with jobs that nobody follows; return those that are ours now."""
        entries: list[Entry] = []
        waiting: list[Entry] = []
        async for record in records:
            if record.key not in self.live:
                entry = self.entry_for(record)
                entry.wanted = True
                waiting.append(self.go_on(entry))
            if len(waiting) >= TAKEN_AT_ONCE:
                entries += await self._taken(waiting)
                waiting = []
        return entries + await self._taken(waiting)

    async def _taken(self, waiting: list[Entry]) -> list[Entry]:
        for entry in waiting:
            while not entry.written and not entry.stopped:
                await entry.change()
        return [entry for entry in waiting if not entry.elsewhere]

    def settle(self, entry: Entry, *, task_id: str | None, buy_again: bool) -> Entry:
        """Decide a job: it has this task id, is bought anew, or was not bought. Return its live entry.

        A RUNNING job must be ours, and its task one that the gateway does not know (`Resolver`).
        """
        record = entry.record
        if task_id is not None:
            check_task_id(task_id)
        self.check_settles(entry, buy_again=buy_again)
        if buy_again and self.books.purse.consent_again(entry, self.clock()) is Consent.NEVER:
            raise CreditLimitReached(self.books.purse.why(entry), key=record.key, safe_to_repeat=False)
        body = self._gateway.encode(record.request) if buy_again and record.request is not None else None
        entry.wanted, entry.stopped = True, None

        async def settled(entry: Entry) -> float:
            try:
                due = await self._admission.settle(entry, task_id=task_id, body=body)
                entry.wake()
                return due
            except LedgerError as error:  # nothing has moved: it can be settled again
                taken = isinstance(error, TaskTaken)
                entry.wake(InvalidRequest(f"{error.message}: nothing was changed") if taken else error)
                if entry.record.state is JobState.RUNNING:  # nobody follows it, as before
                    raise
                return entry.lingers_until

        self.runner.spawn(self.runner.errand(settled), self.runner.seat(entry))
        return entry

    def check_settles(self, entry: Entry, *, buy_again: bool) -> None:
        """Raise `InvalidRequest` for a job that can't be settled so, whatever the gateway says of its task."""
        record = entry.record
        settles = record.state in (JobState.UNCERTAIN, JobState.RUNNING)
        if not (settles or (buy_again and record.state is JobState.FAILED)):
            raise InvalidRequest(f"job {record.key} is {record.state.value}: there is nothing to settle")
        if buy_again and record.request is None:
            raise InvalidRequest(f"job {record.key} was attached, or is kept in short: what it wanted is not known")
        if entry.live and record.state is JobState.RUNNING:
            raise InvalidRequest(f"job {record.key} is running: there is nothing to settle while it is followed")
        if entry.live:
            raise InvalidRequest(f"job {record.key} is being settled at this moment")
        self.runner.check_open(record)
        self._admission.check_account(record)

    async def pictures_of(self, task_id: str) -> dict[int, str]:
        """Ask the gateway once more for the images of a task, by their index: links expire."""
        key = f"pictures-{hashlib.sha256(task_id.encode()).hexdigest()[:32]}"
        entry = self.live.get(key)
        if entry is None:
            entry = self.refetch(self.entry_for(self.record_of_task(task_id, key, JobState.SUCCEEDED, None)))
        while not entry.over:
            await entry.change()
        if entry.stopped is not None:
            raise entry.stopped.about(key, safe_to_repeat=True)
        seen = entry.observation
        return {} if seen is None else dict(numbered(seen.images, seen.missing))

    def refetch(self, entry: Entry) -> Entry:
        """Ask the gateway once more for the pictures of a job that succeeded: the ledger does not hold inline ones."""
        known = self.live.get(entry.key)
        if known is not None:
            return known
        self.runner.check_open(entry.record)
        self._admission.check_account(entry.record)
        entry.refetching, entry.stopped = True, None
        entry.failures, entry.running_at = 0, self.clock()
        self.runner.feed.append(self.runner.seat(entry))
        self.runner.pump()
        return entry

    def withdraw(self, entry: Entry) -> bool:
        """Take back a job that was not yet sent; say False when it is too late, or somebody else's."""
        taken = entry.leaving or entry.on_wire or entry.elsewhere or entry.stopped is not None
        if self.runner.closing or taken or entry.record.state is not JobState.PENDING:
            return False
        self._admission.check_account(entry.record)
        entry.leaving = True
        if not entry.live:  # it was only looked up, and may be somebody else's
            entry.written = False
            self.runner.spawn(self.runner.look_elsewhere, self.runner.seat(entry))
        elif entry.written:  # else its claim is on the way, and will see that it leaves
            self.runner.spawn(self.runner.withdraw, entry)
        return True

    def leave(self, entry: Entry) -> bool:
        """Let a caller go; say whether the job is withdrawn since he was its only one and nothing was sent."""
        entry.callers -= 1
        if entry.callers or entry.kept:
            return False
        entry.wanted = False
        # Until its claim has come back, nobody knows what the ledger holds under its key.
        return self.withdraw(entry) and entry.written
