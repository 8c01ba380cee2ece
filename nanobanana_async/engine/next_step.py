"""What a step of a job returns: where the job goes next. `Scheduler._apply` carries it out."""

from attrs import frozen

from nanobanana_async.errors import NanoBananaError


@frozen
class Enqueue:
    """Wait in a queue: to be sent, or to be polled."""


@frozen
class Prepare:
    """The job is ours and was not sent: bring its local reference images to the gateway first."""


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
class StopFollowing:
    """No caller asked to buy the job: stop following it, and let other owners do so."""


@frozen
class Finish:
    """The job has ended, or the waiting for it ends with `error`."""

    error: NanoBananaError | None = None


Next = Enqueue | Prepare | ScheduleAt | CheckOwnerAt | Recover | AwaitHistory | HoldSlots | StopFollowing | Finish
