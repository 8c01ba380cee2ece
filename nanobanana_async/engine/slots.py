"""Count job slots, and decide whether a create may leave: limits, circuit breaker, retry budget."""

import math

from nanobanana_async.engine.create_outage import CreateOutage
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.refused_size import RefusedSize
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.errors import RateLimited
from nanobanana_async.events import LimitsChanged
from nanobanana_async.policy.circuit import CircuitBreaker, CreateSpacing, RetryBudget
from nanobanana_async.policy.concurrency import AnsweredCreate, Load
from nanobanana_async.policy.limiter import AdmissionLimiter
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.policy.session_budget import SessionBudget
from nanobanana_async.policy.shared_limits import SharedLimiter

USABLE_WITHIN_S = 2.0
"""Slots that a session can't use within this time are another's: its next exchange comes about then."""


class Slots:
    """Counts job slots from the POST until the job is known to have ended, and compares them with the learned limit."""

    def __init__(
        self,
        limiter: AdmissionLimiter,
        retry: RetryPolicy,
        estimates: JobEstimates,
        budget: SessionBudget,
        *,
        account: str,
    ) -> None:
        self.limiter = limiter
        self.breaker = CircuitBreaker(retry)
        self.create_outage = CreateOutage(retry, self.breaker)
        self.refused_size = RefusedSize(retry, account)
        self.spacing = CreateSpacing()
        self.retry_budget = RetryBudget()
        self._estimates = estimates
        self.request_budget = budget
        self.held = 0
        """Slots of jobs that were accepted, or may have been, and are not known to have ended."""
        self.foreign = 0
        """Slots of jobs that other owners sent, counted when the session opened, and that may still run."""
        self.slots_in_flight = 0
        """Slots of first creates in flight: they count against the limit, but are not held if a 429 comes."""
        self.creates_in_flight = 0
        """Creates in flight, first ones and repeats."""
        self._sent_alone_at = NEVER
        """When the last create left, if nothing of ours was held or in flight then."""

    def try_admit(self, job: TrackedJob, now: float) -> bool:
        """Return whether this job's create may leave now."""
        if not self.breaker.allows(now, self.creates_in_flight):
            return False
        if not self.spacing.allows(now, self.creates_in_flight, repeat=bool(job.slots)):
            return False
        if job.slots:  # a repeat holds its slots already; it draws from the retry budget if the gateway may be down
            if now < self.request_budget.cap_and_pause_end_at:
                return False
            return not job.rare.spends_retry_budget or self.retry_budget.spend(now)
        if self.refuses(job) and self.load.taken:
            return False
        return self.limiter.admits(now, self.load, job.weight)

    def has_room(self, weight: int, now: float, coming: int) -> bool:
        """Return whether one more first create could leave now, beside creates for `coming` slots."""
        in_flight = self.creates_in_flight + coming
        if not (self.breaker.allows(now, in_flight) and self.spacing.allows(now, in_flight, repeat=False)):
            return False
        return self.limiter.admits(now, Load(self.held + self.foreign, self.slots_in_flight + coming), weight)

    def has_room_for(self, job: TrackedJob, now: float) -> bool:
        """Return whether the create of this job could leave now, and is likely to be accepted."""
        return not self.refuses(job) and self.has_room(job.weight, now, 0)

    def refuses(self, job: TrackedJob) -> bool:
        """Return whether the account refuses jobs of this size while no job of ours is there."""
        return self.refused_size.includes(job)

    def usable(self, queued: int, weight: int, now: float) -> int:
        """Return how many slots so many queued jobs would take soon, as far as caps and breaker let them leave."""
        if now < self.breaker.paused_until:
            return 0
        left = min(
            float(queued),
            self.request_budget.cap_most_requests_within(now, USABLE_WITHIN_S),
            1.0 if self.breaker.is_half_open else math.inf,
        )
        free = self.limiter.job_limit.ceiling - self.load.taken
        return weight * int(min(left, max(free // weight, not self.load.taken)))

    @property
    def load(self) -> Load:
        """What takes up slots."""
        return Load(self.held + self.foreign, self.slots_in_flight)

    @property
    def max_hold_s(self) -> float:
        """The longest time that a job may hold its slots."""
        return self._estimates.max_run_s

    def creates_open_at(self, now: float) -> float:
        """Return when a first create may leave by the passing of time; a past time if other events are awaited."""
        spacing_opens_at = self.spacing.opens_at if self.spacing.active else now
        return max(self.breaker.paused_until, spacing_opens_at, self.limiter.opens_at(now))

    def on_sent(self, job: TrackedJob, now: float) -> None:
        """Record that a create left."""
        self._sent_alone_at = NEVER if self.load.taken or self.creates_in_flight else now
        self.creates_in_flight += 1
        self.retry_budget.earn()
        job.sent_at = now
        if not job.slots:
            self.slots_in_flight += job.weight
            self.limiter.on_sent(now)
        else:
            self.request_budget.count_unpaced(now)

    def on_create_returned(self, job: TrackedJob) -> None:
        """Record that a create is no longer in flight; its outcome is recorded next."""
        self.creates_in_flight -= 1
        if not job.slots:
            self.slots_in_flight -= job.weight

    def hold(self, job: TrackedJob) -> None:
        """Let the job hold its slots: it was accepted, or may have been accepted."""
        if not job.slots:
            job.slots = job.weight
            self.held += job.weight

    def on_foreign_adopted(self, slots: int) -> None:
        """Record that this session adopted a job whose slots were counted in `foreign`."""
        self.foreign = max(0, self.foreign - slots)

    def on_accepted(self, job: TrackedJob, now: float) -> None:
        """Record that the gateway accepted the job."""
        first = not job.slots
        self.request_budget.long_pause.on_answered(job.sent_at)
        self.hold(job)
        if first:  # a repeat may have been accepted long ago, and shows nothing about the limit
            larger_refused = self.limiter.undecided_since == self.refused_size.refused_at
            self.refused_size.accepted(job, self.held)
            if larger_refused and self.refused_size.is_larger_than(job):
                self.limiter.forget_undecided()
            self.limiter.on_accepted(now, AnsweredCreate(job.sent_at, job.weight), self._current_load())

    def on_throttled(self, job: TrackedJob, now: float, error: RateLimited) -> None:
        """Record a 429: too many jobs at once, or too many requests in a time."""
        self.limiter.on_throttled(
            now, AnsweredCreate(job.sent_at, job.weight), self._current_load(), error.kind, error.retry_after_s
        )
        alone = job.sent_at == self._sent_alone_at and not self.load.taken
        rate = "rate" in (error.kind, self.limiter.limit_kind)
        if alone and not rate and not isinstance(self.limiter, SharedLimiter):  # other hosts' jobs are not known then
            self.refused_size.refused(job, error, now, self.limiter.job_limit.mean_job_s)

    def on_ended(self, mean_s: float, delay_s: float) -> None:
        """Record that a job ended, the mean duration of such jobs, and the mean delay of the poll that notices it."""
        self.limiter.job_limit.mean_job_s = mean_s
        self.limiter.job_limit.notice_delay_s = delay_s
        self.limiter.on_ended()

    def snapshot(self, now: float) -> LimitsChanged:
        """Return what is known about the account's limits."""
        pacer = self.limiter.pacer
        return LimitsChanged(
            job_limit=self.limiter.job_limit.cap_in_slots,
            max_creates_per_s=pacer.rate if pacer.is_limited else None,
            limit_kind=self.limiter.limit_kind,
            creates_paused=self.request_budget.long_pause.used_up
            or not self.breaker.allows(now, self.creates_in_flight),
            slots_held=self.held,
            throttled=self.limiter.throttled,
        )

    def release(self, job: TrackedJob) -> None:
        """Release the slots of a job."""
        self.held -= job.slots
        job.slots = 0

    def _current_load(self) -> Load:
        since = self.limiter.undecided_since
        likely_ended = 0.0 if since is None else self._estimates.expected_unnoticed_ends(since)
        return Load(self.held + self.foreign, self.slots_in_flight, likely_ended)
