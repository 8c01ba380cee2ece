"""Which jobs another account of the session may buy, and the error for a request that none can take."""

from collections.abc import Mapping

from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    GatewayUnavailable,
    InsufficientCredits,
    InvalidRequest,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobState
from nanobanana_async.models import ImageRequest, with_model
from nanobanana_async.policy.retry import FailureKind
from nanobanana_async.references import local_digests

ACCOUNT_REFUSALS = (AuthenticationError, InsufficientCredits, AccessDenied)
"""Errors with which an account refuses to buy anything."""
MOVABLE_UPLOAD_ERRORS = (TransportError, GatewayUnavailable, UnexpectedResponse)
"""Errors of an upload after which another gateway may take the image."""
UNBOUGHT_KINDS = frozenset({FailureKind.REFUSED, FailureKind.THROTTLED, FailureKind.NOT_SENT})
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
    if record.in_doubt or job.rare.returned_by_history or record.task_id is not None or record.request is None:
        return False
    if any(digest not in job.rare.sources for digest in local_digests(record.request.images)):
        return False  # another account would need the content of the image
    unsent = record.state is JobState.PENDING and record.first_sent_at is None
    return (unsent or plain) and job.may_buy and not job.rare.withdraw_requested


def why_not(gateway: Gateway, request: ImageRequest | None, *, one_of_several: bool) -> InvalidRequest | None:
    """Return why a gateway can't take a request; None if it can.

    With several gateways in a session (`one_of_several`) a request for another one's model is not taken.
    """
    if request is None:
        return None
    if one_of_several and request.model not in (None, gateway.model):
        return InvalidRequest(f"its model is {gateway.model}, and the request names {request.model}")
    try:
        gateway.check(with_model(request, gateway.model))
    except InvalidRequest as problem:
        return problem
    return None


def no_account_error(problems: Mapping[str, InvalidRequest | None]) -> InvalidRequest:
    """Return the error for a request that no account can take, with the reason of each."""
    reasons = {account: problem.message for account, problem in problems.items() if problem is not None}
    if len(set(reasons.values())) == 1:
        return InvalidRequest(next(iter(reasons.values())))
    listed = "; ".join(f"{account}: {reason}" for account, reason in reasons.items())
    return InvalidRequest(f"no account of the session takes this request: {listed}")
