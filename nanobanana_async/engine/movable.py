"""Which jobs another account of the session may buy, and the errors for a request that none takes."""

from collections.abc import Mapping

from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    GatewayUnavailable,
    InsufficientCredits,
    InvalidRequest,
    NanoBananaError,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.jobs import JobState
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.retry import FailureKind
from nanobanana_async.references import local_digests

ACCOUNT_REFUSALS = (AuthenticationError, InsufficientCredits, AccessDenied)
"""Errors with which an account refuses to buy anything."""
NO_ANSWERS = (TransportError, GatewayUnavailable, UnexpectedResponse)
"""Errors of an upload after which another gateway may take the image."""
PLAIN_KINDS = frozenset({FailureKind.REFUSED, FailureKind.THROTTLED, FailureKind.NOT_SENT})
"""Failures of a create after which it was certainly not bought."""


def request_as_made(job: TrackedJob) -> ImageRequest | None:
    """Return the request as its caller made it, if known; else as it is stored, with a model."""
    asked = None if job.route is None else job.route.asked
    return job.record.request if asked is None else asked


def may_move(job: TrackedJob) -> bool:
    """Return whether a job was surely not bought, and another account may buy it."""
    record = job.record
    pending_at = record.revision + (record.state is JobState.SUBMITTING)  # its create was just refused, or it waits
    plain = job.route is not None and job.route.unbought_revision == pending_at
    if record.in_doubt or job.rare.reopened or record.task_id is not None or record.request is None:
        return False
    if any(digest not in job.rare.sources for digest in local_digests(record.request.images)):
        return False  # another account would need the content of the image
    unsent = record.state is JobState.PENDING and record.first_sent_at is None
    return (unsent or plain) and job.may_buy and not job.rare.withdraw_requested


def is_paused_create(job: TrackedJob) -> bool:
    """Return whether a create that was surely not processed waits for the time of its repeat."""
    return job.phase is Phase.SCHEDULED and job.record.state is JobState.PENDING


def with_reasons(
    error: NanoBananaError, job: TrackedJob, account: str, reasons: Mapping[str, NanoBananaError]
) -> NanoBananaError:
    """Return the error with which an account refused a job, with the reasons of the other accounts."""
    explained = error.for_job(job.key, safe_to_repeat=error.safe_to_repeat)
    listed = "; ".join(f"{other}: {reason.message}" for other, reason in reasons.items())
    explained.message = f"{error.message} (account {account}); no other account buys it: {listed}"
    return explained


def no_account_error(problems: Mapping[str, InvalidRequest | None]) -> InvalidRequest:
    """Return the error for a request that no account can take, with the reason of each."""
    reasons = {account: problem.message for account, problem in problems.items() if problem is not None}
    if len(set(reasons.values())) == 1:
        return InvalidRequest(next(iter(reasons.values())))
    listed = "; ".join(f"{account}: {reason}" for account, reason in reasons.items())
    return InvalidRequest(f"no account of the session takes this request: {listed}")
