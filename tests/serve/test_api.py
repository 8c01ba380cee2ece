"""The served API: errors by their classes in OpenAI's client, keys, retries, tokens, and jobs whose client has left."""

import asyncio
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
import pytest

pytest.importorskip("python_multipart", reason="the extra serve is missing: pip install -e '.[serve]'")

from nanobanana_async import ApiMall, Budget, ConfigurationError, JobState, Session
from nanobanana_async.emulator import Emulator, Fixed, RandomFault, Script, faults
from nanobanana_async.otel.prometheus import PrometheusMetrics
from nanobanana_async.serve import Token, make_app
from nanobanana_async.serve.bodies import MAX_JSON_BYTES
from nanobanana_async.session import engine_of
from tests.serve.serving import client_of, listening, served
from tests.support.held import HeldJobs
from tests.support.images import make_image
from tests.support.lazy import lazy
from tests.support.loopback import charged, emulated, quick, received, until

if TYPE_CHECKING:
    import openai
else:
    openai = lazy("openai", "OpenAI's client is missing: pip install openai")

ANN, BEN = "ann-0123456789-secret", "ben-0123456789-secret"
RETRY = {"x-stainless-retry-count": "1"}


def create_error(status: int) -> list[RandomFault]:
    """Return the fault by which each create is answered with an error."""
    return [RandomFault(1.0, faults.error(status), "apimall.create")]


REFUSED: Sequence[tuple[Mapping[str, Any], str, str, str]] = (
    ({"size": "10x10"}, "BadRequestError", "size", "1024x1024"),
    ({"size": "16:9:1"}, "BadRequestError", "size", "aspect_ratio"),
    ({"quality": "max"}, "BadRequestError", "quality", "quality must be one of auto"),
    ({"size": "2048x2048", "extra_body": {"quality": "4K"}}, "BadRequestError", "quality", "has resolution 2K"),
    ({"n": 7}, "BadRequestError", "n", "from 1 to 6"),
    ({"prompt": " "}, "BadRequestError", "prompt", "empty"),
    ({"output_format": "webp"}, "BadRequestError", "output_format", "png"),
    ({"response_format": "file"}, "BadRequestError", "response_format", "url"),
    ({"background": "transparent"}, "BadRequestError", "background", "opaque"),
    ({"style": "vivid"}, "BadRequestError", "style", "leave it out"),
    ({"extra_body": {"seeds": 7}}, "BadRequestError", "seeds", "leave it out"),
    ({"model": "gpt-image-9"}, "NotFoundError", "model", "nano-banana-pro"),
)


async def test_field_without_a_meaning_is_refused_by_name() -> None:
    async with emulated() as emulator, served(emulator) as (url, _), client_of(url) as client:
        for options, kind, param, said in REFUSED:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.images.generate(**{"prompt": "a fox", **options})
            assert type(caught.value).__name__ == kind
            assert (caught.value.param, said in str(caught.value)) == (param, True), str(caught.value)
    assert charged(emulator.stats(), 0)


async def test_field_that_only_this_gateway_does_not_take_is_refused_by_name() -> None:
    async with emulated() as emulator:
        session = quick(emulator, "defapi")
        async with served(emulator, session=session) as (url, _), client_of(url) as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.generate(prompt="a fox", n=2)
            assert caught.value.param == "n"
            await client.images.edit(image=[make_image(), make_image(seed=2)], prompt="a fox")
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.edit(image=[make_image(seed=number) for number in range(1, 6)], prompt="a fox")
            assert caught.value.param == "image"
    assert charged(emulator.stats(), 1)


@pytest.mark.parametrize(
    ("settings", "kind", "code"),
    [
        ({"random_faults": create_error(451)}, "BadRequestError", "moderation_blocked"),
        ({"random_faults": create_error(400)}, "BadRequestError", "invalid_value"),
        ({"random_faults": create_error(403)}, "InternalServerError", "gateway_access_denied"),
        ({"credits": 4}, "RateLimitError", "insufficient_quota"),
        ({"failure_probability": 1.0}, "InternalServerError", "generation_failed"),
    ],
)
async def test_error_of_the_gateway_has_its_class_in_the_client(settings: Any, kind: str, code: str) -> None:
    async with emulated(**settings) as emulator, served(emulator) as (url, _), client_of(url) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.images.generate(prompt="a fox")
        assert type(caught.value).__name__ == kind
        assert caught.value.code == code
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert caught.value.request_id
    assert emulator.stats().creates_received == 1


async def test_wrong_api_key_of_the_server_is_no_authentication_error_of_the_client() -> None:
    async with emulated() as emulator:
        session = quick(emulator, gateway=ApiMall(api_key="another-key", base_url=emulator.url, allow_http=True))
        async with served(emulator, session=session) as (url, _), client_of(url) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.images.generate(prompt="a fox")
    assert caught.value.code == "gateway_authentication"
    assert "another-key" not in str(caught.value)


async def test_same_idempotency_key_is_one_purchase() -> None:
    key = {"Idempotency-Key": "order 4711/a"}
    async with emulated() as emulator, served(emulator) as (url, _), client_of(url) as client:
        first = await client.images.generate(prompt="a fox", extra_headers=key, response_format="url", n=2)
        again = await client.images.generate(prompt="a fox", extra_headers=key, n=2)
        assert first.data is not None
        assert again.data is not None
        assert [image.url is None for image in (*first.data, *again.data)] == [False, False, True, True]
        with pytest.raises(openai.ConflictError) as caught:
            await client.images.generate(prompt="an owl", extra_headers=key)
        assert caught.value.response.headers["x-should-retry"] == "false"
    assert charged(emulator.stats(), 1)


async def test_same_request_without_a_retry_count_is_another_purchase() -> None:
    async with emulated() as emulator, served(emulator) as (url, _), client_of(url) as client:
        for headers in ({}, {}, RETRY, {"x-stainless-retry-count": "no number"}):
            await client.images.generate(prompt="a fox", extra_headers=headers)
    assert charged(emulator.stats(), 3)


async def leave(client: "openai.AsyncOpenAI", emulator: Emulator, *, creates: int) -> None:
    """Ask for an image, and hang up once the gateway has received so many creates."""
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(client.images.generate(prompt="a fox"))
        await received(emulator, creates)
        asking.cancel()


async def test_retry_of_a_client_that_left_gets_the_job_that_went_on() -> None:
    held = HeldJobs()
    async with (
        emulated(duration=held) as emulator,
        served(emulator) as (url, session),
        client_of(url) as client,
    ):
        await leave(client, emulator, creates=1)
        held.release(emulator)
        await until(lambda: session.stats().succeeded == 1)
        await client.images.generate(prompt="a fox", extra_headers=RETRY)
    assert charged(emulator.stats(), 1)


async def test_retry_of_a_request_does_not_get_the_failure_of_an_equal_one() -> None:
    failing, held = Script({"apimall.create": [faults.error(451)]}), HeldJobs()
    async with (
        emulated(script=failing, duration=held) as emulator,
        served(emulator) as (url, session),
        client_of(url) as client,
    ):
        with pytest.raises(openai.BadRequestError):
            await client.images.generate(prompt="a fox")
        await leave(client, emulator, creates=2)
        held.release(emulator)
        await until(lambda: session.stats().succeeded == 1)
        await client.images.generate(prompt="a fox", extra_headers=RETRY)
    assert charged(emulator.stats(), 1)


def test_wrong_models_and_tokens_are_refused() -> None:
    session = Session(ApiMall(api_key="a-key-of-apimall"))
    settings: list[dict[str, Any]] = [{"models": "nano"}, {"models": []}, {"tokens": []}, {"tokens": [ANN]}]
    for wrong in settings:
        with pytest.raises(ConfigurationError) as caught:
            make_app(session, **wrong)
        assert ANN not in str(caught.value)


@pytest.mark.slow
async def test_retry_after_a_restart_finds_the_job_in_the_ledger(tmp_path: Path) -> None:
    async with emulated() as emulator:
        for headers in ({}, RETRY, RETRY):
            async with (
                served(emulator, session=quick(emulator, ledger=tmp_path / "jobs.sqlite")) as (url, _),
                client_of(url) as client,
            ):
                await client.images.generate(prompt="a fox", extra_headers=headers)
    assert charged(emulator.stats(), 1)


@pytest.mark.slow
async def test_retry_at_another_server_waits_for_the_job_of_the_first(tmp_path: Path) -> None:
    tokens, ledger = [Token("ann", ANN, budget=Budget(name="ann", max_credits=8))], tmp_path / "jobs.sqlite"
    held = HeldJobs()
    async with (
        emulated(duration=held) as emulator,
        served(emulator, session=quick(emulator, ledger=ledger), tokens=tokens) as (first, _),
        served(emulator, session=quick(emulator, ledger=ledger), tokens=tokens) as (second, _),
        client_of(first, token=ANN) as impatient,
        client_of(second, token=ANN) as client,
    ):
        await leave(impatient, emulator, creates=1)
        held.release(emulator)
        await client.images.generate(prompt="a fox", extra_headers=RETRY)
        with pytest.raises(openai.RateLimitError, match="budget ann: its cap is 8"):
            await client.images.generate(prompt="a fox")
    assert charged(emulator.stats(), 1)


@pytest.mark.slow
async def test_request_that_waited_too_long_is_retried_as_the_same_job() -> None:
    held = HeldJobs()
    async with (
        emulated(duration=held) as emulator,
        served(emulator, answer_within_s=0.1) as (url, _),
        client_of(url, max_retries=0) as hasty,
        client_of(url) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            await hasty.images.generate(prompt="a fox")
        assert (caught.value.code, caught.value.status_code) == ("job_unfinished", 503)
        assert caught.value.response.headers["x-should-retry"] == "true"
        await received(emulator)
        held.release(emulator)
        await client.images.generate(prompt="an owl")
    assert charged(emulator.stats(), 2)


@pytest.mark.slow
async def test_tokens_see_only_their_own_jobs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [Token("ann", ANN), Token("ben", BEN)]
    async with (
        emulated() as emulator,
        served(emulator, tokens=tokens) as (url, _),
        client_of(url, token=ANN) as ann,
        client_of(url, token=BEN) as ben,
        client_of(url, token="another-0123456789") as other,
    ):
        with pytest.raises(openai.AuthenticationError, match="this server's tokens"):
            await other.images.generate(prompt="a fox")
        answer = await ann.images.with_raw_response.generate(prompt="a fox")
        await ben.images.generate(prompt="a fox", extra_headers=RETRY)
        place = f"/jobs/{answer.headers['x-request-id']}"
        assert (await ann.get(place, cast_to=dict[str, Any]))["status"] == "succeeded"
        with pytest.raises(openai.NotFoundError):
            await ben.get(place, cast_to=dict[str, Any])
    assert charged(emulator.stats(), 2)
    ours = [record for record in caplog.records if not record.name.startswith(("openai", "httpcore", "httpx"))]
    assert not [record for record in ours if "secret" in record.getMessage()]


@pytest.mark.slow
@pytest.mark.parametrize("per", [None, "day"])
async def test_budget_of_a_token_holds_across_restarts(tmp_path: Path, per: Literal["day"] | None) -> None:
    async with emulated() as emulator:
        for allowed in (1, 1, 0):
            session = quick(emulator, ledger=tmp_path / "jobs.sqlite")
            tokens = [Token("ann", ANN, budget=Budget(name="ann", max_credits=20, per=per))]
            async with (
                served(emulator, session=session, tokens=tokens) as (url, _),
                client_of(url, token=ANN) as client,
            ):
                if allowed:
                    await client.images.generate(prompt="a fox")
                    continue
                with pytest.raises(openai.RateLimitError) as caught:
                    await client.images.generate(prompt="a fox")
                assert (caught.value.code, caught.value.type) == ("budget_exceeded", "insufficient_quota")
                assert "budget ann: its cap is 20, 16 are spent" in str(caught.value)
                assert isinstance(caught.value.body, dict)
                assert (caught.value.body["budget"], caught.value.body["left"]) == ("ann", 4)
                assert caught.value.response.headers["x-should-retry"] == "false"
    assert charged(emulator.stats(), 2)


@pytest.mark.slow
async def test_tokens_and_other_programs_share_a_budget_and_its_key_buys_once_it_is_raised(tmp_path: Path) -> None:
    team, key = Budget(name="team", max_credits=16), {"Idempotency-Key": "order-1"}
    async with emulated() as emulator:
        session = quick(emulator, ledger=tmp_path / "jobs.sqlite", budgets={"crew": team})
        tokens = [Token("ann", ANN, budget=team), Token("ben", BEN, group="crew", priority=5)]
        async with (
            served(emulator, session=session, tokens=tokens) as (url, opened),
            client_of(url, token=ANN) as ann,
            client_of(url, token=BEN) as ben,
        ):
            await ann.images.generate(prompt="a fox")
            answer = await ben.images.with_raw_response.generate(prompt="an owl")
            for client in (ann, ben):
                with pytest.raises(openai.RateLimitError, match="budget team"):
                    await client.images.generate(prompt="a hen", extra_headers=key)
            record = await engine_of(opened).store.ledger.find(answer.headers["x-request-id"])
            assert record is not None
            assert (record.group_name, record.priority, record.budget) == ("crew", 5, "team")
            await opened.generate("a crow", budget=Budget(name="team", max_credits=32))
            with pytest.raises(openai.RateLimitError, match="budget team"):  # the token has 16 credits
                await ann.images.generate(prompt="a hen", extra_headers=key)
        raised = [Token("ann", ANN, budget=Budget(name="team", max_credits=32))]
        session = quick(emulator, ledger=tmp_path / "jobs.sqlite")
        async with served(emulator, session=session, tokens=raised) as (url, _), client_of(url, token=ANN) as ann:
            await ann.images.generate(prompt="a hen", extra_headers=key)
    assert charged(emulator.stats(), 4)


@pytest.mark.slow
async def test_orders_of_an_earlier_server_are_found_by_their_keys(tmp_path: Path) -> None:
    """The retries are of two equal orders, beside jobs of other requests and of a time that no retry is from."""
    ledger, headers = tmp_path / "jobs.sqlite", {"x-stainless-retry-count": "2"}
    async with emulated() as emulator:
        async with served(emulator, session=quick(emulator, ledger=ledger)) as (url, _), client_of(url) as client:
            for prompt in ("a fox", "an owl", "a fox"):
                await client.images.generate(prompt=prompt)
        for remembered_s, bought in ((900.0, 3), (1e-6, 4)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("nanobanana_async.serve.orders.REMEMBERED_S", remembered_s)
                patch.setattr("nanobanana_async.serve.orders._RETRY_DELAY_S", 0.0)
                session = quick(emulator, ledger=ledger)
                async with served(emulator, session=session) as (url, _), client_of(url) as client:
                    headers["x-stainless-read-timeout"] = "0"
                    await client.images.generate(prompt="a fox", extra_headers=headers)
            assert charged(emulator.stats(), bought)


async def test_async_answer_names_the_job_and_failure_is_shown_there() -> None:
    async with (
        emulated(duration=Fixed(0.2)) as emulator,
        served(emulator) as (url, session),
        aiohttp.ClientSession(url) as http,
    ):
        headers = {"Prefer": "respond-async"}
        async with http.post("/v1/images/generations", json={"prompt": "a fox"}, headers=headers) as answer:
            assert answer.status == 202
            place = answer.headers["Location"]
        await until(lambda: session.stats().succeeded == 1)
        async with http.get(place, params={"response_format": "b64_json"}) as answer:
            seen = await answer.json()
        assert seen["status"] == "succeeded"
        assert seen["response"]["data"][0]["b64_json"]
        async with http.get(place) as answer:
            assert (await answer.json())["response"]["data"][0]["url"].startswith("http")
    async with (
        emulated(failure_probability=1.0) as emulator,
        served(emulator) as (url, session),
        aiohttp.ClientSession(url) as http,
    ):
        async with http.post("/v1/images/generations", json={"prompt": "a fox"}, headers=headers) as answer:
            place = answer.headers["Location"]
        await until(lambda: session.stats().failed == 1)
        async with http.get(place) as answer:
            assert (await answer.json())["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("headers", [{"Host": "rebound.example"}, {"Host": "[::1"}, {"Origin": "https://page.example"}])
async def test_without_tokens_a_page_in_a_browser_is_refused(headers: Mapping[str, str]) -> None:
    async with (
        emulated() as emulator,
        served(emulator) as (url, _),
        aiohttp.ClientSession(url) as http,
        http.post("/v1/images/generations", json={"prompt": "a fox"}, headers=headers) as answer,
    ):
        assert answer.status == 403
        assert (await answer.json())["error"]["code"] == "loopback_only"
    assert charged(emulator.stats(), 0)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b'{"prompt": "a fox"}', "text/plain", 400, "invalid_content_type"),
        (b"{", "application/json", 400, "invalid_json"),
        (b'{"prompt": "a fox", "n": NaN}', "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_json"),
        (b"{}", "application/json", 400, "missing_required_parameter"),
        (b" " * (MAX_JSON_BYTES + 1), "application/json", 413, "body_too_large"),
    ],
)
async def test_wrong_body_is_refused(body: bytes, content_type: str, status: int, code: str) -> None:
    headers = {"Content-Type": content_type}
    async with (
        emulated() as emulator,
        served(emulator) as (url, _),
        aiohttp.ClientSession(url) as http,
        http.post("/v1/images/generations", data=io.BytesIO(body), headers=headers) as answer,
    ):
        assert answer.status == status
        assert (await answer.json())["error"]["code"] == code


async def test_long_body_without_a_stated_length_is_refused() -> None:
    async def pieces() -> Any:
        for _ in range(40):
            yield b" " * (MAX_JSON_BYTES // 32)

    headers = {"Content-Type": "application/json"}
    async with (
        emulated() as emulator,
        served(emulator) as (url, _),
        aiohttp.ClientSession(url) as http,
        http.post("/v1/images/generations", data=pieces(), headers=headers) as answer,
    ):
        assert answer.status == 413


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a fox"}, "image"),
        ({"prompt": "a fox", "image": "https://images.example/cat.png"}, "image"),
        ({"prompt": "a fox", "mask": b"image"}, "mask"),
        ({"prompt": "a fox", "image": b"no image"}, "image"),
    ],
)
async def test_edit_without_a_usable_image_is_refused(fields: Mapping[str, Any], param: str) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        form.add_field(name, value, filename="cat.png" if isinstance(value, bytes) else None)
    async with (
        emulated() as emulator,
        served(emulator) as (url, _),
        aiohttp.ClientSession(url) as http,
        http.post("/v1/images/edits", data=form) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == param
    assert charged(emulator.stats(), 0)


async def test_metrics_are_shown_to_who_has_a_token() -> None:
    metrics = PrometheusMetrics()
    async with emulated() as emulator:
        session = quick(emulator, observers=[metrics.telemetry])
        async with (
            served(emulator, session=session, tokens=[Token("ann", ANN)], metrics=metrics) as (url, _),
            client_of(url, token=ANN) as client,
            aiohttp.ClientSession(url) as plain,
        ):
            await client.images.generate(prompt="a fox")
            async with plain.get("/metrics") as refused:
                assert refused.status == 401
            async with plain.get("/metrics", headers={"authorization": f"Bearer {ANN}"}) as answer:
                text = await answer.text()
                assert answer.content_type == "text/plain"
    assert re.search(r"^nanobanana_credits_spent\S* 8\.0$", text, re.MULTILINE), text
    assert "a fox" not in text


async def test_models_health_and_unknown_paths() -> None:
    models = {"gpt-image-1": "nano-banana-pro"}
    async with (
        emulated() as emulator,
        served(emulator, models=models) as (url, session),
        client_of(url) as client,
        aiohttp.ClientSession(url) as http,
    ):
        assert [model.id async for model in client.models.list()] == ["gpt-image-1"]
        await client.images.generate(prompt="a fox", model="gpt-image-1")
        assert [job.prompt for job in emulator.jobs()] == ["a fox"]
        for path, status in (("/healthz", 200), ("/v1/chat/completions", 404), ("/v1/images/edits", 405)):
            async with http.get(path) as answer:
                assert answer.status == status
        await session.aclose()
        async with http.get("/healthz") as answer:
            assert answer.status == 503
        with pytest.raises(openai.InternalServerError) as caught:
            await client.with_options(max_retries=0).images.generate(prompt="a fox")
        assert caught.value.code == "server_stopping"


@pytest.mark.slow
async def test_unsent_job_of_a_stopped_server_is_bought_by_the_next_one(tmp_path: Path) -> None:
    ledger = tmp_path / "jobs.sqlite"
    headers = {"Prefer": "respond-async"}
    async with emulated(job_limit=1, duration=Fixed(0.4)) as emulator:
        async with (
            served(emulator, session=quick(emulator, ledger=ledger)) as (url, first),
            aiohttp.ClientSession(url) as http,
        ):
            await first.submit("of another program", idempotency_key="other")
            places = []
            for prompt in ("a fox", "an owl", "a hen"):
                async with http.post("/v1/images/generations", json={"prompt": prompt}, headers=headers) as answer:
                    places.append(answer.headers["Location"])
            other = await first.submit("of another program, unsent", idempotency_key="unsent")
            await until(lambda: emulator.stats().creates_accepted >= 1)
            assert other.state is JobState.PENDING
        async with quick(emulator, ledger=ledger) as session:
            app = make_app(session)
            await app.state.orders.resume()
            async with listening(app) as url, aiohttp.ClientSession(url) as http, asyncio.timeout(10):
                for place in places:
                    status = ""
                    while status != "succeeded":
                        async with http.get(place) as answer:
                            status = (await answer.json())["status"]
                        await asyncio.sleep(0.02)
            unsent = await session.job("unsent")
            assert unsent is not None
            assert unsent.state is JobState.PENDING
    assert charged(emulator.stats(), 4)
