"""The life after the purchase: one look at a job, and what it means.

The network never fails a job. What ends the waiting leaves the record RUNNING, to be followed again.
"""

import random
from collections.abc import Callable
from itertools import islice

from nanobanana_async.engine.contained_send import send_contained
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob
from nanobanana_async.errors import MAX_RETRY_AFTER_S, NanoBananaError, RateLimited, UnexpectedResponse
from nanobanana_async.events import LONGEST_WORD, JobPolled, PollFailed, UnknownStatus
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.http.threads import AnswerReader
from nanobanana_async.jobs import Failure, JobRecord, JobState, Observation
from nanobanana_async.policy.circuit import CircuitBreaker
from nanobanana_async.policy.durations import Durations
from nanobanana_async.policy.poll_schedule import PollSchedule
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.rate import Pacer
from nanobanana_async.policy.retry import (
    LATE_IMAGES_S,
    RetryPolicy,
    ends_polling,
    is_outage,
)

# A gateway that says something else each time is warned of so often in a session, and remembered no further.
MOST_STRANGE_WORDS = 50


class JobOverdue(NanoBananaError):
    """A job still runs after `Timeouts.job_s`. Waiters get a `JobUnfinished` with this message and their `Job`."""


class Poller:
    """Looks at one job at a time, and says when to look again."""

    def __init__(
        self,
        gateway: Gateway,
        transport: Transport,
        books: JobStore,
        polling: PollPolicy,
        retry: RetryPolicy,
        *,
        query_s: float,
        job_s: float,
        clock: Callable[[], float],
        is_called_back: Callable[[JobRecord], bool],
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._store = books
        self._polling = polling
        self._retry = retry
        self._query_s = query_s
        self.job_s = job_s
        self._clock = clock
        self._answers = AnswerReader()
        self.fallback = FallbackPolling(is_called_back, clock)
        self._jitter = random.Random()
        self._warned_statuses: set[str] = set()
        self._schedules: dict[str, PollSchedule[TrackedJob]] = {}
        self.breaker = CircuitBreaker(retry)
        self.pacer = Pacer()
        self.polls = 0
        self._in_flight = 0

    def admits(self, now: float) -> bool:
        """Tell whether one more query may leave."""
        return self.breaker.allows(now, self._in_flight) and self.pacer.admits(now, self._in_flight)

    def opens_at(self) -> float:
        """When time alone lets a query leave; in the past if it waits for something else."""
        return max(self.breaker.opens_at, self.pacer.next_at)

    def sent(self, now: float) -> None:
        """Note that a query left."""
        self._in_flight += 1
        self.pacer.sent(now)

    def begin(self, entry: TrackedJob) -> float:
        """Begin to follow a job that runs; return when to look at it first."""
        entry.schedule = self._schedule_of(entry)
        entry.schedule.began(entry)
        entry.followed_since = self._clock()
        entry.failures = 0  # those of its creates
        if self.fallback.waits_for_callback(entry):
            return self.fallback.next_check(entry)
        return entry.running_at + entry.schedule.next_poll_s(0.0)  # a job found again may long have ended

    async def query_once(self, task_id: str) -> Observation:
        """Ask about a task that may be ours; whatever prevents an answer is raised."""
        self.polls += 1
        return await self._query(task_id)

    def end(self, entry: TrackedJob) -> None:
        """Let go of a job."""
        if entry.schedule is not None:
            entry.schedule.forget(entry)

    def ended_probability(self, entry: TrackedJob) -> float:
        """Return what a look at this job is worth now: how likely it has ended since the last one."""
        return (
            0.0 if entry.schedule is None else entry.schedule.ended_probability(entry, self._clock() - entry.running_at)
        )

    def expected_ended_since(self, since: float) -> float:
        """Return how many of the followed jobs have probably ended, unseen, since a moment."""
        now = self._clock()
        return sum(
            schedule.ended_chance(max(seen_s, since - entry.running_at), now - entry.running_at)
            for schedule in self._schedules.values()
            for entry, seen_s in schedule.running()
        )

    def may_run_for_s(self, entry: TrackedJob) -> float:
        """Return how long a job that was perhaps bought may still run."""
        return min(self.job_s, self._schedule_of(entry).p99_s)

    @property
    def longest_s(self) -> float:
        """How long a job of whatever class may still run."""
        classes = (self._schedule(""), *self._schedules.values())
        return min(self.job_s, max(schedule.p99_s for schedule in classes))

    def mean_s(self, entry: TrackedJob) -> float:
        """Return how long jobs like this one take, in the mean."""
        return self._schedule_of(entry).mean_s

    @property
    def best_known(self) -> Durations | None:
        """What was learned about the class of jobs that was seen most."""
        for schedule in self._schedules.values():
            schedule.learn()
        known = [schedule.durations for schedule in self._schedules.values() if schedule.durations.count]
        return max(known, key=lambda durations: durations.count, default=None)

    def _schedule_of(self, entry: TrackedJob) -> PollSchedule[TrackedJob]:
        request = entry.record.request
        return self._schedule("" if request is None else self._gateway.price_class(request))

    def _schedule(self, name: str) -> PollSchedule[TrackedJob]:
        schedule = self._schedules.get(name)
        if schedule is None:
            # A class never seen is taken to be like the one that was seen most.
            learned = self.best_known
            expected_s = self._gateway.expected_job_s if learned is None else learned.median_s
            schedule = self._schedules[name] = PollSchedule(self._polling, Durations(expected_s))
        return schedule

    def running_since(self, entry: TrackedJob) -> float:
        """The loop's time at which a job that was found in the ledger began to run."""
        return self._clock() - max(0.0, self._store.age_s(entry.record.may_run_since))

    async def poll(self, entry: TrackedJob) -> float:
        """Ask the gateway once; return when the job is due again."""
        entry.polls += 1
        self.polls += 1
        entry.polled_at = sent_at = self._clock()
        called, entry.callback_pending = entry.callback_pending, False
        try:
            seen = await self._query(entry.record.task_id or "")
        except NanoBananaError as error:
            entry.callback_pending = entry.callback_pending or called  # it is still to be confirmed
            return self._poll_failed(entry, error, sent_at)
        finally:
            self._in_flight -= 1
        self.breaker.succeeded()
        self.pacer.on_accepted(self._clock(), sent_at)
        entry.failures = 0
        self._warn_unknown_status(entry, seen)
        age_s = self._clock() - entry.running_at
        took_s = None if entry.fetching_images else seen.duration_s(age_s)
        delay_s = None if took_s is None else max(0.0, age_s - took_s)
        self._store.emit(JobPolled(record=entry.record, status=seen.status, polls=entry.polls, delay_s=delay_s))
        if entry.fetching_images:
            return self._images_fetched(entry, seen)
        match seen.state:
            case JobState.SUCCEEDED if seen.images:
                return await self._succeeded(entry, seen, called)
            case JobState.SUCCEEDED:
                return self._ended_without_image(entry, seen)
            case JobState.FAILED:
                return await self._failed(entry, seen, called)
            case _:
                return self._still_running(entry)

    async def _query(self, task_id: str) -> Observation:
        response = await send_contained(self._transport, self._gateway.build_query(task_id), timeout_s=self._query_s)
        seen = await self._answers.read(self._gateway.read_query, response)
        if seen.task_id not in (None, task_id):
            raise UnexpectedResponse(f"asked about {task_id}, told about {seen.task_id}", status=response.status)
        return seen

    async def _succeeded(self, entry: TrackedJob, seen: Observation, called: bool) -> float:
        entry.observation = seen
        # Pictures that came inline are kept out of the ledger: an empty place says that one was here.
        kept = tuple("" if url.startswith("data:") else url for url in seen.images)
        await self._record_end(entry, JobState.SUCCEEDED, seen, called, images=kept, missing=seen.missing)
        return NEVER

    def _images_fetched(self, entry: TrackedJob, seen: Observation) -> float:
        if not seen.images:
            error = f"task {entry.record.task_id} has succeeded, but the gateway no longer shows its pictures"
            return self._stop(entry, UnexpectedResponse(error))
        entry.fetching_images, entry.observation = False, seen
        entry.wake()
        return NEVER

    async def _failed(self, entry: TrackedJob, seen: Observation, called: bool) -> float:
        entry.observation = seen
        failure = Failure(
            kind="JobFailed", message=seen.error or "the gateway gave no reason", request_id=seen.request_id
        )
        await self._record_end(entry, JobState.FAILED, seen, called, failure=failure)
        return NEVER

    async def _record_end(
        self, entry: TrackedJob, state: JobState, seen: Observation, called: bool, **facts: object
    ) -> None:
        record = entry.record
        self.fallback.ended(record, called=called)
        if entry.schedule is not None:
            age_s = self._clock() - entry.running_at
            took_s = seen.duration_s(age_s)
            entry.schedule.on_ended(entry, age_s, age_s if called and took_s is None else took_s)
        unwritten = await self._store.record_known(
            entry,
            state,
            ended_at=self._store.utcnow(),
            credits_used=record.credits_used if seen.credits_used is None else seen.credits_used,
            credits_refunded=seen.credits_refunded,
            model=seen.model or record.model,
            **facts,
        )
        if unwritten is not None:  # what was paid for is handed over all the same
            self._store.emit(PollFailed(record=entry.record, error=unwritten, wait_s=None, polls=entry.polls))

    def _ended_without_image(self, entry: TrackedJob, seen: Observation) -> float:
        now = self._clock()
        entry.first_imageless_at = min(entry.first_imageless_at, now)
        if now - entry.first_imageless_at < LATE_IMAGES_S:
            return now + max(1.0, self._polling.min_gap_s)
        excerpt = ", ".join(f"{name}={value!r}"[:60] for name, value in islice(seen.raw.items(), 20))[:300]
        reasons = "".join(dict.fromkeys(f"; {why}" for _, why in seen.missing))[:300]
        status = seen.status[:LONGEST_WORD]
        error = UnexpectedResponse(f"task {entry.record.task_id} is {status} without an image{reasons}", body=excerpt)
        return self._stop(entry, error)

    def _still_running(self, entry: TrackedJob) -> float:
        age_s = self._clock() - entry.running_at
        if age_s >= self._deadline_s(entry):
            message = f"task {entry.record.task_id} still runs after {age_s:.0f} s (Timeouts.job_s); await it again"
            return self._stop(entry, JobOverdue(message, safe_to_repeat=False))
        if entry.schedule is None:
            return self.begin(entry)
        entry.schedule.on_running(entry, age_s)
        if self.fallback.waits_for_callback(entry):
            return self.fallback.next_check(entry)
        return entry.running_at + entry.schedule.next_poll_s(age_s)

    def _deadline_s(self, entry: TrackedJob) -> float:
        """Return the age at which waiting ends: `job_s` after polling last began."""
        return self.job_s + max(0.0, entry.followed_since - entry.running_at)

    def _poll_failed(self, entry: TrackedJob, error: NanoBananaError, sent_at: float) -> float:
        now = self._clock()
        asked = min(getattr(error, "retry_after_s", None) or 0.0, MAX_RETRY_AFTER_S)
        if isinstance(error, RateLimited):
            self.pacer.on_throttled(now, sent_at, asked or None)
            self.breaker.pause_until(now, asked)
        if is_outage(error):
            self.breaker.failed(now, self._jitter.random())
        else:
            self.breaker.succeeded()
        if ends_polling(error, now - entry.running_at, self._deadline_s(entry)):
            return self._stop(entry, error)
        entry.failures += 1
        wait_s = max(asked, self._retry.backoff_s(entry.failures + 1, self._jitter.random()))
        self._store.emit(PollFailed(record=entry.record, error=error, wait_s=wait_s, polls=entry.polls))
        return now + wait_s

    def _stop(self, entry: TrackedJob, error: NanoBananaError) -> float:
        """End the waiting, not the job."""
        self._store.emit(PollFailed(record=entry.record, error=error, wait_s=None, polls=entry.polls))
        entry.fetching_images, entry.wait_error = False, error
        entry.wake()
        return NEVER

    def _warn_unknown_status(self, entry: TrackedJob, seen: Observation) -> None:
        """Tell of a status word that the reference does not list: once, and of so many words at most."""
        word = seen.status[:LONGEST_WORD]
        if seen.known_status or word in self._warned_statuses or len(self._warned_statuses) >= MOST_STRANGE_WORDS:
            return
        self._warned_statuses.add(word)
        self._store.emit(UnknownStatus(record=entry.record, status=word))


# A job of which a callback will tell is looked at once when nearly all others have ended, in case the call is lost:
# planned anew as durations are learned, and never later than a minute after it began or was seen.
REPLAN_S = 5.0
SHORTEST_FALLBACK_S = 5.0
LONGEST_FALLBACK_S = 60.0

# Where calls are lost, a job that waits for its own sits on a slot: then jobs are looked at as if there were none.
STOP_RELYING_ABOVE = 0.2
RELY_AGAIN_BELOW = 0.05
LOSS_SMOOTHING = 0.1


class FallbackPolling:
    """Plans the looks at jobs that will be called back, and counts the calls that never came."""

    def __init__(self, is_called_back: Callable[[JobRecord], bool], clock: Callable[[], float]) -> None:
        self._is_called_back = is_called_back
        self._clock = clock
        self._opened_at = clock()
        self._relies = True
        self._lost = 0.0
        """The share of callbacks that never came, of late."""

    def waits_for_callback(self, entry: TrackedJob) -> bool:
        """Tell whether a callback is waited for, rather than asking."""
        # Of a job that began before this session the call may have come when nobody was there.
        missed = entry.polled_at == NOT_YET and entry.running_at < self._opened_at
        return not missed and self._relies and self._is_called_back(entry.record)

    def next_check(self, entry: TrackedJob) -> float:
        """Return when to look at such a job, or to plan that anew."""
        return min(self._fallback(entry), self._clock() + REPLAN_S)

    def too_early(self, entry: TrackedJob) -> bool:
        """Whether a job that is due need not be looked at yet: a call will tell of it."""
        in_trouble = entry.failures > 0 or entry.first_imageless_at < NEVER
        waits = self.waits_for_callback(entry) and not entry.callback_pending and not in_trouble
        return waits and self._fallback(entry) > self._clock() + TICK_S

    def ended(self, record: JobRecord, *, called: bool) -> None:
        """Note that a job was seen to have ended, and whether a call had told of it."""
        if self._is_called_back(record):
            self._lost += LOSS_SMOOTHING * ((not called) - self._lost)
            self._relies = self._lost < (STOP_RELYING_ABOVE if self._relies else RELY_AGAIN_BELOW)

    def _fallback(self, entry: TrackedJob) -> float:
        late_s = 0.0
        if entry.schedule is not None:
            entry.schedule.learn()
            late_s = entry.schedule.p99_s
        if entry.polled_at < entry.running_at:
            return entry.running_at + min(late_s, LONGEST_FALLBACK_S)
        return entry.polled_at + min(max(late_s / 2, SHORTEST_FALLBACK_S), LONGEST_FALLBACK_S)
