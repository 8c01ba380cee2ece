"""What the failure of a create adds to the record of a job in doubt."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import evolve

from nanobanana_async.candidates import MOST_CANDIDATES, Candidate
from nanobanana_async.commands import jobs_command
from nanobanana_async.engine.store import to_failure
from nanobanana_async.errors import IdempotencyConflict, JobUncertain, NanoBananaError
from nanobanana_async.failures import Failure
from nanobanana_async.formatting import plural
from nanobanana_async.jobs import JobRecord
from nanobanana_async.policy.retry import FailureKind, RetryDecision

# How many candidates of an uncertain job its error names, if no command can show them.
MOST_CANDIDATES_NAMED = 5

# How gateways say that a key came with other content: "different request", "must be used with the same parameters".
_OTHER_CONTENT = re.compile(
    r"\bdifferent (?:\w+ )?(?:request|body|payload|param|content|input)|\bsame (?:request )?(?:body|payload|param)",
    re.IGNORECASE,
)

NO_DOUBT: Mapping[str, Any] = {
    "in_doubt": False,
    "lost_at": None,
    "conflict_at": None,
    "candidates": (),
    "failure": None,
}
"""The fields of a record whose doubt is over."""


def fields_in_doubt(record: JobRecord, kind: FailureKind, now: datetime, lateness_s: float) -> Mapping[str, Any]:
    """Return the fields of a job in doubt after another create failed in this way.

    The first 409 shows that a create was being processed until then. If more of them follow for `lateness_s`, it was
    processed to its end, and no later repeat is. Any other answer about this very create contradicts that.
    """
    fields: dict[str, Any] = {"in_doubt": True}
    if kind is FailureKind.IN_PROGRESS:
        fields["conflict_at"] = now
        if not record.in_doubt:  # which of the earlier creates was processed is unknown
            fields["sent_at"] = record.first_sent_at
    elif kind is FailureKind.REFUSED:
        fields["conflict_at"] = None
    if record.lost_at is None or may_be_processed(record, kind, lateness_s):
        fields["lost_at"] = now
        if kind is not FailureKind.IN_PROGRESS:
            fields["conflict_at"] = None
    return fields


def may_be_processed(record: JobRecord, kind: FailureKind, lateness_s: float) -> bool:
    """Return whether a create of this job may have been processed since the last one failed."""
    match kind:
        case FailureKind.NO_ANSWER | FailureKind.SERVER_ERROR:
            return not was_processed(record, lateness_s)
        case FailureKind.IN_PROGRESS:
            return record.conflict_at is None
        case _:
            return False


def was_processed(record: JobRecord, lateness_s: float) -> bool:
    """Return whether repeats got 409 for so long that a create in doubt must have been processed."""
    if record.conflict_at is None or record.lost_at is None:
        return False
    return (record.conflict_at - record.lost_at).total_seconds() >= lateness_s


def fields_if_interrupted(record: JobRecord, now: datetime, lateness_s: float) -> Mapping[str, Any]:
    """Return the fields of a job whose session ended before an answer came: it may have been processed until now."""
    if was_processed(record, lateness_s):
        return {"in_doubt": True}
    return {"in_doubt": True, "lost_at": now, "conflict_at": None}


def why_in_doubt(error: NanoBananaError, record: JobRecord, decision: RetryDecision) -> Failure:
    """Return why it is unknown whether a job was bought. A 409 counts as a conflict only at the first create."""
    failure = to_failure(error)
    if decision.kind is FailureKind.KEY_TAKEN:
        return evolve(failure, message=_why_key_taken(error, record))
    if isinstance(error, IdempotencyConflict):
        return evolve(failure, kind=JobUncertain.__name__)
    return failure


def _why_key_taken(error: NanoBananaError, record: JobRecord) -> str:
    """Return what the first 409 of a job means, and what to do.

    The words of the gateway change the advice alone: the references do not state them, so the job stays in doubt.
    """
    if _OTHER_CONTENT.search(error.message):
        return (
            f"the gateway has key {record.wire_key} from another request ({error.message}): that request's task is not"
            f" the one of job {record.key}. Nothing was bought now: use another key for this request, and resolve this"
            " job as not bought once the gateway's own list shows no task of it"
        )
    return (
        f"the gateway knows key {record.wire_key} already, and not from this job: another host may have bought job"
        f" {record.key} with it, or this host before its ledger was lost or pruned. Nothing was bought now, and"
        f" nothing will be: find the task in the gateway's own list, then resolve the job ({error.message})"
    )


def candidate_count_text(candidates: Sequence[Candidate]) -> str:
    """Return how many tasks could be a job, such as "2 tasks", or that there are more than are kept."""
    more = " or more" if len(candidates) >= MOST_CANDIDATES else ""
    return f"{plural(len(candidates), 'task')}{more}"


def candidates_hint(record: JobRecord, ledger: object | None) -> str:
    """Return how to see the tasks that could be an uncertain job; nothing if none is known."""
    if not record.candidates:
        return ""
    listed = ", ".join(candidate.task_id for candidate in record.candidates[:MOST_CANDIDATES_NAMED])
    if ledger is not None:
        listed = f"`{jobs_command('show', ledger=ledger, names=[record.key])}` lists them"
    return f"; {candidate_count_text(record.candidates)} could be it: {listed}"
