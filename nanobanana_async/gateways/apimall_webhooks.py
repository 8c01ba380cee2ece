"""Webhooks of an account at API Mall: the requests about them, and what a delivery says.

The reference shows no delivery. A relative of API Mall signs them: `X-Nano-Signature` is the HMAC-SHA256 of the
timestamp in `X-Nano-Timestamp`, a dot and the body. Another form counts as no signature.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.apimall_pages import next_cursor, states_further_pages
from nanobanana_async.gateways.base import is_loopback
from nanobanana_async.gateways.capabilities import MAX_WEBHOOKS_READ, Signature, Webhook, WebhookPage
from nanobanana_async.gateways.contract import MIB, HttpRequest
from nanobanana_async.gateways.parsing import (
    GatewayAnswer,
    parse_count,
    parse_optional_task_id,
    parse_task_id,
    parse_time,
    parse_word,
    to_json,
)
from nanobanana_async.gateways.redaction import MAX_MESSAGE_LENGTH

EVENTS = ("job.completed", "job.failed")

_INACTIVE = frozenset({"inactive", "disabled", "paused", "suspended", "stopped", "failed", "deleted"})
"""A webhook with any other status counts as active: its deliveries show whether it is."""

LONGEST_URL = 4096

_LISTS = ("items", "webhooks", "list")
_TASK_IDS = ("task_id", "taskId", "job_id")
_HEX_DIGEST = re.compile(r"(?:sha256=)?([0-9a-fA-F]{64})\Z")


def build_webhook_registration(base_url: str, url: str, secret: str) -> HttpRequest | ConfigurationError:
    """Return the request that registers a webhook, or the error of its URL: this frame holds the secret.

    The gateway calls https only; an emulator also this machine.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        return ConfigurationError("API Mall calls https addresses only: let public_url begin with https://")
    return HttpRequest(
        method="POST",
        url=f"{base_url}/api/v1/webhooks",
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        body=to_json({"url": url, "events": EVENTS, "secret_key": secret}),
    )


def build_webhook_list(base_url: str, page: int, cursor: str | None) -> HttpRequest:
    """Return the request for a page of the webhooks. The first has no number: the reference documents no pages."""
    query = f"?cursor={quote(cursor, safe='')}" if cursor is not None else f"?page={page}" if page > 1 else ""
    url = f"{base_url}/api/v1/webhooks{query}"
    return HttpRequest(method="GET", url=url, headers={"Accept": "application/json"}, max_answer_bytes=4 * MIB)


def build_webhook_removal(base_url: str, webhook_id: str) -> HttpRequest:
    """Return the request that removes a webhook; raise `ConfigurationError` for an id that can't be one."""
    try:
        url = f"{base_url}/api/v1/webhooks/{quote(parse_task_id(webhook_id), safe='')}"
    except ValueError:
        raise ConfigurationError(f"{webhook_id!r} is no id of a webhook: list them to find it") from None
    return HttpRequest(method="DELETE", url=url, headers={"Accept": "application/json"})


def parse_webhooks(answer: GatewayAnswer, envelope: Mapping[str, Any]) -> WebhookPage:
    """Return the webhooks in a list. An item without an id or a URL is skipped: it is none of ours.

    Further pages are there only if the answer says so: otherwise the reference's list has none.
    """
    data = envelope.get("data")
    facts = data if isinstance(data, Mapping) else envelope
    items = data if isinstance(data, list) else next((facts[name] for name in _LISTS if name in facts), None)
    if not isinstance(items, list):
        raise answer.unexpected_response("the answer has no list of webhooks")
    found = (_parse_webhook(answer, item) for item in items[:MAX_WEBHOOKS_READ] if isinstance(item, Mapping))
    webhooks = [webhook for webhook in found if webhook is not None and webhook.url]
    more, total = states_further_pages(facts, len(items)), facts.get("total")
    cursor = next_cursor(facts)
    if more is None:
        more = cursor is not None or (isinstance(total, int) and total > len(items))
    return WebhookPage(webhooks, is_last=not more, next_cursor=cursor)


def parse_webhook_registration(answer: GatewayAnswer, data: object) -> Webhook:
    """Return a webhook that was registered; its URL is empty if the answer does not repeat it."""
    webhook = _parse_webhook(answer, data) if isinstance(data, Mapping) else None
    if webhook is None:
        raise answer.unexpected_response("the answer has no id of a webhook")
    return webhook


def parse_delivery(answer: GatewayAnswer) -> str:
    """Return the task id that a delivery names."""
    envelope = answer.json_object()
    data = envelope.get("data")
    for fields in (envelope, data if isinstance(data, Mapping) else {}):
        for name in _TASK_IDS:
            if (found := parse_optional_task_id(fields.get(name))) is not None:
                return found
    raise answer.unexpected_response("the delivery names no task")


def parse_signature(headers: Mapping[str, str], body: bytes, secret: str) -> Signature | None:
    """Return the signature of a delivery; None if there is none, or one of another form."""
    timestamp = headers.get("x-nano-timestamp", "").strip()
    given = _HEX_DIGEST.match(headers.get("x-nano-signature", "").strip())
    signed_at = parse_time(timestamp)
    if given is None or signed_at is None:
        return None
    mac = hmac.digest(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return Signature(is_valid=hmac.compare_digest(mac.hex(), given[1].lower()), signed_at=signed_at)


def _parse_webhook(answer: GatewayAnswer, fields: Mapping[str, Any]) -> Webhook | None:
    webhook_id, url, status = (
        parse_optional_task_id(fields.get("id")),
        fields.get("url"),
        parse_word(fields.get("status")),
    )
    if webhook_id is None:
        return None
    return Webhook(
        id=webhook_id,
        url=_shortened(url) if isinstance(url, str) else "",
        is_active=(status or "").lower() not in _INACTIVE,
        status=status,
        total_sent=parse_count(fields.get("total_sent")),
        total_failed=parse_count(fields.get("total_failed")),
        last_error=answer.clean_text(fields.get("last_error"), MAX_MESSAGE_LENGTH),
    )


def _shortened(url: str) -> str:
    """Cut a URL that is longer than ours can be. The dots at its end make sure that it is not taken for one of ours."""
    return url if len(url) <= LONGEST_URL else f"{url[:LONGEST_URL]}..."
