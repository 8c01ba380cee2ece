"""What a create or a query that brought no answer, or a no, means: decided as pure functions."""

import enum

from attrs import define, field, frozen

from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    ConfigurationError,
    GatewayError,
    GatewayUnavailable,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidRequest,
    NanoBananaError,
    PromptBlocked,
    RateLimited,
    SessionClosed,
    TaskNotFound,
    TransportError,
)
from nanobanana_async.validators import DAY_S, at_least_one, switch, within

# A plain no: by status or by the envelope's code inside a 200.
_REFUSALS = (InvalidRequest, AuthenticationError, InsufficientCredits, AccessDenied, TaskNotFound, PromptBlocked)
# Stated trouble of the gateway itself; 502 and 504 come from something in front of it, and tell nothing.
_STATED_TROUBLE = (500, 503)

LATE_REPLICA_S = 30.0  # a 404 right after the create is a replica that lags
LATE_IMAGES_S = 10.0  # `completed` may be seen before the images are

MAX_RETRY_AFTER_S = 120.0


@frozen(kw_only=True)
class RetryPolicy:
    """How long a purchase is tried, and what you are willing to risk.

    Attempts are those that cost one: refusals for want of a slot (429) do not. `retry_uncertain` and
    `retry_unkeyed_5xx` may pay twice on a gateway without idempotency keys; they are yours to choose.
    """

    max_attempts: int = field(default=40, validator=at_least_one)
    max_wait_s: float = field(default=900.0, validator=within(above=0, endless=True))
    first_backoff_s: float = field(default=0.5, validator=within(above=0, most=DAY_S))
    max_backoff_s: float = field(default=30.0, validator=within(above=0, most=DAY_S))
    retry_uncertain: bool = field(default=False, validator=switch)
    retry_unkeyed_5xx: bool = field(default=False, validator=switch)

    def backoff_s(self, attempt: int, jitter: float) -> float:
        """Seconds to wait after the n-th attempt; `jitter` in 0..1 spreads clients over the upper half of the wait."""
        ceiling = min(self.max_backoff_s, self.first_backoff_s * 2.0 ** min(attempt - 1, 30))
        return ceiling * (0.5 + 0.5 * jitter)


class FailureKind(enum.Enum):
    """What the failure of a create says about the job."""

    NOT_SENT = "surely not sent"
    THROTTLED = "refused for now: a slot or the rate"
    REFUSED = "refused for good"
    IN_PROGRESS = "its key is being worked on"
    KEY_TAKEN = "its key was used before, and not by this job"
    SERVER_ERROR = "the gateway says that it is in trouble"
    NO_ANSWER = "nothing usable"


class RetryAction(enum.Enum):
    """What to do with a job whose create brought no task id."""

    REQUEUE = "back to PENDING, wait for a slot"
    REPEAT = "the same bytes again, after a wait"
    REFUSE = "REFUSED"
    PARK = "UNCERTAIN"
    GIVE_UP = "stop trying; nothing was bought"


@frozen(kw_only=True)
class Attempt:
    """What is known of a purchase when one of its creates brought no task id."""

    keyed: bool
    sent_before: bool
    """An earlier create of this generation may have reached the gateway."""
    in_doubt: bool
    """An earlier create may have been accepted."""
    number: int
    """Of the attempts that cost one, this one included."""
    waited_s: float
    key_age_s: float
    """By the wall clock, from the first send."""
    key_lifetime_s: float

    @property
    def key_lives(self) -> bool:
        """Whether a repeat is still recognised; a clock that went backwards proves nothing."""
        return self.keyed and 0 <= self.key_age_s < self.key_lifetime_s


@frozen(kw_only=True)
class RetryDecision:
    """The decision: what was heard, the move, and whether the job is in doubt from now on."""

    kind: FailureKind
    action: RetryAction
    in_doubt: bool = False

    @property
    def costs_attempt(self) -> bool:
        """Whether it counts against `max_attempts`: waiting for a slot, or for a create at work, does not."""
        return _costs_attempt(self.kind)


def classify_failure(error: NanoBananaError, attempt: Attempt) -> FailureKind:
    """Tell what a create's failure says."""
    match error:
        case (
            TransportError(possibly_sent=False) | ConfigurationError() | SessionClosed()
        ):  # the door did not let it out
            return FailureKind.NOT_SENT
        case RateLimited():
            return FailureKind.THROTTLED
        case IdempotencyConflict() if attempt.keyed:
            return FailureKind.IN_PROGRESS if attempt.sent_before else FailureKind.KEY_TAKEN
        case GatewayError() if isinstance(error, _REFUSALS):
            return FailureKind.REFUSED
        case GatewayUnavailable(status=status) if status in _STATED_TROUBLE:
            return FailureKind.SERVER_ERROR
        case _:
            return FailureKind.NO_ANSWER


def _costs_attempt(heard: FailureKind) -> bool:
    return heard not in (FailureKind.THROTTLED, FailureKind.IN_PROGRESS)


def decide_create(error: NanoBananaError, attempt: Attempt, policy: RetryPolicy) -> RetryDecision:
    """Decide what becomes of a job whose create failed so. Doubt is sticky: only a task id ends it."""
    heard = classify_failure(error, attempt)
    if (
        heard is FailureKind.KEY_TAKEN
    ):  # another host bought under the key, or a ledger that was lost: it may be this job
        return RetryDecision(kind=heard, action=RetryAction.PARK, in_doubt=True)
    doubtful = heard in (FailureKind.IN_PROGRESS, FailureKind.SERVER_ERROR, FailureKind.NO_ANSWER)
    if heard is FailureKind.SERVER_ERROR and not attempt.keyed and policy.retry_unkeyed_5xx:
        doubtful = False
    exhausted = attempt.waited_s >= policy.max_wait_s or (
        _costs_attempt(heard) and attempt.number >= policy.max_attempts
    )
    if attempt.in_doubt or doubtful:
        safe = attempt.key_lives if attempt.keyed else policy.retry_uncertain
        return RetryDecision(
            kind=heard, action=RetryAction.REPEAT if safe and not exhausted else RetryAction.PARK, in_doubt=True
        )
    if heard is FailureKind.REFUSED:
        return RetryDecision(kind=heard, action=RetryAction.REFUSE)
    if heard is FailureKind.THROTTLED:
        return RetryDecision(kind=heard, action=RetryAction.REQUEUE)
    hopeless = isinstance(
        error, ConfigurationError
    )  # such as a lent aiohttp session that was closed: waiting is no help
    return RetryDecision(kind=heard, action=RetryAction.GIVE_UP if exhausted or hopeless else RetryAction.REPEAT)


def ends_polling(error: NanoBananaError, running_s: float, job_s: float) -> bool:
    """Tell whether a failed query ends the waiting; the network never does, until `job_s` has passed."""
    if isinstance(error, (AuthenticationError, AccessDenied, ConfigurationError)):
        return True
    if isinstance(error, TaskNotFound):
        return running_s >= LATE_REPLICA_S
    return running_s >= job_s


def is_outage(error: NanoBananaError) -> bool:
    """Tell whether a failure speaks of the gateway or the way to it, and not of the one request."""
    return isinstance(error, GatewayUnavailable) or not isinstance(error, GatewayError)


@define
class CircuitBreaker:
    """Whether requests of one class may leave: closed by Retry-After, and by several failures in a row.

    While failures go on, single probes leave, each after a longer wait; the first success opens it for all.
    """

    policy: RetryPolicy
    tolerated: int = 3
    opens_at: float = 0.0
    failures: int = 0

    def allows(self, now: float, on_wire: int) -> bool:
        """Tell whether one more request may leave while `on_wire` of its class are out."""
        if now < self.opens_at:
            return False
        return not self.half_open or on_wire == 0

    @property
    def half_open(self) -> bool:
        """Whether only single probes may leave."""
        return self.failures >= self.tolerated

    def pause_until(self, now: float, wait_s: float) -> None:
        """Close until the wait that the gateway asked for is over; a hostile one is capped."""
        self.opens_at = max(self.opens_at, now + min(wait_s, MAX_RETRY_AFTER_S))

    def failed(self, now: float, jitter: float) -> None:
        """Count a failure that speaks of an outage."""
        self.failures += 1
        if self.half_open:
            wait_s = self.policy.backoff_s(self.failures - self.tolerated + 1, jitter)
            self.opens_at = max(self.opens_at, now + wait_s)

    def succeeded(self) -> None:
        """Count an answer: whatever it said, the gateway lives."""
        self.failures = 0


@define
class RetryBudget:
    """What repeated creates may cost in all, so that an outage causes little extra load.

    Each request adds a tenth of a repeat, and time a little, so that the last job alone is not stuck for ever.
    """

    tokens: float = 50.0
    capacity: float = 50.0
    per_request: float = 0.1
    per_second: float = 0.1
    updated_at: float = 0.0

    def earn(self) -> None:
        """Count a request that left."""
        self.tokens = min(self.capacity, self.tokens + self.per_request)

    def draw(self, now: float) -> bool:
        """Take what one repeated create costs, if it is there."""
        self.tokens = min(self.capacity, self.tokens + max(0.0, now - self.updated_at) * self.per_second)
        self.updated_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
