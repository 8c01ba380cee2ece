"""Poll a running job, and interpret the answer.

A network error never fails a job: polls are repeated, and at last the waiting ends while the record stays RUNNING.
"""

import random
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from typing import TypeVar

import anyio
from attrs import evolve

from nanobanana_async.engine.callback_router import CallbackRouter
from nanobanana_async.engine.contained_send import send_contained
from nanobanana_async.engine.deadlines import JobDeadlines
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.fallback_polling import FallbackPolling
from nanobanana_async.engine.image_poll import ImagePoll
from nanobanana_async.engine.next_step import Finish, Next, ScheduleAt
from nanobanana_async.engine.outage import Outage
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.engine.used_up import UsedUpBudgets
from nanobanana_async.errors import GatewayError, NanoBananaError, RateLimited, UnexpectedResponse
from nanobanana_async.events import LONGEST_STATUS_WORD, JobPolled, PollFailed, UnknownStatus
from nanobanana_async.failures import Failure
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.http.threads import AnswerReader
from nanobanana_async.jobs import JobState, Observation
from nanobanana_async.policy.circuit import CircuitBreaker
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import LATE_IMAGES_S, RetryPolicy, asked_wait_s, ends_polling, is_outage
from nanobanana_async.policy.session_budget import SessionBudget

T = TypeVar("T")

# How many unknown status words are remembered and warned of in a session.
MOST_UNKNOWN_STATUSES = 50


class Poller:
    """Polls jobs. Each poll returns a `Next`."""

    def __init__(
        self,
        gateway: Gateway,
        transport: Transport,
        store: JobStore,
        estimates: JobEstimates,
        polling: PollPolicy,
        retry: RetryPolicy,
        callbacks: CallbackRouter,
        budget: SessionBudget,
        *,
        query_s: float,
        job_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._store = store
        self._estimates = estimates
        self._polling = polling
        self._retry = retry
        self._query_s = query_s
        self._clock = clock
        self.deadlines = JobDeadlines(job_s, clock, lambda job: clock() - self.running_at_of(job))
        self._answers = AnswerReader()
        self.fallback = FallbackPolling(callbacks, self.deadlines, clock)
        self._jitter = random.Random()
        self._warned_statuses: set[str] = set()
        self.breaker = CircuitBreaker(retry)
        self.outage = Outage(store, clock)
        """Shared with the submitter and the resolver."""
        self.used_up_budgets = UsedUpBudgets(store, budget, clock)
        self._budget = budget
        self.polls = self._in_flight = 0

    def admits(self, now: float) -> bool:
        """Return whether one more poll may leave."""
        return self.breaker.allows(now, self._in_flight) and self._budget.admits("poll", now, self._in_flight)

    def opens_at(self) -> float:
        """Return when a poll may leave by the passing of time; a past time if other events are awaited."""
        return max(self.breaker.paused_until, self._budget.opens_at("poll"))

    def on_sent(self, now: float) -> None:
        """Record that a poll left."""
        self._in_flight += 1
        self._budget.on_sent("poll", now)

    async def wait_until_admitted(self, gives_up_at: float = NEVER) -> bool:
        """Wait until a request may leave as polls do, and record that it left; return False if that takes too long."""
        while not self.admits(now := self._clock()):
            if now >= gives_up_at:
                return False
            await anyio.sleep(min(max(self.opens_at() - now, 10 * TICK_S), gives_up_at - now + TICK_S))
        self.on_sent(now)
        return True

    def begin_polling(self, job: TrackedJob) -> float:
        """Begin to poll a RUNNING job; return when its first poll is due."""
        job.schedule = self._estimates.schedule_of(job)
        job.schedule.on_began(job)
        self.deadlines.begin(job)
        job.failures = 0  # until now it counted creates
        job.callback_pending |= self.fallback.take_early_delivery(job.record)
        if self.fallback.waits_for_callback(job):
            return self.fallback.next_check_at(job)
        return job.running_at + job.schedule.next_poll_age_s(0.0)  # an adopted job may have ended long ago

    async def query_once(self, task_id: str) -> Observation:
        """Query a task that need not be a tracked job's. Raises what prevents an answer."""
        while (wait_s := self._budget.cap_wait_s(self._clock())) > 0:  # noqa: ASYNC110 - others may take the turn
            await anyio.sleep(max(wait_s, TICK_S))
        self._budget.count_unpaced(self._clock())
        self.polls += 1
        sent_at = self._clock()
        try:
            seen = await self._query(task_id)
        except NanoBananaError as error:
            self.outage.request_failed(error, sent_at)
            raise
        self.outage.gateway_answered()
        return seen

    def running_at_of(self, job: TrackedJob) -> float:
        """Return when a job from the ledger began to run, in the event loop's time."""
        return self._clock() - max(0.0, self._store.age_s(job.record.may_run_since))

    async def poll(self, job: TrackedJob) -> Next:
        """Poll a job once."""
        job.polls += 1
        job.polled_at = self._clock()
        callback_came, job.callback_pending = job.callback_pending, False
        try:
            seen = await self.run_admitted_request(partial(self._query, job.record.task_id or ""))
        except NanoBananaError as error:
            job.callback_pending |= callback_came  # the callback still needs a poll that is answered
            return self._retry_or_stop(job, error)
        return await self.apply_observation(job, seen, callback_came=callback_came)

    async def poll_images(self, poll: ImagePoll) -> float | None:
        """Poll a task for its images once. Return when to repeat that; None if all waiters have their answer."""
        try:
            seen = await self.run_admitted_request(partial(self._query, poll.task_id))
        except NanoBananaError as error:
            now = self._clock()
            wait_s, job_s = self._retry_wait_s(error, poll.failures + 1), self.deadlines.job_s
            too_late = now + wait_s > poll.since + job_s
            if too_late or ends_polling(error, now - poll.since, job_s) or self.outage.is_hopeless(error):
                poll.finish(error)
                return None
            poll.failures += 1
            return now + wait_s
        why = f"task {poll.task_id} has succeeded, but the gateway no longer returns its images"
        poll.finish(seen if seen.images else UnexpectedResponse(why))
        return None

    async def apply_observation(self, job: TrackedJob, seen: Observation, *, callback_came: bool = False) -> Next:
        """Return what follows from the answer to a poll; `callback_came` says whether a callback had come."""
        job.failures, job.last_failure = 0, None
        self._warn_unknown_status(job, seen)
        age_s = self._clock() - job.running_at
        took_s = seen.duration_s(age_s)
        delay_s = None if took_s is None else max(0.0, age_s - took_s)
        self._store.emit(JobPolled(record=job.record, status=seen.status, polls=job.polls, delay_s=delay_s))
        match seen.state:
            case JobState.SUCCEEDED if seen.images:
                return await self._record_success(job, seen, callback_came)
            case JobState.SUCCEEDED:
                return await self._wait_for_late_images(job, seen, callback_came)
            case JobState.FAILED:
                return await self._record_failure(job, seen, callback_came)
            case _:
                job.on_observed_running(seen.progress)
                return self._schedule_next_poll(job)

    async def run_admitted_request(self, query: Callable[[], Awaitable[T]]) -> T:
        """Make a request that was let leave (`admits`, `on_sent`); breaker and budget learn from its outcome."""
        self.polls += 1
        sent_at = self._clock()
        try:
            answer = await query()
        except NanoBananaError as error:
            now = self._clock()
            self.outage.request_failed(error, sent_at)
            asked = asked_wait_s(error)
            if isinstance(error, RateLimited) and not self.used_up_budgets.pause_if_used_up(error, sent_at):
                self._budget.on_throttled("poll", now, sent_at, asked or None)
                self.breaker.pause_for(now, asked)
            elif isinstance(error, GatewayError) and not isinstance(error, RateLimited):
                self._budget.on_accepted("poll", now, sent_at)
            if is_outage(error) and not self.outage.may_be_hopeless(error):
                self.breaker.on_failed(now, self._jitter.random())
            else:
                self.breaker.on_answered()
            raise
        finally:
            self._in_flight -= 1
        self.breaker.on_answered()
        self.outage.gateway_answered()
        self._budget.on_accepted("poll", self._clock(), sent_at)
        return answer

    async def _query(self, task_id: str) -> Observation:
        response = await send_contained(self._transport, self._gateway.build_query(task_id), timeout_s=self._query_s)
        seen = await self._answers.read(self._gateway.read_query, response)
        if seen.task_id not in (None, task_id):
            raise UnexpectedResponse(
                f"the gateway was asked about task {task_id} and answered about task {seen.task_id}",
                status=response.status,
            )
        return seen

    async def _record_success(self, job: TrackedJob, seen: Observation, callback_came: bool) -> Next:
        job.observation = seen
        # The ledger does not store inline images (data URLs); an empty URL marks the place of one.
        kept = tuple("" if url.startswith("data:") else url for url in seen.images)
        await self._record_end(job, JobState.SUCCEEDED, seen, callback_came, images=kept, missing=seen.missing)
        return Finish()

    async def _record_failure(self, job: TrackedJob, seen: Observation, callback_came: bool) -> Next:
        job.observation = seen
        no_reason = "it ended without an image" if seen.state is JobState.SUCCEEDED else "the gateway gave no reason"
        failure = Failure(
            kind="JobFailed",
            message=seen.error or no_reason,
            code=seen.error_code,
            request_id=seen.request_id or seen.provider_request_id,
            failure_kind=seen.failure_kind,
        )
        await self._record_end(job, JobState.FAILED, seen, callback_came, failure=failure)
        return Finish()

    async def _record_end(
        self, job: TrackedJob, state: JobState, seen: Observation, callback_came: bool, **changes: object
    ) -> None:
        record = job.record
        self.fallback.on_ended(record, callback_came=callback_came)
        if job.schedule is not None:
            age_s = self._clock() - job.running_at
            took_s = seen.duration_s(age_s)
            job.schedule.on_ended(job, age_s, age_s if callback_came and took_s is None else took_s)
        unwritten = await self._store.transition_as_reported(
            job,
            state,
            ended_at=self._store.utcnow(),
            credits_used=record.credits_used if seen.credits_used is None else seen.credits_used,
            credits_refunded=seen.credits_refunded,
            model=seen.model or record.model,
            **changes,
        )
        if unwritten is not None:  # the caller gets the images that were paid for all the same
            self._store.emit(PollFailed(record=job.record, error=unwritten, wait_s=None, polls=job.polls))

    async def _wait_for_late_images(self, job: TrackedJob, seen: Observation, callback_came: bool) -> Next:
        """Wait for late images for a while; then the job has failed, unless there are links that can't be used."""
        now = self._clock()
        since = min(job.rare.first_imageless_at, now)
        job.rare = evolve(job.rare, first_imageless_at=since)
        if now - since < LATE_IMAGES_S:
            return ScheduleAt(now + max(1.0, self._polling.min_gap_s))
        if not seen.missing:
            return await self._record_failure(job, seen, callback_came)
        excerpt = ", ".join(f"{name}={value!r}"[:60] for name, value in islice(seen.raw.items(), 20))[:300]
        reasons = "".join(dict.fromkeys(f"; {why}" for _, why in seen.missing))[:300]
        status = seen.status[:LONGEST_STATUS_WORD]
        error = UnexpectedResponse(f"task {job.record.task_id} is {status} without an image{reasons}", body=excerpt)
        return self._stop_polling(job, error)

    def _schedule_next_poll(self, job: TrackedJob) -> Next:
        if self.deadlines.has_come(job):
            return self._stop_polling(job, self.deadlines.error(job))
        if job.schedule is None:
            return ScheduleAt(self.begin_polling(job))
        job.schedule.on_running(job, age_s := self._clock() - job.running_at)
        if self.fallback.waits_for_callback(job):
            return ScheduleAt(self.fallback.next_check_at(job))
        return ScheduleAt(job.running_at + job.schedule.next_poll_age_s(age_s))

    def end_if_overdue(self, job: TrackedJob) -> Next | None:
        """Return what ends the wait for a job that is not polled in time; None if its wait goes on."""
        if self.used_up_budgets.until is not None and job.record.state is JobState.RUNNING:
            job.followed_since = self._clock()  # its wait counts from the end of the pause
        error = self.deadlines.overdue_error(job)
        return None if error is None else self._stop_polling(job, error)

    def _retry_or_stop(self, job: TrackedJob, error: NanoBananaError) -> Next:
        now = self._clock()
        self.used_up_budgets.report(job, error)
        job.last_failure = error.for_job(job.key, safe_to_repeat=False)  # a copy without its traceback
        ends = self.deadlines.has_come(job) or ends_polling(error, now - job.running_at, NEVER)
        if ends or self.outage.is_hopeless(error):
            return self._stop_polling(job, error)
        self.outage.report(job.record, retried=True)
        job.failures += 1
        wait_s = self._retry_wait_s(error, job.failures)
        self._store.emit(PollFailed(record=job.record, error=error, wait_s=wait_s, polls=job.polls))
        return ScheduleAt(now + wait_s)

    def _retry_wait_s(self, error: NanoBananaError, failures: int) -> float:
        backoff_s = self._retry.backoff_s(failures + 1, self._jitter.random())
        return max(asked_wait_s(error), self.outage.limited_wait_s(error, backoff_s))

    def _stop_polling(self, job: TrackedJob, error: NanoBananaError) -> Next:
        """End the polling and the waiting, not the job."""
        self._store.emit(PollFailed(record=job.record, error=error, wait_s=None, polls=job.polls))
        return Finish(error)

    def _warn_unknown_status(self, job: TrackedJob, seen: Observation) -> None:
        """Emit a status that the reference does not list, once each, and `MOST_UNKNOWN_STATUSES` of them at most."""
        word = seen.status[:LONGEST_STATUS_WORD]
        if seen.known_status or word in self._warned_statuses or len(self._warned_statuses) >= MOST_UNKNOWN_STATUSES:
            return
        self._warned_statuses.add(word)
        self._store.emit(UnknownStatus(record=job.record, status=word))
