"""Refusals of API Mall: by status in its own envelope, or by words inside a 200."""

import json
from typing import Any

import pytest

from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    GatewayError,
    GatewayUnavailable,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidRequest,
    PromptBlocked,
    RateLimited,
    TaskNotFound,
    UnexpectedResponse,
)
from nanobanana_async.gateways import ApiMall, HttpResponse
from nanobanana_async.gateways.refusals import ERROR_BY_STATUS
from tests.gateways.recorded import answer, body
from tests.support.rows import each_row

KEY = "mall-key-0123456789"
TASK = "img_01HQ9M7XJQ7PZ3GQ9F6C5W3N2M"
REQUEST = "req_01HQ9M7J7X9P7Y8T6W5V4U3S2R"

mall: ApiMall = ApiMall(api_key=KEY)

WHOSE_KEY = f"it is the key of account {mall.account}, from APIMALL_API_KEY or api_key="


def refusal(code: str, message: str, status: int = 200) -> HttpResponse:
    said = {"success": False, "error": {"code": code, "message": message}, "request_id": REQUEST}
    return HttpResponse(status=status, body=json.dumps(said).encode())


@each_row("status", sorted(ERROR_BY_STATUS))
@each_row("read", [mall.read_create, mall.read_query])
def test_error_envelope_gives_the_class_of_its_status(status: int, read: Any) -> None:
    # Its words speak of credits, and decide for a 400 and a 401.
    kind = InsufficientCredits if status in (400, 401) else ERROR_BY_STATUS[status]
    with pytest.raises(kind) as caught:
        read(answer("apimall_error.json", status, retry_after="7"))
    assert caught.value.message.startswith("Insufficient credits")
    facts = (caught.value.status, caught.value.code, caught.value.request_id, caught.value.retry_after_s)
    assert facts == (status, "insufficient_credits", REQUEST, 7)


@each_row("status", sorted(set(ERROR_BY_STATUS) - {413, 429}))
@each_row("name", ["proxy.html", "proxy_json.json", "list.json", "apimall_create.json", "apimall_error_wordless.json"])
def test_status_without_envelope_is_unexpected(status: int, name: str) -> None:
    with pytest.raises(UnexpectedResponse, match="not the gateway's error format") as caught:
        mall.read_create(answer(name, status, retry_after="9"))
    assert (caught.value.status, caught.value.retry_after_s) == (status, 9)


@each_row("status", [0, 100, 203, 204, 206, 301, 304, 307, 405, 418, 501, 505, 520, 524, 599])
def test_unlisted_status_with_envelope_is_unexpected(status: int) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        mall.read_create(answer("apimall_error.json", status))
    assert caught.value.status == status


def test_oversized_envelope_is_unexpected() -> None:
    with pytest.raises(UnexpectedResponse):
        mall.read_create(HttpResponse(status=402, body=body("apimall_error.json") + b" " * 1024**2))


@each_row(
    ("name", "kind", "code"),
    [
        ("proxy_429.html", None, None),
        ("truncated.txt", None, None),
        ("apimall_error_wordless.json", None, None),
        ("apimall_error_both_limits.json", None, "rate_limited"),
        ("apimall_error_jobs.json", "jobs", "too_many_concurrent_jobs"),
        ("apimall_error_only_code.json", "rate", "rate_limit_exceeded"),
    ],
)
def test_429_is_rate_limited_with_any_body(name: str, kind: str | None, code: str | None) -> None:
    with pytest.raises(RateLimited) as caught:
        mall.read_create(answer(name, 429))
    assert (caught.value.kind, caught.value.code, caught.value.status) == (kind, code, 429)


def test_empty_429_is_rate_limited() -> None:
    with pytest.raises(RateLimited, match="gave no reason") as caught:
        mall.read_query(HttpResponse(status=429, headers={"x-ratelimit-remaining": "0", "x-request-id": "r-1"}))
    assert (caught.value.kind, caught.value.request_id) == ("rate", "r-1")


def test_403_names_the_base_url() -> None:
    gateway = ApiMall(api_key=KEY, base_url="https://www.apimall.ai/")
    with pytest.raises(AccessDenied, match=r"not approved, or https://www\.apimall\.ai is not the gateway"):
        gateway.read_create(refusal("forbidden", "API access not approved", 403))


@each_row(
    ("code", "message", "kind"),
    [
        ("invalid_parameters", "num_images", InvalidRequest),
        ("invalid_api_key", "?", AuthenticationError),
        ("unauthorized", "?", AuthenticationError),
        ("insufficient_credits", "?", InsufficientCredits),
        ("E17", "Insufficient credits", InsufficientCredits),
        ("api_access_not_approved", "?", AccessDenied),
        ("task_not_found", "?", TaskNotFound),
        ("idempotency_key_conflict", "?", IdempotencyConflict),
        ("rate_limit_exceeded", "?", RateLimited),
        ("too_many_concurrent_jobs", "?", RateLimited),
        ("content_moderation", "?", PromptBlocked),
        ("prompt_blocked", "?", PromptBlocked),
        ("upstream_busy", "Invalid API key", GatewayUnavailable),
        ("internal_server_error", "?", GatewayUnavailable),
        ("402", "?", InsufficientCredits),
        ("451", "?", PromptBlocked),
        ("999", "?", GatewayUnavailable),
        ("e_17", "Computer says no", GatewayUnavailable),
    ],
)
@each_row("read", [mall.read_create, mall.read_query])
def test_refusal_inside_a_200_is_classified_by_its_words(
    code: str, message: str, kind: type[GatewayError], read: Any
) -> None:
    with pytest.raises(kind) as caught:
        read(refusal(code, message))
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (200, code, REQUEST)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("apimall_error_text.json", InsufficientCredits, "Insufficient credits"),
        ("apimall_error_top.json", AuthenticationError, f"Invalid API key; {WHOSE_KEY}"),
        ("apimall_error_only_code.json", RateLimited, "rate_limit_exceeded"),
        ("apimall_error_success_missing.json", PromptBlocked, "Prompt blocked by content moderation"),
        ("apimall_error_wordless.json", GatewayUnavailable, "the gateway gave no reason"),
    ],
)
def test_other_envelope_shapes_are_understood(name: str, kind: type[GatewayError], message: str) -> None:
    with pytest.raises(kind) as caught:
        mall.read_create(answer(name))
    assert (type(caught.value), caught.value.message) == (kind, message)


def test_error_messages_hold_no_secret() -> None:
    with pytest.raises(AuthenticationError) as caught:
        mall.read_create(answer("apimall_error_secrets.json", 401))
    what = "No such key: sk-*** (Bearer ***), see https://logs.apimall.ai/x?..."
    assert caught.value.message == f"{what}; {WHOSE_KEY}"
