"""defapi: the bodies of its reference, and answers that deviate from it."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.errors import (
    AuthenticationError,
    ConfigurationError,
    GatewayError,
    GatewayUnavailable,
    InsufficientCredits,
    InvalidRequest,
    RateLimited,
    TaskNotFound,
    UnexpectedResponse,
)
from nanobanana_async.gateways import DefApi, Gateway
from nanobanana_async.gateways.capabilities import HasUploads, TakesInlineImages
from nanobanana_async.gateways.refusals import ERROR_BY_STATUS
from nanobanana_async.jobs import Accepted, JobState
from nanobanana_async.models import ImageRequest
from tests.gateways.recorded import answer, body
from tests.support.rows import each_row

TASK = "ta5c9705-b8ae-4cb9-aa6f-97c4fee88c8d"
URL = "https://google.datas.systems/fileSystem/response_images/1.png"

defapi: DefApi = DefApi(api_key="dk-1234567890abcdef")
INVALID_KEY = f"Invalid API key; it is the key of account {defapi.account}, from DEFAPI_API_KEY or api_key="


# Settings and requests


def test_gateway_has_callbacks_and_no_keys() -> None:
    gateway: Gateway = defapi
    assert (gateway.name, gateway.base_url) == ("defapi", "https://api.defapi.org")
    assert (gateway.supports_idempotency_keys, gateway.supports_callbacks) == (False, True)
    assert (gateway.key_lifetime_s, gateway.expected_job_s) == (0, 20)


def test_gateway_takes_inline_images_within_a_limit() -> None:
    assert isinstance(defapi, TakesInlineImages)
    assert not isinstance(defapi, HasUploads)
    assert defapi.max_inline_bytes == 32 << 20
    with pytest.raises(ConfigurationError, match="max_inline_bytes"):
        DefApi(api_key="dk-1234567890abcdef", max_inline_bytes=0)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("defapi_request.json", ImageRequest("A beautiful girl dancing in a garden")),
        (
            "defapi_request_images.json",
            ImageRequest(
                "Put them in a basket",
                images=[
                    "https://cdn.openai.com/API/docs/images/body-lotion.png",
                    "https://cdn.openai.com/API/docs/images/soap.png",
                ],
                callback_url="https://example.com/webhook/image-callback",
            ),
        ),
    ],
)
def test_reference_requests_are_encoded_exactly(name: str, wanted: ImageRequest) -> None:
    expected = json.dumps(json.loads(body(name)), separators=(",", ":")).encode()
    assert defapi.encode(wanted) == expected
    assert defapi.encode(wanted) == expected


def test_unlisted_model_is_passed_on() -> None:
    assert defapi.encode(ImageRequest("a fox", model="google/next")) == b'{"model":"google/next","prompt":"a fox"}'


@each_row(
    ("wanted", "named"),
    [
        (ImageRequest("x", num_images=2), "num_images other than 1, not 2"),
        (
            ImageRequest("x", aspect_ratio="16:9"),
            "aspect_ratio: pass extra={'aspect_ratio': ...} if the model takes it",
        ),
        (ImageRequest("x", resolution="2K"), "resolution"),
        (ImageRequest("x", output_format="png"), "output_format"),
        (ImageRequest("x", task_type="text-to-image"), "task_type"),
        (ImageRequest("x", images=["https://a.example/1.png"] * 5), "at most 4 images for google/gempix2, not 5"),
        (ImageRequest("x", images=["https://a.example/1.png"] * 5, model="x/Nano-Banana-2"), "4 images for x/Nano"),
        (
            ImageRequest("x", images=["https://a.example/1.png"] * 5, model="google/gemini-2.5-flash-image"),
            "at most 4 images for google/gemini",
        ),
        (ImageRequest("x", extra={"images": []}), "pass images=..., not extra={'images': ...}"),
        (ImageRequest("x", extra={"num_images": 2}), "pass num_images=..., not extra"),
    ],
)
def test_unsupported_field_is_refused_by_name_locally(wanted: ImageRequest, named: str) -> None:
    for refuse in (defapi.check, defapi.encode):
        with pytest.raises(InvalidRequest, match=named) as caught:
            refuse(wanted)
        assert caught.value.status is None


def test_extra_follows_the_fields_in_sorted_order() -> None:
    wanted = ImageRequest("a fox", extra={"image_size": "2K", "aspect_ratio": "16:9"})
    expected = b'{"model":"google/gempix2","prompt":"a fox","aspect_ratio":"16:9","image_size":"2K"}'
    assert defapi.encode(wanted) == expected


def test_other_models_take_more_than_four_images() -> None:
    wanted = ImageRequest("x", images=["https://a.example/1.png"] * 9, model="openai/gpt-image-2")
    assert len(json.loads(defapi.encode(wanted))["images"]) == 9


def test_create_carries_no_key() -> None:
    request = defapi.build_create(b"{}", wire_key="order-1")
    assert (request.method, request.url) == ("POST", "https://api.defapi.org/api/image/gen")
    assert request.headers == {"Content-Type": "application/json", "Accept": "application/json"}
    assert (request.body, request.max_answer_bytes) == (b"{}", 1024**2)


def test_poll_names_the_task_in_the_query() -> None:
    request = defapi.build_query("ta/1&x=ä")
    assert (request.method, request.body) == ("GET", None)
    assert request.url == "https://api.defapi.org/api/task/query?task_id=ta%2F1%26x%3D%C3%A4"
    assert request.max_answer_bytes == 64 * 1024**2


# Creates


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("defapi_create.json", Accepted(task_id="ta12345678-1234-1234-1234-123456789abc")),
        ("defapi_create_code_text.json", Accepted(task_id="ta1")),
        ("defapi_create_code_200.json", Accepted(task_id="ta1", credits_used=Decimal("0.5"))),
        ("defapi_create_flat.json", Accepted(task_id="ta1")),
    ],
)
def test_accepted_create_gives_the_task_id(name: str, expected: Accepted) -> None:
    assert defapi.read_create(answer(name)) == expected


@each_row(
    ("name", "why"),
    [
        ("proxy.html", "not JSON"),
        ("truncated.txt", "not JSON"),
        ("list.json", "not a JSON object"),
        ("proxy_json.json", "required field missing @ data.task_id"),
        ("defapi_create_no_id.json", "required field missing @ data.task_id"),
        ("defapi_create_refused_with_id.json", "an error and a task id"),
    ],
)
def test_invalid_create_answer_names_the_error(name: str, why: str) -> None:
    with pytest.raises(UnexpectedResponse, match=why) as caught:
        defapi.read_create(answer(name))
    assert 0 < len(caught.value.body) <= 200


@each_row(
    ("name", "status", "kind", "message", "code"),
    [
        ("defapi_error_400.json", 400, InvalidRequest, "failed: prompt is required", "1"),
        ("defapi_error_401_create.json", 401, AuthenticationError, INVALID_KEY, "1"),
        ("defapi_error_401_query.json", 401, AuthenticationError, INVALID_KEY, "401"),
        ("defapi_error_404.json", 404, TaskNotFound, "task not found", "1"),
        ("defapi_error_unclear.json", 500, GatewayUnavailable, "failed", "1"),
        ("defapi_error_400.json", 200, InvalidRequest, "failed: prompt is required", "1"),
        ("defapi_error_401_create.json", 200, AuthenticationError, INVALID_KEY, "1"),
        ("defapi_error_401_query.json", 200, AuthenticationError, INVALID_KEY, "401"),
        ("defapi_error_404.json", 200, TaskNotFound, "task not found", "1"),
        ("defapi_error_credits.json", 200, InsufficientCredits, "Insufficient balance", "1"),
        ("defapi_error_500_code.json", 200, GatewayUnavailable, "Something broke", "500"),
        ("defapi_error_unclear.json", 200, GatewayUnavailable, "failed", "1"),
        ("defapi_error_wordless.json", 200, GatewayUnavailable, "the gateway gave no reason", "1"),
        ("defapi_error_code_list.json", 200, RateLimited, "too many requests", None),
    ],
)
@each_row("read", [defapi.read_create, defapi.read_query])
def test_refusal_is_classified_by_status_or_envelope(
    name: str, status: int, kind: type[GatewayError], message: str, code: str | None, read: Any
) -> None:
    with pytest.raises(kind) as caught:
        read(answer(name, status, x_request_id="r-1"))
    assert (type(caught.value), caught.value.message) == (kind, message)
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, code, "r-1")


@each_row("status", sorted(ERROR_BY_STATUS))
def test_error_envelope_gives_the_class_of_its_status(status: int) -> None:
    with pytest.raises(ERROR_BY_STATUS[status], match="failed: prompt is required") as caught:
        defapi.read_create(answer("defapi_error_400.json", status, retry_after="2"))
    assert (caught.value.status, caught.value.retry_after_s) == (status, 2)


@each_row("status", [*sorted(set(ERROR_BY_STATUS) - {413, 429}), 203, 302, 418, 521])
@each_row("name", ["proxy.html", "proxy_json.json", "defapi_create.json", "defapi_error_wordless.json"])
def test_status_without_envelope_is_unexpected(status: int, name: str) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        defapi.read_create(answer(name, status))
    assert caught.value.status == status


# Polls and callbacks


@each_row(
    ("name", "state", "known", "queued"),
    [
        ("defapi_pending.json", JobState.RUNNING, True, True),
        ("defapi_submitted.json", JobState.RUNNING, True, True),
        ("defapi_in_progress.json", JobState.RUNNING, True, False),
        ("defapi_unknown.json", JobState.RUNNING, False, False),
        ("defapi_success.json", JobState.SUCCEEDED, True, False),
        ("defapi_failed.json", JobState.FAILED, True, False),
    ],
)
def test_status_words_map_to_states(name: str, state: JobState, known: bool, queued: bool) -> None:
    seen = defapi.read_query(answer(name))
    assert (seen.task_id, seen.state, seen.known_status, seen.queued) == (TASK, state, known, queued)


def test_finished_task_has_cost_and_times() -> None:
    seen = defapi.read_query(answer("defapi_success.json"))
    assert (seen.status, seen.credits_used, seen.error) == ("success", Decimal("0.500000"), None)
    assert seen.created_at == datetime(2026, 3, 12, 9, 30, tzinfo=UTC)
    assert seen.completed_at == datetime(2026, 3, 12, 9, 31, 6, tzinfo=UTC)
    assert seen.raw == json.loads(body("defapi_success.json"))


@each_row(
    ("name", "images"),
    [
        ("defapi_success.json", (URL,)),
        ("defapi_success_flat.json", (URL,)),
        ("defapi_success_object.json", (URL,)),
        ("defapi_success_texts.json", (URL, URL)),
        ("defapi_success_text.json", (URL,)),
        ("defapi_success_json_text.json", (URL,)),
        ("defapi_success_inline.json", ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==",)),
        ("defapi_success_without_image.json", ()),
        ("defapi_success_null_image.json", ()),
    ],
)
def test_images_are_found_in_any_known_shape(name: str, images: tuple[str, ...]) -> None:
    seen = defapi.read_query(answer(name))
    assert (seen.state, seen.images) == (JobState.SUCCEEDED, images)
    assert "base64" not in str(seen.raw)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("defapi_failed.json", "The prompt was refused by the model"),
        ("defapi_failed_reason_text.json", "No capacity"),
        ("defapi_failed_with_code.json", "Gave up"),
        ("defapi_failed_wordless.json", None),
    ],
)
def test_failure_reason_is_parsed_if_present(name: str, error: str | None) -> None:
    seen = defapi.read_query(answer(name))
    assert (seen.state, seen.error) == (JobState.FAILED, error)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("defapi_success_odd_result.json", "an image is a URL or a data URI, not dict"),
        ("defapi_success_odd_image.json", "an image is a URL or a data URI, not int"),
        ("defapi_success_inline_text.json", "an image's data URI is not a base64 image"),
    ],
)
def test_task_with_one_invalid_image_succeeds_with_reason(name: str, why: str) -> None:
    seen = defapi.read_query(answer(name))
    assert (seen.state, seen.images, seen.missing) == (JobState.SUCCEEDED, (), ((0, why),))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("defapi_status_missing.json", "required field missing @ data.status"),
        ("defapi_create.json", "required field missing @ data.status"),
    ],
)
def test_invalid_poll_answer_names_the_error(name: str, why: str) -> None:
    with pytest.raises(UnexpectedResponse, match=why):
        defapi.read_query(answer(name))


def test_reference_callback_is_parsed() -> None:
    seen = defapi.read_callback(body("defapi_callback.json"))
    (result,) = json.loads(body("defapi_callback.json"))["result"]
    assert result == json.loads(body("defapi_image_result.json"))
    assert (seen.task_id, seen.state, seen.images) == (TASK, JobState.SUCCEEDED, (result["image"],))
    assert (seen.credits_used, seen.error) == (Decimal("0.500000"), None)


def test_callback_of_a_failed_task_is_parsed() -> None:
    seen = defapi.read_callback(body("defapi_callback_failed.json"))
    assert (seen.state, seen.error, seen.images) == (JobState.FAILED, "Blocked", ())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("defapi_callback_without_id.json", "names no task"),
        ("proxy.html", "not JSON"),
        ("list.json", "not a JSON object"),
        ("defapi_error_401_query.json", "required field missing @ data.status"),
    ],
)
def test_invalid_callback_is_refused(name: str, why: str) -> None:
    with pytest.raises(UnexpectedResponse, match=why) as caught:
        defapi.read_callback(body(name))
    assert caught.value.status is None
