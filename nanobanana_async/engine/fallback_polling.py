"""Plan the polls of jobs whose callback is expected, in case the callback is lost."""

from collections.abc import Callable

from nanobanana_async.engine.callback_urls import CallbackUrls
from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob
from nanobanana_async.jobs import JobRecord, JobState

# A job that waits for its callback is polled once when nearly all others have ended, in case the callback is lost. The
# time is planned again as durations are learned, and is never later than a minute after it began or was polled.
REPLAN_S = 5.0
SHORTEST_FALLBACK_S = 5.0
LONGEST_FALLBACK_S = 60.0

# A job whose callback is lost holds its slot too long. Above this share of lost callbacks, jobs are polled as usual.
STOP_RELYING_ABOVE = 0.2
RELY_AGAIN_BELOW = 0.05
LOSS_SMOOTHING = 0.1

# A job is polled at most once in this time, however many callbacks come.
CALLBACK_POLL_GAP_S = 1.0


class FallbackPolling:
    """Plans the polls of jobs with a callback, and counts the callbacks that never came."""

    def __init__(self, callbacks: CallbackUrls, clock: Callable[[], float]) -> None:
        self._callbacks = callbacks
        self._clock = clock
        self._opened_at = clock()
        self._relies = True
        self._lost = 0.0
        """The recent share of callbacks that never came."""

    def waits_for_callback(self, job: TrackedJob) -> bool:
        """Whether the job waits for its callback instead of being polled as usual."""
        # The callback of a job that began before this session may have come when no session was open.
        older = job.polled_at == NOT_YET and job.running_at < self._opened_at
        return not older and self._relies and self._callbacks.is_expected_for(job.record)

    def next_check(self, job: TrackedJob) -> float:
        """Return when to poll a job that waits for its callback, or to plan its poll again."""
        return min(self._fallback(job), self._clock() + REPLAN_S)

    def due_after_callback(self, job: TrackedJob, due: float) -> float:
        """Return when a job is due: earlier than `due` if a callback came for it."""
        # A poll that failed is repeated after its backoff, even if callbacks come.
        called = job.callback_pending and job.record.state is JobState.RUNNING and not job.failures
        return min(due, job.polled_at + CALLBACK_POLL_GAP_S) if called else due

    def too_early(self, job: TrackedJob) -> bool:
        """Whether a due job is not polled yet, because its callback is expected."""
        in_trouble = job.failures > 0 or job.first_imageless_at < NEVER
        waits = self.waits_for_callback(job) and not job.callback_pending and not in_trouble
        return waits and self._fallback(job) > self._clock() + TICK_S

    def on_ended(self, record: JobRecord, *, called: bool) -> None:
        """Record that a job ended, and whether its callback had come."""
        if self._callbacks.is_expected_for(record):
            self._lost += LOSS_SMOOTHING * ((not called) - self._lost)
            self._relies = self._lost < (STOP_RELYING_ABOVE if self._relies else RELY_AGAIN_BELOW)

    def _fallback(self, job: TrackedJob) -> float:
        late_s = 0.0
        if job.schedule is not None:
            job.schedule.learn()
            late_s = job.schedule.p99_s
        if job.polled_at < job.running_at:
            return job.running_at + min(late_s, LONGEST_FALLBACK_S)
        return job.polled_at + min(max(late_s / 2, SHORTEST_FALLBACK_S), LONGEST_FALLBACK_S)
