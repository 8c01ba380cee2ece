"""Pull rows into the engine when there is room, and collect their outcomes.

The runner holds no reference to its `Batch`, so that a dropped batch can be garbage collected.
"""

import asyncio
import heapq
import time
from collections.abc import Hashable
from contextlib import aclosing
from functools import partial

import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import evolve

from nanobanana_async.batch.budget_watch import watch_budget
from nanobanana_async.batch.messages import log_crash_as_error, session_closed_error, with_own_key, without_derived_key
from nanobanana_async.batch.options import BatchOptions, iterate
from nanobanana_async.batch.outcome import Outcome, outcome_of
from nanobanana_async.batch.room import Room
from nanobanana_async.batch.rows import Requests, Row, RowReader
from nanobanana_async.batch.streak import ACCOUNT_ERRORS, ErrorStreak, stop_reason
from nanobanana_async.batch.target_check import TargetCheck
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.errors import IdempotencyConflict, NanoBananaError, SaveError, SessionClosed, TaskNotFound
from nanobanana_async.handle import Job
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.local import LocalImagesByDigest
from nanobanana_async.images.names import row_name
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.policy.retry import is_lasting

# How many rows are post-processed (saved, fetched again) at the same time, and how many more may wait for it.
FINISHING, FINISHING_QUEUE = 8, 24

ACCEPTED_STATES = frozenset({JobState.RUNNING, JobState.SUCCEEDED})
UNSENT_STATES = frozenset({JobState.PENDING, JobState.WITHDRAWN})


class BatchRunner:
    """The state of one batch."""

    def __init__(self, requests: Requests, options: BatchOptions, engine: Engine, saver: ImageSaver) -> None:
        self._items = requests
        self._options = options
        self._engine = engine
        self._saver = saver
        self._check = TargetCheck(options.target, saver, engine)
        self._rows = RowReader(options.name, None if options.target is None else partial(row_name, options.names))
        self._room = Room(engine.slots.limiter.policy, ordered=options.ordered)
        self._prefix = None if options.name is None else batch_key_prefix(options.name)
        self._caps = () if (limit := options.max_credits) is None else (engine.make_cap(limit, self._prefix),)
        self._own_group: Hashable = self._prefix or object()
        """With its rows it shares turns, unless they are of another group: single jobs do not wait behind all rows."""
        self._scope: anyio.CancelScope | None = None
        self._finishers = asyncio.Semaphore(FINISHING)
        self._room_changed = asyncio.Event()
        self.changed = asyncio.Event()
        """Set when `take_outcome` or `is_exhausted` may have changed."""
        self._ready: list[tuple[int, Outcome]] = []
        """A heap of outcomes, by place if ordered, otherwise by time."""
        self.running: dict[int, TrackedJob] = {}
        """Rows that have not ended, by their place among the pulled ones, in that order."""
        self._unsent: dict[int, TrackedJob] = {}
        self._dropped: set[int] = set()
        """Places of rows dropped when the batch stopped buying."""
        self._finishing: dict[int, Outcome] = {}
        self._refusals, self._unsaved = ErrorStreak(), ErrorStreak()
        self._pulled_all = False
        self.done = self.failed = self.unbought = 0
        self.stop_reason: NanoBananaError | None = None
        """Why the batch stopped buying."""
        self.input_error: Exception | None = None
        """The exception of the input, or `SessionClosed`."""
        self._stopping = False

    @property
    def is_exhausted(self) -> bool:
        """Whether all outcomes have been taken."""
        return self._pulled_all and not (self.running or self._finishing or self._ready)

    async def run(self, group: TaskGroup) -> None:
        """Pull rows until the input ends or the batch stops buying. Runs in the session's task group."""
        self._group = group
        if (most_s := self._options.max_budget_wait_s) is not None:
            used_up = [each.poller.used_up_budgets for each in self._engine.members]
            group.start_soon(watch_budget, used_up, most_s, lambda: self.is_exhausted, self._stop_without_waiting)
        try:
            await self._pull_all()
            while self.running and not self._stopping:
                self._room_changed.clear()
                await self._room_changed.wait()
            self._drop_unsent()
        except asyncio.CancelledError:
            self.input_error = session_closed_error()
        finally:
            self._pulled_all = True
            self.changed.set()

    async def _pull_all(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if not self._stopping:
                    await self._check.check_at_start()
                    await self._pull()
        except asyncio.CancelledError:
            if self._engine.scheduler.closing:
                raise
            # Raised on, it would end the session.
            self.input_error = NanoBananaError("what the input waited for was cancelled")
        except SaveError as error:
            self.stop(error)
        except Exception as error:  # of the input, or of the ledger
            self.input_error = error
        self._pulled_all = True
        self.changed.set()

    async def _pull(self) -> None:
        async with aclosing(iterate(self._items, time.perf_counter)) as items:
            await self._wait_for_room()
            async for item in items:
                row = evolve(self._rows.read(item), place=self._room.pulled)
                self._room.pulled += 1
                await self._start_row(await self._check.check_before_purchase(row))
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while not self._stopping:
            waiting = len(self._ready) + max(0, len(self._finishing) - FINISHING_QUEUE)
            if self._room.has_room(running=len(self.running), unsent=len(self._unsent), waiting=waiting):
                break
            self._room_changed.clear()
            await self._room_changed.wait()
        # Other tasks run between two rows, also of an input that never waits. Raises if the scope is cancelled.
        await anyio.lowlevel.checkpoint()

    async def _start_row(self, row: Row) -> None:
        if row.request is None:
            self._queue_outcome(row, outcome_of(row, None, error=row.error))
            return
        try:
            request, sources = await self._engine.references.digest_images(row.request)
            row = self._rows.with_request_and_key(row, request)
            options = self._options
            budget, priority, group = options.budget, options.priority, options.group
            record = await self._engine.new_record(
                request, row.key, batch=self._prefix, budget=budget, priority=priority, group=group
            )
            while (tracked := self._submit_record(record, sources)).is_being_withdrawn:
                await tracked.wait_for_change()
        except SessionClosed:
            raise
        except NanoBananaError as error:
            self._queue_outcome(row, outcome_of(row, None, error=with_own_key(error, row)))
            if self._refusals.add_if_store_failed(error):
                self.stop(stop_reason(error, "were not bought"))
            return
        except asyncio.CancelledError:  # the batch has stopped buying
            self._count_unbought(row)
            raise
        self._engine.add_caller(tracked)
        self.running[row.place] = tracked
        tracked.add_listener(partial(self._on_change, row))
        self._on_change(row, tracked)

    def _submit_record(self, record: JobRecord, sources: LocalImagesByDigest) -> TrackedJob:
        return self._engine.submit(
            record,
            *self._caps,
            expected_credits=self._options.expected_credits,
            retry_failed=self._options.retry_failed,
            sources=sources,
            group=self._own_group,
        )

    def _on_change(self, row: Row, tracked: TrackedJob) -> None:
        """Update a row after a change of its job."""
        if row.place not in self.running:
            return
        if tracked.is_followed and tracked.record.state is JobState.PENDING and tracked.phase is not Phase.FOREIGN:
            self._unsent[row.place] = tracked
            if self._stopping:  # its create was in flight and was refused
                self._drop(row.place, tracked)
            return
        self._unsent.pop(row.place, None)
        self._room_changed.set()
        if tracked.record.state in ACCEPTED_STATES:
            self._refusals.reset()
        if not tracked.is_followed:
            del self.running[row.place]
            self._on_done(row, tracked)

    def _on_done(self, row: Row, tracked: TrackedJob) -> None:
        result = (job := Job(self._engine, tracked)).outcome()
        self.changed.set()
        if isinstance(result, SessionClosed):
            self.input_error = result
            return
        if isinstance(result, NanoBananaError):
            unbought = not tracked.record.possibly_bought and tracked.record.state is not JobState.FAILED
            was_dropped = row.place in self._dropped and tracked.record.state in UNSENT_STATES
            repeats = isinstance(result, (*ACCOUNT_ERRORS, TaskNotFound)) or is_lasting(result)
            if unbought and (was_dropped or repeats):
                self._count_unbought(row)
                self.stop(without_derived_key(result, row))
                return
            if (unbought or isinstance(result, IdempotencyConflict)) and self._refusals.add(result):
                self.stop(stop_reason(result, "were not bought"))
            self._queue_outcome(row, outcome_of(row, job, error=with_own_key(result, row)))
            return
        outcome = outcome_of(row, job, result=result)
        if self._options.target is None and result is not None:
            self._queue_outcome(row, outcome)
        else:
            self._finishing[row.place] = outcome
            self._group.start_soon(self._finish_row, row, outcome)

    def _count_unbought(self, row: Row) -> None:
        self.unbought += 1

    async def _finish_row(self, row: Row, outcome: Outcome) -> None:
        try:
            finished = await self._fetch_and_save(row, outcome)
        except SessionClosed:
            self.input_error, finished = session_closed_error(), None
        except asyncio.CancelledError as stray:
            if self._engine.scheduler.workers.try_contain(stray):
                finished = evolve(outcome, error=log_crash_as_error(outcome.index, stray))
            else:
                self.input_error, finished = session_closed_error(), None
        del self._finishing[row.place]
        self.changed.set()
        if finished is None:
            return
        if finished.error is None:
            self._unsaved.reset()
        elif isinstance(finished.error, ACCOUNT_ERRORS) and not getattr(finished.error, "one_image", False):
            self.stop(finished.error)
        elif self._unsaved.add(finished.error):
            self.stop(stop_reason(finished.error, "were bought and have no saved images"))
        self._queue_outcome(row, finished)

    async def _fetch_and_save(self, row: Row, outcome: Outcome) -> Outcome:
        try:
            async with self._finishers:
                if outcome.result is None and outcome.job is not None:  # inline images are not stored in the ledger
                    outcome = evolve(outcome, result=await outcome.job.result())
                if (target := self._options.target) is not None and outcome.result is not None:
                    saved = await self._saver.save(
                        outcome.result, target, row.name, row_key=row.own_key, sidecar=self._options.sidecar
                    )
                    outcome = evolve(outcome, saved=saved)
        except SessionClosed:
            raise
        except NanoBananaError as error:
            outcome = evolve(outcome, error=error)
        except Exception as bug:  # a bug must not end the session
            outcome = evolve(outcome, error=log_crash_as_error(outcome.index, bug))
        return outcome

    def _queue_outcome(self, row: Row, outcome: Outcome) -> None:
        self.done += 1
        self.failed += not outcome.ok
        heapq.heappush(self._ready, (row.place if self._options.ordered else self.done, outcome))
        self.changed.set()
        self._room_changed.set()

    def take_outcome(self) -> Outcome | None:
        """Remove and return the next outcome; None if there is none."""
        if not self._ready:
            return None
        if self._options.ordered:
            before = min(next(iter(self.running), NEVER), min(self._finishing, default=NEVER))
            if before < self._ready[0][0]:
                return None
        self._room.taken += 1
        self._room_changed.set()
        return heapq.heappop(self._ready)[1]

    def stop(self, why: NanoBananaError | None = None) -> None:
        """Pull no more rows, and withdraw jobs that were not sent yet. Running jobs go on."""
        if not self._stopping:
            self.stop_reason = why
            self.request_stop()
            self._drop_unsent()

    def abandon(self) -> None:
        """Take note that no more outcomes will be taken."""

    def _stop_without_waiting(self, why: NanoBananaError) -> None:
        """Stop, and do not wait for the jobs that run: they stay in the ledger."""
        self.stop(why)
        for index in [index for index in self.running if index not in self._unsent]:
            self._engine.drop_caller(self.running.pop(index))
        self._room_changed.set()
        self.changed.set()

    def request_stop(self) -> None:
        """Pull no more rows. `run` withdraws unsent jobs, since anyio cannot start a task from outside a task."""
        self._stopping = True
        if self._scope is not None:
            self._scope.cancel()
        self._room_changed.set()

    def _drop_unsent(self) -> None:
        for index, tracked in list(self._unsent.items()):
            self._drop(index, tracked)

    def _drop(self, index: int, tracked: TrackedJob) -> None:
        """Drop a row. Its job is withdrawn unless another caller wants it, even after a refused create in flight."""
        if index not in self._dropped:
            self._dropped.add(index)
            self._engine.drop_caller(tracked, if_requeued=True)
