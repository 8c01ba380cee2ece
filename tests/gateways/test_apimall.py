"""API Mall: the bodies of its reference, and answers that deviate from it."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import (
    InvalidRequest,
    UnexpectedResponse,
)
from nanobanana_async.gateways import ApiMall, Gateway, HttpResponse
from nanobanana_async.jobs import Accepted, JobState
from nanobanana_async.models import ImageRequest
from tests.gateways.recorded import answer, body
from tests.support.rows import each_row

KEY = "mall-key-0123456789"
TASK = "img_01HQ9M7XJQ7PZ3GQ9F6C5W3N2M"
REQUEST = "req_01HQ9M7J7X9P7Y8T6W5V4U3S2R"

mall: ApiMall = ApiMall(api_key=KEY)


# Settings and requests


def test_gateway_has_keys_and_no_callbacks() -> None:
    gateway: Gateway = mall
    assert (gateway.name, gateway.base_url) == ("apimall", "https://gateway.apimall.ai")
    assert (gateway.supports_idempotency_keys, gateway.supports_callbacks) == (True, False)
    assert (gateway.key_lifetime_s, gateway.expected_job_s) == (1800, 20)


def test_reference_request_is_encoded_exactly() -> None:
    wanted = ImageRequest(
        "A luxury skincare product shot on warm marble with soft golden light.",
        aspect_ratio="1:1",
        resolution="2K",
        output_format="png",
    )
    expected = json.loads(body("apimall_request.json"))
    assert mall.encode(wanted) == json.dumps(expected, separators=(",", ":")).encode()


def test_unset_fields_are_not_sent() -> None:
    assert mall.encode(ImageRequest("a fox")) == (
        b'{"model":"nano-banana-pro","type":"text-to-image","prompt":"a fox","num_images":1}'
    )


def test_reference_images_imply_image_to_image() -> None:
    wanted = ImageRequest("a fóx", images=["https://a.example/1.png"], num_images=3, model="nano-banana-2")
    assert mall.encode(wanted).decode() == (
        '{"model":"nano-banana-2","type":"image-to-image","prompt":"a fóx",'
        '"image_urls":["https://a.example/1.png"],"num_images":3}'
    )


@pytest.mark.parametrize(
    ("image", "sent"),
    [
        ({"images": ["https://a.example/1.png"]}, '"image_urls":["https://a.example/1.png"],"num_images":1}'),
        (
            {"extra": {"input_image": "https://a.example/1.png"}},
            '"num_images":1,"input_image":"https://a.example/1.png"}',
        ),
    ],
)
def test_upscale_names_the_image_to_enlarge(image: dict[str, Any], sent: str) -> None:
    wanted = ImageRequest("sharper", task_type="upscale", model="z-image", **image)
    assert mall.encode(wanted).decode() == f'{{"model":"z-image","type":"upscale","prompt":"sharper",{sent}'
    assert mall.price_class(wanted) == "apimall/z-image/upscale/default/1"


def test_extra_follows_the_fields_in_sorted_order() -> None:
    wanted = ImageRequest("a fox", extra={"seed": 7, "background": "transparent", "box": {"b": 1, "a": None}})
    assert mall.encode(wanted).endswith(b'"num_images":1,"background":"transparent","box":{"a":null,"b":1},"seed":7}')


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(lambda text: f"a {text} fox"), st.integers(1, 6)
)
def test_same_request_gives_the_same_bytes(prompt: str, count: int) -> None:
    first, second = (mall.encode(ImageRequest(prompt, num_images=count)) for _ in range(2))
    assert first == second
    assert json.loads(first)["prompt"] == prompt


@each_row(
    ("wanted", "named"),
    [
        (ImageRequest("x", callback_url="https://a.example/hook"), "callback_url"),
        (ImageRequest("x", task_type="image-to-image"), "needs images"),
        (ImageRequest("x", task_type="upscale"), "task_type upscale needs images: the one to enlarge"),
        (ImageRequest("x", task_type="text-to-image", images=["https://a.example/1.png"]), "images"),
        (ImageRequest("x", extra={"num_images": 2}), r"pass num_images=\.\.\., not extra={'num_images': \.\.\.}"),
        (ImageRequest("x", extra={"type": "upscale"}), r"pass task_type=\.\.\., not extra={'type'"),
        (ImageRequest("x", extra={"image_urls": []}), r"pass images=\.\.\., not extra={'image_urls'"),
    ],
)
def test_unsupported_field_is_refused_by_name_locally(wanted: ImageRequest, named: str) -> None:
    for refuse in (mall.check, mall.encode):
        with pytest.raises(InvalidRequest, match=named) as caught:
            refuse(wanted)
        assert caught.value.status is None


def test_create_carries_the_idempotency_key_only() -> None:
    request = mall.build_create(b"{}", wire_key="order-1")
    assert (request.method, request.url) == ("POST", "https://gateway.apimall.ai/api/v1/images/generate")
    assert request.headers == {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Idempotency-Key": "order-1",
    }
    assert (request.body, request.max_answer_bytes) == (b"{}", 1024**2)


def test_key_invalid_in_a_header_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="visible ASCII"):
        mall.build_create(b"{}", wire_key="a\r\nX-Evil: 1")


def test_poll_names_the_task_in_the_path() -> None:
    request = mall.build_query("img/1 ?ä")
    assert (request.method, request.body) == ("GET", None)
    assert request.url == "https://gateway.apimall.ai/api/v1/images/img%2F1%20%3F%C3%A4"
    assert (request.headers, request.max_answer_bytes) == ({"Accept": "application/json"}, 64 * 1024**2)


@pytest.mark.parametrize("task", ["", " ", "..", "a\nb", "x" * 513])
def test_invalid_task_id_is_not_polled(task: str) -> None:
    with pytest.raises(InvalidRequest, match="task_id"):
        mall.build_query(task)


# Creates


def test_reference_create_answer_is_parsed() -> None:
    assert mall.read_create(answer("apimall_create.json")) == Accepted(
        task_id=TASK,
        credits_used=Decimal(8),
        credits_remaining=Decimal(112),
        model="nano-banana-pro",
        request_id=REQUEST,
        provider_request_id="provider_req_01HQ9M87A5Y2QZW0S1R3T6YQ2C",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "apimall_create_number_id.json",
            Accepted(task_id="4711", credits_used=Decimal(8), credits_remaining=Decimal("112.5"), request_id=REQUEST),
        ),
        ("apimall_create_nan.json", Accepted(task_id="img_1")),
        ("apimall_create_odd_decoration.json", Accepted(task_id="img_1", request_id="7")),
        ("apimall_create_huge_numbers.json", Accepted(task_id="img_1")),
        ("apimall_create_success_missing.json", Accepted(task_id="img_1")),
    ],
)
def test_invalid_optional_fields_do_not_lose_a_job(name: str, expected: Accepted) -> None:
    assert mall.read_create(answer(name, 201)) == expected


@each_row(
    ("name", "why"),
    [
        ("proxy.html", "not JSON"),
        ("truncated.txt", "not JSON"),
        ("nan.txt", "not a JSON object"),
        ("list.json", "not a JSON object"),
        ("apimall_create_no_data.json", "data is missing"),
        ("apimall_create_data_text.json", "data is missing or is not an object"),
        ("apimall_create_no_id.json", r"required field missing @ data.task_id"),
        ("apimall_create_null_id.json", "task id is text, not NoneType @ data.task_id"),
        ("apimall_create_list_id.json", "task id is text, not list"),
        ("apimall_create_bool_id.json", "task id is text, not bool"),
        ("apimall_create_empty_id.json", "printable text of 1 to 512"),
        ("apimall_create_control_id.json", "printable text of 1 to 512"),
        ("apimall_create_long_id.json", "printable text of 1 to 512"),
        ("apimall_create_dots_id.json", "printable text of 1 to 512"),
        ("apimall_create_refused_with_id.json", "an error and a task id"),
    ],
)
def test_invalid_create_answer_names_the_error(name: str, why: str) -> None:
    with pytest.raises(UnexpectedResponse, match=why) as caught:
        mall.read_create(answer(name))
    assert caught.value.status == 200
    assert 0 < len(caught.value.body) <= 200
    assert not caught.value.safe_to_repeat


# Polls and callbacks


def test_reference_poll_answer_is_parsed() -> None:
    seen = mall.read_query(answer("apimall_completed.json"))
    assert (seen.task_id, seen.state, seen.status) == (TASK, JobState.SUCCEEDED, "completed")
    assert seen.images == ("https://cdn.apimall.ai/generated/result.webp",)
    assert (seen.model, seen.request_id, seen.error) == ("nano-banana-pro", REQUEST, None)
    assert (seen.credits_used, seen.credits_refunded) == (Decimal(8), Decimal(0))
    assert seen.created_at == datetime(2026, 3, 12, 9, 30, tzinfo=UTC)
    assert seen.completed_at == datetime(2026, 3, 12, 9, 31, 6, tzinfo=UTC)
    assert seen.raw == json.loads(body("apimall_completed.json"))


@each_row(
    ("name", "state", "known", "queued"),
    [
        ("apimall_pending.json", JobState.RUNNING, True, True),
        ("apimall_processing.json", JobState.RUNNING, True, False),
        ("apimall_unknown.json", JobState.RUNNING, True, False),
        ("apimall_never_seen.json", JobState.RUNNING, False, False),
        ("apimall_completed.json", JobState.SUCCEEDED, True, False),
        ("apimall_failed.json", JobState.FAILED, True, False),
    ],
)
def test_status_words_map_to_states(name: str, state: JobState, known: bool, queued: bool) -> None:
    seen = mall.read_query(answer(name))
    assert (seen.state, seen.known_status, seen.queued) == (state, known, queued)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("apimall_failed.json", "The upstream model gave up"),
        ("apimall_failed_failmsg.json", "Blocked by the safety filter"),
        ("apimall_failed_failmsg_beside.json", "No capacity"),
        ("apimall_failed_without_success.json", "Gave up"),
    ],
)
def test_failure_reason_is_found_in_each_place(name: str, error: str) -> None:
    seen = mall.read_query(answer(name))
    assert (seen.state, seen.error, seen.images) == (JobState.FAILED, error, ())


CDN = "https://cdn.apimall.ai"


@each_row(
    ("name", "images"),
    [
        ("apimall_several.json", (f"{CDN}/1.png", f"{CDN}/2.png")),
        ("apimall_several_in_text.json", (f"{CDN}/1.png", f"{CDN}/2.png")),
        ("apimall_only_image_url.json", (f"{CDN}/generated/cover.webp",)),
        ("apimall_only_result_url.json", (f"{CDN}/generated/image-01.webp",)),
        ("apimall_primary_odd.json", (f"{CDN}/generated/cover.webp",)),
        ("apimall_completed_without_image.json", ()),
        ("apimall_completed_inline.json", ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==",)),
    ],
)
def test_images_are_found_in_order_of_precedence(name: str, images: tuple[str, ...]) -> None:
    seen = mall.read_query(answer(name))
    assert (seen.state, seen.images) == (JobState.SUCCEEDED, images)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("apimall_status_missing.json", r"required field missing @ data.status"),
        ("apimall_status_number.json", "a status is a word, not int"),
        ("apimall_status_empty.json", "a status is a word, not empty"),
        ("apimall_create_no_data.json", "data is missing"),
    ],
)
def test_invalid_poll_answer_names_the_error(name: str, why: str) -> None:
    with pytest.raises(UnexpectedResponse, match=why):
        mall.read_query(answer(name))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("apimall_several_one_odd.json", {1: "an image is neither an http(s) URL nor a data URI"}),
        ("apimall_several.json", {1: "the gateway gave no link"}),
        ("apimall_primary_odd.json", {}),
    ],
)
def test_missing_images_are_listed(name: str, missing: dict[int, str]) -> None:
    seen = mall.read_query(answer(name))
    assert (seen.state, dict(seen.missing)) == (JobState.SUCCEEDED, missing)
    assert seen.images[0] == f"{CDN}/1.png" or not missing


def test_task_with_only_invalid_images_succeeds_with_reasons() -> None:
    seen = mall.read_query(answer("apimall_completed_odd_image.json"))
    assert (seen.state, seen.images) == (JobState.SUCCEEDED, ())
    assert [why for _, why in seen.missing] == [
        "an image is a URL or a data URI, not dict",
        "an image is neither an http(s) URL nor a data URI",
    ]


def test_primary_url_replaces_a_list_of_invalid_images() -> None:
    envelope = json.loads(body("apimall_several_one_odd.json"))
    envelope["data"] |= {"output": {"resultUrls": [None, 5, ""]}, "primary_url": f"{CDN}/1.png"}
    seen = mall.read_query(HttpResponse(status=200, body=json.dumps(envelope).encode()))
    assert seen.images == (f"{CDN}/1.png",)
    assert [place for place, _ in seen.missing] == [1, 2]


def test_invalid_optional_fields_of_a_task_become_none() -> None:
    seen = mall.read_query(answer("apimall_odd_decoration.json"))
    assert seen.images == (f"{CDN}/generated/result.webp",)
    assert (seen.credits_used, seen.credits_refunded) == (Decimal("8.50"), None)
    assert (seen.created_at, seen.request_id) == (None, None)
    assert seen.completed_at == datetime(2026, 3, 12, 9, 31, 6, tzinfo=UTC)
    assert seen.raw["data"]["progress"] == 100


def test_raw_omits_inline_images() -> None:
    seen = mall.read_query(answer("apimall_completed_inline.json"))
    assert seen.raw["data"]["primary_url"] == "<image/png, 46 characters>"


def test_callback_is_refused() -> None:
    with pytest.raises(UnexpectedResponse, match="does not send callbacks"):
        mall.read_callback(body("defapi_callback.json"))
