"""What happens, as events: logs, metrics and progress displays all read them."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

from attrs import asdict, frozen

from nanobanana_async.errors import GatewayError, NanoBananaError
from nanobanana_async.escaping import one_line
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import shorten

log = logging.getLogger("nanobanana_async")

LONGEST_WORD = 60
"""Of a status word so many characters are logged: it is the gateway's, and may be a page of text."""


@frozen(kw_only=True)
class JobTracked:
    """A job came in: asked for, found again or settled. Told at once, in the context of whoever did that.

    `record` is what is wanted or was found; what else the ledger holds under its key is seen next. `weight`: how many
    job slots it takes while the gateway has it.
    """

    record: JobRecord
    weight: int


@frozen(kw_only=True)
class JobReleased:
    """The session is done with a job: it has ended, or its following has; `error` says why it was given up."""

    record: JobRecord
    error: Exception | None


@frozen(kw_only=True)
class JobStateChanged:
    """A job went from one state to another, and the ledger knows it."""

    before: JobState | None
    record: JobRecord


@frozen(kw_only=True)
class CreateFailed:
    """A create brought no task id; `move` is what was decided, `wait_s` until when.

    `in_doubt`: it may have been accepted all the same, this time or earlier.
    """

    record: JobRecord
    error: Exception
    action: str
    wait_s: float
    in_doubt: bool = False


@frozen(kw_only=True)
class JobPolled:
    """A query was answered: the job still runs, or has ended. `looks` counts the queries of this job.

    `delay_s`: how long ago it had ended, where the gateway says how long it took.
    """

    record: JobRecord
    status: str
    polls: int
    delay_s: float | None = None


@frozen(kw_only=True)
class PollFailed:
    """A query brought no answer about the job; it is asked again after `wait_s`, or not at all when that is None."""

    record: JobRecord
    error: Exception
    wait_s: float | None
    polls: int = 0


@frozen(kw_only=True)
class CallbackReceived:
    """The gateway called back about a job, here or in another process; it is asked about next, once."""

    record: JobRecord


@frozen(kw_only=True)
class UnknownStatus:
    """The gateway used a status word that its reference does not list; the job counts as running."""

    record: JobRecord
    status: str


@frozen(kw_only=True)
class PriceAboveEstimate:
    """A job costs more than was set aside for it: a cap may be passed by the difference, and nothing more is bought."""

    record: JobRecord
    estimate: Decimal


@frozen(kw_only=True)
class LimitsChanged:
    """What is known of the account's limits has changed; the fields are those of `SessionStats`."""

    job_limit: int | None
    creates_per_s: float | None
    limit_kind: str | None
    gate_open: bool
    slots_held: int
    throttled: int


Event = (
    JobTracked
    | JobReleased
    | JobStateChanged
    | CreateFailed
    | JobPolled
    | PollFailed
    | CallbackReceived
    | UnknownStatus
    | PriceAboveEstimate
    | LimitsChanged
)


@runtime_checkable
class ObserverFactory(Protocol):
    """What may be handed to several sessions, and keeps their events apart."""

    def observer(self) -> Callable[[Event], None]:
        """Return what one session tells its events to."""
        ...


Observer = Callable[[Event], None] | ObserverFactory

_LEVELS: dict[type, int] = {
    JobTracked: logging.DEBUG,
    JobReleased: logging.DEBUG,
    JobStateChanged: logging.DEBUG,
    JobPolled: logging.DEBUG,
    CreateFailed: logging.INFO,
    PollFailed: logging.INFO,
    CallbackReceived: logging.DEBUG,
    UnknownStatus: logging.WARNING,
    PriceAboveEstimate: logging.WARNING,
    LimitsChanged: logging.DEBUG,
}
_LEVELS_OF_STATES = {JobState.FAILED: logging.INFO, JobState.REFUSED: logging.INFO, JobState.UNCERTAIN: logging.WARNING}
_NAMES: dict[type, str] = {
    JobTracked: "job.tracked",
    JobReleased: "job.released",
    JobStateChanged: "job.state_changed",
    JobPolled: "job.polled",
    CreateFailed: "create.failed",
    PollFailed: "poll.failed",
    CallbackReceived: "callback.received",
    UnknownStatus: "status.unknown",
    PriceAboveEstimate: "price.above_estimate",
    LimitsChanged: "limits.changed",
}


def log_event(event: Event) -> None:
    """Log an event under a stable name, its facts as extras: job keys and error words, never prompts or API keys."""
    kind = type(event)
    level = _LEVELS[kind]
    if isinstance(event, JobStateChanged):
        level = logging.WARNING if event.record.missing else _LEVELS_OF_STATES.get(event.record.state, level)
    if not log.isEnabledFor(level):
        return
    facts = _facts(event)
    told = " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    log.log(level, "%s %s", _NAMES[kind], one_line(told), extra={"event": _NAMES[kind], **facts})


def _facts(event: Event) -> dict[str, Any]:
    if isinstance(event, LimitsChanged):
        return asdict(event)
    record = event.record
    facts: dict[str, Any] = {"job": record.key, "state": record.state.value, "task_id": record.task_id}
    match event:
        case JobReleased(error=why):
            facts["error"] = None if why is None else _error_without_body(why)
        case JobStateChanged(before=before):
            facts["before"] = None if before is None else before.value
            facts["missing_images"] = ",".join(str(index) for index, _ in record.missing) or None
        case CreateFailed(error=error, action=move, wait_s=wait_s):
            facts |= {"error": _error_without_body(error), "move": move, "wait_s": round(wait_s, 3)}
            facts |= {"in_doubt": event.in_doubt or None, "limit_kind": getattr(error, "kind", None)}
        case JobPolled(status=status, polls=looks, delay_s=delay_s):
            facts |= {"status": shorten(status, LONGEST_WORD), "looks": looks}
            facts["delay_s"] = None if delay_s is None else round(delay_s, 3)
        case PollFailed(error=error, wait_s=pause_s):
            facts |= {"error": _error_without_body(error), "wait_s": pause_s}
        case UnknownStatus(status=status):
            facts["status"] = shorten(status, LONGEST_WORD)
        case PriceAboveEstimate(estimate=estimate):
            facts |= {"estimate": str(estimate), "credits": str(record.credits_used)}
    return facts


def log_failure(name: str, failure: BaseException, **facts: object) -> None:
    """Log a failure of foreign code or of ours, with its traceback; a logging handler that fails too is passed over."""
    sentence = "".join(f" {fact}={value}" for fact, value in facts.items())
    with suppress(Exception, asyncio.CancelledError):
        log.error("%s%s", name, sentence, exc_info=failure, extra={"event": name, **facts})


def repr_of(observer: object) -> str:
    """Return what an observer prints as; it may fail at that as well."""
    try:
        return repr(observer)
    except Exception:
        return f"<{type(observer).__name__}>"


def _job_of(event: Event) -> dict[str, str]:
    return {} if isinstance(event, LimitsChanged) else {"job": event.record.key}


def _error_without_body(error: Exception) -> str:
    """Return an error without the gateway's sentences and bodies, which may quote the prompt."""
    kind = type(error).__name__
    match error:
        case GatewayError(status=status, code=code, request_id=request_id):
            facts = [str(fact) for fact in (status, code, request_id) if fact is not None]
            return f"{kind} [{', '.join(facts)}]"
        case NanoBananaError(message=message):
            return f"{kind}: {message}"
        case _:
            return kind


class EventEmitter:
    """Tells every observer; one that raises is logged and never harms the purchase."""

    def __init__(self, observers: tuple[Observer, ...] = ()) -> None:
        own = (each.observer() if isinstance(each, ObserverFactory) else each for each in observers)
        self._observers = (log_event, *own)

    def __call__(self, event: Event) -> None:
        """Tell all observers, in their order."""
        for observer in self._observers:
            try:
                observer(event)
            # It does not wait, so a CancelledError is not ours: `.result()` of a future that was cancelled raises it.
            except (Exception, asyncio.CancelledError) as failure:
                log_failure("observer.failed", failure, observer=repr_of(observer), **_job_of(event))
