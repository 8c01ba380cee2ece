"""API Mall's format: request parameters, error envelopes and response bodies, as in its reference.

Source: "Nano Banana Pro" under Model Guides / Image Models of apimall.ai, sections 1 and 2.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from nanobanana_async.emulator import checks
from nanobanana_async.emulator.accounts import UNLIMITED_CREDITS, CreateRequest, Reference, Refusal, Task, TaskState
from nanobanana_async.emulator.bodies import JsonBody
from nanobanana_async.emulator.settings import EmulatorSettings, FailureField

CREATE_PATH = "/api/v1/images/generate"
QUERY_PREFIX = "/api/v1/images/"
HISTORY_PATH = "/api/v1/images/history"
BALANCE_PATH = "/api/v1/account/balances"
MODEL = "nano-banana-pro"

_FIELDS: dict[str, checks.Check] = {
    "model": checks.one_of(MODEL),
    "type": checks.one_of("text-to-image", "image-to-image"),
    "prompt": checks.text,
    "image_urls": checks.urls(),
    "num_images": checks.whole_number(1, 6),
    "aspect_ratio": checks.ratio,
    "resolution": checks.one_of("1K", "2K", "4K"),
    "output_format": checks.one_of("jpeg", "jpg", "png"),
}
# Of the same endpoint for other models.
_GENERAL_FIELDS: dict[str, checks.Check] = {
    **_FIELDS,
    "model": checks.text,
    "type": checks.one_of("text-to-image", "image-to-image", "upscale"),
    "input_image": checks.url,
    "image_size": checks.text,
    "image_resolution": checks.one_of("1K", "2K", "4K"),
    "seed": checks.whole_number(0, 2**63 - 1),
    "quality": checks.one_of("low", "medium", "high"),
    "background": checks.one_of("auto", "transparent", "opaque"),
}
_GENERAL_MODEL = "nano-banana"
_STATUSES = {
    TaskState.PENDING: "pending",
    TaskState.SUBMITTED: "pending",
    TaskState.PROCESSING: "processing",
    TaskState.SUCCEEDED: "completed",
    TaskState.FAILED: "failed",
}
_FAILURE = "The image could not be generated"
_encode = json.JSONEncoder(separators=(",", ":")).encode

UNAUTHORIZED = Refusal(401, "invalid_api_key", "API key required or invalid API key")
NOT_APPROVED = Refusal(403, "access_not_approved", "API access not approved")
WRONG_HOST = Refusal(403, "non_gateway_host", "Request made on a non-gateway host")
NOT_FOUND = Refusal(404, "task_not_found", "Task not found")
BLOCKED = Refusal(451, "prompt_blocked", "Prompt blocked by content moderation")

FAULT_ENVELOPES = {
    400: ("invalid_request", "Invalid request parameters"),
    401: ("invalid_api_key", "API key required or invalid API key"),
    402: ("insufficient_credits", "Insufficient credits"),
    403: ("access_not_approved", "API access not approved"),
    404: ("task_not_found", "Task not found"),
    413: ("file_too_large", "File too large"),
    409: ("idempotency_conflict", "Idempotency-Key conflict"),
    429: ("rate_limit_exceeded", "Rate limit exceeded"),
    451: ("prompt_blocked", "Prompt blocked by content moderation"),
    500: ("internal_error", "Internal server error"),
    503: ("upstream_unavailable", "Upstream provider is busy or temporarily unavailable"),
}


def parse_create(body: JsonBody | str, settings: EmulatorSettings) -> CreateRequest | Refusal:
    """Return the create request, or the 400 that names the invalid field."""
    if isinstance(body, str):
        return Refusal(400, "invalid_request", body)
    parsed, extra = body.fields, settings.extra_fields
    required = ("prompt",) if extra else ("model", "prompt")
    if wrong := checks.first_error(_GENERAL_FIELDS if extra else _FIELDS, required, parsed):
        return Refusal(400, "invalid_request", wrong)
    urls = parsed.get("image_urls", []) + ([parsed["input_image"]] if "input_image" in parsed else [])
    return CreateRequest(
        prompt=parsed["prompt"],
        model=parsed.get("model", _GENERAL_MODEL),
        canonical=body.canonical,
        references=tuple(Reference(url=url) for url in urls),
        image_count=parsed.get("num_images", 1),
        aspect_ratio=parsed.get("aspect_ratio"),
        resolution=parsed.get("resolution") or parsed.get("image_resolution", "1K"),
        output_format=parsed.get("output_format", "png"),
    )


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """Return an error envelope."""
    error = {"code": refusal.code, "message": refusal.message}
    return encoded({"success": False, "error": error, "request_id": request_id})


def created_body(task: Task) -> bytes:
    """Return the response to a create. A replay returns identical bytes."""
    remaining = UNLIMITED_CREDITS if task.remaining is None else number(task.remaining)
    data = {
        "task_id": task.task_id,
        "request_id": f"provider_req_{task.task_id[4:]}",
        "credits_used": number(task.price),
        "remaining_credits": remaining,
        "model": task.request.model,
    }
    return encoded({"success": True, "data": data, "request_id": f"req_{task.task_id[4:]}"})


def status_word(task_state: TaskState) -> str:
    """Return the status of a task in a state, as in the reference."""
    return _STATUSES[task_state]


def query_body(
    task: Task,
    task_state: TaskState,
    status: str,
    urls: Sequence[str],
    *,
    started_at: datetime,
    request_id: str,
    failure_field: FailureField,
    progress: Mapping[str, object],
) -> bytes:
    """Return the response to a query.

    `urls` are the image URLs, or empty while there are none. As in the reference's example, `primary_url` and
    `image_url` are URLs of their own.
    """
    ended = task_state in (TaskState.SUCCEEDED, TaskState.FAILED)
    changed_at = task.starts_at if task_state is TaskState.PROCESSING else task.created_at
    folder = urls[0].rpartition("/")[0] if urls else None
    extension = urls[0].rpartition(".")[2] if urls else ""
    data: dict[str, object] = {
        "task_id": task.task_id,
        "model": task.request.model,
        "status": status,
        "output": {"resultUrls": list(urls)} if task_state is TaskState.SUCCEEDED else None,
        "primary_url": f"{folder}/result.{extension}" if folder else None,
        "image_url": f"{folder}/cover.{extension}" if folder else None,
        "error_message": None,
        "credits_used": number(task.price),
        "credits_refunded": number(task.price) if task.refunded else 0,
        "created_at": iso(started_at, task.created_at),
        "updated_at": iso(started_at, task.ends_at if ended else changed_at),
        "completed_at": iso(started_at, task.ends_at) if ended else None,
        **progress,
    }
    if task_state is TaskState.FAILED:
        data[failure_field] = _FAILURE
    return encoded({"success": True, "data": data, "request_id": request_id})


def number(amount: Decimal) -> int | float:
    """Return an amount as a JSON number."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def iso(started_at: datetime, moment: float) -> str:
    """Return a time of the emulated clock as text."""
    at = started_at + timedelta(seconds=moment)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def encoded(body: object) -> bytes:
    """Return a body as JSON."""
    return _encode(body).encode()
