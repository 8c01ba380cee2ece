"""What a session asks of its jobs: take one in, go on with it, decide it, let it go."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from decimal import Decimal

from attrs import evolve

from nanobanana_async.engine.callback_urls import CallbackUrls
from nanobanana_async.engine.claims import Claims
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.scheduler import Scheduler
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.submitter import Submitter
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.errors import ConfigurationError, CreditLimitReached, LedgerError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState, validate_key, validate_task_id, with_indexes
from nanobanana_async.ledger.base import TaskTaken
from nanobanana_async.loop_guard import LoopGuard
from nanobanana_async.models import ImageRequest, with_model
from nanobanana_async.policy.budget import Affordable, BatchBudget, Budget, Cap

# Jobs taken over in one go: each is a task for a moment, and one flush of the ledger serves them all.
ADOPT_BATCH = 200


class Engine:
    """The commands on jobs; no await stands between a look at the live ones and the change that follows from it."""

    def __init__(
        self,
        gateway: Gateway,
        books: JobStore,
        slots: Slots,
        buyer: Submitter,
        follower: Poller,
        *,
        budgets: tuple[Cap, ...],
        callbacks: CallbackUrls,
        guard: LoopGuard,
        max_requests: int,
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self._gateway = gateway
        self.store = books
        self._budgets = budgets
        self._callbacks = callbacks
        self.guard = guard
        """What every call from outside checks first."""
        self.slots = slots
        self.poller = follower
        self._claims = Claims(gateway, books, slots, buyer, follower, clock=self.clock)
        self.scheduler = Scheduler(books, slots, buyer, follower, self._claims, max_requests=max_requests)
        self.tracked = self.scheduler.tracked

    def submit(
        self,
        record: JobRecord,
        *budgets: Cap,
        expected_credits: Decimal | None = None,
        retry_failed: bool = False,
    ) -> TrackedJob:
        """Take a job in, or return the live one under its key; no await stands between look and seat."""
        self.scheduler.check_open(record)
        entry = self.tracked.get(record.key)
        if entry is None:
            entry = self.scheduler.track(self.track(record))
            entry.budgets += budgets
            entry.expected_credits = expected_credits
            entry.retry_failed = retry_failed
            self.scheduler.start_step(self.scheduler.claim, entry)
        else:
            self._claims.check_same(entry.record, record)
        entry.may_buy = True
        return entry

    async def new_record(self, wish: ImageRequest, key: str, *, batch: str | None = None) -> JobRecord:
        """Return a new job as it is to be written down. Raises `InvalidRequest` for what this gateway does not take.

        Its request names its model, also where the gateway has chosen it: another model is another request.
        """
        validate_key(key)
        wish = with_model(wish, self._gateway.model)
        if self._callbacks.enabled.is_set() and self._gateway.supports_callbacks and wish.callback_url is None:
            wish = evolve(wish, callback_url=await self._callbacks.make_url(key))
        self._gateway.check(wish)
        return JobRecord(
            key=key,
            gateway=self._gateway.name,
            account=self._gateway.account,
            request=wish,
            body=self._gateway.encode(wish),
            created_at=self.store.utcnow(),
            batch=batch,
        )

    def attached_record(self, task_id: str, key: str, state: JobState, request: ImageRequest | None) -> JobRecord:
        """Return a job that was bought elsewhere, and of which the task id is known."""
        now = self.store.utcnow()
        return JobRecord(
            key=validate_key(key),
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
        return Budget(max_credits, self.store.credits.prices) if batch is None else BatchBudget(max_credits)

    async def look_up(self, key: str) -> TrackedJob | None:
        """Find a job among the live ones or in the ledger."""
        entry = self.tracked.get(key)
        if entry is None and (record := await self.store.ledger.find(key)) is not None:
            entry = self.tracked.get(key) or self.track(record)
            entry.claimed = True
        return entry

    def track(self, record: JobRecord) -> TrackedJob:
        """Return a seat for a record, not yet taken."""
        entry = TrackedJob(record, 1 if record.request is None else self._gateway.slots_for(record.request))
        entry.budgets = self._budgets
        return entry

    def follow(self, entry: TrackedJob) -> TrackedJob:
        """Go on with a job whose following had stopped, or that was only looked up; return its live entry."""
        record = entry.record
        if record.key in self.tracked:
            return self.tracked[record.key]
        if record.state not in ACTIVE_STATES:
            return entry
        self.scheduler.check_open(record)
        self._claims.check_account(record)
        if record.state is not JobState.PENDING or not entry.wait_error:
            entry.failures, entry.first_imageless_at = 0, NEVER
            entry.wait_error, entry.claimed = None, False
            self.scheduler.start_step(self.scheduler.check_owner, self.scheduler.track(entry))
        return entry

    async def reload_and_follow(self, entry: TrackedJob) -> TrackedJob:
        """Go on with a job, also with one that somebody may have settled, or taken up where it was given up here."""
        given_up = entry.wait_error is not None and entry.record.state is JobState.PENDING
        if (given_up or entry.record.state is JobState.UNCERTAIN) and not (entry.live or self.scheduler.closing):
            record = await self.store.ledger.find(entry.key)
            moved_on = record is not None and record.revision != entry.ledger_record.revision
            if record is not None and moved_on and not (given_up and record.state is JobState.PENDING):
                entry.ledger_record, entry.wait_error = record, None
                entry.set_record(record)
                self.store.credits.park(entry)
        return self.follow(entry)

    async def adopt_all(self, records: AsyncIterator[JobRecord]) -> list[TrackedJob]:
        """Go on with jobs that nobody follows; return those that are ours now."""
        entries: list[TrackedJob] = []
        waiting: list[TrackedJob] = []
        async for record in records:
            if record.key not in self.tracked:
                entry = self.track(record)
                entry.may_buy = True
                waiting.append(self.follow(entry))
            if len(waiting) >= ADOPT_BATCH:
                entries += await self._adopted(waiting)
                waiting = []
        return entries + await self._adopted(waiting)

    async def _adopted(self, waiting: list[TrackedJob]) -> list[TrackedJob]:
        for entry in waiting:
            while not entry.claimed and not entry.wait_error:
                await entry.wait_for_change()
        return [entry for entry in waiting if not entry.foreign]

    def resolve(self, entry: TrackedJob, *, task_id: str | None, buy_again: bool) -> TrackedJob:
        """Decide a job: it has this task id, is bought anew, or was not bought. Return its live entry.

        A RUNNING job must be ours, and its task one that the gateway does not know (`Resolver`).
        """
        record = entry.record
        if task_id is not None:
            validate_task_id(task_id)
        self.check_settles(entry, buy_again=buy_again)
        if buy_again and self.store.credits.consent_again(entry, self.clock()) is Affordable.NEVER:
            raise CreditLimitReached(self.store.credits.explain(entry), key=record.key, safe_to_repeat=False)
        body = self._gateway.encode(record.request) if buy_again and record.request is not None else None
        entry.may_buy, entry.wait_error = True, None

        async def settled(entry: TrackedJob) -> float:
            try:
                due = await self._claims.resolve(entry, task_id=task_id, body=body)
                entry.wake()
                return due
            except LedgerError as error:  # nothing has moved: it can be settled again
                taken = isinstance(error, TaskTaken)
                entry.wake(ConfigurationError(f"{error.message}: nothing was changed") if taken else error)
                if entry.record.state is JobState.RUNNING:  # nobody follows it, as before
                    raise
                return entry.holds_until

        self.scheduler.start_step(self.scheduler._as_task(settled), self.scheduler.track(entry))
        return entry

    def check_settles(self, entry: TrackedJob, *, buy_again: bool) -> None:
        """Raise `ConfigurationError` for a job that can't be resolved this way."""
        record = entry.record
        settles = record.state in (JobState.UNCERTAIN, JobState.RUNNING)
        if not (settles or (buy_again and record.state is JobState.FAILED)):
            raise ConfigurationError(f"job {record.key} is {record.state.value}: there is nothing to resolve")
        if buy_again and record.request is None:
            raise ConfigurationError(f"the request of job {record.key} is not in the ledger: it cannot be bought again")
        if entry.live and record.state is JobState.RUNNING:
            raise ConfigurationError(f"job {record.key} is running and polled by this session: nothing to resolve")
        if entry.live:
            raise ConfigurationError(f"job {record.key} is being resolved by another call")
        self.scheduler.check_open(record)
        self._claims.check_account(record)

    async def fresh_image_links(self, task_id: str) -> dict[int, str]:
        """Ask the gateway once more for the images of a task, by their index: links expire."""
        key = f"pictures-{hashlib.sha256(task_id.encode()).hexdigest()[:32]}"
        entry = self.tracked.get(key)
        if entry is None:
            entry = self.poll_for_images(self.track(self.attached_record(task_id, key, JobState.SUCCEEDED, None)))
        while not entry.done:
            await entry.wait_for_change()
        if entry.wait_error is not None:
            raise entry.wait_error.for_job(key, safe_to_repeat=True)
        seen = entry.observation
        return {} if seen is None else dict(with_indexes(seen.images, seen.missing))

    def poll_for_images(self, entry: TrackedJob) -> TrackedJob:
        """Ask the gateway once more for the pictures of a job that succeeded: the ledger does not hold inline ones."""
        known = self.tracked.get(entry.key)
        if known is not None:
            return known
        self.scheduler.check_open(entry.record)
        self._claims.check_account(entry.record)
        entry.fetching_images, entry.wait_error = True, None
        entry.failures, entry.running_at = 0, self.clock()
        self.scheduler.dispatcher.put(self.scheduler.track(entry))
        self.scheduler.tick()
        return entry

    def request_withdrawal(self, entry: TrackedJob) -> bool:
        """Take back a job that was not yet sent; say False when it is too late, or somebody else's."""
        taken = entry.withdraw_requested or entry.in_flight or entry.foreign or entry.wait_error is not None
        if self.scheduler.closing or taken or entry.record.state is not JobState.PENDING:
            return False
        self._claims.check_account(entry.record)
        entry.withdraw_requested = True
        if not entry.live:  # it was only looked up, and may be somebody else's
            entry.claimed = False
            self.scheduler.start_step(self.scheduler.check_owner, self.scheduler.track(entry))
        elif entry.claimed:  # else its claim is on the way, and will see that it leaves
            self.scheduler.start_step(self.scheduler.withdraw, entry)
        return True

    def drop_caller(self, entry: TrackedJob) -> bool:
        """Let a caller go; say whether the job is withdrawn since he was its only one and nothing was sent."""
        entry.callers -= 1
        if entry.callers or entry.has_handle:
            return False
        entry.may_buy = False
        # Until its claim has come back, nobody knows what the ledger holds under its key.
        return self.request_withdrawal(entry) and entry.claimed
