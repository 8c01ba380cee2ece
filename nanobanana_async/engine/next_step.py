"""What a step of a job returns: where the job goes next. `Scheduler._apply` carries it out."""

from attrs import frozen

from nanobanana_async.engine.tracked_job import UNREAD_PHASES, TrackedJob
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.jobs import JobState


@frozen
class Enqueue:
    """Wait in a queue: to be sent, or to be polled."""


@frozen
class ScheduleAt:
    """Wait until `due`, in the event loop's time; then wait in a queue."""

    due: float


@frozen
class CheckOwnerAt:
    """Another owner follows the job: read the ledger again at `due`."""

    due: float


@frozen
class Recover:
    """The job is ours, and an earlier session left it in SUBMITTING: decide how it goes on."""


@frozen
class AwaitHistory:
    """The job is in doubt, and is not repeated any more: the gateway's history decides how it goes on."""


@frozen
class HoldSlots:
    """The job is UNCERTAIN: hold its slots until `due`, since it may still run."""

    due: float


@frozen
class LetGo:
    """No caller asked to buy the job: stop following it, and let other owners do so."""


@frozen
class Finish:
    """The job has ended, or the waiting for it ends with `error`."""

    error: NanoBananaError | None = None


Next = Enqueue | ScheduleAt | CheckOwnerAt | Recover | AwaitHistory | HoldSlots | LetGo | Finish


def withdraws(job: TrackedJob, next_step: Next) -> bool:
    """Return whether a job is to be withdrawn now: its step is over and left it PENDING and ours."""
    if not job.withdraw_requested or job.record.state is not JobState.PENDING:
        return False
    failed_unread = isinstance(next_step, Finish) and job.phase in UNREAD_PHASES
    return not (failed_unread or isinstance(next_step, CheckOwnerAt))
