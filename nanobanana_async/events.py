"""Define the events that a session emits, and log them; metrics and progress displays observe them too."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Protocol, runtime_checkable

from attrs import asdict, field, frozen

from nanobanana_async.errors import GatewayError, NanoBananaError
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import shorten
from nanobanana_async.jobs import JobRecord, JobState

log = logging.getLogger("nanobanana_async")

LONGEST_STATUS_WORD = 60
"""Longer status words are cut in logs: the gateway sends them, and may send a page of text."""


@frozen(kw_only=True)
class JobTracked:
    """The session starts to track a job: it was requested, found again or resolved.

    Emitted synchronously, in the caller's context. `record` is the requested or found job; the ledger's own copy may
    differ, and comes with the next event. `weight` is how many job slots the job takes while the gateway has it.
    """

    record: JobRecord  # the job's record, which holds the prompt
    weight: int  # job slots


@frozen(kw_only=True)
class JobReleased:
    """The session stops tracking a job: it has ended, or is no longer followed. `error` says why it was given up."""

    record: JobRecord  # the job's record, which holds the prompt
    error: Exception | None  # why it was given up; None: it was not


@frozen(kw_only=True)
class JobStateChanged:
    """A job changed its state, and the ledger has recorded it, which took `write_s` seconds; None: not measured."""

    before: JobState | None  # None: the job is new
    record: JobRecord  # the job's record, which holds the prompt
    write_s: float | None = field(default=None, eq=False)  # how long the ledger took


@frozen(kw_only=True)
class CreateFailed:
    """A create returned no task id. `action` is what the session does next, after `wait_s` seconds.

    `in_doubt`: this create or an earlier one of the job may have been accepted all the same.
    """

    record: JobRecord  # the job's record, which holds the prompt
    error: Exception  # the last failure
    action: str  # "requeue", "repeat", "refuse", "park" or "give_up"
    wait_s: float  # until then
    in_doubt: bool = False  # it may have been accepted all the same


@frozen(kw_only=True)
class JobPolled:
    """A poll was answered: the job still runs, or has ended. `polls` counts the polls of this job.

    `delay_s`: how many seconds ago the job ended, if the gateway reports how long it took.
    """

    record: JobRecord  # the job's record, which holds the prompt
    status: str  # the gateway's own word
    polls: int  # of this job so far
    delay_s: float | None = None  # since the job ended


@frozen(kw_only=True)
class PollFailed:
    """A poll failed. The next poll follows after `wait_s` seconds; None means that there is none."""

    record: JobRecord  # the job's record, which holds the prompt
    error: Exception  # the last failure
    wait_s: float | None  # until the next poll; None: there is none
    polls: int = 0  # of this job so far


@frozen(kw_only=True)
class GatewayUnreachable:
    """Requests have got no usable answer for `for_s` seconds.

    Emitted with the first failure, then with one every 30 seconds until an answer comes. `error` is the last failure,
    and `record` the job that met it: the others wait too. `retried` is False if this job ends with the failure.
    """

    record: JobRecord  # the job's record, which holds the prompt
    error: Exception  # the last failure
    for_s: float  # since the last usable answer
    retried: bool = True  # False: this job ends with it


@frozen(kw_only=True)
class BudgetUsedUp:
    """The account's budget of requests of a day, or of hours, is used up: nothing is sent before `until`.

    Emitted once for each such pause; one request after two minutes checks what the gateway says. `record` is the job
    whose request was refused: the others wait too.
    """

    record: JobRecord  # the job's record, which holds the prompt
    error: Exception  # the last failure
    until: datetime  # when the gateway takes requests again


@frozen(kw_only=True)
class CallbackReceived:
    """The gateway sent a callback about a job, to this process or another one; one poll follows to confirm it."""

    record: JobRecord  # the job's record, which holds the prompt


@frozen(kw_only=True)
class UnknownStatus:
    """The gateway reported a status that its reference does not list; the job counts as running."""

    record: JobRecord  # the job's record, which holds the prompt
    status: str  # the gateway's own word


@frozen(kw_only=True)
class PriceAboveEstimate:
    """A job costs more than was reserved for it: the difference may exceed a cap, and then nothing more is bought."""

    record: JobRecord  # the job's record, which holds the prompt
    estimate: Decimal  # what was reserved


@frozen(kw_only=True)
class WriteRefused:
    """The ledger refused to change a job, since it is another owner's by now. `record` is the job as it was known."""

    record: JobRecord  # the job's record, which holds the prompt


@frozen(kw_only=True)
class LimitsChanged:
    """The learned limits of the account changed; the fields are those of `SessionStats`."""

    job_limit: int | None  # None: not known
    max_creates_per_s: float | None  # None: not known
    limit_kind: str | None  # what 429s without a stated kind are attributed to
    creates_paused: bool  # while the gateway asks for a pause or is down
    slots_held: int  # job slots in use
    throttled: int  # 429s to creates
    account: str = ""  # whose limits they are


Event = (
    JobTracked
    | JobReleased
    | JobStateChanged
    | CreateFailed
    | JobPolled
    | PollFailed
    | GatewayUnreachable
    | BudgetUsedUp
    | CallbackReceived
    | UnknownStatus
    | PriceAboveEstimate
    | WriteRefused
    | LimitsChanged
)
"""What observers are called with."""


@runtime_checkable
class ObserverFactory(Protocol):
    """An observer for several sessions that keeps their events apart."""

    def observer(self) -> Callable[[Event], None]:
        """Return the observer of one session."""
        ...


Observer = Callable[[Event], None] | ObserverFactory
"""A function that is called with each event, or an object that makes one for each session."""

_LOG_LEVELS: dict[type, int] = {
    JobTracked: logging.DEBUG,
    JobReleased: logging.DEBUG,
    JobStateChanged: logging.DEBUG,
    JobPolled: logging.DEBUG,
    CreateFailed: logging.INFO,
    PollFailed: logging.INFO,
    GatewayUnreachable: logging.WARNING,
    BudgetUsedUp: logging.WARNING,
    CallbackReceived: logging.DEBUG,
    UnknownStatus: logging.WARNING,
    PriceAboveEstimate: logging.WARNING,
    WriteRefused: logging.INFO,
    LimitsChanged: logging.DEBUG,
}
_LEVELS_OF_STATES = {JobState.FAILED: logging.INFO, JobState.REFUSED: logging.INFO, JobState.UNCERTAIN: logging.WARNING}
_EVENT_NAMES: dict[type, str] = {
    JobTracked: "job.tracked",
    JobReleased: "job.released",
    JobStateChanged: "job.state_changed",
    JobPolled: "job.polled",
    CreateFailed: "create.failed",
    PollFailed: "poll.failed",
    GatewayUnreachable: "gateway.unreachable",
    BudgetUsedUp: "budget.used_up",
    CallbackReceived: "callback.received",
    UnknownStatus: "status.unknown",
    PriceAboveEstimate: "price.above_estimate",
    WriteRefused: "write.refused",
    LimitsChanged: "limits.changed",
}


def log_event(event: Event, account: str | None = None) -> None:
    """Log an event under a stable name, with its facts as extras, which hold neither prompts nor API keys."""
    kind = type(event)
    level = _LOG_LEVELS[kind]
    if isinstance(event, JobStateChanged):
        level = logging.WARNING if event.record.missing else _LEVELS_OF_STATES.get(event.record.state, level)
    if not log.isEnabledFor(level):
        return
    facts = _log_facts(event) | ({} if account is None else {"account": account})
    text = " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    log.log(level, "%s %s", _EVENT_NAMES[kind], one_line(text), extra={"event": _EVENT_NAMES[kind], **facts})


def _log_facts(event: Event) -> dict[str, Any]:
    if isinstance(event, LimitsChanged):
        return asdict(event, filter=lambda fact, _: fact.name != "account")  # logged if the session has several
    record = event.record
    facts: dict[str, Any] = {"job": record.key, "state": record.state.value, "task_id": record.task_id}
    match event:
        case JobReleased(error=error):
            facts["error"] = None if error is None else _error_without_body(error)
        case JobStateChanged(before=before):
            facts["before"] = None if before is None else before.value
            facts["missing_images"] = ",".join(str(index) for index, _ in record.missing) or None
        case CreateFailed(error=error, action=action, wait_s=wait_s):
            facts |= {"error": _error_without_body(error), "action": action, "wait_s": round(wait_s, 3)}
            facts |= {"in_doubt": event.in_doubt or None, "limit_kind": getattr(error, "kind", None)}
        case JobPolled(status=status, polls=polls, delay_s=delay_s):
            facts |= {"status": shorten(status, LONGEST_STATUS_WORD), "polls": polls}
            facts["delay_s"] = None if delay_s is None else round(delay_s, 3)
        case PollFailed(error=error, wait_s=next_poll_s):
            facts |= {"error": _error_without_body(error), "wait_s": next_poll_s}
        case GatewayUnreachable(error=error):
            facts |= {"error": _error_without_body(error), "for_s": round(event.for_s, 3)}
        case BudgetUsedUp(error=error):
            facts |= {"error": _error_without_body(error), "until": event.until.isoformat(timespec="seconds")}
        case UnknownStatus(status=status):
            facts["status"] = shorten(status, LONGEST_STATUS_WORD)
        case PriceAboveEstimate(estimate=estimate):
            facts |= {"estimate": str(estimate), "credits": str(record.credits_used)}
    return facts


def log_failed_upload(record: JobRecord, error: NanoBananaError, *, wait_s: float | None) -> None:
    """Log that an image could not be uploaded, with the address at fault; `wait_s` until the next try, None at the end.

    The upload may have failed where the gateway sent it: that is no `GatewayUnreachable`.
    """
    facts: dict[str, object] = {"job": record.key, "error": _error_without_body(error)}
    facts |= {} if wait_s is None else {"wait_s": round(wait_s, 3)}
    text = " ".join(f"{name}={value}" for name, value in facts.items())
    level = logging.WARNING if wait_s is None else logging.INFO
    log.log(level, "reference.not_stored %s", one_line(text), extra={"event": "reference.not_stored", **facts})


def log_failure(name: str, failure: BaseException, **facts: object) -> None:
    """Log an unexpected exception with its traceback; an exception of a logging handler is suppressed."""
    text = "".join(f" {fact}={value}" for fact, value in facts.items())
    with suppress(Exception, asyncio.CancelledError):
        log.error("%s%s", name, text, exc_info=failure, extra={"event": name, **facts})


def safe_repr(observer: object) -> str:
    """Return the repr of an observer, or its class if the repr raises."""
    try:
        return repr(observer)
    except Exception:
        return f"<{type(observer).__name__}>"


def _error_without_body(error: Exception) -> str:
    """Return an error without the gateway's messages and bodies, which may quote the prompt."""
    kind = type(error).__name__
    match error:
        case GatewayError(status=status, code=code, request_id=request_id):
            facts = [str(fact) for fact in (status, code, request_id) if fact is not None]
            return f"{kind} [{', '.join(facts)}]"
        case NanoBananaError(message=message):
            return f"{kind}: {message}"
    return kind


class EventEmitter:
    """Pass each event to every observer; an observer that raises is logged and does not affect the job."""

    def __init__(self, observers: tuple[Callable[[Event], None], ...] = (), *, account: str | None = None) -> None:
        self._observers: tuple[Callable[[Event], None], ...] = (partial(log_event, account=account), *observers)

    def __call__(self, event: Event) -> None:
        """Call all observers in order."""
        for observer in self._observers:
            try:
                observer(event)
            # Nothing is awaited here, so a CancelledError is the observer's: `.result()` of a cancelled future.
            except (Exception, asyncio.CancelledError, GeneratorExit) as failure:
                job = {} if isinstance(event, LimitsChanged) else {"job": event.record.key}
                log_failure("observer.failed", failure, observer=safe_repr(observer), **job)
