"""Find jobs that are larger than their account's limit, let smaller ones go first, and end the wait of the large ones.

A 429 to a create while no job of ours ran, or was on its way, has two explanations: jobs of other clients fill the
account, or its limit is smaller than this job. What becomes of smaller jobs shows which it is. So after such a refusal
of a job of several images, smaller ones go first. One that is accepted shows that the account takes jobs; one that is
refused in the same way shows that it is full, and then the time of the larger one counts from the beginning.

A refused size is tried whenever nothing of ours runs and nothing smaller waits, and otherwise every `TRY_EVERY_MEANS`
mean durations: then smaller jobs wait until the account is empty, which costs them about a tenth of their time. The
wait ends as soon as a refusal comes `RetryPolicy.max_wait_s` after the first, if smaller jobs were accepted meanwhile,
or if jobs of this size take several slots and none was accepted in this session. Else the jobs wait on.
"""

import math

from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob
from nanobanana_async.errors import RateLimited
from nanobanana_async.events import log
from nanobanana_async.policy.retry import RetryPolicy

TRY_EVERY_MEANS = 10.0
"""After so many mean durations a refused size is tried again, also if smaller jobs wait: emptying takes one or two."""
LEAST_TRY_EVERY_S = 30.0
EMPTYING_MEANS = 3.0
"""How long smaller jobs wait at most for the account to be empty: a job in doubt may hold its slots for hours."""
LEAST_REFUSALS = 3
"""So many refusals, over `max_wait_s`, end a wait."""
WARN_AFTER_S = 60.0
WARN_EVERY_S = 600.0


def size_of(job: TrackedJob) -> int:
    """Return what a job counts at most: the account's limit may count images, known or not."""
    request = job.record.request
    return job.weight if request is None else max(job.weight, request.num_images)


class RefusedSize:
    """The smallest size of job that an account has refused while no job of ours was there, and since when."""

    def __init__(self, retry: RetryPolicy, account: str) -> None:
        self._retry, self._account = retry, account
        self._size: float = math.inf
        """In images, or in slots if they are more; infinite while no size is refused."""
        self.refused_at = NOT_YET
        """When the last such refusal came."""
        self._since = NOT_YET
        self._size_refused_at = NOT_YET
        """When a job of just this size was refused last."""
        self._refusals = 0
        self._mean_job_s = 0.0
        self._largest_accepted = 0
        self._most_held = 0
        """The most slots that were held at once since then, less than the size; 0 if no smaller job was accepted."""
        self._error: RateLimited | None = None
        self._try_at = self._try_until = NEVER
        self._warn_at = NOT_YET
        self._check = False
        """The jobs that wait must be checked: their wait may be over."""

    def includes(self, job: TrackedJob) -> bool:
        """Return whether jobs of this size are refused while the account is empty of ours; never of one image."""
        return 1 < self._size < math.inf and size_of(job) >= self._size

    def is_larger_than(self, job: TrackedJob) -> bool:
        """Return whether a size is refused, and the job is smaller."""
        return size_of(job) < self._size < math.inf

    def goes_later(self, job: TrackedJob, now: float) -> bool:
        """Return whether smaller jobs go before this one."""
        if not self.includes(job):
            return False
        if now >= self._try_until:
            self._plan_try(now)
        return now < self._try_at

    def changes_at(self, now: float) -> float:
        """Return when `goes_later` changes by the passing of time."""
        return self._try_at if now < self._try_at else self._try_until

    def accepted(self, job: TrackedJob, held: int) -> None:
        """Record that a first create was accepted; `held` includes its slots."""
        size = size_of(job)
        self._largest_accepted = max(self._largest_accepted, size)
        if size >= self._size:
            self._size, self._error = math.inf, None
        elif self._size < math.inf:
            self._most_held = max(self._most_held, min(held, int(self._size) - 1))

    def refused(self, job: TrackedJob, error: RateLimited, now: float, mean_job_s: float) -> None:
        """Record a 429 to a create that left, and was answered, while no job of ours was there."""
        size = size_of(job)
        # A full account refused one image, and perhaps is full no longer: only smaller jobs than this one can show it.
        outdated = self._size == 1 and now > self._size_refused_at + self._try_every_s
        if (
            size < self._size
            or outdated
            or now > self.refused_at + max(self._retry.max_wait_s, 2.0 * self._try_every_s)
        ):
            self._size, self._since, self._refusals, self._most_held = size, now, 0, 0
        if size == self._size:
            self._size_refused_at = now
        self._refusals += 1
        self.refused_at, self._check = now, True
        self._error = error.for_job("", safe_to_repeat=True)  # a copy without its traceback
        self._mean_job_s = mean_job_s
        self._plan_try(now)
        self._warn(now)

    def expect(self, job: TrackedJob) -> None:
        """Record that a job is ready to be sent."""
        self._check = self._check or self.includes(job)

    def take_check(self, now: float) -> bool:
        """Return whether some of the jobs that wait may have waited too long, once after each reason to ask."""
        check, self._check = self._check, False
        long_enough = self.refused_at >= self._since + self._retry.max_wait_s and self._refusals >= LEAST_REFUSALS
        return check and long_enough and now < self.refused_at + self._try_every_s  # later, a new refusal is needed

    def waited_too_long(self, job: TrackedJob) -> bool:
        """Return whether a job that waits is larger than what its account takes, by all that was seen."""
        unknown = job.weight > 1 and self._largest_accepted < self._size
        return self.includes(job) and (self._most_held > 0 or unknown)

    def end_wait(self, job: TrackedJob) -> RateLimited:
        """Return what ends the wait of a job."""
        assert self._error is not None
        error = self._error.for_job(job.key, safe_to_repeat=True)
        took = (
            f"and took smaller ones, {self._most_held} job slots at most at a time"
            if self._most_held
            else "and took no other: it is full of other clients' jobs, or its limit is smaller"
        )
        size, refused_s = size_of(job), self.refused_at - self._since
        unit = "job slots" if job.record.request is None or job.record.request.num_images < size else "images"
        error.message += (
            f"; this job takes {size} {unit}, and for {refused_s:.0f} s (RetryPolicy.max_wait_s) the account, while no"
            f" job of this session ran there, refused jobs of {self._size} or more {took}"
        )
        error.advice = "ask for fewer images in one job (num_images), or repeat when the account is less busy"
        return error

    @property
    def _try_every_s(self) -> float:
        return min(max(LEAST_TRY_EVERY_S, TRY_EVERY_MEANS * self._mean_job_s), self._retry.max_wait_s / LEAST_REFUSALS)

    def _plan_try(self, now: float) -> None:
        self._try_at = now + self._try_every_s
        self._try_until = self._try_at + max(LEAST_TRY_EVERY_S, EMPTYING_MEANS * self._mean_job_s)

    def _warn(self, now: float) -> None:
        for_s = now - self._since
        if for_s < WARN_AFTER_S or now < self._warn_at:
            return
        self._warn_at = now + WARN_EVERY_S
        log.warning(
            "account.full account=%s for=%.0fs size=%d creates get 429 though no job of this session runs there: other"
            " clients fill the account%s; jobs wait on",
            self._account,
            for_s,
            self._size,
            ", or its limit is smaller than such a job (ask for fewer num_images)" if self._size > 1 else "",
            extra={"event": "account.full", "account": self._account},
        )
