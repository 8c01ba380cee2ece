"""Find out by the gateway's history whether jobs in doubt were bought, and carry that out.

It decides by itself about jobs of this session, before they become UNCERTAIN, and about all UNCERTAIN jobs of the
account in the ledger when it is asked to. `policy/reconcile.py` says by which rules.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial

import anyio
from anyio.abc import TaskGroup
from attrs import evolve, frozen

from nanobanana_async.candidates import Candidate
from nanobanana_async.engine.doubt import was_processed
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.evidence import earliest_sent_at, shows_shared_keys, to_history_evidence, to_job_in_doubt
from nanobanana_async.engine.history import MOST_READINGS, JobAwaitingHistory
from nanobanana_async.engine.next_step import AwaitHistory, Finish, HoldSlots, Next
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.engine.workers import JobStep, error_of_crash
from nanobanana_async.errors import ConfigurationError, NanoBananaError, SessionClosed, TransportError
from nanobanana_async.gateways.capabilities import PastTask
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import TaskTaken
from nanobanana_async.policy.reconcile import FoundTask, NotBought, Undecided, Verdict, decide_doubts

# How many pages are read for the jobs of this session, and when the user asks for all UNCERTAIN jobs.
MOST_PAGES = 20
MOST_PAGES_BY_HAND = 200
# How often it is tried to give a job its task while one of its requests is in flight.
RETRY_S = 0.25


@frozen
class _Judgement:
    verdicts: Mapping[str, Verdict]
    tasks: Mapping[str, PastTask]

    def candidates(self, verdict: Verdict) -> tuple[Candidate, ...]:
        """Return the candidates of an undecided job as its record shows them."""
        if not isinstance(verdict, Undecided):
            return ()
        tasks = (self.tasks[task_id] for task_id in verdict.candidates)
        return tuple(
            Candidate(task_id=task.task_id, created_at=task.created_at, image_url=task.image_url) for task in tasks
        )


class Reconciler:
    """Reads the history once for all jobs in doubt, and gives each its task, or what else follows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._history = engine.history
        self._store = engine.store

    async def keep_reconciling(self) -> None:
        """Decide about the jobs in doubt of this session as soon as the history can, as long as the session is open."""
        while True:
            await self._history.wait_until_due()
            async with self._history.lock:
                await self._reconcile_waiting()

    async def reconcile(self) -> list[TrackedJob]:
        """Decide about all UNCERTAIN jobs of the account; return those that are not UNCERTAIN any more."""
        self._history.allow_reading()
        if self._history.is_missing:
            raise ConfigurationError("this gateway lists no tasks: check its own web page, then call `session.resolve`")
        done: asyncio.Future[list[TrackedJob]] = asyncio.get_running_loop().create_future()

        async def run(_: TaskGroup) -> None:
            try:
                jobs = await self._reconcile_uncertain()
                if not done.done():
                    done.set_result(jobs)
            except Exception as error:
                if not done.done():
                    done.set_exception(error if isinstance(error, NanoBananaError) else error_of_crash(error))
                if not isinstance(error, NanoBananaError):
                    raise
            except asyncio.CancelledError:
                if not done.done():
                    done.set_exception(SessionClosed("the session was closed before the history was read"))
                raise

        self._engine.scheduler.start_background_task(run)
        return await done

    async def _reconcile_waiting(self) -> None:
        """Read the history for the jobs of this session that wait for it."""
        history, now = self._history, self._engine.clock()
        waits = [wait for wait in history.awaiting_jobs.values() if self._still_in_doubt(wait)]
        history.awaiting_jobs = {wait.job.key: wait for wait in waits}
        unread = [wait for wait in waits if wait.found_task is None]
        if any(wait.due <= now for wait in unread):
            judgement = await self._judge([wait.job.record for wait in unread])
            for wait in filter(self._still_in_doubt, unread):
                self._apply_verdict(wait, judgement, now)
        for wait in filter(self._still_in_doubt, waits):
            if wait.found_task is not None and was_processed(wait.job.record, history.lateness_s):
                self._try_assign_task(wait, wait.found_task)
            elif wait.found_task is not None:  # a repeat has contradicted that
                wait.found_task, wait.due = None, now + history.delay_s
                history.watch_repeats(wait.job)

    async def _judge(self, records: Sequence[JobRecord]) -> _Judgement:
        """Read the history and decide about these jobs; nothing is decided if it can't be read."""
        if self._history.is_readable:  # else it was refused since they began to wait
            try:
                return await self._read_and_decide(records, most_pages=MOST_PAGES)
            except Exception as error:
                self._history.on_read_failed(error)
        return _Judgement({record.key: Undecided((), self._history.is_readable) for record in records}, {})

    def _still_in_doubt(self, wait: JobAwaitingHistory) -> bool:
        job = wait.job
        if self._history.awaiting_jobs.get(job.key) is not wait:  # it began to wait again during a reading
            return False
        tracked = self._engine.tracked.get(job.key) is job
        ours = tracked and job.phase is not Phase.FOREIGN
        return ours and job.record.in_doubt and job.record.state is JobState.SUBMITTING

    def _apply_verdict(self, wait: JobAwaitingHistory, judgement: _Judgement, now: float) -> None:
        """Carry out a verdict, or let the job wait for the next reading."""
        job, verdict = wait.job, judgement.verdicts[wait.job.key]
        if isinstance(verdict, FoundTask):
            wait.found_task = judgement.tasks[verdict.task_id]
            return
        parked = job.phase is Phase.CHECKING
        if isinstance(verdict, NotBought):
            if parked:
                self._recover_with(wait, self._return_to_pending)
            return
        if not parked and (
            self._history.is_failing or not self._history.is_readable
        ):  # its repeats go on, as without a history
            self._history.awaiting_jobs.pop(job.key, None)
            return
        if wait.due > now and self._history.is_readable:
            return
        wait.reads += 1
        wait.due = max(wait.ready_at, now + self._history.delay_s * 2.0 ** (wait.reads - 1))
        if verdict.may_change and wait.reads < MOST_READINGS:
            return
        # While the task may run its repeats go on: some gateways answer 409 until its end, and then name the task.
        left_s = 0.0 if parked else self._may_run_for_s(job)
        if left_s <= 0 and job.phase in (Phase.SCHEDULED, Phase.CHECKING):
            self._recover_with(wait, partial(self._mark_uncertain, judgement.candidates(verdict)))
        else:
            wait.due = now + max(left_s, self._history.delay_s)

    def _may_run_for_s(self, job: TrackedJob) -> float:
        """Return how long the task of a job in doubt may still run."""
        record = job.record
        if record.lost_at is None or not was_processed(record, self._history.lateness_s):
            return NEVER
        return self._engine.estimates.may_run_for_s(job) - self._store.age_s(record.lost_at)

    def _try_assign_task(self, wait: JobAwaitingHistory, task: PastTask) -> None:
        if wait.job.phase in (Phase.SCHEDULED, Phase.CHECKING):
            self._recover_with(wait, partial(self._assign_task, task.task_id))
        else:  # a repeat is in flight, or about to leave
            wait.due = self._engine.clock() + RETRY_S

    def _recover_with(self, wait: JobAwaitingHistory, step: JobStep) -> None:
        self._history.awaiting_jobs.pop(wait.job.key, None)
        self._engine.scheduler.start_recovery(wait.job, step)

    async def _assign_task(self, task_id: str, job: TrackedJob) -> Next:
        try:
            return await self._engine.claimer.store_resolution(job, task_id=task_id, body=None)
        except TaskTaken:  # another process was faster: the task is its job's
            if job.record.state is JobState.UNCERTAIN:
                return HoldSlots(job.holds_slots_until)
            return AwaitHistory() if self._history.watch_parked(job) else await self._mark_uncertain((), job)

    async def _return_to_pending(self, job: TrackedJob) -> Next:
        """Let a job that was not bought be sent again; the second time its callers get why it was never answered."""
        failure, again = job.last_failure, job.rare.returned_by_history
        next_step = await self._engine.claimer.return_to_pending(job)
        job.rare = evolve(job.rare, returned_by_history=not again)
        if not again:
            return next_step
        error = TransportError("no create was answered", possibly_sent=False) if failure is None else failure
        unanswered = error.for_job(job.key, safe_to_repeat=True)
        unanswered.message += "; by the gateway's history the job was not bought: generate it again later"
        return Finish(unanswered)

    async def _mark_uncertain(self, candidates: tuple[Candidate, ...], job: TrackedJob) -> Next:
        await self._store.transition(job, JobState.UNCERTAIN, in_doubt=True, candidates=candidates)
        return HoldSlots(self._engine.clock() + self._engine.estimates.may_run_for_s(job))

    async def _read_and_decide(self, wanted: Sequence[JobRecord], *, most_pages: int) -> _Judgement:
        """Read the history back to before these jobs were sent, and decide about all jobs in doubt."""
        engine, gateway, ledger = self._engine, self._engine.gateway, self._store.ledger
        since = min(map(earliest_sent_at, wanted)) - timedelta(seconds=3 * self._history.delay_s)
        reading = await self._history.read(since, most_pages=most_pages)
        claimed = await self._history.find_claimed(engine.account, reading.tasks)
        uncertain = [record async for record in ledger.uncertain(engine.account) if record.key not in engine.tracked]
        # From here on nothing awaits, so that each job of this session either has a task or is in doubt.
        tracked = [job.record for job in engine.tracked.values()]
        claimed |= {record.task_id: record for record in tracked if record.task_id is not None}
        in_doubt = [record for record in (*tracked, *uncertain) if record.in_doubt and self._history.can_show(record)]
        read = to_history_evidence(reading, claimed, self._history, gateway)
        shared = any(map(shows_shared_keys, (*tracked, *uncertain)))
        verdicts: dict[str, Verdict] = {}
        if read is not None:
            verdicts = decide_doubts(
                [to_job_in_doubt(each, gateway, read.lateness_s, shared=shared) for each in in_doubt], read
            )
        for record in wanted:
            verdicts.setdefault(record.key, Undecided((), may_change=read is None))
        return _Judgement(verdicts, {task.task_id: task for task in reading.tasks})

    async def _reconcile_uncertain(self) -> list[TrackedJob]:
        uncertain = self._store.ledger.uncertain(self._engine.account)
        records = [record async for record in uncertain if self._history.can_show(record)]
        if not records:
            return []
        ages_s = [self._store.age_s(record.lost_at) for record in records if record.lost_at is not None]
        await anyio.sleep(max(0.0, 3 * self._history.delay_s - max(0.0, min(ages_s))))
        async with self._history.lock:
            try:
                judgement = await self._read_and_decide(records, most_pages=MOST_PAGES_BY_HAND)
            except NanoBananaError as error:
                self._history.on_read_failed(error)
                raise
            jobs = [(record, self._carry_out_verdict(record, judgement)) for record in records]
            for record, job in jobs:  # if another process was faster, it is let go without a change
                while job is not None and job.is_followed and job.record.revision == record.revision:
                    await job.wait_for_change()
        return [job for _, job in jobs if job is not None and job.record.state is not JobState.UNCERTAIN]

    def _carry_out_verdict(self, record: JobRecord, judgement: _Judgement) -> TrackedJob | None:
        """Start to carry out the verdict on an UNCERTAIN job; return the job, or None if nothing changes."""
        scheduler, verdict = self._engine.scheduler, judgement.verdicts[record.key]
        candidates = judgement.candidates(verdict)
        unchanged = isinstance(verdict, Undecided) and candidates == record.candidates
        if unchanged or record.key in self._engine.tracked:  # another call is resolving it
            return None
        job = scheduler.holding.get(record.key)
        if job is None or job.record.revision != record.revision:
            job = self._engine.build_tracked_job(record)
        scheduler.track(job, Phase.RECOVERING)
        match verdict:
            case FoundTask(task_id=task_id):
                scheduler.start_step(partial(self._assign_task, task_id), job)
            case NotBought():
                scheduler.start_step(self._store_not_bought, job)
            case Undecided():
                scheduler.start_step(partial(self._update_candidates, candidates), job)
        return job

    async def _store_not_bought(self, job: TrackedJob) -> Next:
        """Store that an UNCERTAIN job was not bought. No caller has asked this session to buy it."""
        await self._engine.claimer.return_to_pending(job)
        return Finish()

    async def _update_candidates(self, candidates: tuple[Candidate, ...], job: TrackedJob) -> Next:
        until = job.holds_slots_until
        await self._store.transition(job, JobState.UNCERTAIN, candidates=candidates)
        return HoldSlots(until)
