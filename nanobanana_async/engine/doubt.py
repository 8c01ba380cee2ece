"""What the failure of a create adds to the record of a job in doubt."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import evolve

from nanobanana_async.engine.store import to_failure
from nanobanana_async.errors import IdempotencyConflict, JobUncertain, NanoBananaError
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import JobRecord
from nanobanana_async.policy.retry import FailureKind, RetryDecision

NO_DOUBT: Mapping[str, Any] = {
    "in_doubt": False,
    "lost_at": None,
    "processed": False,
    "candidates": (),
    "failure": None,
}
"""The facts of a record whose doubt is over."""

_PERHAPS_PROCESSED = (FailureKind.NO_ANSWER, FailureKind.SERVER_ERROR, FailureKind.IN_PROGRESS)


def doubt_facts(record: JobRecord, kind: FailureKind, now: datetime) -> Mapping[str, Any]:
    """Return the facts of a job in doubt after another create failed in this way.

    A repeat that the gateway refused was not processed. The first 409 shows that a create was processed until then, and
    that no later repeat is.
    """
    facts: dict[str, Any] = {"in_doubt": True}
    if kind is FailureKind.IN_PROGRESS:
        facts["processed"] = True
        if not record.in_doubt:  # which of the earlier creates was processed is unknown
            facts["sent_at"] = record.first_sent_at
    if record.lost_at is None or may_be_processed(record, kind):
        facts["lost_at"] = now
    return facts


def may_be_processed(record: JobRecord, kind: FailureKind) -> bool:
    """Return whether a create of this job may have been processed since the last one failed."""
    return kind in _PERHAPS_PROCESSED and not record.processed


def interrupted_facts(record: JobRecord, now: datetime) -> Mapping[str, Any]:
    """Return the facts of a job whose session ended before an answer came: it may have been processed until now."""
    return {"in_doubt": True, "lost_at": record.lost_at if record.processed and record.lost_at else now}


def why_in_doubt(error: NanoBananaError, record: JobRecord, decision: RetryDecision) -> Failure:
    """Return why it is unknown whether a job was bought. A 409 counts as a conflict only at the first create."""
    failure = to_failure(error)
    if decision.kind is FailureKind.KEY_TAKEN:
        why = (
            f"the gateway knows key {record.wire_key} already, and not from this job: another host may have bought job"
            f" {record.key} with it, or this host before its ledger was lost or pruned. Nothing was bought now, and"
            f" nothing will be: find the task in the gateway's own list, then resolve the job ({error.message})"
        )
        return evolve(failure, message=why)
    if isinstance(error, IdempotencyConflict):
        return evolve(failure, kind=JobUncertain.__name__)
    return failure
