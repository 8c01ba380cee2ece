"""The live jobs and their errands: each errand comes back with the time when its job is due again."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.claims import Claims
from nanobanana_async.engine.dispatcher import Dispatcher
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.submitter import Submitter
from nanobanana_async.engine.timers import Timers
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.engine.workers import JobTask, WorkerPool
from nanobanana_async.errors import CreditLimitReached, LedgerError, NanoBananaError, SessionClosed
from nanobanana_async.events import JobReleased, JobTracked, log, log_failure
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState
from nanobanana_async.validators import DAY_S

# How often the slots of jobs that others follow, or nobody, are counted again while there are any.
FOREIGN_RECOUNT_S = 5.0

# However often it is called back, a job is asked about once in this time.
CALLBACK_POLL_GAP_S = 1.0


class Scheduler:
    """Owns every live job of a session. All bookkeeping is synchronous; only errands await."""

    def __init__(
        self,
        books: JobStore,
        slots: Slots,
        buyer: Submitter,
        follower: Poller,
        admission: Claims,
        *,
        max_requests: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._store = books
        self._slots = slots
        self._poller = follower
        self._claims = admission
        self.workers = WorkerPool(max_requests, freed=self.tick, crashed=self._crashed)
        self.dispatcher = Dispatcher(
            slots,
            follower,
            self.workers,
            books.credits,
            create=self._send_create,
            query=self._send_query,
            decline=self._refuse_for_credits,
        )
        self._timer_fired = asyncio.Event()
        self._timers = Timers(loop, self._timer_fired.set)
        self.claim = self._as_task(admission.claim)
        self.check_owner = self._as_task(admission.check_owner)
        self.withdraw = self._as_task(admission.withdraw)
        self._buy = self._as_task(buyer.submit)
        self.tracked: dict[str, TrackedJob] = {}
        books.credits.live = self.tracked
        self.holding: dict[str, TrackedJob] = {}
        """Jobs of which nobody knows whether they run: they hold their slots for a while."""
        self._pending_writes = 0
        """Errands that closing waits for: creates, and what must be written down."""
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What else runs as long as the session."""
        self.closing = False
        self._writes_done = asyncio.Event()

    def start(self, group: TaskGroup) -> None:
        """Begin to work in this task group."""
        self._group = group
        self.workers.start(group)
        self.workers.start_task("pump", self._tick_on_timer, again=True)
        self.workers.start_task("count", self._recount_foreign_slots)
        for work in self.background:
            self.workers.start_task("beside", work, again=True)

    def start_background(self, work: Callable[[TaskGroup], Coroutine[Any, Any, None]]) -> None:
        """Run something else in the session's task group, until the session closes. It must not raise."""
        if self.closing:
            raise SessionClosed("the session is closed")
        self.workers.start_task("beside", partial(work, self._group))

    async def aclose(self, grace_s: float) -> None:
        """Stop feeding, and give creates on the wire their time to be answered and written down."""
        self.closing = True
        self._timers.stop()
        with anyio.move_on_after(grace_s):
            if self._pending_writes:
                await self._writes_done.wait()

    def fail_all_waiters(self) -> None:
        """Send away everybody who still waits; what is unfinished stays in the ledger."""
        self.closing = True
        self._timers.stop()
        for entry in list(self.tracked.values()):
            self._stop(entry, SessionClosed("the session was closed while you waited; the job stays in the ledger"))

    def disown(self) -> None:
        """Do nothing more: this is a forked child's copy, and the jobs are its parent's."""
        self.closing = True
        self._timers.stop()

    def tick(self) -> None:
        """Let leave what is due and may go; then set the timer."""
        if self.closing:
            return
        now = self._clock()
        for entry in self._timers.due(now):
            self._turn(entry)
        self._timers.arm(now, self.dispatcher.admit(now))

    async def _tick_on_timer(self) -> None:
        """Pump whenever the timer rings.

        In a task of its own and not in the timer's callback: anyio starts no task from outside of any where sniffio is
        installed, since that can't tell there which event loop runs.
        """
        while True:
            await self._timer_fired.wait()
            self._timer_fired.clear()
            self.tick()

    async def _recount_foreign_slots(self) -> None:
        """Count what others hold when we open; it only becomes less.

        What they take later shows as a lower limit, as any change of it does.
        """
        try:
            while held := await self._claims.count_foreign_slots():
                self._slots.foreign = min(held, self._slots.foreign or held)
                self.tick()
                await anyio.sleep(FOREIGN_RECOUNT_S)
        except LedgerError as error:
            log.warning("ledger.failed error=%s", error.message)
        except BaseException as failure:
            if not self.workers.contains(failure):
                raise
            log_failure("ledger.failed", failure)
        self._slots.foreign = 0
        self.tick()

    def _send_create(self, entry: TrackedJob) -> None:
        self._pending_writes += 1
        entry.in_flight = True
        self.workers.run_request(self._buy, entry)

    def _refuse_for_credits(self, entry: TrackedJob) -> None:
        """Take back a job for which the credits do not suffice."""
        error = CreditLimitReached(self._store.credits.explain(entry))
        entry.withdraw_requested = True

        async def withdrawn(entry: TrackedJob) -> float:
            await self._claims.withdraw(entry)
            raise error

        self.start_step(self._as_task(withdrawn), entry)

    def _send_query(self, entry: TrackedJob) -> None:
        entry.in_flight = True
        self.workers.run_request(self._poll, entry)

    def start_step(self, errand: JobTask, entry: TrackedJob) -> None:
        """Run an errand that makes no request; closing waits for it."""
        self._pending_writes += 1
        self.workers.run_local(errand, entry)

    def _as_task(self, step: Callable[[TrackedJob], Awaitable[float]]) -> JobTask:
        """Return the errand that takes a step with a job, and puts it where it is due next."""

        async def carry_out(entry: TrackedJob) -> None:
            try:
                due = await step(entry)
                if not entry.claimed:
                    entry.claimed = True
                    entry.wake()
                if entry.withdraw_requested and entry.record.state is JobState.PENDING and not entry.foreign:
                    self.start_step(self.withdraw, entry)
                else:
                    self._place(entry, due)
            except NanoBananaError as error:
                self._stop(entry, error)
            finally:
                self._write_done()

        return carry_out

    async def _poll(self, entry: TrackedJob) -> None:
        self._place(entry, await self._poller.poll(entry))

    async def _release(self, entry: TrackedJob) -> None:
        """Let others go on with a job that we follow no longer, and that has not ended."""
        try:
            if entry.key not in self.tracked:
                await self._store.ledger.release(entry.key)
        except LedgerError as error:  # it is ours until we close
            log.warning("ledger.failed job=%s error=%s", entry.key, error.message)
        finally:
            self._write_done()

    def _place(self, entry: TrackedJob, due: float) -> None:
        """Put a job where its state says, for when it is due."""
        entry.in_flight = False
        if entry.withdraw_requested:  # too late
            entry.withdraw_requested = False
            entry.wake()
        if entry.done:
            self._retire(entry, lingers_until=due)
        elif due == NEVER and entry.record.state is JobState.PENDING and not entry.may_buy:  # nobody asked to buy it
            self._retire(entry)
            entry.wake()
        elif (due := self._due_after_callback(entry, due)) > self._clock():
            self._timers.set(entry, due)
        else:
            self._turn(entry)

    def _due_after_callback(self, entry: TrackedJob, due: float) -> float:
        # A query that failed is repeated in its own time, whoever calls.
        told = entry.callback_pending and entry.record.state is JobState.RUNNING and not entry.failures
        due = min(due, entry.polled_at + CALLBACK_POLL_GAP_S) if told else due
        # A job that is alive is never left without a due time, whatever a setting or a policy says.
        latest = self._clock() + DAY_S
        return due if due < latest else latest

    def _turn(self, entry: TrackedJob) -> None:
        """Do what is due."""
        if entry.foreign and entry.has_waiters:
            self.start_step(self.check_owner, entry)
        elif entry.foreign:
            self._retire(entry)
            entry.foreign = False
        elif not entry.live:  # nobody knew whether it runs, and it has had its time
            if self.holding.get(entry.key) is entry:
                del self.holding[entry.key]
            self._slots.release(entry)
        elif entry.record.state is JobState.RUNNING and self._poller.fallback.too_early(entry):
            self._timers.set(entry, self._poller.fallback.next_check(entry))
        else:
            self.dispatcher.put(entry)

    def poll_soon(self, entry: TrackedJob) -> None:
        """Have a job asked about as soon as it may be: a callback came."""
        due, entry.due = entry.due, NEVER  # else it would be due a second time, and be asked about twice at once
        if due < NEVER:  # else it is on the wire, or the next to go there
            self._place(entry, due)
            self.tick()

    def track(self, entry: TrackedJob) -> TrackedJob:
        """Make a job live; it takes the slots that it held while it was in doubt."""
        ghost = self.holding.pop(entry.key, None)
        if ghost is not None and ghost is not entry:
            entry.holding_before = ghost
            entry.slots, ghost.slots = ghost.slots, 0
            entry.budgets, entry.expected_credits = ghost.budgets, ghost.expected_credits
        entry.due = NEVER
        self.dispatcher.assign_place(entry).live = True
        self.tracked[entry.key] = entry
        self._store.emit(JobTracked(record=entry.record, weight=entry.weight))
        return entry

    def _retire(self, entry: TrackedJob, lingers_until: float = NEVER) -> None:
        """Let go of a job; an uncertain one may still run, and holds its slot for a while."""
        entry.live = False
        self.tracked.pop(entry.key, None)
        self._poller.end(entry)
        self._store.credits.park(entry)
        if entry.slots and entry.record.state in (JobState.SUCCEEDED, JobState.FAILED):
            self._slots.on_ended(self._poller.mean_s(entry))
        if entry.record.state is JobState.UNCERTAIN and lingers_until < NEVER:
            self.holding[entry.key] = entry
            self._timers.set(entry, lingers_until)
        else:
            self._slots.release(entry)
        entry.holding_before = None
        known = entry.claimed and entry.ledger_record.task_id == entry.record.task_id  # else only we can follow it
        if known and entry.ledger_record.state in ACTIVE_STATES and not entry.foreign and not self.closing:
            self.start_step(self._release, entry)
        entry.notify_listeners()
        self._store.emit(JobReleased(record=entry.record, error=entry.wait_error))

    def _stop(self, entry: TrackedJob, error: NanoBananaError) -> None:
        """End the waiting, not the job."""
        if entry.foreign or not entry.claimed:  # what the ledger holds by now, we don't know
            error = error.for_job(entry.key, safe_to_repeat=False)
        entry.wait_error = error
        entry.in_flight = entry.withdraw_requested = entry.foreign = False
        if entry.holding_before is not None and not entry.claimed:  # the ledger did not say: it is in doubt as before
            entry.record = entry.ledger_record = entry.holding_before.record
        self._retire(entry, entry.holds_until)
        entry.wake()

    def _crashed(self, entry: TrackedJob, failure: BaseException) -> None:
        log_failure("engine.crashed", failure, job=entry.key)
        why = f"a bug in nanobanana_async: {type(failure).__name__}: {failure}"
        if isinstance(failure, asyncio.CancelledError):
            why = "what the job waited for was cancelled (by an observer, the ledger or the transport)"
        self._stop(entry, NanoBananaError(f"{why}; see the log"))

    def _write_done(self) -> None:
        self._pending_writes -= 1
        if self.closing and not self._pending_writes:
            self._writes_done.set()

    def check_open(self, record: JobRecord) -> None:
        """Raise `SessionClosed` when nothing can be begun any more."""
        if self.closing:
            raise SessionClosed("the session is closed", key=record.key, safe_to_repeat=not record.possibly_bought)
