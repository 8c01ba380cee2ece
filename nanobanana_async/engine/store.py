"""The session's money: what each job has set aside follows its record."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

from attrs import frozen

from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import GatewayError, LedgerError, NanoBananaError
from nanobanana_async.events import Event, EventEmitter, JobStateChanged, PriceAboveEstimate
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import TERMINAL_STATES, Failure, JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Ledger, Refusal, TaskTaken
from nanobanana_async.loop_guard import cancel_requested
from nanobanana_async.policy.budget import NEVER_ASK_AGAIN, Affordable, BatchBudget, Cap
from nanobanana_async.policy.prices import NOTHING, Price, Prices, charge_of, price_in, why_not

# While jobs of other processes may free credits of a named batch, the ledger is asked again this often.
ASK_AGAIN_S = 1.0


@frozen
class _Drawn:
    caps: tuple[Cap, ...]
    price: Price


class CreditAccount:
    """Knows prices, what was spent, and which caps a job draws on.

    What is set aside belongs to the job's key and generation, not to its entry: whoever settles a job later need not
    hold the same one.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.prices = Prices()
        self.spent = NOTHING
        self.remaining: Decimal | None = None
        """The gateway's last word on the account; a hint."""
        self.live: Mapping[str, TrackedJob] = {}
        """The jobs that this session follows."""
        self._reserved_in: dict[str, _Drawn] = {}
        """Key -> where the price of a job is set aside that was perhaps bought, until it is settled."""

    def check(self, entry: TrackedJob, now: float) -> Affordable:
        """Tell whether every cap of this job lets it be bought; what was perhaps bought is always finished."""
        if not entry.budgets or entry.key in self._reserved_in or entry.record.possibly_bought:
            return Affordable.NOW
        return self._consent(entry, now)

    def consent_again(self, entry: TrackedJob, now: float) -> Affordable:
        """Tell whether every cap of this job lets it be bought once more, whatever became of the last purchase."""
        return self._consent(entry, now) if entry.budgets else Affordable.NOW

    def explain(self, entry: TrackedJob) -> str:
        """Say which cap is used up."""
        price = self.price(entry)
        used_up = (cap for cap in entry.budgets if cap.check(price) is Affordable.NEVER)
        return next(used_up).explain(price)

    def asks_at(self, entry: TrackedJob) -> float:
        """When time alone may let a job be bought that has to wait."""
        return min((cap.asks_at for cap in entry.budgets if isinstance(cap, BatchBudget)), default=NEVER_ASK_AGAIN)

    def price(self, entry: TrackedJob) -> Price:
        """Return what a job is taken to cost."""
        request = entry.record.request
        if request is None:  # it was attached by its task id, and is never bought
            return Price("", NOTHING)
        example = self._gateway.example_credits(request)
        return self.prices.estimate(self._gateway.price_class(request), example, entry.expected_credits)

    def max_credits(self, entry: TrackedJob) -> Decimal | None:
        """Return the cap that the ledger counts for a job's batch."""
        return next((cap.max_credits for cap in entry.budgets if isinstance(cap, BatchBudget)), None)

    def reserve(self, entry: TrackedJob) -> None:
        """Set the job's price aside before its create leaves."""
        if entry.budgets:
            price = self.price(entry)
            self._reserved_in[entry.key] = drawn = _Drawn(self._caps_of(entry), price)
            for cap in drawn.caps:
                cap.reserve(_purchase(entry.record), price)

    def refused(self, entry: TrackedJob, allowance: Allowance, now: float) -> None:
        """Give back what was set aside: the ledger does not let the job be sent."""
        price = allowance.price
        for cap in self._caps_of(entry):
            cap.release(_purchase(entry.record))
        self._reserved_in.pop(entry.key, None)
        if allowance.refusal is Refusal.PRICE:
            self.prices.learn(price.price_class, price.credits)
            return
        blocked = allowance.refusal is Refusal.ESTIMATE
        waits = allowance.others or any(key in self.live for key in allowance.ours if key != entry.key)
        for cap in entry.budgets:
            if isinstance(cap, BatchBudget):
                why = why_not(price, limit=cap.max_credits, spent=allowance.spent, blocked=blocked)
                asks_at = now + ASK_AGAIN_S if waits else NEVER_ASK_AGAIN
                cap.refused(price, Affordable.LATER if waits else Affordable.NEVER, why, asks_at=asks_at)

    def on_transition(self, before: JobRecord, entry: TrackedJob) -> Price | None:
        """Follow the record: learn what it says of the price, and settle what has ended.

        Returns what was set aside, if the job costs more than that.
        """
        record = entry.record
        if record.generation == before.generation:
            self.spent += (record.credits or 0) - (before.credits or 0)
        else:  # a new purchase does not undo the last one, and draws on what that one drew on
            entry.budgets = self._caps_of(entry)
            self._reserved_in.pop(entry.key, None)
        price = price_in(record)
        if price is not None or record.state is JobState.SUCCEEDED:
            self.prices.learn(self._class_of(record), price)
        drawn = self._reserved_in.get(entry.key)
        self._update_reservations(entry)
        dearer = drawn is not None and price is not None and price != price_in(before) and price > drawn.price.credits
        return drawn.price if drawn is not None and dearer else None

    def refollow(self, entry: TrackedJob) -> None:
        """Wait for a job again that was set aside for and is followed once more."""
        for cap in self._caps_of(entry):
            cap.resume(_purchase(entry.record))

    def park(self, entry: TrackedJob) -> None:
        """Follow the record once more, which others may have moved; what is in doubt still stays set aside."""
        self._update_reservations(entry)
        for cap in self._caps_of(entry):
            cap.suspend(_purchase(entry.record))

    def _consent(self, entry: TrackedJob, now: float) -> Affordable:
        for cap in entry.budgets:
            if isinstance(cap, BatchBudget) and now >= cap.asks_at:
                cap.ask_again()
        price = self.price(entry)
        return max(cap.check(price) for cap in entry.budgets)

    def _update_reservations(self, entry: TrackedJob) -> None:
        caps = self._caps_of(entry)
        if not caps:
            return
        purchase, charge = _purchase(entry.record), charge_of(entry.record)
        for cap in caps:
            if charge is None:
                cap.release(purchase)
            elif charge.over:
                cap.charge(purchase, charge.credits)
            elif charge.credits is not None:
                cap.set_price(purchase, charge.credits)
        if charge is None or charge.over:
            self._reserved_in.pop(entry.key, None)

    def _class_of(self, record: JobRecord) -> str:
        return "" if record.request is None else self._gateway.price_class(record.request)

    def _caps_of(self, entry: TrackedJob) -> tuple[Cap, ...]:
        drawn = self._reserved_in.get(entry.key)
        return entry.budgets if drawn is None else tuple(dict.fromkeys((*drawn.caps, *entry.budgets)))


def _purchase(record: JobRecord) -> tuple[str, int]:
    return record.key, record.generation


T = TypeVar("T")


class JobStore:
    """Ledger, purse, calendar and announcements; also what the session counts."""

    def __init__(
        self, ledger: Ledger, purse: CreditAccount, announce: EventEmitter, utcnow: Callable[[], datetime]
    ) -> None:
        self.ledger = ledger
        self.credits = purse
        self.utcnow = utcnow
        self.ended: Counter[JobState] = Counter()
        self._emit = announce

    def emit(self, event: Event) -> None:
        """Announce what happened."""
        self._emit(event)

    def emit_created(self, entry: TrackedJob) -> None:
        """Announce a job that was just written down."""
        self.emit(JobStateChanged(before=None, record=entry.record))

    async def _written(self, before: JobRecord, write: Awaitable[T]) -> T:
        """Return what writing a change down brings; what is not written is a `LedgerError`, whatever was raised."""
        try:
            return await write
        except LedgerError:
            raise
        except (Exception, asyncio.CancelledError) as failure:
            if isinstance(failure, asyncio.CancelledError) and cancel_requested():
                raise
            why = f"the ledger failed: {type(failure).__name__}: {failure}"
            raise LedgerError(why, key=before.key, safe_to_repeat=not before.possibly_bought) from failure

    async def start_generation(self, entry: TrackedJob, *, body: bytes) -> None:
        """Begin a new purchase of a job that was never bought."""
        known = entry.ledger_record
        after = known.next_generation(body=body, created_at=self.utcnow())
        await self._written(known, self.ledger.advance(known, after))
        entry.record = known  # not before: how the last purchase ended is no answer to who waits for this one
        self._set(entry, after, stored=after)

    async def transition(self, entry: TrackedJob, state: JobState, **facts: Any) -> None:
        """Write a move down and make it true; on a `LedgerError` nothing has moved."""
        after = entry.record.transition_to(state, **facts)
        await self._written(entry.ledger_record, self.ledger.advance(entry.ledger_record, after))
        self._set(entry, after, stored=after)

    async def set_aside(self, entry: TrackedJob, **facts: Any) -> Allowance | None:
        """Write down that a job is about to be sent, if the cap of its named batch has room; None: nobody caps it."""
        after = entry.record.transition_to(JobState.SUBMITTING, **facts)
        allowance = None
        if after.batch is None:
            await self._written(entry.ledger_record, self.ledger.advance(entry.ledger_record, after))
        else:
            price, max_credits = self.credits.price(entry), self.credits.max_credits(entry)
            setting = self.ledger.set_aside(entry.ledger_record, after, price, max_credits)
            allowance = await self._written(entry.ledger_record, setting)
        if allowance is None or allowance.refusal is None:
            self._set(entry, after, stored=after)
        return allowance

    async def record_known(self, entry: TrackedJob, state: JobState, **facts: Any) -> LedgerError | None:
        """Make a move true that the gateway has already made; return why it could not be written down.

        Raises `TaskTaken`, and nothing has moved, if the task id of a job that begins to run is another job's.

        Who waits hears of that, unless the job has ended: then the result counts. The entry remembers what the ledger
        holds, so that the next write can catch up.
        """
        after = entry.record.transition_to(state, **facts)
        try:
            await self._written(entry.ledger_record, self.ledger.advance(entry.ledger_record, after))
        except LedgerError as error:
            if isinstance(error, TaskTaken) and state is JobState.RUNNING:
                raise
            error.task_id = after.task_id
            self._set(
                entry, after, stored=entry.ledger_record, interruption=None if state in TERMINAL_STATES else error
            )
            return error
        self._set(entry, after, stored=after)
        return None

    def age_s(self, since: datetime) -> float:
        """Seconds by the wall clock; negative when it went backwards."""
        return (self.utcnow() - since).total_seconds()

    def _set(
        self, entry: TrackedJob, after: JobRecord, *, stored: JobRecord, interruption: LedgerError | None = None
    ) -> None:
        was, before = entry.record, entry.record.state
        entry.ledger_record = stored
        entry.set_record(after, interruption)
        if (estimate := self.credits.on_transition(was, entry)) is not None:
            self.emit(PriceAboveEstimate(record=after, estimate=estimate.credits))
        if self.ended[before]:  # an uncertain job was settled, or one that had failed is bought again
            self.ended[before] -= 1
        if entry.done:
            self.ended[after.state] += 1
        if after.state is not before:
            self.emit(JobStateChanged(before=before, record=after))


def utcnow() -> datetime:
    """Return the wall clock; a loop of virtual time brings its own calendar (`nanobanana_async.testing`)."""
    calendar: Callable[[], datetime] | None = getattr(asyncio.get_running_loop(), "utcnow", None)
    return datetime.now(UTC) if calendar is None else calendar()


def failure_of(error: NanoBananaError) -> Failure:
    """Return an error as facts that a ledger can keep."""
    if isinstance(error, GatewayError):
        return Failure(
            kind=type(error).__name__,
            message=error.message,
            status=error.status,
            code=error.code,
            request_id=error.request_id,
        )
    return Failure(kind=type(error).__name__, message=str(error))
