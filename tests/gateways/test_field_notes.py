"""Answers that public clients met and that the references do not show, on both gateways, in polls and callbacks."""

import json
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import ApiMall, DefApi
from nanobanana_async.errors import (
    AuthenticationError,
    GatewayError,
    InsufficientCredits,
    InvalidRequest,
    JobFailureKind,
    RateLimited,
    UnexpectedResponse,
)
from nanobanana_async.gateways.contract import HttpResponse
from nanobanana_async.gateways.failures import failure_kind
from nanobanana_async.jobs import JobState, Observation
from tests.support.rows import each_row

mall = ApiMall(api_key="k" * 20)
defapi = DefApi(api_key="dk-" + "k" * 20)
U, V = "https://cdn.example/u.png", "https://cdn.example/v.png"


def response(fields: object, status: int = 200, **headers: str) -> HttpResponse:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status=status, headers=named, body=body)


def poll_defapi(**task: Any) -> Observation:
    fields = {"task_id": "t1", **task}
    seen = defapi.read_query(response({"code": 0, "message": "ok", "data": fields}))
    assert defapi.read_callback(json.dumps(fields).encode()) == seen
    return seen


def poll_mall(**task: Any) -> Observation:
    return mall.read_query(response({"success": True, "data": {"task_id": "t1", **task}}))


def poll_both(status: tuple[str, str], **task: Any) -> list[Observation]:
    """Poll API Mall with the first status word, and defapi with the second."""
    return [poll_mall(status=status[0], **task), poll_defapi(status=status[1], **task)]


SUCCEEDED = ("completed", "success")
FAILED = ("failed", "failed")


# Images


@each_row(
    "task",
    [
        {"result": [{"image": U}, {"text": "a fox"}]},
        {"result": [{"text": "a fox"}, {"image": U}]},
        {"result": [{"url": U}]},
        {"result": {"big_image_url": U}},
        {"big_image_url": U, "result": [{"image": U}]},
        {"output": [U]},
        {"output": U},
        {"output": {"images": [U]}},
        {"output": {"images": [{"url": U}]}},
        {"output": {"url": U}},
        {"output": {"resultUrls": [{"url": U}]}},
        {"output": {"resultUrls": ["not a link"]}, "primary_url": U},
        {"output": {"resultUrls": [{"size": 1}]}, "primary_url": U},
        {"output": json.dumps({"images": [U]})},
    ],
)
def test_image_is_found_in_each_form(task: dict[str, Any]) -> None:
    for seen in poll_both(SUCCEEDED, **task):
        assert (seen.state, seen.images, seen.missing) == (JobState.SUCCEEDED, (U,), ())


def test_several_images_are_found_among_texts() -> None:
    for seen in poll_both(SUCCEEDED, result=[{"text": "one"}, {"url": U}, {"text": "two"}, {"image": V}]):
        assert (seen.images, seen.missing) == ((U, V), ())


@pytest.mark.parametrize("task", [{"result": None}, {"result": []}, {"result": [{"image": ""}]}, {"output": {}}])
def test_empty_result_has_the_reason_and_the_price(task: dict[str, Any]) -> None:
    reason = {"message": "the result is empty, it is billed all the same"}
    for seen in poll_both(SUCCEEDED, status_reason=reason, consumed="0.5", **task):
        assert (seen.state, seen.images, seen.missing) == (JobState.SUCCEEDED, (), ())
        assert (seen.error, seen.credits_used) == (reason["message"], Decimal("0.5"))


def test_text_instead_of_an_image_is_the_reason() -> None:
    for seen in poll_both(SUCCEEDED, result=[{"text": "I can't draw this: it is against the safety rules"}]):
        assert (seen.images, seen.missing) == ((), ())
        assert seen.error == "I can't draw this: it is against the safety rules"
        assert seen.failure_kind == "moderation"


def test_link_that_is_no_url_is_missing_with_its_reason() -> None:
    for seen in poll_both(SUCCEEDED, result=[{"image": "no link"}]):
        assert (seen.images, len(seen.missing)) == ((), 1)


# Status words


@pytest.mark.parametrize(("word", "state"), [("error", JobState.FAILED), ("cancelled", JobState.FAILED)])
def test_failure_word_of_the_other_dialect_is_an_end_with_a_reason(word: str, state: JobState) -> None:
    for seen in poll_both((word, word), error="no capacity"):
        assert (seen.state, seen.error, seen.failure_kind) == (state, "no capacity", "capacity")
    for seen in poll_both((word, word)):
        assert (seen.state, seen.known_status) == (JobState.RUNNING, False)


def test_success_word_of_the_other_dialect_is_an_end_with_an_image_or_a_reason() -> None:
    for seen in poll_both(("success", "completed"), result=[{"image": U}]):
        assert (seen.state, seen.images) == (JobState.SUCCEEDED, (U,))
    for seen in poll_both(("success", "completed"), status_reason={"message": "no result"}):
        assert (seen.state, seen.images, seen.error) == (JobState.SUCCEEDED, (), "no result")
    for seen in poll_both(("success", "completed")):
        assert seen.state is JobState.RUNNING


def test_image_beside_a_running_status_is_no_end() -> None:
    for seen in poll_both(("processing", "in_progress"), result=[{"image": U}]):
        assert (seen.state, seen.images) == (JobState.RUNNING, ())


def test_unknown_is_a_known_status() -> None:
    for seen in poll_both(("unknown", "unknown")):
        assert (seen.state, seen.known_status) == (JobState.RUNNING, True)


# Reasons and prices of failures


@each_row(
    ("task", "code", "message"),
    [
        ({"error": "gave up"}, None, "gave up"),
        ({"error": {"code": "no_capacity", "message": "gave up"}}, "no_capacity", "gave up"),
        ({"error": {"code": "no_capacity"}}, "no_capacity", "no_capacity"),
        ({"error_message": {"message": "gave up"}}, None, "gave up"),
        ({"error_message": '{"code": 7, "msg": "gave up"}'}, "7", "gave up"),
        ({"status_reason": "gave up"}, None, "gave up"),
        ({"status_reason": {"detail": "gave up"}}, None, "gave up"),
        ({"failMsg": "gave up"}, None, "gave up"),
        ({"error": {"at": 1}}, None, None),
        ({"status_reason": [1], "error": "gave up"}, None, "gave up"),
        ({}, None, None),
    ],
)
def test_reason_is_found_in_each_place(task: dict[str, Any], code: str | None, message: str | None) -> None:
    for seen in poll_both(FAILED, **task):
        assert (seen.state, seen.error_code, seen.error) == (JobState.FAILED, code, message)


def test_reason_stands_in_the_error_of_the_envelope() -> None:
    error = {"code": "content_policy", "message": "stopped by the content filter"}
    task = {"task_id": "t1", "status": "failed"}
    seen = mall.read_query(response({"success": False, "error": error, "data": task}))
    assert (seen.state, seen.error, seen.error_code) == (JobState.FAILED, error["message"], "content_policy")
    assert seen.failure_kind == "moderation"
    seen = defapi.read_query(response({"code": 1, "message": "no worker is free", "data": task}))
    assert (seen.state, seen.error, seen.failure_kind) == (JobState.FAILED, "no worker is free", "capacity")


@each_row(
    ("code", "message", "kind"),
    [
        ("content_policy_violation", "failed", "moderation"),
        (None, "The prompt was blocked by the safety system", "moderation"),
        (None, "provider: NSFW content", "moderation"),
        ("UPSTREAM_TIMEOUT", None, "capacity"),
        (None, "The service is overloaded, try again later", "capacity"),
        (None, "No capacity", "capacity"),
        (None, "Failed to download image 2", "input"),
        ("invalid_image", "could not be used", "input"),
        (None, "The reference image is too large", "input"),
        (None, "it failed", "unknown"),
        (None, None, "unknown"),
    ],
)
def test_failure_has_a_kind(code: str | None, message: str | None, kind: JobFailureKind) -> None:
    assert failure_kind(code, message) == kind


def test_price_is_read_under_either_name_after_success_and_failure() -> None:
    for status in (SUCCEEDED, FAILED):
        for name in ("consumed", "credits_used"):
            for seen in poll_both(status, **{name: 3, "credits_refunded": 1}):
                assert (seen.credits_used, seen.credits_refunded) == (Decimal(3), Decimal(1))


# Refusals


@pytest.mark.parametrize("status", [413, 422])
def test_413_and_422_in_the_envelope_are_final_refusals(status: int) -> None:
    for read, fields in (
        (mall.read_create, {"success": False, "error": {"code": "bad_field", "message": "no such size"}}),
        (defapi.read_create, {"code": 1, "message": "no such size"}),
    ):
        with pytest.raises(InvalidRequest, match="no such size"):
            read(response(fields, status))


def test_413_of_a_proxy_is_a_final_refusal_and_a_422_is_not() -> None:
    for gateway in (mall, defapi):
        with pytest.raises(InvalidRequest):
            gateway.read_create(response(b"<html>413 Request Entity Too Large</html>", 413))
        with pytest.raises(UnexpectedResponse):
            gateway.read_create(response(b"<html>422</html>", 422))
        with pytest.raises(UnexpectedResponse):  # it names a task: perhaps it was bought
            gateway.read_create(response({"data": {"task_id": "t1"}}, 413))


@each_row("status", [400, 401])
@each_row("message", ["Insufficient balance", "You have no credits left", "balance too low"])
def test_words_of_balance_in_a_400_or_401_are_insufficient_credits(status: int, message: str) -> None:
    for read, fields in (
        (mall.read_create, {"success": False, "error": {"code": "refused", "message": message}}),
        (defapi.read_create, {"code": 1, "message": message}),
    ):
        with pytest.raises(InsufficientCredits, match=message):
            read(response(fields, status))


def test_401_about_the_key_stays_an_authentication_error() -> None:
    with pytest.raises(AuthenticationError):
        defapi.read_create(response({"code": 1, "message": "the API key has expired"}, 401))


@each_row(
    ("fields", "headers", "wait_s"),
    [
        ({"retry_after": 7}, {}, 7),
        ({"retry_after": "7.5"}, {}, 7.5),
        ({"error": {"code": "x", "message": "y", "retry_after": 7}}, {}, 7),
        ({"data": {"retry_after_ms": 1500}}, {}, 1.5),
        ({"retry_after": 7}, {"retry_after": "3"}, 3),
        ({"retry_after": True}, {}, None),
        ({"retry_after": "soon"}, {}, None),
        ({}, {"x_ratelimit_reset": "12"}, 12),
        ({}, {"ratelimit_reset": "12"}, 12),
        ({}, {"x_ratelimit_reset": "1767225630", "date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 30),
        ({}, {"x_ratelimit_reset": "1767225630000", "date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 30),
        ({}, {"x_ratelimit_reset": "1767225630"}, None),
        ({}, {"x_ratelimit_reset": "99999"}, 120),
        ({}, {"x_ratelimit_reset": "soon"}, None),
    ],
)
def test_429_asks_to_wait_by_body_or_reset(
    fields: dict[str, Any], headers: dict[str, str], wait_s: float | None
) -> None:
    for gateway in (mall, defapi):
        for read in (gateway.read_create, gateway.read_query):
            with pytest.raises(RateLimited) as caught:
                read(response({"message": "slow down", **fields}, 429, **headers))
            assert caught.value.retry_after_s == wait_s


def test_reset_is_no_wait_of_another_error() -> None:
    with pytest.raises(GatewayError) as caught:
        defapi.read_query(response({"code": 1, "message": "busy"}, 503, x_ratelimit_reset="12"))
    assert caught.value.retry_after_s is None


# Ids


def test_request_id_of_the_provider_is_kept_beside_the_gateways() -> None:
    data = {"task_id": "t1", "request_id": "provider-1", "status": "failed"}
    envelope = {"success": True, "data": data, "request_id": "gateway-1"}
    accepted, seen = mall.read_create(response(envelope)), mall.read_query(response(envelope))
    assert (accepted.request_id, accepted.provider_request_id) == ("gateway-1", "provider-1")
    assert (seen.request_id, seen.provider_request_id) == ("gateway-1", "provider-1")
    alone = mall.read_create(response({"success": True, "data": data}))
    assert (alone.request_id, alone.provider_request_id) == ("provider-1", None)
