"""Arguments of the wrong kind are refused with what to pass, before anything is bought."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    ConfigurationError,
    DefApi,
    MemoryLedger,
    PollPolicy,
    RetryPolicy,
    Session,
    SqliteLedger,
)
from nanobanana_async.events import Event
from nanobanana_async.otel import Telemetry
from nanobanana_async.testing import FakeTransport
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.fakes import API_KEY, FakeGateway, apimall, virtually
from tests.support.rows import each_row


class Observer:
    def __call__(self, event: Event) -> None:
        del event


@each_row(
    ("name", "value", "advice"),
    [
        ("retry", 3, "retry must be a RetryPolicy, such as RetryPolicy(max_attempts=3), not an object of type int"),
        ("retry", RetryPolicy, "retry must be a RetryPolicy, such as RetryPolicy(max_attempts=3), not the class"),
        ("retry", PollPolicy(), "not an object of type PollPolicy"),
        ("polling", 0.5, "polling must be a PollPolicy, such as PollPolicy(target_delay_s=0.5)"),
        ("concurrency", 5, "concurrency must be a ConcurrencyPolicy, such as ConcurrencyPolicy(max_jobs=5)"),
        ("concurrency", 0, "concurrency must be a ConcurrencyPolicy"),
        ("timeouts", 30, "timeouts must be a Timeouts, such as Timeouts(create_s=30)"),
        ("http", 5, "http must be an aiohttp.ClientSession, or a transport"),
        ("http", FakeTransport, "http must be an aiohttp.ClientSession, or a transport"),
        ("ledger", 5, "ledger must be a ledger or the path of its file, such as 'jobs.sqlite'"),
        ("ledger", MemoryLedger, "not the class MemoryLedger"),
        ("ledger", b"jobs.sqlite", "ledger must be a ledger or the path of its file"),
        ("ledger", "", "is not a file"),
        ("trust_env", "no", "trust_env must be True or False, not 'no'"),
        ("trust_env", 1, "trust_env must be True or False"),
        ("max_credits", "5", "max_credits must be a number of at least 0, not '5'"),
        ("observers", print, "observers must be a list of functions that take an event, such as [print]"),
        ("observers", None, "observers must be a list of functions that take an event, such as [print], not None"),
        ("observers", [5], "observers must be a list of functions .*; number 1 is an object of type int"),
        ("observers", [print, Observer], "number 2 is the class Observer"),
        ("observers", [Telemetry], "number 1 is the class Telemetry"),
        ("observers", "print", "number 1 is an object of type str"),
    ],
)
def test_setting_of_the_wrong_kind_is_refused(name: str, value: Any, advice: str) -> None:
    pattern = advice.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ConfigurationError, match=pattern):
        Session(ApiMall(api_key=API_KEY), **{name: value})


@pytest.mark.parametrize(
    ("gateway", "what"),
    [(ApiMall, "the class ApiMall"), (5, "an object of type int"), (API_KEY, "passed as ApiMall(api_key=...)")],
)
def test_gateway_of_the_wrong_kind_is_refused(gateway: Any, what: str) -> None:
    with pytest.raises(ConfigurationError, match=r"gateway must be a gateway, such as ApiMall.from_env\(\)") as caught:
        Session(gateway)
    assert str(caught.value).endswith(what)
    assert API_KEY not in str(caught.value)


def test_settings_of_the_right_kind_are_accepted(tmp_path: Path) -> None:
    observers: list[Any] = [[], (print,), [Observer()], iter([print])]
    for each in observers:
        Session(DefApi(api_key=API_KEY), observers=each, trust_env=True, ledger=tmp_path / "jobs.sqlite")


Call = Callable[[Session], Coroutine[Any, Any, Any]]


async def generate_many(session: Session, **options: Any) -> None:
    session.generate_many(["a fox"], **options)


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (lambda session: session.job(5.5), "key must be the key of a job, as text"),
        (lambda session: session.job(None), "key must be the key of a job, as text, not None"),
        (lambda session: session.resolve(5, not_bought=True), "job must be a Job or the key of one"),
        (lambda session: session.resume(buy="no"), "buy must be True or False, not 'no'"),
        (lambda session: session.attach("t1", request="a fox"), "request must be an ImageRequest"),
        (lambda session: session.save("x", "images"), "result must be the GenerationResult of a job"),
        (lambda session: session.download("x"), "image must be a GeneratedImage, such as"),
        (lambda session: session.generate(5), "a request is a prompt, a mapping or an ImageRequest"),
        (lambda session: generate_many(session, expected_credits="2"), "expected_credits must be a number"),
        (lambda session: generate_many(session, max_credits="5"), "max_credits must be a number"),
    ],
)
@virtually
async def test_argument_of_the_wrong_kind_is_refused(call: Call, advice: str) -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        with pytest.raises(ConfigurationError, match=advice):
            await call(session)
    assert gateway.sold == 0


@pytest.mark.parametrize("folder", ["", "  ", 5, None, "a\0b", b"images"])
@virtually
async def test_folder_that_is_no_path_is_refused(folder: Any) -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        result = await session.generate("a fox")
        with pytest.raises(ConfigurationError, match="target must be the path of a folder, not "):
            await session.save(result, folder)


@virtually
async def test_non_boolean_verify_is_refused() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        result = await session.generate("a fox")
        with pytest.raises(ConfigurationError, match="verify must be True or False"):
            await session.download(result.images[0], verify="no")  # type: ignore[arg-type]


def test_receiver_of_no_session_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="session must be a Session, not an object of type int"):
        CallbackReceiver(5, public_url="https://app.example")  # type: ignore[arg-type]


def test_ledger_path_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"path must be the path of a file, such as 'jobs\.sqlite'"):
        SqliteLedger(5)  # type: ignore[arg-type]
