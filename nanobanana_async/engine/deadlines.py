"""End the wait for a running job on time, also while its next poll is far away or can't leave.

The last poll is due at the deadline. The wait ends without it if it would come before the time that the gateway asked
for, or has not had its turn soon. The time while a budget of hours or of a day is used up does not count.
"""

from collections.abc import Callable

from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob
from nanobanana_async.errors import JobUnfinished, NanoBananaError
from nanobanana_async.jobs import JobSnapshot, JobState

LAST_POLL_WAIT_S = 1.0
"""How long the last poll may wait for its turn."""
QUEUE_CHECK_S = 10.0
"""How often a queued poll asks whether it is too late. Timers that were replaced stay in memory until they are due."""


class JobDeadlines:
    """When the wait for each running job ends: `job_s` after it began."""

    def __init__(self, job_s: float, clock: Callable[[], float], age_s: Callable[[TrackedJob], float]) -> None:
        self.job_s = job_s
        self._clock = clock
        self._age_s = age_s

    def begin(self, job: TrackedJob) -> None:
        """Let the wait for a running job begin now, if none is under way."""
        if job.followed_since == NOT_YET:
            job.followed_since = self._clock()
        elif job.running_at < NEVER:  # it is bought again perhaps
            job.followed_since = max(job.followed_since, job.running_at)

    def of(self, job: TrackedJob) -> float:
        """Return when the wait ends."""
        return job.followed_since + self.job_s

    def has_come(self, job: TrackedJob) -> bool:
        """Whether the wait ends now, if nothing shows that the job has ended."""
        return self._clock() >= self.of(job) - TICK_S

    def next_check_at(self, job: TrackedJob) -> float:
        """Return when to ask again whether a queued poll is too late."""
        now = self._clock()
        return min(max(now + TICK_S, self.of(job) + LAST_POLL_WAIT_S), now + QUEUE_CHECK_S)

    def overdue_error(self, job: TrackedJob) -> NanoBananaError | None:
        """Return what ends the wait for a job that is not polled in time; None if its wait goes on."""
        if job.record.state is not JobState.RUNNING or not self.has_come(job):
            return None
        if job.phase is Phase.QUEUED and self._clock() < self.of(job) + LAST_POLL_WAIT_S - TICK_S:
            return None
        if job.failures and job.last_failure is not None:
            return job.last_failure.for_job(job.key, safe_to_repeat=False)
        return None if job.phase is Phase.SCHEDULED else self.error(job, "is not known to have ended")

    def error(self, job: TrackedJob, what: str = "still runs") -> JobUnfinished:
        """Return the error of a wait that was too long."""
        message = f"task {job.record.task_id} {what} after {self._age_s(job):.0f} s (Timeouts.job_s); await it again"
        return JobUnfinished(message, job=JobSnapshot.of(job.record), safe_to_repeat=False)
