"""Decide what to do after a failed create or poll, with pure functions."""

import enum

from attrs import field, frozen

from nanobanana_async.errors import (
    MAX_RETRY_AFTER_S,
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
    UnexpectedResponse,
)
from nanobanana_async.misspelt import by_name
from nanobanana_async.validators import DAY_S, at_least_one, validate_switch, within

# Final refusals, by status or by the code of an error envelope inside a 200.
_REFUSAL_ERRORS = (InvalidRequest, AuthenticationError, InsufficientCredits, AccessDenied, TaskNotFound, PromptBlocked)
# Errors of the gateway itself. A 502 or 504 comes from a proxy, so the create may or may not have reached the gateway.
_GATEWAY_ERROR_STATUSES = (500, 503)

# Without the gateway's envelope: the server has no such path or method, or sends the request to another URL.
_WRONG_PATH_STATUSES = (301, 307, 308, 404, 405, 501)

LATE_REPLICA_S = 30.0
"""How long after the create a 404 may come from a replica of the gateway's database that lags behind."""
LATE_IMAGES_S = 10.0
"""How long a task may be `completed` before its images appear in the answer."""


@by_name
@frozen(kw_only=True)
class RetryPolicy:
    """How long a create is retried, and which risks are accepted.

    `max_attempts` does not count 429s: waiting for a job slot costs no attempt.

    A job that can't be sent because all creates of its account fail ends its wait after `max_wait_s` with the last
    failure, unbought, whether it was tried itself or not. Waiting for a slot does not count, but a job that is larger
    than its account's limit ends after `max_wait_s` of 429s, too. A create in doubt is repeated for longer: its wait
    ends with its first repeat that fails `max_wait_s` after its first attempt.

    On a gateway without idempotency keys `retry_uncertain` and `retry_unkeyed_5xx` may pay twice for one job, so both
    are off by default.
    """

    max_attempts: int = field(default=40, validator=at_least_one)  # of one create; 429s do not count
    max_wait_s: float = field(default=900.0, validator=within(above=0, endless=True))  # for an outage to end
    first_backoff_s: float = field(default=0.5, validator=within(above=0, most=DAY_S))  # it doubles with each attempt
    max_backoff_s: float = field(default=30.0, validator=within(above=0, most=DAY_S))  # where the doubling ends
    retry_uncertain: bool = field(default=False, validator=validate_switch)  # True: may pay twice
    retry_unkeyed_5xx: bool = field(default=False, validator=validate_switch)  # True: may pay twice

    def backoff_s(self, attempt: int, jitter: float) -> float:
        """Return the seconds to wait after the n-th attempt.

        `jitter`, from 0 to 1, spreads clients over the upper half of a ceiling that doubles with each attempt.
        """
        ceiling = min(self.max_backoff_s, self.first_backoff_s * 2.0 ** min(attempt - 1, 30))
        return ceiling * (0.5 + 0.5 * jitter)


class FailureKind(enum.Enum):
    """What the failure of a create means for the job."""

    NOT_SENT = "nothing reached the gateway"
    THROTTLED = "429: no job slot, or too many requests"
    REFUSED = "refused for good"
    IN_PROGRESS = "409: an earlier create with this key is still processed"
    KEY_TAKEN = "409: the key was used before, by a create that this ledger does not know"
    SERVER_ERROR = "500 or 503 from the gateway itself"
    NO_ANSWER = "no usable answer"


class RetryAction(enum.Enum):
    """What to do with a job whose create returned no task id."""

    REQUEUE = "back to PENDING, to wait for a slot"
    REPEAT = "send the same bytes again, after a wait"
    REFUSE = "make the job REFUSED"
    PARK = "make the job UNCERTAIN"
    GIVE_UP = "stop; a job that is not in doubt was not bought"


@frozen(kw_only=True)
class Attempt:
    """What is known about a generation when one of its creates returned no task id."""

    keyed: bool
    sent_before: bool
    """An earlier create of this generation may have reached the gateway."""
    in_doubt: bool
    """An earlier create may have been accepted."""
    number: int
    """The number of attempts that count, including this one."""
    waited_s: float
    """Seconds since its first attempt: how long a create in doubt is repeated."""
    key_age_s: float
    """Seconds since the first send, by the wall clock."""
    key_lifetime_s: float
    outage_s: float = 0.0
    """Seconds that the job could not be sent because all creates of its account fail, one after another."""
    never_answered: bool = False
    """The gateway has never answered in this session: another server may stand at its address."""
    hopeless: bool = False
    """The failure lasts as long as the settings stay the same, and enough was tried."""

    @property
    def is_key_alive(self) -> bool:
        """Whether the gateway still recognises a repeat; False if the wall clock went backwards."""
        return self.keyed and 0 <= self.key_age_s < self.key_lifetime_s


@frozen(kw_only=True)
class RetryDecision:
    """What the failure means, what to do, and whether the job is in doubt from now on."""

    kind: FailureKind
    action: RetryAction
    in_doubt: bool = False

    @property
    def costs_attempt(self) -> bool:
        """Whether the attempt counts against `max_attempts`."""
        return _costs_attempt(self.kind)


def classify_failure(error: NanoBananaError, attempt: Attempt) -> FailureKind:
    """Return what a create's failure means."""
    match error:
        # The transport raises the last two before it sends anything.
        case TransportError(possibly_sent=False) | ConfigurationError() | SessionClosed():
            return FailureKind.NOT_SENT
        case UnexpectedResponse(status=status) if attempt.never_answered and status in _WRONG_PATH_STATUSES:
            return FailureKind.NOT_SENT
        case RateLimited():
            return FailureKind.THROTTLED
        case IdempotencyConflict() if attempt.keyed:
            return FailureKind.IN_PROGRESS if attempt.sent_before else FailureKind.KEY_TAKEN
        # A 409 without the gateway's envelope may mean the same: the key of a first send must not be sent again.
        case UnexpectedResponse(status=409) if attempt.keyed and not attempt.sent_before:
            return FailureKind.KEY_TAKEN
        case GatewayError() if isinstance(error, _REFUSAL_ERRORS):
            return FailureKind.REFUSED
        case GatewayUnavailable(status=status) if status in _GATEWAY_ERROR_STATUSES:
            return FailureKind.SERVER_ERROR
        case _:
            return FailureKind.NO_ANSWER


def _costs_attempt(kind: FailureKind) -> bool:
    # Waiting for a slot costs no attempt, and neither does waiting for an earlier create of the same key.
    return kind not in (FailureKind.THROTTLED, FailureKind.IN_PROGRESS)


def decide_failed_create(error: NanoBananaError, attempt: Attempt, policy: RetryPolicy) -> RetryDecision:
    """Decide what to do with a job whose create failed.

    Doubt is sticky: once a create may have been accepted, only a task id ends the doubt, and no later refusal does.
    """
    kind = classify_failure(error, attempt)
    if kind is FailureKind.KEY_TAKEN:
        # Another host, or this one with a ledger that was lost, used the key: the job may have been bought.
        return RetryDecision(kind=kind, action=RetryAction.PARK, in_doubt=True)
    doubtful = kind in (FailureKind.IN_PROGRESS, FailureKind.SERVER_ERROR, FailureKind.NO_ANSWER)
    if kind is FailureKind.SERVER_ERROR and not attempt.keyed and policy.retry_unkeyed_5xx:
        doubtful = False
    tried_enough = _costs_attempt(kind) and attempt.number >= policy.max_attempts
    if attempt.in_doubt or doubtful:
        safe = attempt.is_key_alive if attempt.keyed else policy.retry_uncertain
        exhausted = tried_enough or attempt.waited_s >= policy.max_wait_s
        action = RetryAction.REPEAT if safe and not exhausted else RetryAction.PARK
        if action is RetryAction.REPEAT and attempt.hopeless:
            action = RetryAction.GIVE_UP
        return RetryDecision(kind=kind, action=action, in_doubt=True)
    if kind is FailureKind.REFUSED:
        return RetryDecision(kind=kind, action=RetryAction.REFUSE)
    if kind is FailureKind.THROTTLED:
        return RetryDecision(kind=kind, action=RetryAction.REQUEUE)
    # A wrong setting, such as a closed aiohttp session of the caller, is not cured by waiting.
    hopeless = attempt.hopeless or isinstance(error, ConfigurationError)
    exhausted = tried_enough or attempt.outage_s >= policy.max_wait_s
    return RetryDecision(kind=kind, action=RetryAction.GIVE_UP if exhausted or hopeless else RetryAction.REPEAT)


def ends_polling(error: NanoBananaError, running_s: float, job_s: float) -> bool:
    """Return whether a failed poll ends the polling of a job that runs for `running_s` seconds.

    Wrong credentials and settings end it at once, other errors when `job_s` has passed; a 404 counts sooner.
    """
    if isinstance(error, (AuthenticationError, AccessDenied, ConfigurationError)):
        return True
    if isinstance(error, TaskNotFound):
        return running_s >= min(LATE_REPLICA_S, job_s)
    return running_s >= job_s


def asked_wait_s(error: NanoBananaError) -> float:
    """Return the wait that the gateway asked for, at most `MAX_RETRY_AFTER_S`."""
    return min(getattr(error, "retry_after_s", None) or 0.0, MAX_RETRY_AFTER_S)


def is_lasting(error: NanoBananaError) -> bool:
    """Return whether a failure lasts as long as the settings stay the same, if the gateway has never answered yet.

    The name is unknown, the certificate not trusted, the proxy refuses, or another server answers.
    """
    match error:
        case TransportError(lasting=lasting):
            return lasting
        case UnexpectedResponse(status=status, body=body):
            page = status in (200, 201, 202) and body.lower().startswith(("<!doctype", "<html"))
            return page or status in _WRONG_PATH_STATUSES
        case _:
            return False


def is_outage(error: NanoBananaError) -> bool:
    """Return whether a failure concerns the gateway or the network, and not just one request."""
    return isinstance(error, GatewayUnavailable) or not isinstance(error, GatewayError)
