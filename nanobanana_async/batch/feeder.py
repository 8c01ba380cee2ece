"""Pulls rows into the engine when there is room, and collects what becomes of them. It does not know its batch."""

import asyncio
import heapq
from contextlib import aclosing
from decimal import Decimal
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import evolve

from nanobanana_async.batch.orders import Orders, Requests, each
from nanobanana_async.batch.outcome import Outcome
from nanobanana_async.engine.core import Engine
from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    CreditLimitReached,
    GatewayError,
    IdempotencyConflict,
    InsufficientCredits,
    LedgerError,
    NanoBananaError,
    SessionClosed,
)
from nanobanana_async.handle import Job
from nanobanana_async.jobs import JobState
from nanobanana_async.keeping import Keeper
from nanobanana_async.observe import log
from nanobanana_async.policy.credits import Budget
from nanobanana_async.rows import Row, Rows, key_prefix

# Rows written down and not yet sent: enough that a slot never waits for the ledger's flush.
AHEAD = 8

# Ended rows that nobody has taken, above which no more are pulled. It grows with what was taken, so that whoever
# leaves early has bought little, and whoever saves in his loop does not starve the slots.
FEWEST_READY, MOST_READY, READY_SHARE = 4, 64, 4

# In an ordered batch one slow row holds back those that end meanwhile: so many times what runs may be held back.
HELD_BACK = 2

# How many rows are finished (saved, fetched again) at the same time, and how many may wait for that.
FINISHING, FINISHING_QUEUE = 8, 24

# So many refusals of one kind without a purchase between: the rows are not what is wrong.
SAME_REFUSALS = 20
BOUGHT = frozenset({JobState.RUNNING, JobState.SUCCEEDED})

# The account or the ledger says no, not the row: whatever is sent next would hear the same.
STOPS = (AuthenticationError, InsufficientCredits, AccessDenied, CreditLimitReached, LedgerError)


class Feeder:
    """The state of one batch."""

    def __init__(self, requests: Requests, orders: Orders, engine: Engine, keeper: Keeper) -> None:
        self._items = requests
        self._orders = orders
        self._engine = engine
        self._keeper = keeper
        self._rows = Rows(orders.name)
        self._scope: anyio.CancelScope | None = None
        self._finishers = asyncio.Semaphore(FINISHING)
        self._room = asyncio.Event()
        self.changed = asyncio.Event()
        """Set whenever a consumer should look again."""
        self._ready: list[tuple[int, Outcome]] = []
        """A heap by place: in the input, if that is wanted, else in time."""
        self._out: dict[int, Entry] = {}
        """Rows that have not ended, in the order of the input."""
        self._unsent: dict[int, Entry] = {}
        self._left: set[int] = set()
        """Rows that were to be taken back when the buying stopped."""
        self._finishing: dict[int, Outcome] = {}
        self._refusals: tuple[object, int] = (None, 0)
        self._pulled_all = False
        self.done = 0
        self.failed = 0
        self.unbought = 0
        self._taken = 0
        self.stopped: NanoBananaError | None = None
        """Why the buying stopped."""
        self.broken: Exception | None = None
        """What the input raised, or that the session was closed."""
        self._stopping = False

    @property
    def over(self) -> bool:
        """Whether no outcome will come any more."""
        return self._pulled_all and not (self._out or self._finishing or self._ready)

    async def run(self, group: TaskGroup) -> None:
        """Pull rows until there are no more, or the buying stops; in the session's task group."""
        self._group = group
        try:
            await self._feed()
            while self._out and not self._stopping:
                self._room.clear()
                await self._room.wait()
            self._take_back()
        except asyncio.CancelledError:
            self.broken = _closed()
        finally:
            self._pulled_all = True
            self.changed.set()

    async def _feed(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if not self._stopping:
                    budget = await self._budget()
                    await self._pull(() if budget is None else (budget,))
        except asyncio.CancelledError:
            if self._engine.runner.closing:
                raise
            # Raised on, it would end the session.
            self.broken = NanoBananaError("what the input waited for was cancelled")
        except Exception as error:  # of the input, or of the ledger
            self.broken = error
        self._pulled_all = True
        self.changed.set()

    async def _budget(self) -> Budget | None:
        limit, expected = self._orders.max_credits, self._orders.expected_credits
        if limit is None and expected is None:
            return None
        if limit is None:  # the session has one
            return await self._engine.budget(Decimal("Infinity"), expected, None)
        prefix = None if self._orders.name is None else key_prefix(self._orders.name)
        return await self._engine.budget(limit, expected, prefix)

    async def _pull(self, budgets: tuple[Budget, ...]) -> None:
        async with aclosing(each(self._items)) as items:
            await self._wait_for_room()
            async for item in items:
                await self._enter(self._rows.read(item), budgets)
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while not self._stopping:
            waiting = len(self._ready) + max(0, len(self._finishing) - FINISHING_QUEUE)
            most = max(MOST_READY, HELD_BACK * len(self._out)) if self._orders.ordered else MOST_READY
            if len(self._unsent) < AHEAD and waiting < min(most, FEWEST_READY + self._taken // READY_SHARE):
                return
            self._room.clear()
            await self._room.wait()
        await anyio.lowlevel.checkpoint()  # where the scope is cancelled

    async def _enter(self, row: Row, budgets: tuple[Budget, ...]) -> None:
        if row.request is None:
            self._give(_outcome(row, None, error=row.error))
            return
        try:
            record = await self._engine.record(row.request, row.key)
            while (entry := self._engine.enter(record, *budgets, retry_failed=self._orders.retry_failed)).leaving:
                await entry.change()
        except SessionClosed:
            raise
        except NanoBananaError as error:
            self._give(_outcome(row, None, error=error))
            return
        except asyncio.CancelledError:  # the buying has stopped meanwhile
            self.unbought += 1
            raise
        entry.callers += 1
        self._out[row.index] = entry
        entry.listeners = [*(entry.listeners or ()), partial(self._heard, row)]
        self._heard(row, entry)

    def _heard(self, row: Row, entry: Entry) -> None:
        """Note where a row stands; called at each change of its job."""
        if row.index not in self._out:
            return
        if entry.live and entry.record.state is JobState.PENDING and not entry.elsewhere:
            self._unsent[row.index] = entry
            if self._stopping:  # it was on the wire, and was sent back
                self._leave(row.index, entry)
            return
        self._unsent.pop(row.index, None)
        self._room.set()
        if entry.record.state in BOUGHT:
            self._refusals = (None, 0)
        if not entry.live:
            del self._out[row.index]
            self._ended(row, entry)

    def _ended(self, row: Row, entry: Entry) -> None:
        job = Job(self._engine, entry)
        settled = job.settled()
        self.changed.set()
        if isinstance(settled, SessionClosed):
            self.broken = settled
            return
        if isinstance(settled, NanoBananaError):
            unbought = not entry.record.perhaps_bought and entry.record.state is not JobState.FAILED
            taken_back = row.index in self._left and entry.record.state is JobState.WITHDRAWN
            if unbought and (taken_back or isinstance(settled, STOPS)):
                self.unbought += 1
                self.stop(settled)
                return
            if unbought or isinstance(settled, IdempotencyConflict):
                self._count_refusal(settled)
            self._give(_outcome(row, job, error=settled))
            return
        outcome = _outcome(row, job, result=settled)
        if self._orders.folder is None and settled is not None:
            self._give(outcome)
        else:
            self._finishing[row.index] = outcome
            self._group.start_soon(self._finish, outcome)

    async def _finish(self, outcome: Outcome) -> None:
        try:
            finished = await self._finished(outcome)
        except (SessionClosed, asyncio.CancelledError):
            self.broken, finished = _closed(), None
        del self._finishing[outcome.index]
        self.changed.set()
        if finished is not None:
            self._give(finished)

    async def _finished(self, outcome: Outcome) -> Outcome:
        try:
            async with self._finishers:
                if outcome.result is None and outcome.job is not None:  # pictures that the ledger does not hold
                    outcome = evolve(outcome, result=await outcome.job.result())
                if self._orders.folder is not None and outcome.result is not None:
                    outcome = evolve(outcome, saved=await self._keeper.save(outcome.result, self._orders.folder))
        except SessionClosed:
            raise
        except NanoBananaError as error:
            outcome = evolve(outcome, error=error)
        except Exception as bug:  # it must not end the session
            log.error("batch.crashed row=%s", outcome.index, exc_info=bug)
            outcome = evolve(outcome, error=NanoBananaError(f"a bug in nanobanana_async: {bug!r}; see the log"))
        return outcome

    def _count_refusal(self, error: NanoBananaError) -> None:
        kind = (type(error), error.code if isinstance(error, GatewayError) else None)
        count = self._refusals[1] + 1 if kind == self._refusals[0] else 1
        self._refusals = (kind, count)
        if count >= SAME_REFUSALS and isinstance(error, IdempotencyConflict) and error.status is not None:
            why = (
                f"the gateway has had the keys of {count} rows in a row before, and this ledger has not: the ledger of"
                " this batch was perhaps lost, or another host bought it. Go on with that ledger, or settle the jobs"
            )
            error = IdempotencyConflict(why, status=error.status, code=error.code, safe_to_repeat=False)
        if count >= SAME_REFUSALS:
            self.stop(error)

    def _give(self, outcome: Outcome) -> None:
        self.done += 1
        self.failed += not outcome.ok
        heapq.heappush(self._ready, (outcome.index if self._orders.ordered else self.done, outcome))
        self.changed.set()
        self._room.set()

    def take(self) -> Outcome | None:
        """Take out the next outcome; None while there is none."""
        if not self._ready:
            return None
        if self._orders.ordered:
            before = min(next(iter(self._out), NEVER), min(self._finishing, default=NEVER))
            if before < self._ready[0][0]:
                return None
        self._taken += 1
        self._room.set()
        return heapq.heappop(self._ready)[1]

    def stop(self, why: NanoBananaError | None = None) -> None:
        """Pull no more, and take back what was not yet sent; what runs goes on."""
        if not self._stopping:
            self.stopped = why
            self.abandon()
            self._take_back()

    def abandon(self) -> None:
        """Pull no more; `run` takes back the rest: anyio may refuse to start a task from outside of any."""
        self._stopping = True
        if self._scope is not None:
            self._scope.cancel()
        self._room.set()

    def _take_back(self) -> None:
        for index, entry in list(self._unsent.items()):
            self._leave(index, entry)

    def _leave(self, index: int, entry: Entry) -> None:
        """Want a row no more: unless somebody else does it is withdrawn, also if it comes back from the wire unsold."""
        if index not in self._left:
            self._left.add(index)
            self._engine.leave(entry)
            entry.leaving |= entry.on_wire and not (entry.callers or entry.kept)


def _closed() -> SessionClosed:
    return SessionClosed("the session was closed before the batch had ended")


def _outcome(row: Row, job: Job | None, **found: Any) -> Outcome:
    return Outcome(index=row.index, key=row.key, request=row.request, metadata=row.metadata, job=job, **found)
