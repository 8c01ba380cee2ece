"""Calls that are nearly right: the error names what to write, and nothing is bought."""

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    Budget,
    ConcurrencyPolicy,
    ConfigurationError,
    DefApi,
    PollPolicy,
    Session,
    SessionClosed,
)
from nanobanana_async.config import gateway_from_env
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import API_KEY, FakeGateway, apimall, virtually
from tests.support.rows import each_row


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"aspectratio": "1:1"}, "aspectratio is aspect_ratio here"),
        ({"resoluton": "1K"}, "resoluton is resolution here"),
        ({"size": "1024x1024"}, r"size is aspect_ratio \(such as 16:9\) and resolution"),
        ({"n": 2}, "n is num_images here"),
        ({"quality": "hd"}, "quality is resolution"),
        ({"image": "https://a.example/b.png"}, r"image is images \(a list\) here"),
        ({"key": "order-1"}, "key is idempotency_key here"),
        ({"seed": 3}, r"seed is extra \(as in extra={'seed': 7}\) here"),
        ({"colour": "red"}, "unknown field colour: the fields are images, num_images"),
    ],
)
@virtually
async def test_unknown_field_is_refused_with_the_one_that_is_meant(fields: dict[str, Any], meant: str) -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        for call in (session.generate, session.submit):
            with pytest.raises(ConfigurationError, match=meant):
                await call("a fox", **fields)
        (outcome,) = [each async for each in session.generate_many([{"prompt": "a fox", "sede": 1, **fields}])]
        assert "unknown field" in str(outcome.error) or "key" in fields
    assert gateway.sold == 0


@pytest.mark.parametrize("several", [["a fox", "an owl"], ("a fox",)])
@virtually
async def test_list_given_to_generate_names_generate_many(several: Any) -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        with pytest.raises(ConfigurationError, match=r"not (list|tuple): generate_many takes a list"):
            await session.generate(several)


@virtually
async def test_job_given_to_save_names_its_result() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        job: Any = await session.submit("a fox")
        with pytest.raises(ConfigurationError, match="the GenerationResult of a job, such as await job"):
            await session.save(job, "images")


@virtually
async def test_attribute_of_the_result_read_from_a_job_says_to_await_it() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        job: Any = await session.submit("a fox")
        for name in ("images", "url", "missing", "model"):
            with pytest.raises(
                AttributeError, match=rf"'Job' object has no attribute '{name}'.*`\(await job\)\.{name}`"
            ):
                getattr(job, name)
            getattr(await job, name)
        with pytest.raises(AttributeError, match=r"'Job' object has no attribute 'imges'$"):
            _ = job.imges
        assert not hasattr(job, "images")


@virtually
async def test_batch_says_how_it_is_read() -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        batch: Any = session.generate_many(["a fox"])
        with pytest.raises(TypeError, match="`async for outcome in batch`, not with `for`"):
            list(batch)
        with pytest.raises(TypeError, match="not awaited: read it with `async for outcome in batch`"):
            await batch
        with pytest.raises(TypeError, match="a Batch is used with `async with`"), batch:
            pass
        assert gateway.sold == 0
        assert len([outcome async for outcome in batch]) == 1


def test_plain_with_of_a_session_names_async_with() -> None:
    session: Any = Session(ApiMall(api_key=API_KEY))
    with pytest.raises(TypeError, match=r"with `async with`, not with `with`; code without asyncio .*portal"), session:
        pass
    with pytest.raises(ConfigurationError, match=r"not open: use 'async with .*; code without asyncio uses .*portal"):
        session.stats()


@virtually
async def test_portal_is_not_advice_where_a_loop_runs() -> None:
    with pytest.raises(ConfigurationError, match=r"or await session.open\(\)$"):
        Session(ApiMall(api_key=API_KEY)).stats()


@each_row(
    ("given", "advice"),
    [
        ({"api_key": API_KEY}, r"api_key is a setting of the gateway: .*Session\(ApiMall\(api_key=\.\.\.\)\)"),
        ({"base_url": "x"}, r"base_url is a setting of the gateway: .*ApiMall\.from_env\(base_url=\.\.\.\)"),
        ({"account": "x"}, "account is a setting of the gateway"),
        ({"max_jobs": 8}, r"Session\(concurrency=ConcurrencyPolicy\(max_jobs=\.\.\.\)\)"),
        ({"job_s": 8}, r"Session\(timeouts=Timeouts\(job_s=\.\.\.\)\)"),
        ({"ledgr": "x"}, "Session: unknown setting ledgr: ledgr is ledger here"),
        ({"colour": "x"}, "Session: unknown setting colour: the settings are gateway, ledger, concurrency"),
    ],
)
def test_setting_that_a_session_does_not_have_names_its_place(given: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        Session(**given)


@each_row(
    ("given", "advice"),
    [
        ({"saveto": "images"}, "{call}: unknown argument saveto: saveto is save_to here"),
        ({"resolution": "2K"}, "{call}: resolution is a field of each request, as in {{'prompt': 'a fox'"),
    ],
)
@virtually
async def test_unknown_argument_of_a_batch_is_refused_with_the_one_that_is_meant(
    given: dict[str, Any], advice: str
) -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        with pytest.raises(ConfigurationError, match=advice.format(call="generate_many")):
            session.generate_many(["a fox"], **given)
        with pytest.raises(ConfigurationError, match=advice.format(call="work")):
            session.work("spring", **given)
        with pytest.raises(ConfigurationError, match="feed: "):
            await session.feed(["a fox"], batch="spring", **given)
    assert gateway.sold == 0


@each_row(
    ("build", "advice"),
    [
        (lambda: ConcurrencyPolicy(8), r"by name, as in ConcurrencyPolicy\(max_jobs=\.\.\.\)"),  # type: ignore[call-arg]
        (lambda: PollPolicy(target_delay=1), "PollPolicy: unknown setting target_delay: .* is target_delay_s here"),  # type: ignore[call-arg]
        (lambda: Budget(max_credits=5), r"Budget needs name: Budget\(max_credits=\.\.\., name=\.\.\.\)"),  # type: ignore[call-arg]
    ],
)
def test_wrong_arguments_of_a_policy_are_refused_with_what_to_pass(build: Callable[[], object], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        build()


@each_row(("option", "value"), [("names", "{row}"), ("sidecar", True)])
@virtually
async def test_options_of_saved_images_need_save_to(option: str, value: Any) -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        with pytest.raises(ConfigurationError, match=f"^{option} is for images that are saved: pass save_to"):
            session.generate_many(["a fox"], **{option: value})
    assert gateway.sold == 0


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: Session(API_KEY), "an API key goes into APIMALL_API_KEY or DEFAPI_API_KEY"),  # type: ignore[arg-type]
        (lambda: ApiMall(API_KEY), r'by name, as in ApiMall\(api_key="\.\.\."\)'),  # type: ignore[call-arg]
        (lambda: DefApi(apikey=API_KEY), "apikey is api_key here"),  # type: ignore[call-arg]
        (lambda: ApiMall(), r"API Mall needs an API key: from_env\(\) reads APIMALL_API_KEY"),  # type: ignore[call-arg]
    ],
)
def test_misplaced_key_is_refused_and_not_shown(build: Callable[[], object], what: str) -> None:
    with pytest.raises(ConfigurationError, match=what) as caught:
        build()
    trace = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    shown = [value for frame in trace.stack[1:] for value in (frame.locals or {}).values()]
    assert not [value for value in (*shown, str(caught.value)) if API_KEY in value]


@each_row("key", ['"sk-abc123"', "'sk-abc123'", "${APIMALL_API_KEY}", "$KEY", "<key>", "***", "sk-...", "your-api-key"])
def test_placeholder_is_no_key(key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"(is a placeholder|has quotation marks).*: set APIMALL_API_KEY"):
        ApiMall(api_key=key)


@each_row(
    ("path", "refused"),
    [
        ("/api/v1", "/api/v1"),
        ("/api/", "/api"),
        ("/proxied/api/v1/images/generate", "/api/v1/images/generate"),
        ("/api/image/gen", "/api/image/gen"),
        ("/proxied", None),
        ("/apis", None),
    ],
)
def test_path_of_the_api_does_not_belong_into_the_base_url(path: str, refused: str | None) -> None:
    url = f"https://gateway.example{path}"
    if refused is None:
        assert DefApi(api_key=API_KEY, base_url=url).base_url == url
        return
    with pytest.raises(ConfigurationError, match=f"which are added to it: leave out {refused}$"):
        DefApi(api_key=API_KEY, base_url=url)


def test_without_a_key_the_variables_and_the_demo_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"APIMALL_API_KEY or DEFAPI_API_KEY; .* run `nanobanana demo`"):
        gateway_from_env({})


def test_session_that_ended_with_its_loop_says_so() -> None:
    session = apimall(FakeTransport(FakeGateway().answer))

    async def use() -> None:
        await session.generate("a fox")

    async def open_and_close() -> None:
        await session.open()
        await session.aclose()
        with pytest.raises(SessionClosed, match=r"the session is closed \(open a new session"):
            await use()

    asyncio.run(open_and_close())
    with pytest.raises(
        SessionClosed, match=r"opened in another event loop.*Put all calls into one asyncio.run \(open a new"
    ):
        asyncio.run(use())
