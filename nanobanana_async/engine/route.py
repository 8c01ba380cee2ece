"""What a session with several accounts knows of a job, beside its record."""

from collections.abc import Callable, Mapping

from attrs import define, field, frozen

from nanobanana_async.errors import NanoBananaError
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.retry import RetryDecision


@frozen
class Rest:
    """A time in which an account gets no jobs that others can take, since it refused to buy anything."""

    until: float
    """In the event loop's time."""
    error: NanoBananaError


@define
class Route:
    """Which accounts may buy a job, as far as this session knows."""

    asked: ImageRequest | None = None
    """The request as the caller made it, perhaps without a model; None if the job came from the ledger."""
    unbought_revision: int | None = None
    """The revision of the record after plain refusals of all creates of its generation: it was surely not bought."""
    refusals: Mapping[str, NanoBananaError] = field(factory=dict)
    """Account -> why it does not buy the job."""


AfterFailedCreate = Callable[..., tuple[RetryDecision, NanoBananaError]]
"""`Router.after_failed_create` for the jobs of one account."""


def keep_decision(
    job: object, error: NanoBananaError, decision: RetryDecision, sent_before: bool
) -> tuple[RetryDecision, NanoBananaError]:
    """Return the decision and the error as they are: the session has one account."""
    return decision, error
