"""Jobs that are not this session's any more, and what it still knows of them.

A ledger on PostgreSQL buries an owner that gave no sign of life for longer than its lease: a process that was
suspended, or a host that was cut off. Its jobs go to other owners, and when it comes back it owns nothing. Here such a
job becomes FOREIGN: its slots and reservations are let go, and it is followed through the ledger, which gives it back
if it has no other owner.

What a create was answered that this session sent as the job's owner, and could not write, is a `LateAnswer`. It is
written as soon as the ledger's record allows it, so that no job stays UNCERTAIN whose outcome a living process knows:

| the ledger has the same generation as | the answer names a task | the job was surely not bought |
| --- | --- | --- |
| SUBMITTING, and it has no owner | it is ours again: RUNNING | it is ours again: PENDING, if unchanged |
| SUBMITTING, another owner | wait: it is about to park it, or repeats under its key | the same |
| UNCERTAIN (parked) | RUNNING: any owner may write that | without keys: PENDING, if it is the same send |
| PENDING, RUNNING, ended | nothing: what stands there is newer | nothing |

On a gateway with idempotency keys the new owner repeats the create, and the gateway answers with the same task: the
answer is written all the same if the job was parked. There "not bought" says nothing about the new owner's repeats. On
a gateway without keys the new owner never sends the create again, so the only send of the record is this session's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import anyio
from attrs import field, frozen

from nanobanana_async.engine.doubt import NO_DOUBT
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.next_step import AwaitHistory, CheckOwnerAt, Enqueue, Next, Prepare, Recover, ScheduleAt
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import LeasedLedger, NotOurs

LEASE_CHECK_S = 0.05
"""How often a create asks whether its owner certainly lives, while that is unknown."""

UNOWNED_PHASES = frozenset({Phase.PREPARING, Phase.QUEUED, Phase.SCHEDULED, Phase.CHECKING})
"""No step of the job runs, so it becomes FOREIGN as soon as its owner was buried."""


@frozen
class LateAnswer:
    """What this session knows of a create whose outcome it could not write, because the job was not ours any more."""

    sent: JobRecord
    """The record as this session had it when the create was sent."""
    accepted: Mapping[str, Any] | None = field(default=None)
    """The facts of the RUNNING record; None: the job was surely not bought."""

    @property
    def task_id(self) -> str | None:
        """The task that the gateway named."""
        return None if self.accepted is None else self.accepted["task_id"]

    def may_still_be_written(self, record: JobRecord, *, ours: bool) -> bool:
        """Return whether another owner is about to decide about the create, and it has to be seen how."""
        return record.generation == self.sent.generation and record.state is JobState.SUBMITTING and not ours

    def move(self, record: JobRecord, *, ours: bool, keyed: bool) -> tuple[JobState, Mapping[str, Any]] | None:
        """Return the transition of this record that writes the answer; None if it says nothing about the record."""
        parked = record.state is JobState.UNCERTAIN
        if record.generation != self.sent.generation or not (parked or (ours and record.state is JobState.SUBMITTING)):
            return None
        if self.accepted is not None:
            return JobState.RUNNING, self.accepted
        same_send = record.sent_at == self.sent.sent_at and not keyed
        if same_send if parked else record.revision == self.sent.revision:
            return JobState.PENDING, {"sent_at": None, **NO_DOUBT}
        return None


async def wait_until_owner(job: TrackedJob, lease: LeasedLedger | None) -> None:
    """Wait until this owner certainly lives, just before a create leaves; raise `NotOurs` if it was buried."""
    while lease is not None and (job.owner_buried or not lease.surely_owns):
        if job.owner_buried:
            raise NotOurs(f"job {job.key} went to another owner before its create left", key=job.key)
        await anyio.sleep(LEASE_CHECK_S)


def remember_unbought(job: TrackedJob) -> None:
    """Remember of a job that is not ours any more that no create of this session has bought it."""
    if job.record.state is JobState.SUBMITTING and not job.record.in_doubt:
        job.late_answer = LateAnswer(job.record)


def after_burial(job: TrackedJob, next_step: Next, now: float) -> Next:
    """Return what is next for a job whose step is over: if its owner was buried meanwhile, the ledger is read first."""
    if not job.owner_buried:
        return next_step
    job.owner_buried = False
    goes_on = isinstance(next_step, Enqueue | Prepare | ScheduleAt | Recover | AwaitHistory)
    return CheckOwnerAt(now) if goes_on else next_step


def let_go(job: TrackedJob, slots: Slots, store: JobStore, estimates: JobEstimates) -> None:
    """Let go of what this session holds for a job, which is about to become FOREIGN."""
    stored, record = job.ledger_record, job.record
    if job.late_answer is None and record.task_id is not None and record.task_id != stored.task_id:
        names = ("task_id", "running_since", "attempts", "credits_used", "model")
        job.late_answer = LateAnswer(stored, facts_of_running(**{name: getattr(record, name) for name in names}))
    slots.on_lost(job)
    estimates.forget(job)
    store.credits.suspend_reservation(job)
    job.schedule, job.wait_error, job.last_failure = None, None, None
    job.failures, job.first_attempt_at, job.draws_retry_budget, job.reopened = 0, NEVER, False, False


def facts_of_running(**accepted: Any) -> Mapping[str, Any]:
    """Return the facts that an unanswered record gets when its create was accepted: its body is never sent again."""
    return {**accepted, "body": b"", **NO_DOUBT}


def follow_through_ledger(
    tracked: Mapping[str, TrackedJob], apply: Callable[[TrackedJob, Next], None], now: float
) -> None:
    """Let go of all jobs at once, because their owner was buried. A job whose step runs follows when that is over."""
    for job in list(tracked.values()):
        if job.phase in UNOWNED_PHASES:
            apply(job, CheckOwnerAt(now))
        else:
            job.owner_buried = True
