"""Write records: ledger first, then memory, reservations of credits, and the event."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from nanobanana_async.engine.credit_account import CreditAccount
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import GatewayError, LedgerError, NanoBananaError
from nanobanana_async.events import EventEmitter, JobStateChanged, PriceAboveEstimate, WriteRefused, log
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import TERMINAL_STATES, JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Claim, LeasedLedger, Ledger, NotOurs, TaskTaken
from nanobanana_async.loop_guard import cancel_requested
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.named_budget import Budget

T = TypeVar("T")


class JobStore:
    """The only writer of records: writes to the ledger, then updates the job, its reservation and the counts; emits."""

    def __init__(
        self, ledger: Ledger, account: CreditAccount, emitter: EventEmitter, utcnow: Callable[[], datetime]
    ) -> None:
        self.ledger = ledger
        self.credits = account
        self.utcnow = utcnow
        self._clock = asyncio.get_running_loop().time
        self.ended_counts: Counter[JobState] = Counter()
        self.lease = ledger if isinstance(ledger, LeasedLedger) else None
        self.emit = emitter
        """Calls the observers with an event."""
        self._budgets: dict[str, Budget] = {}
        self._write_s = 0.0  # of the write that ended last: `_update_job` follows without a turn of the event loop

    async def claim(self, job: TrackedJob) -> Claim:
        """Store a new job, or find the record under its key; `load` makes that the job's record."""
        claim = await self.ledger.claim(job.record)
        if claim.is_new:
            self.emit(JobStateChanged(before=None, record=job.record))
        return claim

    async def set_budget(self, budget: Budget) -> None:
        """Store a budget in the ledger, unless this session stored the same before: the newest value holds for all."""
        if self._budgets.get(budget.name) != budget:
            await self.ledger.set_budget(budget)
            self._budgets[budget.name] = budget
            self.credits.cap_of_budget(budget.name).forget_refusals()

    def replace_record(self, job: TrackedJob, record: JobRecord) -> None:
        """Make a record from the ledger the job's. The owner or session that wrote it has emitted its events."""
        job.ledger_record = record
        job.set_record(record)

    async def _await_write(self, before: JobRecord, write: Awaitable[T]) -> T:
        """Return the result of a write to the ledger; raise any failure of it as a `LedgerError`."""
        began = self._clock()
        try:
            return await write
        except (Exception, asyncio.CancelledError) as failure:
            if isinstance(failure, NotOurs):
                self.emit(WriteRefused(record=before))
            if isinstance(failure, LedgerError) or (isinstance(failure, asyncio.CancelledError) and cancel_requested()):
                raise
            why = f"the ledger failed: {type(failure).__name__}: {failure}"
            raise LedgerError(why, key=before.key, safe_to_repeat=not before.possibly_bought) from failure
        finally:
            self._write_s = self._clock() - began

    async def start_generation(
        self,
        job: TrackedJob,
        known: JobRecord,
        body: bytes,
        request: ImageRequest | None,
        budget: str | None = None,
        **buyer: str,
    ) -> None:
        """Start the next generation of a job, which the ledger has as `known`: a purchase by its account or `buyer`."""
        buyer = buyer or {"account": job.record.account}
        after = known.next_generation(
            body=body, request=request, budget=budget, slots=job.weight, created_at=self.utcnow(), **buyer
        )
        await self._await_write(known, self.ledger.advance(known, after))
        job.progress = 0.0
        job.record = known  # only now: the waiters must not get the end of the last generation
        self._update_job(job, after, stored=after)

    async def transition(self, job: TrackedJob, state: JobState, **changes: Any) -> None:
        """Write a transition. On a `LedgerError` nothing has changed."""
        after = job.record.transition_to(state, **changes)
        await self._await_write(job.ledger_record, self.ledger.advance(job.ledger_record, after))
        self._update_job(job, after, stored=after)

    async def advance_and_reserve(self, job: TrackedJob, **changes: Any) -> Allowance | None:
        """Write that a job is about to be sent, if its budget and the cap of its named batch allow it.

        Returns None if the ledger counts the job under neither.
        """
        after = job.record.transition_to(JobState.SUBMITTING, **changes)
        allowance = None
        if not after.is_counted:
            await self._await_write(job.ledger_record, self.ledger.advance(job.ledger_record, after))
        else:
            price, max_credits = self.credits.price_of(job), self.credits.batch_cap_of(job)
            setting = self.ledger.advance_and_reserve(job.ledger_record, after, price, max_credits)
            allowance = await self._await_write(job.ledger_record, setting)
        if allowance is None or allowance.refusal is None:
            self._update_job(job, after, stored=after)
        return allowance

    async def transition_as_reported(self, job: TrackedJob, state: JobState, **changes: Any) -> LedgerError | None:
        """Make a transition that the gateway reported, even if the write fails; return the error of the write.

        The waiters get that error, unless the job has ended: then they get its outcome. `ledger_record` stays as it
        was, so that the next write catches up. Raises, and nothing has changed: `NotOurs`, and `TaskTaken` if the task
        id of a job that begins to run belongs to another job.
        """
        after = job.record.transition_to(state, **changes)
        try:
            await self._await_write(job.ledger_record, self.ledger.advance(job.ledger_record, after))
        except LedgerError as error:
            if isinstance(error, NotOurs) or (isinstance(error, TaskTaken) and state is JobState.RUNNING):
                raise
            error.task_id = after.task_id
            interruption = None if state in TERMINAL_STATES else error
            self._update_job(job, after, stored=job.ledger_record, interruption=interruption)
            return error
        self._update_job(job, after, stored=after)
        return None

    async def write_late_answer(self, job: TrackedJob, known: JobRecord, state: JobState, **changes: Any) -> None:
        """Write what this session knows of a create to the record that the ledger has now, which becomes the job's."""
        after = known.transition_to(state, **changes)
        await self._await_write(known, self.ledger.advance(known, after))
        if known.state is JobState.UNCERTAIN:  # another session counted it, and `_update_job` counts it off
            self.ended_counts[known.state] += 1
        job.record = known  # only now: the waiters must not get what the other owner believed
        self._update_job(job, after, stored=after)

    async def release(self, key: str) -> None:
        """Let other owners follow an unfinished job."""
        try:
            await self.ledger.release(key)
        except LedgerError as error:  # it stays ours until the session closes
            log.warning("ledger.failed job=%s error=%s", key, error.message)

    def age_s(self, since: datetime) -> float:
        """Return the seconds since a time; negative if the clock was set back before the session was opened."""
        return (self.utcnow() - since).total_seconds()

    def _update_job(
        self, job: TrackedJob, after: JobRecord, *, stored: JobRecord, interruption: LedgerError | None = None
    ) -> None:
        was, before = job.record, job.record.state
        job.ledger_record = stored
        job.set_record(after, interruption)
        if (estimate := self.credits.on_transition(was, job)) is not None:
            self.emit(PriceAboveEstimate(record=after, estimate=estimate.credits))
        if self.ended_counts[before]:  # an uncertain job was resolved, or a failed one is bought again
            self.ended_counts[before] -= 1
        if job.done:
            self.ended_counts[after.state] += 1
        if after.state is not before:
            self.emit(JobStateChanged(before=before, record=after, write_s=self._write_s))


def to_failure(error: NanoBananaError) -> Failure:
    """Return an error in the form that a ledger can store."""
    if isinstance(error, GatewayError):
        return Failure(
            kind=type(error).__name__,
            message=error.message,
            status=error.status,
            code=error.code,
            request_id=error.request_id,
        )
    return Failure(kind=type(error).__name__, message=str(error))
