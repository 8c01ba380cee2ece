"""Draw the rows of a fed batch from the ledger, and run them as a batch does.

A row is *in hand* from its draw until it is delivered: until the loop over the outcomes has come back for the next one.
What a worker has in hand when its session closes, or its process dies, is drawn by others, and so is what it could not
write. So each outcome is taken at least once, and a job is bought once.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import TypeGuard

import anyio
from anyio.abc import TaskGroup
from attrs import evolve

from nanobanana_async.batch.feeding import check_account
from nanobanana_async.batch.options import BatchOptions
from nanobanana_async.batch.outcome import Outcome
from nanobanana_async.batch.room import PREFETCH
from nanobanana_async.batch.rows import Row, RowInput
from nanobanana_async.batch.runner import BatchRunner
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.events import log
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.local import LocalImagesByDigest
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import NotOurs, TaskTaken
from nanobanana_async.ledger.feeding import UNSAVED, Draw, FedBatch, FedRow, FeedsRows
from nanobanana_async.policy.budget import LedgerCap

WAIT_S = 1.0
"""How often the ledger is asked for rows while there is none to draw."""

AWAY_S = 10.0
"""After so long without an answer of the gateway, rows that were not sent are given back: perhaps only this host has
lost its way. It then draws one at a time, to find out when it is back, and keeps each for as long."""
LEFT_S = 2 * WAIT_S
"""How long what was given back is left to other workers."""
WAITS_TO_BE_SENT = frozenset({Phase.QUEUED, Phase.SCHEDULED})


class WorkRunner(BatchRunner):
    """The state of one worker's part of a fed batch."""

    def __init__(self, ledger: FeedsRows, options: BatchOptions, engine: Engine, saver: ImageSaver) -> None:
        super().__init__((), options, engine, saver)
        self._items = self._draw_rows()
        self._ledger = ledger
        self._name = options.name or ""
        self._batch = batch_key_prefix(self._name)
        self._in_hand: dict[str, int] = {}
        """The key of each row that was drawn and not delivered, and the revision of its job as last seen."""
        self._begun: set[str] = set()
        """The keys of those in hand that run or have an outcome."""
        self._shown: list[Outcome] = []
        """The outcomes that were taken, and perhaps are still being used."""
        self._to_write: dict[str, int | None] = {}
        self._unwritten: dict[str, int | None] = {}
        """What could not be written; it is tried again together with the next."""
        self._written = True
        """Whether nothing waits to be written, or can't be."""
        self._writing_ended = False
        self._wake = asyncio.Event()
        self._draws_ended = False
        self._unanswered_draws = 0
        """How many draws the ledger has not answered."""
        self._draw_at = 0.0
        """Before it nothing is drawn: the other workers are first."""

    @property
    def is_exhausted(self) -> bool:
        """Whether all outcomes have been taken, and the ledger knows."""
        return super().is_exhausted and self._written

    async def run(self, group: TaskGroup) -> None:
        """Draw rows until none is left, or the batch stops buying."""
        group.start_soon(self._write_deliveries)
        group.start_soon(self._give_back_while_away)
        try:
            await super().run(group)
        finally:
            self._draws_ended = True
            for key in self._in_hand.keys() - self._begun:
                self._give_back(key)
            self._wake.set()

    async def _pull(self) -> None:
        try:
            await super()._pull()
        except LedgerError as error:  # of a draw: those of single jobs are errors of their rows
            self._stop_after(error)

    def _stop_after(self, failure: Exception) -> None:
        """Buy nothing more, since the ledger has failed. What runs ends, and the batch then raises `BatchStopped`."""
        error = failure
        if not isinstance(error, LedgerError):
            error = LedgerError(f"the ledger failed: {type(failure).__name__}: {failure}")
        if not isinstance(self.stop_reason, LedgerError):
            log.warning("ledger.failed batch=%s error=%s", self._name, error.message)
        self.stop(error)
        self.stop_reason = self.stop_reason or error  # it had been stopped without a reason

    async def _draw_rows(self) -> AsyncGenerator[RowInput, None]:
        fed = await self._ledger.fed_batch(self._batch)
        if fed is None:
            raise ConfigurationError(
                f"no batch {self._name!r} was fed into this ledger: correct the name, or feed it with `session.feed`"
            )
        check_account(fed, self._name, self._engine)
        await self._ledger.draw_unsaved(self._batch)
        clock = asyncio.get_running_loop().time
        while True:
            while clock() < self._draw_at or (self._is_away and self._unsent):  # noqa: ASYNC110 - a time, or others
                await anyio.sleep(WAIT_S)
            draw: asyncio.Future[Draw] = asyncio.get_running_loop().create_future()
            self._unanswered_draws += 1
            self._group.start_soon(self._draw, draw, 1 if self._is_away else max(1, PREFETCH - len(self._unsent)))
            drawn = await draw
            self._take_fed_batch(drawn.batch)
            for row in drawn.rows:
                yield _to_row(row)
            if not drawn.rows:
                if not drawn.unfinished:
                    return
                await anyio.sleep(WAIT_S)

    async def _draw(self, draw: "asyncio.Future[Draw]", count: int) -> None:
        """Draw rows, in a task of its own: if the batch stops meanwhile, what was drawn is given back."""
        try:
            drawn = await self._ledger.draw(self._batch, count)
        except Exception as error:
            if not draw.done():
                draw.set_exception(error)
            return
        finally:
            self._unanswered_draws -= 1
            self._wake.set()
        # After a failure the ledger may give rows again that are in hand: it can't know which ones arrived.
        known = self._in_hand.keys() | self._to_write.keys() | self._unwritten.keys()
        rows = tuple(row for row in drawn.rows if row.record.key not in known)
        self._in_hand.update((row.record.key, row.record.revision) for row in rows)
        if not draw.done():
            draw.set_result(evolve(drawn, rows=rows))
            return
        for row in rows:
            self._give_back(row.record.key)

    @property
    def _is_away(self) -> bool:
        """Whether the gateway has not answered this host for a while."""
        return min(each.poller.outage.for_s for each in self._engine.members) >= AWAY_S

    async def _give_back_while_away(self) -> None:
        """Give back what waits to be sent while the gateway is away: it may be away for this host only."""
        while not self._draws_ended:
            await anyio.sleep(AWAY_S)
            waiting = [place for place, tracked in self._unsent.items() if tracked.phase in WAITS_TO_BE_SENT]
            if not (self._is_away and waiting):
                continue
            self._draw_at = asyncio.get_running_loop().time() + LEFT_S
            for place in waiting:
                tracked = self.running.pop(place)
                del self._unsent[place]
                self._room.given_back += 1
                self._engine.drop_caller(tracked)
                self._give_back(tracked.key)
            self._room_changed.set()
            self.changed.set()

    def _take_fed_batch(self, fed: FedBatch) -> None:
        """Follow the cap of the batch, which another feed may have changed."""
        self._options = evolve(self._options, expected_credits=fed.expected_credits)
        if fed.max_credits is None:
            self._caps = ()
        elif not self._caps:
            self._caps = (LedgerCap(fed.max_credits),)
        else:
            for cap in self._caps:
                if cap.max_credits != fed.max_credits and isinstance(cap, LedgerCap):
                    cap.max_credits = fed.max_credits
                    cap.forget_refusals()

    async def _start_row(self, row: Row) -> None:
        await super()._start_row(row)
        if row.key in self._in_hand:
            self._begun.add(row.key)

    def _submit_record(self, record: JobRecord, sources: LocalImagesByDigest) -> TrackedJob:
        tracked = super()._submit_record(record, sources)
        tracked.rare = evolve(tracked.rare, released_if_unsent=True)
        return tracked

    def _on_done(self, row: Row, tracked: TrackedJob) -> None:
        if row.key in self._in_hand:
            self._in_hand[row.key] = tracked.ledger_record.revision
        if tracked.record.state is JobState.WITHDRAWN and row.place not in self._dropped:
            self._give_back(row.key)  # by another caller, who did not want it: it is a row of the batch as before
            self.changed.set()
            return
        if _is_interrupted(tracked.wait_error, tracked.record.state):
            self._stop_after(tracked.wait_error)
        super()._on_done(row, tracked)

    def _count_unbought(self, row: Row) -> None:
        super()._count_unbought(row)
        self._give_back(row.key)

    # Deliveries

    def take_outcome(self) -> Outcome | None:
        """Remove and return the next outcome; the ones before it are delivered."""
        shown, self._shown = self._shown, []
        for before in shown:
            self._deliver(before)
        outcome = super().take_outcome()
        if outcome is not None:
            self._shown.append(outcome)
        return outcome

    def abandon(self) -> None:
        """Give back all rows in hand: other workers follow what runs, and take what was not taken here."""
        self._draws_ended = True
        self._shown.clear()
        for key in list(self._in_hand):
            self._give_back(key)
        self._wake.set()

    def _deliver(self, outcome: Outcome) -> None:
        revision = self._in_hand.pop(outcome.key, None)
        if revision is not None and outcome.job is not None and _is_interrupted(outcome.error, outcome.job.state):
            self._write(outcome.key, None)
        elif revision is not None:
            unsaved = outcome.error is not None and outcome.job is not None and outcome.job.state is JobState.SUCCEEDED
            self._write(outcome.key, UNSAVED if unsaved else revision)

    def _give_back(self, key: str) -> None:
        if self._in_hand.pop(key, None) is not None:
            self._write(key, None)

    def _write(self, key: str, revision: int | None) -> None:
        self._begun.discard(key)
        if not self._writing_ended:
            self._to_write[key] = revision
            self._written = False
            self._wake.set()

    async def _write_deliveries(self) -> None:
        """Write what was delivered and given back, all that has come together in one call.

        What can't be written is drawn again by others, once this session has closed.
        """
        try:
            while self._to_write or self._in_hand or self._unanswered_draws or not self._draws_ended:
                await self._wake.wait()
                self._wake.clear()
                rows, self._to_write = self._unwritten | self._to_write, {}
                try:
                    if rows:
                        await self._ledger.deliver(rows)
                    self._unwritten = {}
                except Exception as failure:
                    self._unwritten = rows
                    self._stop_after(failure)
                if not self._to_write:
                    self._written = True
                    self.changed.set()
        finally:
            self._writing_ended = self._written = True
            self.changed.set()


def _is_interrupted(error: Exception | None, state: JobState) -> TypeGuard[LedgerError]:
    """Return whether the ledger failed while a job ran: the session follows it no more, and others may."""
    return state in ACTIVE_STATES and isinstance(error, LedgerError) and not isinstance(error, (NotOurs, TaskTaken))


def _to_row(row: FedRow) -> Row:
    """Return a row whose job is claimed as that of any row."""
    return Row(
        index=row.index,
        key=row.record.key,
        own_key=row.own_key,
        request=row.record.request,
        metadata=None if row.metadata is None else json.loads(row.metadata),
        name=row.name,
    )
