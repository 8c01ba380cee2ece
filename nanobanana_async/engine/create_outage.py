"""End the wait of jobs that can't be sent because the creates of their account fail, on time: `RetryPolicy.max_wait_s`.

The wait counts from the first of the failures in a row, or from when a job was ready to be sent if that was later. One
last create leaves when it is over. What that one's answer shows holds for all jobs that wait to be sent, since each
create that fails lets only one other leave: most of them were never sent themselves. Time in which no create left is
not counted, because jobs waited for slots then. A create in doubt is not ended here: only its repeat shows its task.
"""

from collections.abc import Iterable

from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob
from nanobanana_async.errors import NanoBananaError, TransportError
from nanobanana_async.policy.circuit import CircuitBreaker
from nanobanana_async.policy.retry import RetryPolicy

LAST_CREATE_S = 5.0
"""How long the answer to the last create may take."""
TURN_S = 0.1
"""How long after the end of the wait the last create may leave."""


class CreateOutage:
    """Since when the creates of an account fail, and which jobs have waited too long for that to end."""

    def __init__(self, retry: RetryPolicy, breaker: CircuitBreaker) -> None:
        self._retry, self._breaker = retry, breaker
        self._error: NanoBananaError | None = None
        """Why the last create failed; None while creates are answered."""
        self._since = self._failed_at = self._check_at = NEVER

    def answered(self) -> None:
        """Record that a create was answered, if only with an error of its own."""
        self._breaker.on_answered()
        self._error, self._since, self._check_at = None, NEVER, NEVER

    def failed(self, job: TrackedJob, error: NanoBananaError, now: float, jitter: float) -> None:
        """Record that the create of a job had no usable answer, which pauses all creates."""
        if self._error is None or self._shows_nothing_of_before(job):
            self._since = now
            self._check_at = now + self._retry.max_wait_s + TURN_S
        self._error, self._failed_at = error.for_job("", safe_to_repeat=True), now  # a copy without its traceback
        paused, last_create_at = self._breaker.paused_until, self._since + self._retry.max_wait_s + TICK_S
        self._breaker.on_failed(now, jitter)
        if now < last_create_at:
            self._breaker.paused_until = max(paused, min(self._breaker.paused_until, last_create_at))

    def waited_s(self, job: TrackedJob, now: float) -> float:
        """Return for how long a job, whose create has just failed, could not be sent because creates fail."""
        if self._error is None or self._shows_nothing_of_before(job):
            return 0.0
        return now - self._began(job)

    def limited_wait_s(self, job: TrackedJob, wait_s: float, now: float) -> float:
        """Return how long a job waits for its next create: not beyond the end of its wait."""
        return min(wait_s, max(0.0, self._retry.max_wait_s - self.waited_s(job, now)) + TICK_S)

    def expect(self, job: TrackedJob, now: float) -> None:
        """Record that a job is ready to be sent."""
        if self._error is None:
            return
        if job.ready_at == NOT_YET and job.first_attempt_at == NEVER:
            job.ready_at = now
        self._check_at = min(self._check_at, self._ends_at(job))

    def overdue(
        self, waiting: Iterable[TrackedJob], now: float, creates_in_flight: int
    ) -> tuple[list[TrackedJob], float]:
        """Return which of the jobs that wait to be sent have waited too long, and when to ask again."""
        if self._error is None:
            return [], NEVER
        grace_s = 0.0
        if now >= self._breaker.paused_until:
            if not (creates_in_flight and self._breaker.is_half_open):
                return [], self._check_at if self._check_at > now else NEVER  # creates may leave
            grace_s = LAST_CREATE_S
        if now < self._check_at + grace_s:
            return [], self._check_at + grace_s
        overdue: list[TrackedJob] = []
        self._check_at = NEVER
        for job in waiting:
            ends_at = self._ends_at(job)
            if now >= ends_at + grace_s:
                overdue.append(job)
            else:
                self._check_at = min(self._check_at, ends_at)
        return overdue, self._check_at + grace_s

    def end_wait(self, job: TrackedJob) -> NanoBananaError:
        """Return what ends the wait of a job: the last failure of a create. With another account the wait goes on."""
        assert self._error is not None
        job.ready_at, job.first_attempt_at, job.failures = self._began(job), NEVER, 0
        error = self._error.for_job(job.key, safe_to_repeat=True)
        error.message += f"; not sent for {self._retry.max_wait_s:g} s (RetryPolicy.max_wait_s)"
        if isinstance(error, TransportError):
            error.possibly_sent = False  # it may be the failure of another job's create
        else:
            error.advice = "wait, then repeat"
        return error

    def _began(self, job: TrackedJob) -> float:
        return max(job.ready_at, self._since)

    def _ends_at(self, job: TrackedJob) -> float:
        return self._began(job) + self._retry.max_wait_s + TURN_S

    def _shows_nothing_of_before(self, job: TrackedJob) -> bool:
        """Whether no create left for so long, while one could, that the gateway may have been well meanwhile."""
        last = max(self._failed_at, self._breaker.paused_until)
        return job.sent_at > last + 2.0 * self._retry.max_backoff_s
