"""Run the steps of the tracked jobs. The scheduler is the only writer of a phase (`tracked_job.py` has the table)."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, assert_never

from anyio.abc import TaskGroup

from nanobanana_async.engine.claimer import Claimer
from nanobanana_async.engine.dispatcher import CapExceeded, DispatchDecision, Dispatcher, DispatchKind, WaitOver
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.foreign_slots import recount_foreign_slots
from nanobanana_async.engine.image_poll import ImagePoll
from nanobanana_async.engine.image_polls import ImagePolls
from nanobanana_async.engine.next_step import (
    AwaitHistory,
    CheckOwnerAt,
    Enqueue,
    Finish,
    HoldSlots,
    Next,
    Prepare,
    Recover,
    ScheduleAt,
    StopFollowing,
)
from nanobanana_async.engine.ownership import follow_through_ledger, let_go, may_be_anothers, recheck_of_buried
from nanobanana_async.engine.phases import STALE_RECORD_PHASES, Phase
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.references import References
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.submitter import Submitter
from nanobanana_async.engine.timers import Timed, Timers
from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob, is_safe_to_repeat
from nanobanana_async.engine.workers import JobStep, WorkerPool, error_of_crash
from nanobanana_async.errors import NanoBananaError, SessionClosed
from nanobanana_async.events import JobReleased, JobTracked, log_failure
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState


class Scheduler:
    """Owns the tracked jobs of a session. All changes of phases are synchronous; only steps await."""

    def __init__(
        self,
        store: JobStore,
        slots: Slots,
        submitter: Submitter,
        poller: Poller,
        claimer: Claimer,
        estimates: JobEstimates,
        references: References,
        *,
        max_requests: int,
    ) -> None:
        self._clock = (loop := asyncio.get_running_loop()).time
        self._store, self._slots, self._submitter, self._poller = store, slots, submitter, poller
        self._estimates, self._claimer, self._references, self._timers = estimates, claimer, references, Timers(loop)
        self.workers = WorkerPool(max_requests, apply=self._apply, freed=self.tick, crashed=self._crashed)
        references.start(self.workers, apply=self._apply, freed=self.tick)
        self.dispatcher = Dispatcher(slots, poller, estimates, self.workers, store.credits)
        self.tracked: dict[str, TrackedJob] = {}
        self.job_tracked = asyncio.Event()  # set when a job is added to them; cleared by the task that waits for it
        store.credits.tracked = store.credits.tracked_in_session = self.tracked
        self.holding: dict[str, TrackedJob] = {}
        """Uncertain jobs that hold their slots while they may still run, by key."""
        self.image_polls = ImagePolls(poller, self.dispatcher, self._timers)
        self.background_tasks: list[Callable[[], Coroutine[Any, Any, None]]] = []  # they run while the session is open
        self.closing = False

    def start(self, group: TaskGroup) -> None:
        """Start the workers and background tasks in this task group."""
        self._group = group
        self.workers.set_group(group)
        self.workers.start_task("pump", self._tick_on_timer, restart=True)
        if self._store.lease is not None:
            self._store.lease.on_burial(self._on_burial)
        recount = partial(recount_foreign_slots, self._claimer, self._slots, self.workers, self.tick)
        self.workers.start_task("count", recount)
        for work in self.background_tasks:
            self.workers.start_task("beside", work, restart=True)

    def _on_burial(self) -> None:
        """Follow all jobs through the ledger: they went to other owners when ours was buried."""
        follow_through_ledger(self.tracked, self.holding, self._slots, self._apply, self._clock())
        self._timers.fired.set()  # this is no task, so that it can't tick itself

    def start_background_task(self, work: Callable[[TaskGroup], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine in the session's task group, until the session closes. It must not raise."""
        if self.closing:
            raise SessionClosed("the session is closed")
        self.workers.start_task("beside", partial(work, self._group))

    async def aclose(self, grace_s: float) -> None:
        """Start nothing more; wait at most `grace_s` until creates in flight are answered and stored."""
        self.stop()
        await self.workers.wait_for_creates_and_writes(grace_s)

    def fail_all_waiters(self) -> None:
        """Raise `SessionClosed` in all waiters; unfinished jobs stay in the ledger."""
        self.stop()
        closed = "the session was closed while you waited"
        for job in list(self.tracked.values()):
            self._finish_job(job, SessionClosed(f"{closed}; the job stays in the ledger"))
        self.image_polls.fail_all(SessionClosed(closed))

    def stop(self) -> None:
        """Start nothing more: the session closes, or this is its copy in a forked child."""
        self.closing = True
        self._timers.stop()

    def tick(self) -> None:
        """Start what is due and may start; then set the timer."""
        if self.closing:
            return
        now = self._clock()
        for due in self._timers.take_due(now):
            self._on_due(due, now)
        starts, next_at = self.dispatcher.admit(now)
        for start in starts:
            self._start_or_decline(start)
        self._timers.set_loop_timer(now, next_at)

    async def _tick_on_timer(self) -> None:
        """Tick whenever the timer fires. This is a task because anyio can't start tasks from a timer's callback."""
        while True:
            await self._timers.fired.wait()
            self._timers.fired.clear()
            self.tick()

    def _start_or_decline(self, start: DispatchDecision) -> None:
        """Start what the dispatcher decided."""
        match start:
            case ImagePoll():
                self.workers.start_request(self.image_polls.poll_once, start)
            case (job, DispatchKind.CREATE):
                job.enter_phase(Phase.IN_FLIGHT)
                self.workers.start_create(self._submitter.submit, job)
            case (job, DispatchKind.POLL):
                job.enter_phase(Phase.IN_FLIGHT)
                self.workers.start_poll(self._poller.poll, job)
            case (job, CapExceeded(error=error)):
                self.withdraw(job, partial(self._claimer.withdraw_unaffordable, error))
            case (job, WaitOver(error=error)):
                self._apply(job, Finish(error))

    def withdraw(self, job: TrackedJob, step: JobStep | None = None) -> None:
        """Withdraw a job that waits to be sent."""
        job.enter_phase(Phase.WITHDRAWING)
        self.start_step(step or self._claimer.store_withdrawal, job)

    def start_step(self, step: JobStep, job: TrackedJob) -> None:
        """Run a step that makes no request to the gateway; closing waits for it."""
        self.workers.start_ledger_step(step, job)

    def start_recovery(self, job: TrackedJob, step: JobStep) -> None:
        """Run a step that decides how a job goes on that may have been bought."""
        job.enter_phase(Phase.RECOVERING)
        self.start_step(step, job)

    def _apply(self, job: TrackedJob, next_step: Next) -> None:
        """Carry out what a step returned: set the phase, the queue or timer and the slots, and wake the waiters."""
        if not job.is_followed:  # closing has ended the waiting
            return
        if job.turn_cost is not None:
            self.dispatcher.correct_turn_cost(job)
        joined, was_foreign, buried = job.awaits_ledger_decision, job.phase is Phase.FOREIGN, job.rare.owner_buried
        next_step = recheck_of_buried(job, next_step, self._clock()) if buried else next_step
        if too_late := job.rare.withdraw_requested:
            withdrawn = job.can_be_withdrawn_after(next_step)
            job.request_withdrawal(False)
            if withdrawn:
                if isinstance(next_step, Finish):
                    job.wait_error = next_step.error
                self.withdraw(job)
                job.wake()
                return
        match next_step:
            case Enqueue():
                self._schedule(job, self._clock())
            case Prepare():
                job.enter_phase(Phase.PREPARING)
                self._references.prepare(job)
            case ScheduleAt(due=due):
                self._schedule(job, due)
            case CheckOwnerAt(due=due):
                if buried or not (was_foreign or joined):  # it was ours: a withdrawal goes on if it becomes ours again
                    job.request_withdrawal(too_late or job.phase is Phase.WITHDRAWING)
                if not was_foreign:
                    let_go(job, self._slots, self._store, self._estimates)
                job.enter_phase(Phase.FOREIGN)
                self._timers.set_due(job, due)
            case Recover():
                self.start_recovery(job, self._submitter.continue_interrupted)
            case AwaitHistory():
                job.enter_phase(Phase.CHECKING)
            case HoldSlots(due=due):
                self._untrack(job, Phase.UNFOLLOWED, hold_until=due)
            case StopFollowing():
                self._untrack(job, Phase.KNOWN)
                job.wake()
            case Finish(error=error):
                self._finish_job(job, error)
            case _:
                assert_never(next_step)
        if was_foreign != (job.phase is Phase.FOREIGN) and job.is_followed:
            job.notify_listeners()
        if too_late or joined != job.awaits_ledger_decision:
            job.wake()

    def _schedule(self, job: TrackedJob, due: float) -> None:
        """Set a job's timer, or queue the job if its time has come."""
        due = self._poller.fallback.adjust_due(job, due, now := self._clock())
        if due > now:
            job.enter_phase(Phase.SCHEDULED)
            self._timers.set_due(job, due)
        else:
            job.enter_phase(Phase.QUEUED)
            self.dispatcher.put(job, now)
            if job.record.state is JobState.RUNNING:
                self._timers.set_due(job, self._poller.deadlines.next_check_at(job))

    def _on_due(self, job: Timed, now: float) -> None:
        """Continue a job whose timer is due."""
        if isinstance(job, ImagePoll):
            self.dispatcher.put_image_poll(job)
            return
        match job.phase:
            case Phase.SCHEDULED | Phase.QUEUED if (end := self._poller.end_if_overdue(job)) is not None:
                self.dispatcher.drop_poll(job)
                self._apply(job, end)
            case Phase.SCHEDULED:
                self._schedule(job, now)
            case Phase.QUEUED:
                self._timers.set_due(job, self._poller.deadlines.next_check_at(job))
            case Phase.FOREIGN if job.is_wanted:
                self.start_step(self._claimer.check_owner, job)
            case Phase.FOREIGN:
                self._untrack(job, Phase.KNOWN)
            case Phase.HOLDING_SLOTS:  # by now it has ended, if it ever ran
                if self.holding.get(job.key) is job:
                    del self.holding[job.key]
                self._slots.release(job)
                job.enter_phase(Phase.UNFOLLOWED)

    def poll_soon(self, job: TrackedJob) -> None:
        """Poll a job as soon as possible, because a callback came."""
        if job.phase is Phase.SCHEDULED:  # else its poll is in flight or queued
            self._schedule(job, job.due)
            self.tick()

    def track(self, job: TrackedJob, phase: Phase) -> TrackedJob:
        """Begin to follow a job in this phase. It gets back the slots that it held while it was uncertain."""
        if (before := self.holding.pop(job.key, job)) is not job:
            job.inherit_slots(before)
        job.wait_error, job.followed_since, job.ready_at = None, NOT_YET, NOT_YET
        job.enter_phase(phase)
        self.dispatcher.assign_place(job)
        self.tracked[job.key] = job
        self.job_tracked.set()
        self._store.emit(JobTracked(record=job.record, weight=job.weight))
        return job

    def take_newer_record(self, job: TrackedJob, record: JobRecord) -> None:
        """Take a newer record of a job that is not followed: how the last waiting for it ended is no longer true."""
        job.wait_error = None
        self._store.replace_record(job, record)
        self._store.credits.mark_not_under_way(job)

    def _finish_job(self, job: TrackedJob, error: NanoBananaError | None) -> None:
        """Stop following a job: it has ended, or `error` ends the waiting and the job goes on without us."""
        hold_until, ours = NEVER, job.phase is not Phase.CLAIMING
        if error is not None:
            if job.phase in STALE_RECORD_PHASES or may_be_anothers(job, self._store.lease):
                error = error.for_job(job.key, safe_to_repeat=False)
            job.wait_error = error
            job.request_withdrawal(False)
            if job.slots_taken_from is not None and not ours:  # the claim failed: the job is uncertain as before
                job.record = job.ledger_record = job.slots_taken_from.record
            hold_until = job.holds_slots_until
        self._untrack(job, Phase.UNFOLLOWED, hold_until=hold_until, ours=ours)
        job.wake()

    def _untrack(self, job: TrackedJob, phase: Phase, *, hold_until: float = NEVER, ours: bool = True) -> None:
        """Stop following a job. An uncertain one holds its slots until `hold_until`, since it may still run."""
        self.tracked.pop(job.key, None)
        self._estimates.forget(job)
        self._store.credits.mark_not_under_way(job)
        if job.slots and job.record.state in (JobState.SUCCEEDED, JobState.FAILED):
            schedule = job.schedule or self._estimates.schedule_of(job)
            self._slots.on_ended(schedule.mean_s, max(schedule.wanted_delay_s, schedule.notice_delay_s))
        if job.record.state is JobState.UNCERTAIN and hold_until < NEVER:
            job.enter_phase(Phase.HOLDING_SLOTS)
            self.holding[job.key] = job
            self._timers.set_due(job, hold_until)
        else:
            job.enter_phase(phase)
            self._slots.release(job)
        job.slots_taken_from = None
        # If the ledger does not have the task id, only this session can follow the job: then it is not released.
        known = ours and job.ledger_record.task_id == job.record.task_id
        if known and job.ledger_record.state in ACTIVE_STATES and not self.closing:
            self.start_step(partial(self._claimer.release_untracked, self.tracked), job)
        job.notify_listeners()
        self._store.emit(JobReleased(record=job.record, error=job.wait_error))

    def _crashed(self, job: Timed, failure: BaseException) -> None:
        log_failure("engine.crashed", failure, job=job.key)
        if isinstance(job, ImagePoll):
            self.image_polls.fail(job, error_of_crash(failure))
        elif job.is_followed:
            self._finish_job(job, error_of_crash(failure))

    def check_open(self, record: JobRecord, *, is_known: bool = True) -> None:
        """Raise `SessionClosed` if the session is closing; `is_known`: the record is what the ledger has."""
        if self.closing:
            safe = is_known and is_safe_to_repeat(record, Phase.KNOWN)
            raise SessionClosed("the session is closed", key=record.key, safe_to_repeat=safe)
