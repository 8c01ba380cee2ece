"""The exceptions: one root, attributes that survive copies, messages with advice."""

import copy
import inspect
import pickle
from collections.abc import Callable, Generator
from typing import Any

import pytest
from attrs import frozen

from nanobanana_async import errors
from nanobanana_async.errors import (
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
from nanobanana_async.gateways.refusals import ERROR_BY_STATUS
from tests.support.rows import each_row


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
each = each_row("error", EACH)


def facts(error: NanoBananaError) -> dict[str, Any]:
    said = vars(error)
    return {name: repr(value) if isinstance(value, Exception) else value for name, value in said.items()}


def test_every_exception_has_the_root_and_is_tested_here() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    assert all(issubclass(kind, NanoBananaError) for kind in classes)
    assert classes == {type(error) for error in EACH}


def test_module_docstring_names_every_class() -> None:
    assert errors.__doc__ is not None
    assert all(type(error).__name__ in errors.__doc__ for error in EACH)


@each
def test_pickling_keeps_every_attribute(error: NanoBananaError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (facts(again), again.args, str(again)) == (facts(error), error.args, str(error))


@each
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copy_keeps_every_attribute(
    error: NanoBananaError, copied: Callable[[NanoBananaError], NanoBananaError]
) -> None:
    again = copied(error)
    assert again is not error
    assert type(again) is type(error)
    assert (facts(again), again.args, str(again)) == (facts(error), error.args, str(error))


@each
def test_for_job_returns_a_copy_for_one_waiter(error: NanoBananaError) -> None:
    fresh = error.for_job("mine", safe_to_repeat=not error.safe_to_repeat)
    assert fresh is not error
    assert type(fresh) is type(error)
    changed = {"key": "mine", "safe_to_repeat": not error.safe_to_repeat}
    assert facts(fresh) == facts(error) | changed
    assert fresh.__traceback__ is None
    assert error.key != "mine"


@each
def test_str_starts_with_the_message(error: NanoBananaError) -> None:
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
        (SessionClosed("closed"), "closed (open a new session; with the same ledger it finds the jobs)"),
    ],
)
def test_str_shows_facts_and_advice(error: NanoBananaError, sentence: str) -> None:
    assert str(error) == sentence


def test_each_error_status_has_a_class() -> None:
    assert set(ERROR_BY_STATUS) == {400, 401, 402, 403, 404, 409, 413, 422, 429, 451, 500, 502, 503, 504}
    assert {status for status, kind in ERROR_BY_STATUS.items() if kind is GatewayUnavailable} == {500, 502, 503, 504}


@pytest.mark.parametrize(("sent", "given", "safe"), [(False, None, True), (True, None, False), (True, True, True)])
def test_possibly_sent_is_not_safe_to_repeat(sent: bool, given: bool | None, safe: bool) -> None:
    assert TransportError("m", possibly_sent=sent, safe_to_repeat=given).safe_to_repeat is safe


def test_errors_subclass_builtin_exceptions() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(JobUnfinished, TimeoutError)


def test_rate_limited_kind_defaults_to_none() -> None:
    assert RateLimited("m").kind is None
    assert RateLimited("m", kind="rate").kind == "rate"


def test_job_error_exposes_the_job() -> None:
    error = JobUnfinished("late", job=JOB, safe_to_repeat=False)
    assert (error.job, error.key, error.job.task_id) == (JOB, "order-1", "img_1")
    with pytest.raises(StopIteration, match="order-1"):
        next(error.job.__await__())
