"""Write records: ledger first, then memory, reservations of credits, and the event."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from attrs import frozen

from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import GatewayError, LedgerError, NanoBananaError
from nanobanana_async.events import Event, EventEmitter, JobStateChanged, PriceAboveEstimate, log
from nanobanana_async.failures import Failure
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import TERMINAL_STATES, JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Claim, LeasedLedger, Ledger, NotOurs, Refusal, TaskTaken
from nanobanana_async.loop_guard import cancel_requested
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.budget import NEVER_ASK_AGAIN, Affordable, BatchBudget, Cap
from nanobanana_async.policy.prices import ZERO_CREDITS, Price, Prices, charge_of, price_in, refusal_reason

# How often the ledger is asked again while jobs of other processes may free credits of a named batch.
ASK_AGAIN_S = 1.0


@frozen
class _Reservation:
    credit_caps: tuple[Cap, ...]
    price: Price


class CreditAccount:
    """The prices that this session knows, the credits it has spent, and the reservations on its caps.

    A reservation belongs to a key and generation, not to a `TrackedJob`: an uncertain job may be resolved later
    through another `TrackedJob` of the same key.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.prices = Prices()
        self.spent = ZERO_CREDITS
        self.remaining: Decimal | None = None
        """The balance of the account as the gateway last stated it; only a hint."""
        self.tracked: Mapping[str, TrackedJob] = {}
        """`Scheduler.tracked`."""
        self.other_accounts_may_free: Callable[[TrackedJob], bool] = lambda _: False  # set by `Router`
        self._reservations: dict[str, _Reservation] = {}
        """Key -> the caps and the price of a job's reservation, until its charge is final."""

    def check(self, job: TrackedJob, now: float) -> Affordable:
        """Return whether all caps of the job allow it. A job that may have been bought is always allowed to go on."""
        if not job.budgets or job.key in self._reservations or job.record.possibly_bought:
            return Affordable.NOW
        return self._affordability_under_caps(job, now)

    def affordability_of_another(self, job: TrackedJob, now: float) -> Affordable:
        """Return whether all caps of the job allow another purchase of it, beside the last one."""
        return self._affordability_under_caps(job, now) if job.budgets else Affordable.NOW

    def explain_refusal(self, job: TrackedJob) -> str:
        """Return why a cap does not allow the job."""
        price = self.price_of(job)
        used_up = (cap for cap in job.budgets if cap.check(price) is Affordable.NEVER)
        return next(used_up).explain_refusal(price)

    def ask_again_at(self, job: TrackedJob) -> float:
        """Return when to ask the ledger again about a job that has to wait."""
        return min((cap.ask_again_at for cap in job.budgets if isinstance(cap, BatchBudget)), default=NEVER_ASK_AGAIN)

    def price_of(self, job: TrackedJob) -> Price:
        """Return the price of a job, or the estimate of it."""
        request = job.record.request
        if request is None:  # attached by its task id, and never bought
            return Price("", ZERO_CREDITS)
        example = self._gateway.example_credits(request)
        return self.prices.estimate(self._gateway.price_class(request), example, job.expected_credits)

    def batch_cap_of(self, job: TrackedJob) -> Decimal | None:
        """Return the cap that the ledger counts for a job's batch."""
        return next((cap.max_credits for cap in job.budgets if isinstance(cap, BatchBudget)), None)

    def reserve(self, job: TrackedJob) -> None:
        """Reserve the job's price before its create leaves."""
        if job.budgets:
            price = self.price_of(job)
            self._reservations[job.key] = drawn = _Reservation(self._caps_of(job), price)
            for cap in drawn.credit_caps:
                cap.reserve(_purchase_id(job.record), price)

    def on_refused(self, job: TrackedJob, allowance: Allowance, now: float) -> None:
        """Release the reservation, because the ledger does not allow the job to be sent."""
        price = allowance.price
        for cap in self._caps_of(job):
            cap.release(_purchase_id(job.record))
        self._reservations.pop(job.key, None)
        if allowance.refusal is Refusal.PRICE:
            self.prices.learn(price.price_class, price.credits)
            return
        blocked = allowance.refusal is Refusal.ESTIMATE
        ours = {key for key in allowance.ours_may_free if key in self.tracked} - {job.key}
        waits = allowance.others_may_free or bool(ours) or self.other_accounts_may_free(job)
        for cap in job.budgets:
            if isinstance(cap, BatchBudget):
                why = refusal_reason(price, limit=cap.max_credits, spent=allowance.other_charges, blocked=blocked)
                asks_at = now + ASK_AGAIN_S if waits else NEVER_ASK_AGAIN
                cap.on_refused(price, Affordable.LATER if waits else Affordable.NEVER, why, ask_again_at=asks_at)

    def on_transition(self, before: JobRecord, job: TrackedJob) -> Price | None:
        """Update prices, spending and reservations after a transition of the record.

        Returns the price that was reserved if the job costs more than that.
        """
        record = job.record
        if record.generation == before.generation:
            self.spent += (record.credits or 0) - (before.credits or 0)
        else:  # a new purchase counts beside the last one, and under the same caps
            job.budgets = self._caps_of(job)
            self._reservations.pop(job.key, None)
        price = price_in(record)
        if price is not None or record.state is JobState.SUCCEEDED:
            self.prices.learn(self._price_class_of(record), price)
        drawn = self._reservations.get(job.key)
        self._update_reservations(job)
        dearer = drawn is not None and price is not None and price != price_in(before) and price > drawn.price.credits
        return drawn.price if drawn is not None and dearer else None

    def resume_reservation(self, job: TrackedJob) -> None:
        """Let the caps wait for a job again that is followed once more."""
        for cap in self._caps_of(job):
            cap.resume(_purchase_id(job.record))

    def suspend_reservation(self, job: TrackedJob) -> None:
        """Update the reservation from the record, which others may have changed; the caps stop waiting for it."""
        self._update_reservations(job)
        for cap in self._caps_of(job):
            cap.suspend(_purchase_id(job.record))

    def _affordability_under_caps(self, job: TrackedJob, now: float) -> Affordable:
        for cap in job.budgets:
            if isinstance(cap, BatchBudget) and now >= cap.ask_again_at:
                cap.forget_refusals()
        price = self.price_of(job)
        return max(cap.check(price) for cap in job.budgets)

    def _update_reservations(self, job: TrackedJob) -> None:
        caps = self._caps_of(job)
        if not caps:
            return
        purchase, charge = _purchase_id(job.record), charge_of(job.record)
        for cap in caps:
            if charge is None:
                cap.release(purchase)
            elif charge.is_final:
                cap.charge(purchase, charge.credits)
            elif charge.credits is not None:
                cap.set_price(purchase, charge.credits)
        if charge is None or charge.is_final:
            self._reservations.pop(job.key, None)

    def _price_class_of(self, record: JobRecord) -> str:
        return "" if record.request is None else self._gateway.price_class(record.request)

    def _caps_of(self, job: TrackedJob) -> tuple[Cap, ...]:
        drawn = self._reservations.get(job.key)
        return job.budgets if drawn is None else tuple(dict.fromkeys((*drawn.credit_caps, *job.budgets)))


def _purchase_id(record: JobRecord) -> tuple[str, int]:
    return record.key, record.generation


T = TypeVar("T")


class JobStore:
    """The only writer of records: writes to the ledger, then updates the job, its reservation and the counts; emits."""

    def __init__(
        self, ledger: Ledger, account: CreditAccount, emitter: EventEmitter, utcnow: Callable[[], datetime]
    ) -> None:
        self.ledger = ledger
        self.credits = account
        self.utcnow = utcnow
        self.ended_counts: Counter[JobState] = Counter()
        self.lease = ledger if isinstance(ledger, LeasedLedger) else None
        self._emit = emitter
        self._write_s = 0.0  # of the write that ended last: `_update_job` follows without a turn of the event loop

    def emit(self, event: Event) -> None:
        """Call the observers with an event."""
        self._emit(event)

    async def claim(self, job: TrackedJob) -> Claim:
        """Store a new job, or find the record under its key; `load` makes that the job's record."""
        claim = await self.ledger.claim(job.record)
        if claim.is_new:
            self.emit(JobStateChanged(before=None, record=job.record))
        return claim

    def replace_record(self, job: TrackedJob, record: JobRecord) -> None:
        """Make a record from the ledger the job's. The owner or session that wrote it has emitted its events."""
        job.ledger_record = record
        job.set_record(record)

    async def _await_write(self, before: JobRecord, write: Awaitable[T]) -> T:
        """Return the result of a write to the ledger; raise any failure of it as a `LedgerError`."""
        began = asyncio.get_running_loop().time()
        try:
            return await write
        except LedgerError:
            raise
        except (Exception, asyncio.CancelledError) as failure:
            if isinstance(failure, asyncio.CancelledError) and cancel_requested():
                raise
            why = f"the ledger failed: {type(failure).__name__}: {failure}"
            raise LedgerError(why, key=before.key, safe_to_repeat=not before.possibly_bought) from failure
        finally:
            self._write_s = asyncio.get_running_loop().time() - began

    async def start_generation(
        self, job: TrackedJob, known: JobRecord, *, body: bytes, request: ImageRequest | None, **buyer: str
    ) -> None:
        """Start the next generation of a job, which the ledger has as `known`: a purchase by its account or `buyer`."""
        buyer = buyer or {"account": job.record.account}
        after = known.next_generation(body=body, request=request, created_at=self.utcnow(), **buyer)
        await self._await_write(known, self.ledger.advance(known, after))
        job.progress = 0.0
        job.record = known  # only now: the waiters must not get the end of the last generation
        self._update_job(job, after, stored=after)

    async def transition(self, job: TrackedJob, state: JobState, **facts: Any) -> None:
        """Write a transition. On a `LedgerError` nothing has changed."""
        after = job.record.transition_to(state, **facts)
        await self._await_write(job.ledger_record, self.ledger.advance(job.ledger_record, after))
        self._update_job(job, after, stored=after)

    async def advance_and_reserve(self, job: TrackedJob, **facts: Any) -> Allowance | None:
        """Write that a job is about to be sent, if the cap of its named batch allows it; None without a named batch."""
        after = job.record.transition_to(JobState.SUBMITTING, **facts)
        allowance = None
        if after.batch is None:
            await self._await_write(job.ledger_record, self.ledger.advance(job.ledger_record, after))
        else:
            price, max_credits = self.credits.price_of(job), self.credits.batch_cap_of(job)
            setting = self.ledger.advance_and_reserve(job.ledger_record, after, price, max_credits)
            allowance = await self._await_write(job.ledger_record, setting)
        if allowance is None or allowance.refusal is None:
            self._update_job(job, after, stored=after)
        return allowance

    async def transition_as_reported(self, job: TrackedJob, state: JobState, **facts: Any) -> LedgerError | None:
        """Make a transition that the gateway reported, even if the write fails; return the error of the write.

        The waiters get that error, unless the job has ended: then they get its outcome. `ledger_record` stays as it
        was, so that the next write catches up. Raises, and nothing has changed: `NotOurs`, and `TaskTaken` if the task
        id of a job that begins to run belongs to another job.
        """
        after = job.record.transition_to(state, **facts)
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

    async def write_late_answer(self, job: TrackedJob, known: JobRecord, state: JobState, **facts: Any) -> None:
        """Write what this session knows of a create to the record that the ledger has now, which becomes the job's."""
        after = known.transition_to(state, **facts)
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
