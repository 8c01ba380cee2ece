"""Why a job failed, as ledgers store it, and which failures are bought again."""

from collections.abc import Collection
from typing import get_args

from attrs import frozen

from nanobanana_async.errors import ConfigurationError, JobFailureKind

FAILURE_KINDS: frozenset[str] = frozenset(get_args(JobFailureKind))


@frozen(kw_only=True)
class Failure:
    """Why a job failed, in a form that a ledger can store; `kind` names a class of `errors`."""

    kind: str
    message: str
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    failure_kind: JobFailureKind = "unknown"
    """Of a task that failed."""


def to_failure_kinds(retry_failed: bool | Collection[str]) -> frozenset[str]:
    """Return the kinds of failures that are bought again; raise `ConfigurationError` for other values.

    True means every kind but moderation: a job that moderation stopped would be stopped again, and cost again.
    """
    if isinstance(retry_failed, bool):
        return FAILURE_KINDS - {"moderation"} if retry_failed else frozenset()
    kinds = frozenset(retry_failed) if isinstance(retry_failed, Collection) else None
    if kinds is None or isinstance(retry_failed, str) or not kinds <= FAILURE_KINDS:
        known = ", ".join(sorted(FAILURE_KINDS))
        raise ConfigurationError(f"retry_failed must be True or False, or a collection of kinds ({known})")
    return kinds
