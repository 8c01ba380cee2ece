"""Jobs that are not this session's any more, and what it still knows of them.

A ledger on PostgreSQL buries an owner that gave no sign of life for longer than its lease: a process that was
suspended, or a host that was cut off. Its jobs go to other owners, and when it comes back it owns nothing. Here such a
job becomes FOREIGN: its slots and reservations are let go, and it is followed through the ledger, which gives it back
if it has no other owner.
"""

from collections.abc import Callable, Mapping
from typing import Any

import anyio
from attrs import evolve

from nanobanana_async.engine.doubt import NO_DOUBT
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.late_answer import LateAnswer
from nanobanana_async.engine.next_step import AwaitHistory, CheckOwnerAt, Enqueue, Next, Prepare, Recover, ScheduleAt
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.rare_facts import NO_RARE_FACTS
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.base import LeasedLedger, NotOurs
from nanobanana_async.policy.shared_limits import SharedLimiter

LEASE_CHECK_S = 0.05
"""How often a create asks whether its owner certainly lives, while that is unknown."""

UNOWNED_PHASES = frozenset({Phase.PREPARING, Phase.QUEUED, Phase.SCHEDULED, Phase.CHECKING})
"""No step of the job runs, so it becomes FOREIGN as soon as its owner was buried."""


def may_be_anothers(job: TrackedJob, lease: LeasedLedger | None) -> bool:
    """Return whether a job that was ours may be another owner's by now, because ours may be buried."""
    return lease is not None and (job.rare.owner_buried or not lease.surely_owns)


async def wait_until_owner(job: TrackedJob, lease: LeasedLedger | None) -> None:
    """Wait until this owner certainly lives, just before a create leaves; raise `NotOurs` if it was buried."""
    while may_be_anothers(job, lease):
        if job.rare.owner_buried:
            raise NotOurs(f"job {job.key} went to another owner before its create left", key=job.key)
        await anyio.sleep(LEASE_CHECK_S)


def set_late_answer_not_bought(job: TrackedJob) -> None:
    """Remember of a job that is not ours any more that no create of this session has bought it."""
    if job.record.state is JobState.SUBMITTING and not job.record.in_doubt:
        job.rare = evolve(job.rare, late_answer=LateAnswer(job.record))


def recheck_of_buried(job: TrackedJob, next_step: Next, now: float) -> Next:
    """Return what is next for a job whose owner was buried while its step ran: the ledger is read first."""
    job.rare = evolve(job.rare, owner_buried=False)
    goes_on = isinstance(next_step, Enqueue | Prepare | ScheduleAt | Recover | AwaitHistory)
    return CheckOwnerAt(now) if goes_on else next_step


def let_go(job: TrackedJob, slots: Slots, store: JobStore, estimates: JobEstimates) -> None:
    """Let go of what this session holds for a job, which is about to become FOREIGN."""
    stored, record = job.ledger_record, job.record
    if job.rare.late_answer is None and record.task_id is not None and record.task_id != stored.task_id:
        names = ("task_id", "running_since", "attempts", "credits_used", "model")
        late = LateAnswer(stored, fields_of_accepted(**{name: getattr(record, name) for name in names}))
        job.rare = evolve(job.rare, late_answer=late)
    slots.release(job)  # its new owner reports them
    estimates.forget(job)
    store.credits.mark_not_under_way(job)
    job.schedule, job.wait_error, job.last_failure = None, None, None
    job.failures, job.first_attempt_at, job.ready_at = 0, NEVER, NOT_YET
    if job.rare is not NO_RARE_FACTS:
        job.rare = evolve(job.rare, spends_retry_budget=False, returned_by_history=False)


def fields_of_accepted(**accepted: Any) -> Mapping[str, Any]:
    """Return the fields that an unanswered record gets when its create was accepted: its body is never sent again."""
    return {**accepted, "body": b"", **NO_DOUBT}


def follow_through_ledger(
    tracked: Mapping[str, TrackedJob],
    holding: Mapping[str, TrackedJob],
    slots: Slots,
    apply: Callable[[TrackedJob, Next], None],
    now: float,
) -> None:
    """Let go of all jobs at once, because their owner was buried. A job whose step runs follows when that is over."""
    if isinstance(slots.limiter, SharedLimiter):  # the others count uncertain jobs, as jobs without an owner
        for job in holding.values():
            slots.release(job)
    for job in list(tracked.values()):
        if job.phase in UNOWNED_PHASES:
            apply(job, CheckOwnerAt(now))
        else:
            job.rare = evolve(job.rare, owner_buried=True)
