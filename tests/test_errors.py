"""The exception tree: one root, facts that survive, sentences that say what to do."""

import copy
import inspect
import pickle
from collections.abc import Callable, Generator
from typing import Any

import pytest
from attrs import frozen

from nanobanana_async import errors
from nanobanana_async.errors import (
    ERROR_BY_STATUS,
    BatchStopped,
    ConfigurationError,
    CreditLimitReached,
    DownloadError,
    GatewayError,
    GatewayUnavailable,
    InvalidRequest,
    JobError,
    JobFailed,
    JobHandle,
    JobUncertain,
    JobUnfinished,
    JobWithdrawn,
    LedgerError,
    NanoBananaError,
    RateLimited,
    SaveError,
    SessionClosed,
    TransportError,
    UnexpectedResponse,
)


@frozen
class Handle:
    """A job as an error knows it."""

    key: str
    task_id: str | None = None

    def __await__(self) -> Generator[Any, None, str]:
        yield from ()
        return self.key


JOB: JobHandle = Handle("order-1", "img_1")
GATEWAY_FACTS: dict[str, Any] = {"status": 429, "code": "c", "request_id": "r", "retry_after_s": 7.0}

EACH = [
    NanoBananaError("m", key="k", safe_to_repeat=False),
    ConfigurationError("m"),
    GatewayError("m", **GATEWAY_FACTS, key="k", safe_to_repeat=False),
    *(kind("m", **GATEWAY_FACTS) for kind in dict.fromkeys(ERROR_BY_STATUS.values())),
    RateLimited("m", kind="jobs", **GATEWAY_FACTS, key="k", safe_to_repeat=False),
    TransportError("m", possibly_sent=True),
    UnexpectedResponse("m", status=502, body="<html>", retry_after_s=1.5),
    JobError("m", job=JOB, safe_to_repeat=True),
    JobFailed("m", job=JOB, safe_to_repeat=True),
    JobUncertain("m", job=JOB, safe_to_repeat=False),
    JobWithdrawn("m", job=JOB, safe_to_repeat=True),
    JobUnfinished("m", job=JOB, safe_to_repeat=False),
    SessionClosed("m"),
    BatchStopped("m", cause=NanoBananaError("why"), done=3, unbought=4),
    CreditLimitReached("m"),
    LedgerError("m", task_id="img_1", key="k", safe_to_repeat=False),
    DownloadError("m"),
    SaveError("m"),
]
each = pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)


def facts(error: NanoBananaError) -> dict[str, Any]:
    said = vars(error)
    return {name: repr(value) if isinstance(value, Exception) else value for name, value in said.items()}


def test_every_exception_of_the_module_comes_from_the_one_root_and_is_tried_here() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    assert all(issubclass(kind, NanoBananaError) for kind in classes)
    assert classes == {type(error) for error in EACH}


def test_the_tree_at_the_top_of_the_module_names_every_class() -> None:
    assert errors.__doc__ is not None
    assert all(type(error).__name__ in errors.__doc__ for error in EACH)


@each
def test_pickling_keeps_every_fact(error: NanoBananaError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (facts(again), again.args, str(again)) == (facts(error), error.args, str(error))


@each
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_keeps_every_fact(error: NanoBananaError, copied: Callable[[NanoBananaError], NanoBananaError]) -> None:
    again = copied(error)
    assert again is not error
    assert type(again) is type(error)
    assert (facts(again), again.args, str(again)) == (facts(error), error.args, str(error))


@each
def test_about_is_a_fresh_copy_for_one_waiter(error: NanoBananaError) -> None:
    fresh = error.for_job("mine", safe_to_repeat=not error.safe_to_repeat)
    assert fresh is not error
    assert type(fresh) is type(error)
    changed = {"key": "mine", "safe_to_repeat": not error.safe_to_repeat}
    assert facts(fresh) == facts(error) | changed
    assert fresh.__traceback__ is None
    assert error.key != "mine"


@each
def test_the_sentence_begins_with_the_message(error: NanoBananaError) -> None:
    assert str(error).startswith("m")
    assert error.advice in str(error)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (GatewayError("no"), "no"),
        (GatewayError("no", status=418), "no [418]"),
        (GatewayError("no", status=401, code="401"), "no [401]"),
        (GatewayError("no", code="c", request_id="r"), "no [code c, request r]"),
        (InvalidRequest("prompt is empty"), "prompt is empty (change the request)"),
        (RateLimited("slow", status=429, code="c"), "slow [429, code c] (wait, then repeat)"),
        (UnexpectedResponse("odd"), "odd"),
        (UnexpectedResponse("odd", status=502), "odd [502]"),
        (UnexpectedResponse("odd", status=502, body="<html>"), "odd [502]: <html>"),
        (SessionClosed("closed"), "closed"),
    ],
)
def test_the_sentence_tells_the_facts_and_the_advice(error: NanoBananaError, sentence: str) -> None:
    assert str(error) == sentence


def test_each_status_of_the_references_has_its_class() -> None:
    assert set(ERROR_BY_STATUS) == {400, 401, 402, 403, 404, 409, 429, 451, 500, 502, 503, 504}
    assert {status for status, kind in ERROR_BY_STATUS.items() if kind is GatewayUnavailable} == {500, 502, 503, 504}


@pytest.mark.parametrize(("sent", "given", "safe"), [(False, None, True), (True, None, False), (True, True, True)])
def test_what_was_perhaps_sent_is_not_safe_to_repeat(sent: bool, given: bool | None, safe: bool) -> None:
    assert TransportError("m", possibly_sent=sent, safe_to_repeat=given).safe_to_repeat is safe


def test_errors_are_what_their_readers_also_expect() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(JobUnfinished, TimeoutError)


def test_a_limit_of_unknown_kind_says_so() -> None:
    assert RateLimited("m").kind is None
    assert RateLimited("m", kind="rate").kind == "rate"


def test_a_job_error_hands_out_the_job() -> None:
    error = JobUnfinished("late", job=JOB, safe_to_repeat=False)
    assert (error.job, error.key, error.job.task_id) == (JOB, "order-1", "img_1")
    with pytest.raises(StopIteration, match="order-1"):
        next(error.job.__await__())
