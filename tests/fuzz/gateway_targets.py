"""The parsers of answers, headers, callbacks and deliveries of both gateways."""

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from nanobanana_async import ApiMall, DefApi
from nanobanana_async.errors import GatewayError, UnexpectedResponse
from nanobanana_async.gateways import HttpResponse
from nanobanana_async.gateways.capabilities import HistoryPage, UploadAnswer, WebhookPage
from nanobanana_async.jobs import Accepted, JobState, Observation
from tests.fuzz.target import VALUES, Shapes, Target, joined, json_of, json_shapes, objects_with, parts_of
from tests.gateways.recorded import BODIES

KEY = "sk-fuzz/7Q9zX+4bT2&mN8vK"
APIMALL, DEFAPI = ApiMall(api_key=KEY), DefApi(api_key=KEY)
ANSWER_ERRORS = (GatewayError, UnexpectedResponse)

_NAMES = [
    *("success", "error", "code", "message", "detail", "data", "task_id", "status", "output", "resultUrls"),
    *("images", "primary_url", "image_url", "result", "image", "text", "request_id", "model", "credits_used"),
    *("credits_refunded", "remaining_credits", "consumed", "created_at", "completed_at", "progress"),
    *("error_message", "failMsg", "status_reason", "retry_after", "retry_after_ms"),
]
_ACCOUNT_NAMES = [
    *("success", "error", "code", "message", "data", "api_credits", "credit", "items", "tasks", "webhooks"),
    *("list", "id", "taskId", "task_id", "job_id", "created_at", "status", "model", "image_url", "url"),
    *("upload_url", "public_url", "file_size", "max_file_size", "content_type", "pagination", "total_pages"),
    *("page", "has_more", "next_cursor", "limit", "total", "total_sent", "total_failed", "last_error"),
]
_STATUSES = [*map(str, (200, 201, 202, 204, 302, 400, 401, 402, 403, 404, 409, 413, 418, 429, 451, 500, 503))]
HEADERS = ["retry-after", "date", "x-request-id", "ratelimit", "x-ratelimit-remaining", "x-ratelimit-reset", "age"]
HEADERS += [
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-requests-day",
    "x-ratelimit-remaining-tokens-day",
    "content-type",
]
_HEADER_VALUES = st.sampled_from(
    [
        *("0", "5", "-1", "1e9", "99999999999999999999", "1767225600", "1767225600000", "0.5.5", "nan"),
        *("Thu, 01 Jan 2026 00:00:09 GMT", "Mon, 31 Dec 9999 23:59:59 -2359", "Fri, 01 Jan 0001 00:00:00 +2359"),
        'limit;r=0;t=60, "day";r=0',
    ]
) | st.text(st.characters(max_codepoint=255), max_size=30)
HEADER_MAPS = st.dictionaries(st.sampled_from(HEADERS), _HEADER_VALUES, max_size=4)


def _answers(names: list[str], bodies: Sequence[bytes]) -> Shapes:
    """Answers of any fields and values, and bodies in which some fields have other values."""
    recorded = [found for body in bodies if isinstance(found := json_of(body), dict)]
    changes = st.lists(st.tuples(st.booleans(), st.sampled_from(names), VALUES), min_size=1, max_size=3)
    changed = st.builds(_changed, st.sampled_from(recorded), changes) if recorded else st.nothing()
    statuses = st.just("200") | st.sampled_from(_STATUSES)
    return st.builds(joined, statuses, HEADER_MAPS, json_shapes(changed | objects_with(names) | VALUES))


def _changed(body: dict[str, Any], changes: list[tuple[bool, str, Any]]) -> dict[str, Any]:
    whole, data = dict(body), body.get("data")
    for inside, name, value in changes:
        if inside and isinstance(data, dict):
            whole["data"] = data = {**data, name: value}
        else:
            whole[name] = value
    return whole


def _response(data: bytes) -> HttpResponse:
    parts = parts_of(data)
    status = int(parts.first) if parts.first.isascii() and parts.first.isdecimal() and len(parts.first) < 4 else 200
    return HttpResponse(status=status, headers=parts.headers, body=parts.body)


def answer_seeds(prefix: str) -> tuple[bytes, ...]:
    """Return the recorded bodies whose names begin so, and two answers that no gateway meant."""
    found = [path.read_bytes() for path in sorted(BODIES.glob(f"{prefix}*")) if path.stat().st_size < 4096]
    refused = [joined("429", {"retry-after": "5", "date": "Thu, 01 Jan 2026 00:00:00 GMT"}, found[0])]
    return (*found, *refused, joined("502", {}, b"<html>bad gateway</html>"))


def _check_accepted(accepted: Accepted) -> None:
    assert 0 < len(accepted.task_id) <= 512
    assert accepted.task_id.isprintable()
    assert all(is_price(each) for each in (accepted.credits_used, accepted.credits_remaining))
    assert KEY not in repr(accepted)


def _check_seen(seen: Observation) -> None:
    assert seen.state in (JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED)
    assert all(
        image.startswith(("http://", "https://", "data:", "DATA:")) or image[:5].lower() in ("http:", "https", "data:")
        for image in seen.images
    )
    assert seen.progress is None or 0.0 <= seen.progress <= 1.0
    assert all(is_price(each) for each in (seen.credits_used, seen.credits_refunded))
    assert KEY not in repr((seen, seen.images, seen.raw))


def is_price(amount: Decimal | None) -> bool:
    """Return whether an amount can be printed and added; None is one."""
    return amount is None or (amount.is_finite() and 0 <= amount < 10**15 and len(f"{amount:f}") < 60)


def _check_balance(amount: Decimal) -> None:
    assert is_price(abs(amount))


def _check_history(page: HistoryPage) -> None:
    for task in page.tasks:
        assert task.created_at.tzinfo is not None
        assert task.task_id.isprintable()
        assert is_price(task.credits_used)
    assert not page.is_last or page.answered_at is None or page.answered_at.tzinfo is not None


def _check_upload(answer: UploadAnswer) -> None:
    assert answer.url.startswith(("http://", "https://", "HTTP", "Http")) or answer.url[:4].lower() == "http"
    assert answer.size is None or answer.size >= 0


def _check_webhooks(page: WebhookPage) -> None:
    assert len(page.webhooks) <= 1000
    assert all(webhook.id and len(webhook.url) <= 4099 for webhook in page.webhooks)


def _reads(
    read: Callable[[HttpResponse], Any], check: Callable[[Any], None] = lambda _: None
) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        check(read(_response(data)))

    return run


def _callback(data: bytes) -> None:
    seen = DEFAPI.read_callback(data)
    assert seen.task_id
    _check_seen(seen)


def _delivery(data: bytes) -> None:
    parts = parts_of(data)
    for secret in ("a secret of a webhook", ""):
        signature = APIMALL.read_signature(parts.headers, parts.body, secret=secret)
        assert signature is None or signature.signed_at.tzinfo is not None
        assert signature is None or not signature.is_valid or secret == ""
    assert APIMALL.read_delivery(parts.body).isprintable()


def _target(
    name: str, run: Callable[[bytes], object], prefix: str, names: Sequence[str] = _NAMES, **more: Any
) -> Target:
    words = (*(f'"{each}"'.encode() for each in names), b"completed", b"failed", b"success", b"null", b"1e999")
    usual = {
        "errors": ANSWER_ERRORS,
        "seeds": answer_seeds(prefix),
        "words": words,
        "shapes": _answers([*names], more.get("seeds", answer_seeds(prefix))),
    }
    return Target(name=name, run=run, **{**usual, **more})


_HISTORY = json.dumps(
    {
        "success": True,
        "data": {"items": [{"task_id": "t1", "created_at": "2026-01-01T00:00:00Z", "image_url": "https://a/b"}]},
    }
)
_WEBHOOKS = json.dumps(
    {
        "success": True,
        "data": {"items": [{"id": "w1", "url": "https://a.example/callbacks/account/a/b", "status": "active"}]},
    }
)
_WEBHOOK = json.dumps({"success": True, "data": {"id": "w1", "url": "https://a.example/", "total_sent": 3}})
_UPLOAD = json.dumps(
    {"success": True, "data": {"upload_url": "https://a/b?sig=c", "public_url": "https://a/b", "max_file_size": 9}}
)
_BALANCE = json.dumps({"success": True, "code": 0, "data": {"api_credits": "12.5", "credit": "-3"}})
_DELIVERY = joined(
    "",
    {"x-nano-timestamp": "1767225600", "x-nano-signature": "sha256=" + "0" * 64},
    b'{"event":"job.completed","data":{"task_id":"t1"}}',
)


def _account(name: str, run: Callable[[bytes], object], seed: str) -> Target:
    return _target(name, run, "apimall_error", _ACCOUNT_NAMES, seeds=(seed.encode(), *answer_seeds("apimall_error")))


TARGETS = (
    _target("apimall-create", _reads(APIMALL.read_create, _check_accepted), "apimall"),
    _target("apimall-poll", _reads(APIMALL.read_query, _check_seen), "apimall"),
    _target("defapi-create", _reads(DEFAPI.read_create, _check_accepted), "defapi"),
    _target("defapi-poll", _reads(DEFAPI.read_query, _check_seen), "defapi"),
    _account("apimall-balance", _reads(APIMALL.read_balance, _check_balance), _BALANCE),
    _account("defapi-balance", _reads(DEFAPI.read_balance, _check_balance), _BALANCE),
    _account("apimall-history", _reads(APIMALL.read_history, _check_history), _HISTORY),
    _account("apimall-upload", _reads(APIMALL.read_upload, _check_upload), _UPLOAD),
    _account("apimall-webhooks", _reads(APIMALL.read_webhook_list, _check_webhooks), _WEBHOOKS),
    _account("apimall-webhook", _reads(APIMALL.read_webhook_registration), _WEBHOOK),
    _account("apimall-webhook-removal", _reads(APIMALL.read_webhook_removal), _WEBHOOKS),
    _target("defapi-callback", _callback, "defapi_callback", shapes=json_shapes(objects_with(_NAMES))),
    _target("apimall-delivery", _delivery, "apimall_completed", seeds=(_DELIVERY,)),
)
