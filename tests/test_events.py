"""Events are emitted and logged under stable names, without prompts and API keys."""

import asyncio
import logging
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import (
    ConcurrencyPolicy,
    JobState,
    LedgerError,
    NanoBananaError,
    RetryPolicy,
    Timeouts,
    TransportError,
)
from nanobanana_async.errors import InsufficientCredits, UnexpectedResponse
from nanobanana_async.events import (
    BudgetUsedUp,
    CreateFailed,
    Event,
    EventEmitter,
    GatewayUnreachable,
    JobPolled,
    JobStateChanged,
    PollFailed,
    PriceAboveEstimate,
    UnknownStatus,
    WriteRefused,
    log_event,
)
from nanobanana_async.gateways.contract import HttpResponse
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import API_KEY, Opening, RecordingLedger, apimall, defapi, virtually
from tests.support.records import record
from tests.support.replies import Step, completed, created, in_turn, json_reply, refused, task

PROMPT = "a-very-secret-fox-in-the-snow"
ECHO = f"your prompt {PROMPT!r} and your key {API_KEY} are not welcome"

LOST = TransportError("the connection was reset", possibly_sent=True)
FOUND = record(state=JobState.RUNNING, task_id="t-1", body=PROMPT.encode())

EVENTS: dict[str, tuple[Event, str, int, dict[str, Any]]] = {
    "new job": (
        JobStateChanged(before=None, record=FOUND),
        "job.state_changed",
        logging.DEBUG,
        {"before": None, "state": "running"},
    ),
    "state changed": (
        JobStateChanged(before=JobState.SUBMITTING, record=FOUND),
        "job.state_changed",
        logging.DEBUG,
        {"before": "submitting", "state": "running", "task_id": "t-1"},
    ),
    "uncertain": (
        JobStateChanged(before=JobState.SUBMITTING, record=record(state=JobState.UNCERTAIN)),
        "job.state_changed",
        logging.WARNING,
        {"state": "uncertain"},
    ),
    "create failed": (
        CreateFailed(record=FOUND, error=LOST, action="repeat", wait_s=1.23456),
        "create.failed",
        logging.INFO,
        {"error": "TransportError: the connection was reset", "action": "repeat", "wait_s": 1.235},
    ),
    "create refused": (
        CreateFailed(
            record=FOUND,
            error=InsufficientCredits(ECHO, status=402, code="no_credits", request_id="req_1"),
            action="refuse",
            wait_s=0.0,
        ),
        "create.failed",
        logging.INFO,
        {"error": "InsufficientCredits [402, no_credits, req_1]", "action": "refuse"},
    ),
    "polled": (
        JobPolled(record=FOUND, status="processing", polls=3),
        "job.polled",
        logging.DEBUG,
        {"status": "processing", "polls": 3},
    ),
    "poll failed": (
        PollFailed(record=FOUND, error=UnexpectedResponse("not JSON", status=200, body=ECHO), wait_s=2.5),
        "poll.failed",
        logging.INFO,
        {"error": "UnexpectedResponse: not JSON", "wait_s": 2.5},
    ),
    "last poll failed": (
        PollFailed(record=FOUND, error=ValueError(ECHO), wait_s=None),
        "poll.failed",
        logging.INFO,
        {"error": "ValueError", "wait_s": None},
    ),
    "unreachable": (
        GatewayUnreachable(record=FOUND, error=LOST, for_s=7.12345),
        "gateway.unreachable",
        logging.WARNING,
        {"error": "TransportError: the connection was reset", "for_s": 7.123},
    ),
    "used up": (
        BudgetUsedUp(record=FOUND, error=ValueError("?"), until=datetime(2026, 1, 2, tzinfo=UTC)),
        "budget.used_up",
        logging.WARNING,
        {"error": "ValueError", "until": "2026-01-02T00:00:00+00:00"},
    ),
    "above the estimate": (
        PriceAboveEstimate(record=evolve(FOUND, credits_used=Decimal(28)), estimate=Decimal(8)),
        "price.above_estimate",
        logging.WARNING,
        {"estimate": "8", "credits": "28"},
    ),
    "write refused": (WriteRefused(record=FOUND), "write.refused", logging.INFO, {}),
    "unknown status": (
        UnknownStatus(record=FOUND, status="dreaming"),
        "status.unknown",
        logging.WARNING,
        {"status": "dreaming"},
    ),
}


@pytest.mark.parametrize("name", EVENTS)
def test_each_event_is_logged_with_its_name_and_facts(name: str, caplog: pytest.LogCaptureFixture) -> None:
    event, log_name, level, facts = EVENTS[name]
    with caplog.at_level(logging.DEBUG, "nanobanana_async"):
        log_event(event)
    (line,) = caplog.records
    extras = line.__dict__
    assert (line.name, line.levelno, extras["event"], extras["job"]) == ("nanobanana_async", level, log_name, "order-1")
    assert {fact: extras[fact] for fact in facts} == facts
    assert line.getMessage().startswith(f"{log_name} job=order-1 state=")
    assert "None" not in line.getMessage()


def test_events_below_the_log_level_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "nanobanana_async"):
        for name in ("state changed", "polled", "create failed", "poll failed"):
            log_event(EVENTS[name][0])
    assert not caplog.records


@pytest.mark.parametrize("failure", [ZeroDivisionError, asyncio.CancelledError, GeneratorExit])
def test_a_raising_observer_is_logged_and_the_next_one_is_called(
    failure: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Event] = []

    def broken(_: Event) -> None:
        raise failure

    event = EVENTS["polled"][0]
    EventEmitter((broken, received.append))(event)
    assert received == [event]
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    assert line.getMessage().startswith("observer.failed")
    assert line.exc_info is not None


SCENES: dict[str, tuple[list[Step], list[Step]]] = {
    "success": ([created()], [task("processing"), completed()]),
    "a refusal quotes us": ([refused(400, "bad", ECHO)], [completed()]),
    "an unreadable answer quotes us": ([HttpResponse(status=200, body=ECHO.encode())], [completed()]),
    "an answer without a task quotes us": ([json_reply(200, {"success": True, "data": {"why": ECHO}})], [completed()]),
    "lost, then accepted": ([LOST, refused(503, "busy", ECHO), created()], [LOST, completed()]),
    "throttled": ([refused(429, "slow", ECHO), created()], [refused(429, "slow", ECHO), completed()]),
    "the task fails": ([created()], [task("failed", error_message=ECHO)]),
    "an unknown status": ([created()], [task("dreaming", prompt=ECHO), completed()]),
    "no image": ([created()], [task("completed", prompt=ECHO)]),
    "a wrong key": ([created()], [refused(401, "key", ECHO)]),
    "always lost": ([LOST], [completed()]),
    "never sent": ([TransportError("refused", possibly_sent=False)], [completed()]),
    "a bug": ([lambda _: _bug()], [completed()]),
}


def _bug() -> Reply:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("session_of", "broken"), [(apimall, None), (apimall, 2), (apimall, 3), (apimall, 4), (defapi, None), (defapi, 3)]
)
@pytest.mark.parametrize("name", SCENES)
@virtually
async def test_neither_prompt_nor_api_key_is_ever_logged(
    name: str, broken: int | None, session_of: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    transport = FakeTransport(in_turn(*SCENES[name]))
    settings: dict[str, Any] = {
        "ledger": RecordingLedger(failing_writes=[] if broken is None else [broken]),
        "retry": RetryPolicy(max_attempts=3),
        "timeouts": Timeouts(job_s=60.0),
        "concurrency": ConcurrencyPolicy(),
    }
    with caplog.at_level(logging.DEBUG):
        async with session_of(transport, **settings) as session:
            with_key: dict[str, Any] = {"idempotency_key": "order-1"}
            caller = asyncio.Task(session.generate(PROMPT, **with_key))
            await asyncio.wait([caller])
            error = caller.exception()
            assert error is None or isinstance(error, NanoBananaError)
            assert error is None or API_KEY not in f"{error} {error!r} {vars(error)}"
            assert API_KEY not in f"{session!r} {session.gateway!r} {transport.requests!r}"
    logged = [f"{line.getMessage()} {line.__dict__} {line.exc_text}" for line in caplog.records]
    assert logged
    assert not [line for line in logged if PROMPT in line or API_KEY in line]


@virtually
async def test_a_job_emits_its_events_in_order() -> None:
    names: list[str] = []

    def observe(event: Event) -> None:
        match event:
            case JobStateChanged(record=found):
                fact = found.state.value
            case CreateFailed(action=action):
                fact = action
            case JobPolled(status=status) | UnknownStatus(status=status):
                fact = status
            case PollFailed(error=error):
                fact = type(error).__name__
            case _:
                return
        names.append(f"{type(event).__name__} {fact}")

    transport = FakeTransport(in_turn([LOST, created()], [LOST, task("processing"), completed()]))
    async with apimall(transport, observers=[observe], ledger=RecordingLedger(failing_writes=[5])) as session:
        await session.generate("a fox")
    assert names == [
        "JobStateChanged pending",
        "JobStateChanged submitting",
        "CreateFailed repeat",
        "JobStateChanged running",
        "PollFailed TransportError",
        "JobPolled processing",
        "JobPolled completed",
        "JobStateChanged succeeded",
        f"PollFailed {LedgerError.__name__}",
    ]
