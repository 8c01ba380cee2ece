"""Job slots: what is held, what may be held, and the gate through which creates leave."""

from collections.abc import Callable

from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import LimitKind
from nanobanana_async.events import LimitsChanged
from nanobanana_async.policy.circuit import CircuitBreaker, RetryBudget
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.limiter import AdmissionLimiter
from nanobanana_async.policy.retry import RetryPolicy


class Slots:
    """Counts job slots from the POST until the job is known to have ended, against what was learned.

    `likely_ends` tells how many of the followed jobs have probably ended, unseen, since a moment.
    """

    def __init__(
        self,
        concurrency: ConcurrencyPolicy,
        retry: RetryPolicy,
        *,
        likely_ends: Callable[[float], float],
    ) -> None:
        self.limiter = AdmissionLimiter(concurrency)
        self.breaker = CircuitBreaker(retry)
        self.retry_budget = RetryBudget()
        self._expected_ended_since = likely_ends
        self.held = 0
        """Weight of jobs accepted, or perhaps accepted, and not known to have ended."""
        self.foreign = 0
        """Jobs of this account that others began, counted when we opened, and not known to have ended."""
        self.weight_in_flight = 0
        """Weight of first sends in flight: they count against the limit, but not as held when a refusal comes."""
        self.creates_in_flight = 0
        """Creates in flight, first sends and repeats."""

    def admits(self, job: TrackedJob, now: float) -> bool:
        """Tell whether this job's create may leave now."""
        if not self.breaker.allows(now, self.creates_in_flight):
            return False
        if job.slots:  # a repeat: it holds its slot, and draws from the budget if it adds to an outage
            return not job.draws_retry_budget or self.retry_budget.draw(now)
        return self.limiter.admits(now, self._taken, self.weight_in_flight, job.weight)

    def opens_at(self, now: float) -> float:
        """When time alone may let a first send leave; in the past if it waits for something else."""
        return max(self.breaker.opens_at, self.limiter.opens_at(now))

    def sent(self, job: TrackedJob, now: float) -> None:
        """Note that a create left."""
        self.creates_in_flight += 1
        self.retry_budget.earn()
        job.sent_at = now
        if not job.slots:
            self.weight_in_flight += job.weight
            self.limiter.sent(now)

    def create_returned(self, job: TrackedJob) -> None:
        """Note that the create is no longer in flight; its outcome is noted next."""
        self.creates_in_flight -= 1
        if not job.slots:
            self.weight_in_flight -= job.weight

    def acquire(self, job: TrackedJob) -> None:
        """Let the job hold its slots: it was accepted, or may have been."""
        if not job.slots:
            job.slots = job.weight
            self.held += job.weight

    def foreign_adopted(self) -> None:
        """Note that a job which counted among those of others is ours now."""
        self.foreign = max(0, self.foreign - 1)

    def on_accepted(self, job: TrackedJob, now: float) -> None:
        """Note that the gateway took the job."""
        first = not job.slots
        self.acquire(job)
        if first:  # a repeat of what was perhaps taken long ago says nothing about the limit
            self.limiter.on_accepted(
                now, job.sent_at, self._taken, self.weight_in_flight, self._likely_ended(), job.weight
            )

    def on_throttled(self, job: TrackedJob, now: float, kind: LimitKind | None, wait_s: float | None) -> None:
        """Note that the gateway refused a job for now: for want of a slot, or for its rate."""
        self.limiter.on_throttled(now, job.sent_at, self._taken, kind, wait_s, self._likely_ended())

    def on_ended(self, mean_s: float, delay_s: float) -> None:
        """Note that a job was seen to have ended, how long jobs take and how late their ends are seen, in the mean."""
        self.limiter.jobs.mean_s = mean_s
        self.limiter.jobs.delay_s = delay_s
        self.limiter.on_ended()

    def snapshot(self, now: float) -> LimitsChanged:
        """Return what is known of the account's limits."""
        pacer = self.limiter.pacer
        return LimitsChanged(
            job_limit=self.limiter.jobs.slots,
            creates_per_s=pacer.rate if pacer.active else None,
            limit_kind=self.limiter.verdict,
            gate_open=self.breaker.allows(now, self.creates_in_flight),
            slots_held=self.held,
            throttled=self.limiter.throttled,
        )

    def release(self, job: TrackedJob) -> None:
        """Give back what the job held."""
        self.held -= job.slots
        job.slots = 0

    @property
    def _taken(self) -> int:
        return self.held + self.foreign

    def _likely_ended(self) -> float:
        since = self.limiter.undecided_since
        return 0.0 if since is None else self._expected_ended_since(since)
