"""API Mall's webhooks: their endpoints, and the bodies and signatures of deliveries."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import cast

from nanobanana_async.emulator import apimall, checks
from nanobanana_async.emulator.accounts import Refusal, Task, TaskState
from nanobanana_async.emulator.addresses import is_loopback
from nanobanana_async.emulator.callbacks import EVENTS, DueCallback, Webhook
from nanobanana_async.emulator.endpoints import JSON, admission_refusal, configured_word, refuse, urls_of
from nanobanana_async.emulator.messages import Callback, EmulatedRequest, EmulatedResponse
from nanobanana_async.emulator.state import State

PATH = "/api/v1/webhooks"
_NO_WEBHOOK = Refusal(404, "webhook_not_found", "Webhook not found")
_NO_METHOD = Refusal(405, "method_not_allowed", "method not allowed")


def webhooks(state: State, now: float, request: EmulatedRequest, headers: Mapping[str, str]) -> EmulatedResponse:
    """Return the response to a request that registers, lists or removes webhooks."""
    outcome = admission_refusal(state, now, "apimall", headers) or _decide(state, now, request)
    if isinstance(outcome, Refusal):
        return refuse(state, now, "apimall", outcome)
    body = apimall.encoded({"success": True, "data": outcome, "request_id": state.request_id()})
    return EmulatedResponse(200, JSON, body)


def delivery(state: State, now: float, due: DueCallback, webhook: Webhook) -> Callback:
    """Return the POST of a delivery, signed now."""
    timestamp = int(state.settings.started_at.timestamp() + now)
    body = _delivery_body(state, now, due.task, timestamp)
    headers = {"X-Nano-Timestamp": str(timestamp)}
    if signature := _signature(state, webhook.secret_key, f"{timestamp}.".encode() + body):
        headers["X-Nano-Signature"] = signature
    return Callback(due.url, body, due.task.task_id, headers, webhook.id, due.attempt)


def _decide(state: State, now: float, request: EmulatedRequest) -> Refusal | dict[str, object]:
    webhook_id = request.path[len(PATH) + 1 :]
    if (request.method == "DELETE") != bool(webhook_id):
        return _NO_METHOD
    if request.method == "GET":
        return {"items": [_listed(state, webhook) for webhook in state.webhooks.values()]}
    if request.method == "DELETE":
        removed = state.webhooks.pop(webhook_id, None)
        return _NO_WEBHOOK if removed is None else {"id": webhook_id, "status": "deleted"}
    body = request.json
    wrong = body if isinstance(body, str) else checks.first_error(_FIELDS, ("url", "events"), body.fields)
    if isinstance(body, str) or wrong:
        return Refusal(400, "invalid_request", str(wrong))
    url = body.fields["url"]
    if not url.lower().startswith("https://") and not (state.settings.webhooks_to_loopback and is_loopback(url)):
        return Refusal(400, "invalid_request", "url must begin with https://")
    webhook = state.add_webhook(
        now, url, tuple(body.fields["events"]), body.fields.get("secret_key"), body.fields.get("api_key_id")
    )
    return _created(state, webhook)


def _created(state: State, webhook: Webhook) -> dict[str, object]:
    at = apimall.iso(state.settings.started_at, webhook.created_at)
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": list(webhook.events),
        "status": "active",
        "api_key_id": webhook.api_key_id,
        "created_at": at,
        "updated_at": at,
    }


def _listed(state: State, webhook: Webhook) -> dict[str, object]:
    sent_at = webhook.last_sent_at
    return {
        **_created(state, webhook),
        "total_sent": webhook.total_sent,
        "total_failed": webhook.total_failed,
        "last_sent_at": None if sent_at is None else apimall.iso(state.settings.started_at, sent_at),
        "last_error": webhook.last_error,
    }


def _delivery_body(state: State, now: float, task: Task, timestamp: int) -> bytes:
    task_state = task.state_at(now)
    status = apimall.status_word(task_state)
    urls = urls_of(state, now, task, task_state)
    charged = 0 if task.refunded else apimall.number(task.price)
    return apimall.encoded(
        {
            "event": "job.failed" if task_state is TaskState.FAILED else "job.completed",
            "task_id": task.task_id,
            "task_type": "image",
            "status": configured_word(state, status),
            "data": {"url": urls[0] if urls else None, "credits_charged": charged},
            "timestamp": timestamp,
        }
    )


def _signature(state: State, secret_key: str | None, signed: bytes) -> str | None:
    manner = state.settings.webhook_signatures
    if secret_key is None or manner == "absent":
        return None
    key = b"of a stranger" if manner == "wrong" else secret_key.encode()
    mac = hmac.new(key, signed, hashlib.sha256)
    return f"v9,{base64.b64encode(mac.digest()).decode()}" if manner == "unknown" else mac.hexdigest()


def _events(value: object) -> str | None:
    if not isinstance(value, list) or not value:
        return "must be a non-empty array"
    unknown = [event for event in cast("list[object]", value) if event not in EVENTS]
    return f"items must be {' or '.join(EVENTS)}" if unknown else None


_FIELDS: dict[str, checks.Check] = {
    "url": checks.url,
    "events": _events,
    "secret_key": checks.text,
    "api_key_id": checks.text,
}
