"""An answer to a create that comes when the job is not this session's any more.

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

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from nanobanana_async.jobs import JobRecord, JobState


@frozen
class LateAnswer:
    """What this session knows of a create whose outcome it could not write, because the job was not ours any more."""

    sent: JobRecord
    """The record as this session had it when the create was sent."""
    accepted: Mapping[str, Any] | None = field(default=None)
    """The fields of the RUNNING record; None: the job was surely not bought."""

    @property
    def task_id(self) -> str | None:
        """The task that the gateway named."""
        return None if self.accepted is None else self.accepted["task_id"]

    def may_still_be_written(self, record: JobRecord, *, ours: bool) -> bool:
        """Return whether another owner is about to decide about the create, and it has to be seen how."""
        return record.generation == self.sent.generation and record.state is JobState.SUBMITTING and not ours

    def transition_for(
        self, record: JobRecord, *, ours: bool, keyed: bool
    ) -> tuple[JobState, Mapping[str, Any]] | None:
        """Return the transition of this record that writes the answer; None if it says nothing about the record."""
        parked = record.state is JobState.UNCERTAIN
        if record.generation != self.sent.generation or not (parked or (ours and record.state is JobState.SUBMITTING)):
            return None
        if self.accepted is not None:
            return JobState.RUNNING, self.accepted
        same_send = record.sent_at == self.sent.sent_at and not keyed
        if same_send if parked else record.revision == self.sent.revision:
            return JobState.PENDING, {"sent_at": None}
        return None
