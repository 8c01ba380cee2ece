"""API Mall's webhooks: the requests, the answers, and what a delivery and its signature say."""

import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from nanobanana_async.errors import AuthenticationError, ConfigurationError, TaskNotFound, UnexpectedResponse
from nanobanana_async.gateways import ApiMall, DefApi, HttpResponse
from nanobanana_async.gateways.capabilities import HasWebhooks, Webhook
from tests.support.rows import each_row

KEY = "mall-key-0123456789"
HOOK = "https://app.example/hooks"
SECRET = "a secret"
BODY = b'{"event":"job.completed","task_id":"img_1"}'
TIMESTAMP = "1790000000"

mall: ApiMall = ApiMall(api_key=KEY)


def answered(data: Any, status: int = 200) -> HttpResponse:
    body = {"success": True, "data": data, "request_id": "req_1"}
    return HttpResponse(status=status, body=json.dumps(body).encode())


def refused(status: int, code: str, message: str = "no") -> HttpResponse:
    body = {"success": False, "error": {"code": code, "message": message}}
    return HttpResponse(status=status, body=json.dumps(body).encode())


def delivery(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_only_api_mall_has_webhooks() -> None:
    assert isinstance(mall, HasWebhooks)
    assert not isinstance(DefApi(api_key=KEY), HasWebhooks)


# Requests


@pytest.mark.parametrize("url", [HOOK, "http://127.0.0.1:8080/hooks", "http://localhost/hooks"])
def test_registration_names_url_events_and_secret(url: str) -> None:
    request = mall.build_webhook_registration(url, secret=SECRET)
    assert (request.method, request.url) == ("POST", "https://gateway.apimall.ai/api/v1/webhooks")
    expected = {"url": url, "events": ["job.completed", "job.failed"], "secret_key": SECRET}
    assert json.loads(request.body or b"") == expected


@pytest.mark.parametrize("url", ["http://app.example/hooks", "ftp://app.example", "http:///hooks"])
def test_registration_of_a_url_without_https_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="let public_url begin with https://"):
        mall.build_webhook_registration(url, secret=SECRET)


def test_list_and_removal_are_built_from_the_reference() -> None:
    listing, removal = mall.build_webhook_list(1), mall.build_webhook_removal("wh/1?x=%")
    assert (listing.method, listing.url) == ("GET", "https://gateway.apimall.ai/api/v1/webhooks")
    assert removal.method == "DELETE"
    assert removal.url == "https://gateway.apimall.ai/api/v1/webhooks/wh%2F1%3Fx%3D%25"


@pytest.mark.parametrize("webhook_id", ["", "..", "a\nb", "x" * 600])
def test_removal_of_an_impossible_id_is_refused(webhook_id: str) -> None:
    with pytest.raises(ConfigurationError, match="no id of a webhook"):
        mall.build_webhook_removal(webhook_id)


# Answers


ITEM = {
    "id": "wh_1",
    "url": HOOK,
    "events": ["job.completed"],
    "status": "active",
    "api_key_id": None,
    "total_sent": 12,
    "total_failed": "3",
    "last_error": f"401 for Bearer {KEY}",
}


@pytest.mark.parametrize("data", [[ITEM], {"items": [ITEM]}, {"webhooks": [ITEM]}, {"list": [ITEM]}])
def test_list_is_read_in_any_shape(data: Any) -> None:
    (webhook,) = mall.read_webhook_list(answered(data)).webhooks
    assert (webhook.id, webhook.url, webhook.status, webhook.is_active) == ("wh_1", HOOK, "active", True)
    assert (webhook.total_sent, webhook.total_failed) == (12, 3)
    assert webhook.last_error is not None
    assert KEY not in webhook.last_error


def test_incomplete_items_of_a_list_are_skipped() -> None:
    items = [None, "x", {}, {"id": "wh_2"}, {"id": "wh_3", "url": 5}, {"url": HOOK}, {"id": 4, "url": HOOK}]
    assert mall.read_webhook_list(answered({"items": items})).webhooks == [Webhook(id="4", url=HOOK)]


@pytest.mark.parametrize(
    "stated",
    [{"next_cursor": "c/2="}, {"nextCursor": "c/2=", "has_more": True}, {"pagination": {"next_cursor": "c/2="}}],
)
def test_cursor_leads_to_the_next_page(stated: dict[str, Any]) -> None:
    page = mall.read_webhook_list(answered({"items": [ITEM], **stated}))
    assert (page.is_last, page.next_cursor) == (False, "c/2=")
    beside = {"success": True, "data": [ITEM], **stated}
    assert mall.read_webhook_list(HttpResponse(status=200, body=json.dumps(beside).encode())) == page
    request = mall.build_webhook_list(2, page.next_cursor)
    assert request.url == "https://gateway.apimall.ai/api/v1/webhooks?cursor=c%2F2%3D"


@each_row("cursor", [None, "", "a\nb", "x" * 600, ["c"], KEY])
def test_senseless_cursor_is_none(cursor: object) -> None:
    page = mall.read_webhook_list(answered({"items": [ITEM], "next_cursor": cursor}))
    assert (page.is_last, page.next_cursor) == (True, None)


def test_cursor_of_the_last_page_is_not_followed() -> None:
    assert mall.read_webhook_list(answered({"items": [ITEM], "next_cursor": "c2", "has_more": False})).is_last


@pytest.mark.parametrize("data", [None, {}, {"items": {}}, "x"])
def test_answer_without_a_list_is_unexpected(data: Any) -> None:
    with pytest.raises(UnexpectedResponse, match="no list of webhooks"):
        mall.read_webhook_list(answered(data))


@pytest.mark.parametrize(
    ("status", "is_active"), [("active", True), ("enabled", True), (None, True), ("Disabled", False), ("paused", False)]
)
def test_status_says_whether_a_webhook_is_active(status: str | None, is_active: bool) -> None:
    assert mall.read_webhook_registration(answered({**ITEM, "status": status})).is_active is is_active


def test_registered_webhook_needs_only_an_id() -> None:
    assert mall.read_webhook_registration(answered({"id": "wh_9"}, 201)) == Webhook(id="wh_9", url="")


@pytest.mark.parametrize("data", [None, [], {}, {"id": ""}, {"id": ["wh_1"]}])
def test_registration_without_an_id_is_unexpected(data: Any) -> None:
    with pytest.raises(UnexpectedResponse, match="no id of a webhook"):
        mall.read_webhook_registration(answered(data))


def test_removal_is_read() -> None:
    mall.read_webhook_removal(answered({"id": "wh_1", "status": "deleted"}))
    mall.read_webhook_removal(HttpResponse(status=204))
    with pytest.raises(TaskNotFound):
        mall.read_webhook_removal(refused(404, "webhook_not_found", "Webhook not found"))


def test_refusals_are_raised_in_any_status() -> None:
    with pytest.raises(AuthenticationError):
        mall.read_webhook_list(refused(401, "invalid_api_key"))
    with pytest.raises(AuthenticationError):
        mall.read_webhook_list(refused(200, "invalid_api_key"))


# Deliveries


@pytest.mark.parametrize(
    "body",
    [
        delivery(event="job.completed", task_id="img_1", data={"url": "x"}),
        delivery(event="job.failed", data={"task_id": "img_1"}),
        delivery(taskId="img_1", data=None),
        delivery(job_id="img_1", data=[]),
        delivery(task_id="", data={"job_id": "img_1"}),
    ],
)
def test_delivery_names_its_task(body: bytes) -> None:
    assert mall.read_delivery(body) == "img_1"


@each_row("body", [b"", b"[]", b"{}", b"{", delivery(task_id=None), delivery(task_id=".."), delivery(id="img_1")])
def test_delivery_without_a_task_is_unexpected(body: bytes) -> None:
    with pytest.raises(UnexpectedResponse):
        mall.read_delivery(body)


def signature(secret: str = SECRET, timestamp: str = TIMESTAMP, body: bytes = BODY) -> str:
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("prefix", ["", "sha256="])
@pytest.mark.parametrize("upper", [False, True])
def test_right_signature_is_recognised(prefix: str, upper: bool) -> None:
    digest = signature().upper() if upper else signature()
    headers = {"x-nano-timestamp": TIMESTAMP, "x-nano-signature": prefix + digest}
    found = mall.read_signature(headers, BODY, secret=SECRET)
    assert found is not None
    assert (found.is_valid, found.signed_at) == (True, datetime.fromtimestamp(int(TIMESTAMP), UTC))


@pytest.mark.parametrize(
    ("digest", "timestamp", "body"),
    [
        (signature("another"), TIMESTAMP, BODY),
        (signature(), "1790000001", BODY),
        (signature(), TIMESTAMP, BODY + b" "),
        ("0" * 64, TIMESTAMP, BODY),
    ],
)
def test_wrong_signature_is_recognised(digest: str, timestamp: str, body: bytes) -> None:
    found = mall.read_signature({"x-nano-timestamp": timestamp, "x-nano-signature": digest}, body, secret=SECRET)
    assert found is not None
    assert not found.is_valid


@each_row(
    "headers",
    [
        {},
        {"x-nano-timestamp": TIMESTAMP},
        {"x-nano-signature": signature()},
        {"x-nano-timestamp": "soon", "x-nano-signature": signature()},
        {"x-nano-timestamp": TIMESTAMP, "x-nano-signature": "v9,c2lnbmF0dXJl"},
        {"x-nano-timestamp": TIMESTAMP, "x-nano-signature": signature() + "0"},
    ],
)
def test_unknown_form_of_a_signature_is_none(headers: dict[str, str]) -> None:
    assert mall.read_signature(headers, BODY, secret=SECRET) is None
