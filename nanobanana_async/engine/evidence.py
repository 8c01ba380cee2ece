"""What records and a reading of the history show, as `policy.reconcile` takes it."""

import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from attrs import evolve

from nanobanana_async.engine.doubt import was_processed
from nanobanana_async.engine.history import History, HistoryReading
from nanobanana_async.errors import IdempotencyConflict
from nanobanana_async.events import log
from nanobanana_async.gateways.capabilities import PastTask
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.policy.reconcile import ClaimedTask, HistoryEvidence, JobInDoubt, UnclaimedTask, estimate_offset

# A task that ended so may have been refunded: its price does not show what it cost.
_REFUNDABLE_STATUSES = frozenset({"failed", "error", "cancelled", "canceled"})


def shows_shared_keys(record: JobRecord) -> bool:
    """Return whether the gateway knew this job's key before the job was sent: another ledger has the same keys."""
    failure = record.failure
    uncertain = record.state is JobState.UNCERTAIN
    return uncertain and failure is not None and failure.kind == IdempotencyConflict.__name__


def to_job_in_doubt(record: JobRecord, gateway: Gateway, lateness_s: float, *, shared: bool) -> JobInDoubt:
    """Return a job in doubt; its record must say when its answer was lost.

    With `shared` another ledger buys jobs under the same keys: then a 409 may be about its create.
    """
    request = record.request
    return JobInDoubt(
        key=record.key,
        sent_at=earliest_sent_at(record).timestamp(),
        lost_at=(record.lost_at or earliest_sent_at(record)).timestamp(),
        processed=not shared and was_processed(record, lateness_s),
        in_progress=record.conflict_at is not None,
        request=record.key if request is None else evolve(request, callback_url=None),
        model=None if request is None else _lower(request.model),
        price_class="" if request is None else gateway.price_class(request),
    )


def earliest_sent_at(record: JobRecord) -> datetime:
    """Return the earliest time at which a job in doubt may have been processed."""
    return record.sent_at or record.first_sent_at or record.created_at


def to_history_evidence(
    reading: HistoryReading, claimed: Mapping[str, JobRecord | None], history: History, gateway: Gateway
) -> HistoryEvidence | None:
    """Return a reading with the jobs that have its tasks; None if nothing shows what the gateway's clock says."""
    if (unlisted := history.find_unlisted_task(reading)) is not None:
        log.info("history.incomplete task=%s: nothing is decided by a history that does not list it", unlisted)
        return None
    known = [
        _to_claimed(task, claimed[task.task_id], gateway, history.accepted_tasks.get(task.task_id))
        for task in reading.tasks
        if task.task_id in claimed
    ]
    offset = estimate_offset(known, reading.clock_offset)
    if offset is None:
        return None
    return HistoryEvidence(
        read_at=reading.read_at.timestamp(),
        complete_since=reading.complete_since.timestamp(),
        unclaimed=[_to_unclaimed(task) for task in reading.tasks if task.task_id not in claimed],
        claimed=known,
        offset=offset,
        offset_known_until=max((task.answered_at or -math.inf for task in known), default=-math.inf)
        if reading.clock_offset is None
        else math.inf,
        zone_known=any(task.answered_at is not None for task in known),
        delay_s=history.delay_s,
        lateness_s=history.lateness_s,
    )


def _to_unclaimed(task: PastTask) -> UnclaimedTask:
    return UnclaimedTask(
        task_id=task.task_id,
        created_at=task.created_at.timestamp(),
        model=_lower(task.model),
        credits=_price_of(task),
    )


def _to_claimed(
    task: PastTask, record: JobRecord | None, gateway: Gateway, accepted: tuple[datetime, datetime] | None
) -> ClaimedTask:
    created_at = task.created_at.timestamp()
    if record is None or record.request is None:
        if accepted is None:
            return ClaimedTask(created_at=created_at)
        return ClaimedTask(created_at=created_at, sent_at=accepted[0].timestamp(), answered_at=accepted[1].timestamp())
    since, until = record.sent_at, record.running_since
    # A job that got its task by hand or by the history began to run, by its record, when it was sent.
    timed = since is not None and until is not None and until > since
    return ClaimedTask(
        created_at=created_at,
        sent_at=since.timestamp() if timed and since is not None else None,
        answered_at=until.timestamp() if timed and until is not None else None,
        model=_lower(task.model),
        requested_model=_lower(record.request.model),
        price_class=gateway.price_class(record.request),
        credits=_price_of(task),
    )


def _price_of(task: PastTask) -> Decimal | None:
    """Return what a task costs; None if it does not show: it may be charged when it ends, and was perhaps refunded."""
    return None if (task.status or "").lower() in _REFUNDABLE_STATUSES else task.credits_used or None


def _lower(name: str | None) -> str | None:
    return None if name is None else name.lower()
