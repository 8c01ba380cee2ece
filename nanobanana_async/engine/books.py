"""The one place that moves a job: into the ledger first, then into memory, then to whoever listens."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from nanobanana_async.engine.entry import Entry
from nanobanana_async.engine.purse import Purse
from nanobanana_async.errors import GatewayError, LedgerError, NanoBananaError
from nanobanana_async.jobs import FINAL, Failure, JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Ledger, TaskTaken
from nanobanana_async.loops import cancel_requested
from nanobanana_async.observe import Announcer, Event, JobMoved, PriceAboveEstimate

T = TypeVar("T")


class Books:
    """Ledger, purse, calendar and announcements; also what the session counts."""

    def __init__(self, ledger: Ledger, purse: Purse, announce: Announcer, utcnow: Callable[[], datetime]) -> None:
        self.ledger = ledger
        self.purse = purse
        self.utcnow = utcnow
        self.ended: Counter[JobState] = Counter()
        self._announce = announce

    def tell(self, event: Event) -> None:
        """Announce what happened."""
        self._announce(event)

    def born(self, entry: Entry) -> None:
        """Announce a job that was just written down."""
        self.tell(JobMoved(before=None, record=entry.record))

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
            raise LedgerError(why, key=before.key, safe_to_repeat=not before.perhaps_bought) from failure

    async def renew(self, entry: Entry, *, body: bytes) -> None:
        """Begin a new purchase of a job that was never bought."""
        known = entry.stored
        after = known.reborn(body=body, created_at=self.utcnow())
        await self._written(known, self.ledger.advance(known, after))
        entry.record = known  # not before: how the last purchase ended is no answer to who waits for this one
        self._take(entry, after, stored=after)

    async def move(self, entry: Entry, state: JobState, **facts: Any) -> None:
        """Write a move down and make it true; on a `LedgerError` nothing has moved."""
        after = entry.record.to(state, **facts)
        await self._written(entry.stored, self.ledger.advance(entry.stored, after))
        self._take(entry, after, stored=after)

    async def set_aside(self, entry: Entry, **facts: Any) -> Allowance | None:
        """Write down that a job is about to be sent, if the cap of its named batch has room; None: nobody caps it."""
        after = entry.record.to(JobState.SUBMITTING, **facts)
        allowance = None
        if after.batch is None:
            await self._written(entry.stored, self.ledger.advance(entry.stored, after))
        else:
            price, max_credits = self.purse.price(entry), self.purse.max_credits(entry)
            setting = self.ledger.set_aside(entry.stored, after, price, max_credits)
            allowance = await self._written(entry.stored, setting)
        if allowance is None or allowance.refusal is None:
            self._take(entry, after, stored=after)
        return allowance

    async def learn(self, entry: Entry, state: JobState, **facts: Any) -> LedgerError | None:
        """Make a move true that the gateway has already made; return why it could not be written down.

        Raises `TaskTaken`, and nothing has moved, if the task id of a job that begins to run is another job's.

        Who waits hears of that, unless the job has ended: then the result counts. The entry remembers what the ledger
        holds, so that the next write can catch up.
        """
        after = entry.record.to(state, **facts)
        try:
            await self._written(entry.stored, self.ledger.advance(entry.stored, after))
        except LedgerError as error:
            if isinstance(error, TaskTaken) and state is JobState.RUNNING:
                raise
            error.task_id = after.task_id
            self._take(entry, after, stored=entry.stored, interruption=None if state in FINAL else error)
            return error
        self._take(entry, after, stored=after)
        return None

    def age_s(self, since: datetime) -> float:
        """Seconds by the wall clock; negative when it went backwards."""
        return (self.utcnow() - since).total_seconds()

    def _take(
        self, entry: Entry, after: JobRecord, *, stored: JobRecord, interruption: LedgerError | None = None
    ) -> None:
        was, before = entry.record, entry.record.state
        entry.stored = stored
        entry.moved(after, interruption)
        if (estimate := self.purse.moved(was, entry)) is not None:
            self.tell(PriceAboveEstimate(record=after, estimate=estimate.credits))
        if self.ended[before]:  # an uncertain job was settled, or one that had failed is bought again
            self.ended[before] -= 1
        if entry.over:
            self.ended[after.state] += 1
        if after.state is not before:
            self.tell(JobMoved(before=before, record=after))


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
