"""Protect a gateway in trouble: the circuit breaker pauses requests, the retry budget bounds repeated creates."""

from attrs import define

from nanobanana_async.errors import MAX_RETRY_AFTER_S
from nanobanana_async.policy.reconcile import ROUNDING_S
from nanobanana_async.policy.retry import RetryPolicy


@define
class CircuitBreaker:
    """Pauses one class of requests (creates or polls) after `Retry-After` or several failures in a row.

    While failures continue the breaker is half-open: one probe at a time leaves, each after a longer backoff. The
    first answer ends that. An answer does not shorten a pause that `Retry-After` asked for.
    """

    policy: RetryPolicy
    tolerated_failures: int = 3
    """The number of failures in a row that makes the breaker half-open."""
    paused_until: float = 0.0
    """When requests may leave again."""
    failures: int = 0
    """Failures since the last answer."""

    def allows(self, now: float, in_flight: int) -> bool:
        """Return whether one more request may leave while `in_flight` of its class have no answer yet."""
        if now < self.paused_until:
            return False
        return not self.is_half_open or in_flight == 0

    @property
    def is_half_open(self) -> bool:
        """Whether only single probes may leave."""
        return self.failures >= self.tolerated_failures

    def pause_for(self, now: float, wait_s: float) -> None:
        """Pause for the seconds that the gateway asked for, at most `MAX_RETRY_AFTER_S`."""
        self.paused_until = max(self.paused_until, now + min(wait_s, MAX_RETRY_AFTER_S))

    def on_failed(self, now: float, jitter: float) -> None:
        """Count a failure for which `is_outage` is true."""
        self.failures += 1
        if self.is_half_open:
            wait_s = self.policy.backoff_s(self.failures - self.tolerated_failures + 1, jitter)
            self.paused_until = max(self.paused_until, now + wait_s)

    def on_answered(self) -> None:
        """Count an answer. An error answer counts too: it shows that the gateway responds."""
        self.failures = 0


@define
class CreateSpacing:
    """Keeps the times apart in which creates with lost answers may have been processed.

    Where a gateway answers a repeat with 409 and does not name the task, only those times say which task is whose. So
    from the first lost answer on, creates leave one at a time, and none leaves while a lost one may still be processed,
    until the gateway answers a repeat with its task. Repeats leave at once: their answers say whether that is needed.
    """

    active: bool = False
    opens_at: float = 0.0
    _names_task: bool | None = None

    def allows(self, now: float, in_flight: int, *, repeat: bool) -> bool:
        """Return whether a create may leave while `in_flight` creates have no answer yet."""
        return not self.active or (in_flight == 0 and (repeat or now >= self.opens_at))

    def on_answer_lost(self, now: float, lateness_s: float) -> None:
        """Record that a create in doubt may have been processed until now, and may be for a little longer."""
        self.active = self.active or self._names_task is None
        self.opens_at = now + lateness_s + ROUNDING_S

    def on_repeat_answered(self, *, named_task: bool) -> None:
        """Record whether the answer to the repeat of a processed create named the task."""
        self._names_task, self.active = named_task, not named_task

    def release(self) -> None:
        """Keep nothing apart until another answer is lost."""
        self.active = False

    def disable(self) -> None:
        """Keep nothing apart from now on: no history can be read that would show whose a task is."""
        self._names_task, self.active = True, False


@define
class RetryBudget:
    """A token bucket for repeated creates, so that an outage causes little extra load.

    A repeated create costs one token. Each request earns a tenth, so that repeats stay near 10 % of the traffic, as in
    the retry budget of Google's SRE book. Time earns a little as well: otherwise the last job of a session, with no
    other requests beside it, could wait for ever.
    """

    tokens: float = 50.0
    capacity: float = 50.0
    per_request: float = 0.1
    per_second: float = 0.1
    updated_at: float = 0.0

    def earn(self) -> None:
        """Count a request that left."""
        self.tokens = min(self.capacity, self.tokens + self.per_request)

    def spend(self, now: float) -> bool:
        """Take the token for one repeated create; return False if there is none."""
        self.tokens = min(self.capacity, self.tokens + max(0.0, now - self.updated_at) * self.per_second)
        self.updated_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
