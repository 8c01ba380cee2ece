"""Parse the status of a task and how it ended: in the answer to a poll, in a callback, in an item of a history.

Both gateways share one set of fields and status words here. Public clients have met the fields of either gateway, and
of their relatives, in answers of the other.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn, override

from nanobanana_async.gateways.failures import failure_kind
from nanobanana_async.gateways.images import DeliveredImages, parse_first_image, parse_images
from nanobanana_async.gateways.parsing import (
    CONVERTER,
    UNKNOWN,
    GatewayAnswer,
    TaskStatus,
    parse_nested_json,
    parse_optional_task_id,
    parse_running,
    parse_word,
    status_word,
    without_inline_images,
)
from nanobanana_async.gateways.progress import parse_progress
from nanobanana_async.gateways.redaction import MAX_MESSAGE_LENGTH
from nanobanana_async.gateways.refusals import Refusal
from nanobanana_async.jobs import TERMINAL_STATES, JobState, Observation

Statuses = Mapping[str, TaskStatus]

_END_WORDS: Statuses = {
    "completed": TaskStatus(JobState.SUCCEEDED),
    "success": TaskStatus(JobState.SUCCEEDED),
    "succeeded": TaskStatus(JobState.SUCCEEDED),
    "failed": TaskStatus(JobState.FAILED),
    "error": TaskStatus(JobState.FAILED),
    "cancelled": TaskStatus(JobState.FAILED),
    "canceled": TaskStatus(JobState.FAILED),
}
"""The words for an end in either dialect. One that the gateway's reference lacks ends a task only with evidence."""

_LINKS = ("image", "url", "image_url", "big_image_url")
"""The fields of an object in a list of images that may hold its link."""
_MESSAGES = ("message", "msg", "detail", "reason")


@frozen
class _Task:
    status: str
    task_id: str | None = None
    model: str | None = None
    progress: Any = None
    output: Any = None
    result: Any = None
    primary_url: Any = None
    image_url: Any = None
    error_message: Any = None
    fail_message: Any = field(default=None, alias="failMsg")
    status_reason: Any = None
    error: Any = None
    credits_used: Decimal | None = None
    consumed: Decimal | None = None
    credits_refunded: Decimal | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    request_id: str | None = None


CONVERTER.register_structure_hook(
    _Task,
    make_dict_structure_fn(
        _Task,
        CONVERTER,
        status=override(struct_hook=status_word),
        task_id=override(struct_hook=parse_optional_task_id),
        fail_message=override(rename="failMsg"),
    ),
)


@frozen
class _Reason:
    """Why a task failed, in the gateway's words; not redacted yet."""

    message: str
    code: str | None = None


def has_known_status(fields: object, statuses: Statuses) -> bool:
    """Return whether the fields hold a status word that either gateway uses."""
    status = fields.get("status") if isinstance(fields, Mapping) else None
    if not isinstance(status, str):
        return False
    word = status.strip()[:100].lower()
    return word in statuses or word in _END_WORDS


def parse_task(
    answer: GatewayAnswer,
    envelope: dict[str, Any],
    fields: object,
    statuses: Statuses,
    *,
    refusal: Refusal | None = None,
    request_id: str | None = None,
) -> Observation:
    """Return the status of the task that `fields` describes; raise `UnexpectedResponse` if there is none.

    `statuses` are the words of the gateway's reference; `refusal` is an error in the envelope beside the task.
    """
    if (running := parse_running(fields, statuses)) is not None:
        return running
    task = answer.parse_fields(_Task, fields, "data")
    delivery, text = _images_and_text(task, answer.body)
    reason = _find_reason(task, envelope, refusal) or (_Reason(text) if text else None)
    status = statuses.get(task.status)
    if status is None:
        evidence = bool(delivery.images) or reason is not None
        status = _END_WORDS.get(task.status, UNKNOWN) if evidence else UNKNOWN
    if status.state is not JobState.SUCCEEDED:
        delivery = DeliveredImages()
    failed = status.state is JobState.FAILED or (status.state is JobState.SUCCEEDED and not delivery.images)
    message = answer.clean_text(reason.message, MAX_MESSAGE_LENGTH) if failed and reason else None
    code = answer.clean_text(reason.code, MAX_MESSAGE_LENGTH) if failed and reason else None
    return Observation(
        task_id=task.task_id,
        state=status.state,
        status=task.status,
        known_status=status.known,
        queued=status.queued,
        progress=parse_progress(task.progress),
        images=delivery.images,
        missing=delivery.missing,
        error=message,
        error_code=code,
        failure_kind=failure_kind(code, message) if failed else "unknown",
        model=task.model,
        credits_used=task.consumed if task.credits_used is None else task.credits_used,
        credits_refunded=task.credits_refunded,
        created_at=task.created_at,
        completed_at=task.completed_at,
        request_id=request_id or task.request_id,
        provider_request_id=task.request_id if request_id else None,
        raw=without_inline_images(envelope) if status.state in TERMINAL_STATES else {},
    )


def _images_and_text(task: _Task, body: bytes) -> tuple[DeliveredImages, str | None]:
    """Return the images, and a text that came among them or instead of them.

    All of a list of several images, otherwise the first field that holds an image.
    """
    listed, text = _entries_and_text(task)
    several = parse_images(listed, body) if len(listed) > 1 else DeliveredImages()
    if several.images:
        return several, text
    first = parse_first_image((task.primary_url, task.image_url, *listed), body)
    if first.images and len(listed) > 1:
        first = DeliveredImages(first.images, several.missing[1:])
    return first, text


def _entries_and_text(task: _Task) -> tuple[list[object], str | None]:
    """Return the entries of the first list of images that is not empty, without its texts; and the first text."""
    output = parse_nested_json(task.output)
    if isinstance(output, dict):
        sources = [output.get("resultUrls"), output.get("images"), task.result]
        if any(output.get(name) for name in _LINKS):
            sources.append(output)
    else:
        sources = [task.result, output]
    entries = next(filter(None, map(parse_nested_json, sources)), [])
    images: list[object] = []
    texts: list[str] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        text = entry.get("text") if isinstance(entry, dict) else None
        image = _image_in(entry)
        if image is entry and isinstance(text, str) and text.strip():
            texts.append(text)
        else:
            images.append(image)
    return images, next(iter(texts), None)


def _image_in(entry: object) -> object:
    """Return the link in an object of a list of images; any other entry unchanged."""
    links = [entry[name] for name in _LINKS if name in entry] if isinstance(entry, dict) else []
    return next(filter(None, links), None) if links else entry


def _find_reason(task: _Task, envelope: Mapping[str, Any], refusal: Refusal | None) -> _Reason | None:
    """Return why the task failed, from the first field that says it; None if none does."""
    fields = (task.error_message, task.fail_message, task.status_reason, task.error, envelope.get("failMsg"))
    found = next((reason for value in fields if value for reason in _reasons_in(value)), None)
    if found is None and refusal is not None:
        return _Reason(refusal.message, refusal.code)
    return found


def _reasons_in(value: object) -> Iterator[_Reason]:
    value = parse_nested_json(value)
    if isinstance(value, str) and value.strip():
        yield _Reason(value)
    elif isinstance(value, dict):
        code = parse_word(value.get("code"))
        messages = (value[name] for name in _MESSAGES if isinstance(value.get(name), str) and value[name].strip())
        message = next(messages, code)
        if message is not None:
            yield _Reason(message, code)
