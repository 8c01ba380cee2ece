"""Resolve jobs by hand, after querying the gateway.

A task id is queried before a job gets it, and the task of a RUNNING job before the job loses it.
"""

import asyncio

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.engine.workers import error_of_crash
from nanobanana_async.errors import (
    MAX_RETRY_AFTER_S,
    ConfigurationError,
    CreditLimitReached,
    LedgerError,
    NanoBananaError,
    RateLimited,
    SessionClosed,
    TaskNotFound,
)
from nanobanana_async.jobs import JobRecord, JobState, Observation
from nanobanana_async.keys import validate_task_id
from nanobanana_async.ledger.base import NotOurs
from nanobanana_async.policy.retry import LATE_REPLICA_S, is_outage

# The first and the longest wait between two queries about a task that the gateway does not know (yet).
FIRST_WAIT_S = 0.125
LONGEST_WAIT_S = 2.0


class ManualResolver:
    """Resolves jobs by hand. If the gateway does not confirm a task id, nothing is changed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ledger = engine.store.ledger
        self._clock = asyncio.get_running_loop().time

    async def resolve(self, key: str, *, task_id: str | None, buy_again: bool) -> TrackedJob:
        """Resolve an UNCERTAIN job, or a RUNNING one whose task the gateway does not know; return the tracked job."""
        if task_id is not None:
            task_id = validate_task_id(task_id)
        job = await self._require_job(key)
        self._engine.check_resolvable(job, buy_again=buy_again)
        if job.record.state is not JobState.RUNNING:
            return await self._carry_out_decision(job, task_id, buy_again=buy_again)
        claim = await self._ledger.adopt(key)
        if claim is None or not claim.is_ours or claim.record.revision != job.record.revision:
            raise ConfigurationError(f"job {key} is running and polled by another session: nothing to resolve")
        try:
            lost = job.record.task_id or ""
            if await self._query_task(lost, job.record, self._task_age_s(job.record)) is not None:
                why = f"the gateway knows its task {lost}; call `resume` to poll it"
                raise ConfigurationError(f"job {key} is running: nothing to resolve, {why}")
            return await self._carry_out_decision(job, task_id, buy_again=buy_again)
        except BaseException:
            await self._release_ownership(key)
            raise

    async def query_before_attach(self, record: JobRecord) -> Observation:
        """Query a task before it is attached. Attaching buys nothing, so each error is safe to repeat."""
        try:
            return await self._require_task(record.task_id or "", record)
        except NanoBananaError as error:
            raise error.for_job(record.key, safe_to_repeat=True) from None

    async def _require_task(self, task_id: str, record: JobRecord, *, age_s: float = 0.0) -> Observation:
        """Query a task that is at most `age_s` old. Raises `TaskNotFound` if the gateway does not know it."""
        seen = await self._query_task(task_id, record, age_s)
        if seen is None:
            raise TaskNotFound(f"the gateway knows no task {task_id}: nothing was changed")
        return seen

    async def _carry_out_decision(self, job: TrackedJob, task_id: str | None, *, buy_again: bool) -> TrackedJob:
        key, before = job.key, job.record.revision
        if task_id is not None:
            try:
                await self._require_task(task_id, job.record, age_s=self._task_age_s(job.record))
            except TaskNotFound as unknown:
                raise unknown.for_job(key, safe_to_repeat=False) from None
        if buy_again and job.record.budget is not None:
            await self._check_budget(job, job.record.budget)
        job = await self._require_job(key)  # another call may have resolved it while the gateway was asked
        if job.record.revision != before:
            raise _changed_error(job.record)
        job = self._engine.resolve(job, task_id=task_id, buy_again=buy_again)
        try:
            while job.record.revision == before:
                await job.wait_for_change()
                if job.wait_error is not None:
                    raise job.wait_error.for_job(key, safe_to_repeat=False)
        except NotOurs:  # another session has resolved it, or ours was taken for dead
            stored = await self._ledger.find(key)
            if stored is not None and stored.revision != before:
                raise _changed_error(stored) from None
            why = f"job {key} is no longer this session's: nothing was changed, resolve it again"
            raise LedgerError(why, key=key, safe_to_repeat=False) from None
        return job

    async def _check_budget(self, job: TrackedJob, name: str) -> None:
        """Raise `CreditLimitReached` if the budget of a job has no room for another purchase of it.

        Before anything is changed, so that the job stays in doubt: its task may still be found. This is no promise:
        another job may take what is left until this one is sent. Then the ledger refuses the create, which is what
        keeps the budget; the job is WITHDRAWN, and what was reserved for its last purchase stays reserved.
        """
        store = self._engine.store
        now, price = store.utcnow(), store.credits.price_of(job)
        for state in await self._ledger.budgets(now, [name]):
            blocked = price.is_estimate and state.reserved > 0
            if blocked or price.credits > state.left:
                counted = state.spent + state.reserved
                why = state.budget.explain_refusal(price, counted, now, blocked=blocked)
                error = CreditLimitReached(f"{why}, or resolve the job as not bought: nothing was changed")
                error.budget, error.left = name, state.left
                raise error.for_job(job.key, safe_to_repeat=True)

    async def _require_job(self, key: str) -> TrackedJob:
        while True:
            job = await self._engine.find(key)
            if job is None:
                raise ConfigurationError(f"no job {key} in the ledger: pass the key of a job that the ledger has")
            if job.phase is not Phase.CLAIMING:
                return job
            await job.wait_for_change()  # a call that generates it is about to learn its state

    async def _query_task(self, task_id: str, record: JobRecord, age_s: float) -> Observation | None:
        """Query a task in the session's task group, so that closing the session ends the waiting."""
        answer: asyncio.Future[Observation | None] = asyncio.get_running_loop().create_future()

        async def ask(_: TaskGroup) -> None:
            try:
                seen = await self._ask_until_sure(task_id, record, age_s)
                if not answer.done():
                    answer.set_result(seen)
            except Exception as error:
                if not answer.done():
                    answer.set_exception(error if isinstance(error, NanoBananaError) else error_of_crash(error))
                if not isinstance(error, NanoBananaError):
                    raise
            except asyncio.CancelledError:
                if not answer.done():
                    answer.set_exception(SessionClosed("the session was closed before the task was confirmed"))
                raise

        self._engine.scheduler.start_background_task(ask)
        return await answer

    async def _ask_until_sure(self, task_id: str, record: JobRecord, age_s: float) -> Observation | None:
        """Query a task until the gateway knows it or must know it; return None if it does not.

        A 404 right after the create may come from a replica that lags, and an outage may pass: both are queried
        again, for as long as a replica may lag.
        """
        began = self._clock()
        wait_s, outage = FIRST_WAIT_S, self._engine.poller.outage
        while True:
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            asked_s = 0.0
            try:
                return await self._engine.poller.query_once(task_id)
            except TaskNotFound:
                if self._clock() - began + age_s >= LATE_REPLICA_S:
                    return None
            except NanoBananaError as error:
                asked_s = min(getattr(error, "retry_after_s", None) or 0.0, MAX_RETRY_AFTER_S)
                passes = is_outage(error) or isinstance(error, RateLimited)
                late = self._clock() + max(wait_s, asked_s) - began >= LATE_REPLICA_S
                if not passes or late or outage.is_hopeless(error):
                    raise
                wait_s = outage.limited_wait_s(error, wait_s)
                outage.report(record, retried=True)
            await anyio.sleep(max(wait_s, asked_s))

    def _task_age_s(self, record: JobRecord) -> float:
        """Return the greatest age that a task of this job can have."""
        return max(0.0, self._engine.store.age_s(record.may_run_since))

    async def _release_ownership(self, key: str) -> None:
        """Let other owners follow a RUNNING job that was not resolved."""
        with anyio.CancelScope(shield=True):
            if key not in self._engine.tracked:
                await self._engine.store.release(key)


def _changed_error(record: JobRecord) -> ConfigurationError:
    return ConfigurationError(
        f"job {record.key} changed to {record.state.value} meanwhile: check it, then resolve it again"
    )
