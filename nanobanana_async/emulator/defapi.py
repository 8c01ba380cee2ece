"""defapi's format: request parameters, error envelopes, response bodies and callbacks, as in its reference.

Source: "Nano Banana Pro API Developer Reference" of defapi.org. It lists only 200, 400, 401, 404
and 500; other errors use the envelope of its 400.
"""

import json
from collections.abc import Mapping, Sequence

from nanobanana_async.emulator import checks
from nanobanana_async.emulator.accounts import CreateRequest, Reference, Refusal, Task, TaskState
from nanobanana_async.emulator.bodies import JsonBody, image_type, is_data_uri
from nanobanana_async.emulator.settings import EmulatorSettings, QueryShape

CREATE_PATH = "/api/image/gen"
QUERY_PATH = "/api/task/query"
BALANCE_PATH = "/api/user"
MODELS = ("google/gempix2", "google/gemini-2.5-flash-image")

_FIELDS: dict[str, checks.Check] = {
    "model": checks.one_of(*MODELS),
    "prompt": checks.text,
    "images": checks.urls(4, checks.url_or_data),
    "callback_url": checks.url,
}
_STATUSES = {
    TaskState.PENDING: "pending",
    TaskState.SUBMITTED: "submitted",
    TaskState.PROCESSING: "in_progress",
    TaskState.SUCCEEDED: "success",
    TaskState.FAILED: "failed",
}
_FAILURE = "The image could not be generated"
_encode = json.JSONEncoder(separators=(",", ":")).encode

UNAUTHORIZED = Refusal(401, "invalid_api_key", "Invalid API key")
UNAUTHORIZED_QUERY = Refusal(401, "invalid_api_key_on_query", "Invalid API key")
NOT_FOUND = Refusal(404, "task_not_found", "task not found")
NO_TASK_ID = Refusal(400, "invalid_request", "task_id is required")
BLOCKED = Refusal(451, "prompt_blocked", "prompt blocked by content moderation")

FAULT_ENVELOPES = {
    400: ("invalid_request", "invalid request parameters"),
    401: ("invalid_api_key", "Invalid API key"),
    402: ("insufficient_credits", "insufficient balance"),
    404: ("task_not_found", "task not found"),
    413: ("request_too_large", "request too large"),
    429: ("rate_limit_exceeded", "rate limit exceeded"),
    500: ("internal_error", "internal server error"),
    503: ("unavailable", "service unavailable"),
}


def parse_create(body: JsonBody | str, settings: EmulatorSettings) -> CreateRequest | Refusal:
    """Return the create request, or the refusal that names the invalid field."""
    if isinstance(body, str):
        return Refusal(400, "invalid_request", body)
    parsed = body.fields
    fields = _fields(parsed.get("model")) if settings.extra_fields else _FIELDS
    if wrong := checks.first_error(fields, ("model", "prompt"), parsed):
        return Refusal(400, "invalid_request", wrong)
    references = _references(body, settings.max_inline_bytes)
    if isinstance(references, Refusal):
        return references
    size = parsed.get("image_size")
    return CreateRequest(
        prompt=parsed["prompt"],
        model=parsed["model"],
        canonical=body.canonical,
        aspect_ratio=parsed.get("aspect_ratio"),
        resolution=size if size in ("1K", "2K", "4K") else "1K",
        callback_url=parsed.get("callback_url"),
        references=references,
    )


def _fields(model: object) -> dict[str, checks.Check]:
    most = _FIELDS["images"] if model in MODELS else checks.urls(None, checks.url_or_data)
    more = {"model": checks.text, "images": most, "aspect_ratio": checks.ratio, "image_size": checks.text}
    return {**_FIELDS, **more}


def _references(body: JsonBody, most_bytes: int | None) -> Sequence[Reference] | Refusal:
    references: list[Reference] = []
    for index, item in enumerate(body.fields.get("images", ())):
        if not is_data_uri(item):
            references.append(Reference(url=item))
            continue
        content = body.file("images", index)
        if content is None or image_type(content.data) is None:
            return Refusal(
                400, "invalid_request", "images items must be an http or https URL or a data URI of an image"
            )
        if most_bytes is not None and len(content.data) > most_bytes:
            return Refusal(413, "file_too_large", f"an image in images must not be larger than {most_bytes} bytes")
        references.append(Reference(sha256=content.sha256))
    return references


def error_body(refusal: Refusal, *, inside_200: bool) -> bytes:
    """Return an error envelope. Inside a 200 its `code` is the HTTP status that was not sent."""
    if refusal.status == 401:
        has_code = inside_200 or refusal.code == UNAUTHORIZED_QUERY.code
        return encoded({"code": 401 if has_code else 1, "message": refusal.message})
    code = refusal.status if inside_200 else 1
    if refusal.status == 404:
        return encoded({"code": code, "message": refusal.message})
    return encoded({"code": code, "message": "failed", "detail": refusal.message})


def created_body(task: Task) -> bytes:
    """Return the response to a create."""
    return encoded({"code": 0, "message": "ok", "data": {"task_id": task.task_id}})


def status_word(task_state: TaskState) -> str:
    """Return the status of a task in a state, as in the reference."""
    return _STATUSES[task_state]


def query_body(
    task: Task,
    task_state: TaskState,
    status: str,
    images: Sequence[str],
    shape: QueryShape,
    progress: Mapping[str, object],
) -> bytes:
    """Return the response to a query: the callback's fields. The reference does not show where they stand."""
    payload = {**_payload(task, task_state, status, images), **progress}
    if shape == "top":
        return encoded({"code": 0, "message": "ok", **payload})
    return encoded({"code": 0, "message": "ok", "data": payload})


def callback_body(task: Task, task_state: TaskState, status: str, images: Sequence[str]) -> bytes:
    """Return the callback body of a finished job."""
    return encoded(_payload(task, task_state, status, images))


def _payload(task: Task, task_state: TaskState, status: str, images: Sequence[str]) -> dict[str, object]:
    failed = task_state is TaskState.FAILED
    consumed = 0 if task.refunded else task.price
    return {
        "result": [{"image": image} for image in images] if task_state is TaskState.SUCCEEDED else None,
        "status": status,
        "task_id": task.task_id,
        "consumed": f"{consumed:.6f}",
        "status_reason": {"message": _FAILURE if failed else None},
    }


def encoded(body: object) -> bytes:
    """Return a body as JSON."""
    return _encode(body).encode()
