"""API Mall (gateway.apimall.ai): envelope with `success` and `error`, `Idempotency-Key`, no callbacks."""

import sys
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn, override

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.gateways.base import GatewaySettings, task_type, unsupported_field
from nanobanana_async.gateways.contract import MIB, HttpRequest, HttpResponse
from nanobanana_async.gateways.images import DeliveredImages, parse_delivered, parse_first_delivered
from nanobanana_async.gateways.parsing import (
    CONVERTER,
    UNKNOWN,
    ParsedResponse,
    TaskStatus,
    has_known_status,
    known_task_id,
    parse_nested_json,
    parse_running,
    parse_word,
    status_word,
    task_id,
    task_id_in_url,
    to_json,
    without_inline_images,
)
from nanobanana_async.gateways.redaction import MESSAGE
from nanobanana_async.gateways.refusals import NO_MESSAGE, Refusal, create_refusal_error, refusal_error, unwrap
from nanobanana_async.jobs import TERMINAL_STATES, Accepted, JobState, Observation, validate_key
from nanobanana_async.models import ImageRequest
from nanobanana_async.validators import within

_STATUSES = {
    "pending": TaskStatus(queued=True),
    "processing": TaskStatus(),
    "completed": TaskStatus(JobState.SUCCEEDED),
    "failed": TaskStatus(JobState.FAILED),
}
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@frozen
class _Created:
    task_id: str
    request_id: str | None = None
    credits_used: Decimal | None = None
    remaining_credits: Decimal | None = None
    model: str | None = None


@frozen
class _Output:
    result_urls: Any = None


@frozen
class _Task:
    status: str
    task_id: str | None = None
    model: str | None = None
    output: _Output = _Output()
    primary_url: Any = None
    image_url: Any = None
    error_message: Any = None
    fail_message: Any = None
    credits_used: Decimal | None = None
    credits_refunded: Decimal | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None


def _output(value: object, _: object) -> _Output:
    value = parse_nested_json(value)
    return CONVERTER.structure(value, _Output) if isinstance(value, dict) else _Output()


CONVERTER.register_structure_hook(
    _Created, make_dict_structure_fn(_Created, CONVERTER, task_id=override(struct_hook=task_id))
)
CONVERTER.register_structure_hook(
    _Output, make_dict_structure_fn(_Output, CONVERTER, result_urls=override(rename="resultUrls"))
)
CONVERTER.register_structure_hook(
    _Task,
    make_dict_structure_fn(
        _Task,
        CONVERTER,
        status=override(struct_hook=status_word),
        task_id=override(struct_hook=known_task_id),
        output=override(struct_hook=_output),
        fail_message=override(rename="failMsg"),
    ),
)


@frozen(kw_only=True, repr=False)
class ApiMall(GatewaySettings):
    """API Mall: `ApiMall(api_key="...")`, or `ApiMall.from_env()` with `APIMALL_API_KEY` set."""

    short_name: ClassVar[str] = "apimall"
    title: ClassVar[str] = "API Mall"
    key_variable: ClassVar[str] = "APIMALL_API_KEY"
    credits_per_image: ClassVar[Decimal] = Decimal(8)

    base_url: str = "https://gateway.apimall.ai"
    model: str = "nano-banana-pro"
    key_lifetime_s: float = field(default=1800.0, validator=within(endless=True))
    """Seconds after the first send for which keys are taken to be recognised; the reference gives no number."""

    @property
    def supports_idempotency_keys(self) -> bool:
        """Whether a create that is repeated with its key is processed and charged once."""
        return True

    @property
    def supports_callbacks(self) -> bool:
        """Whether requests may have a `callback_url`."""
        return False

    def check(self, request: ImageRequest) -> None:
        """Raise `InvalidRequest`, which names the first field that this gateway does not take."""
        if request.callback_url is not None:
            raise unsupported_field(self, "callback_url")
        if request.task_type == "image-to-image" and not request.images:
            raise InvalidRequest("task_type image-to-image needs images")
        if request.task_type == "text-to-image" and request.images:
            raise unsupported_field(self, "images", " with task_type text-to-image")

    def encode(self, request: ImageRequest) -> bytes:
        """Return the canonical body: the fields that are set, in the order of the reference."""
        self.check(request)
        fields: dict[str, Any] = {
            "model": request.model or self.model,
            "type": task_type(request),
            "prompt": request.prompt,
            "image_urls": request.images or None,
            "num_images": request.num_images,
            "aspect_ratio": request.aspect_ratio,
            "resolution": request.resolution,
            "output_format": request.output_format,
        }
        return to_json(fields)

    def build_create(self, body: bytes, *, wire_key: str) -> HttpRequest:
        """Return the create. A repeat with the same key must have the same bytes."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Idempotency-Key": validate_key(wire_key),
        }
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/api/v1/images/generate",
            headers=headers,
            body=body,
            max_answer_bytes=MIB,
        )

    def read_create(self, response: HttpResponse) -> Accepted:
        """Return the accepted task, or raise the error that the answer holds."""
        answer = ParsedResponse.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        data = envelope.get("data")
        if refusal is not None:
            raise create_refusal_error(answer, refusal, data)
        created = answer.parse(_Created, data, "data")
        return Accepted(
            task_id=created.task_id,
            credits_used=created.credits_used,
            credits_remaining=created.remaining_credits,
            model=created.model and sys.intern(created.model),  # one string for all jobs in memory
            request_id=parse_word(envelope.get("request_id")) or created.request_id,
        )

    def build_query(self, task_id: str) -> HttpRequest:
        """Return the request for the status of a task."""
        return HttpRequest(
            method="GET",
            url=f"{self.base_url}/api/v1/images/{task_id_in_url(task_id)}",
            headers={"Accept": "application/json"},
            max_answer_bytes=64 * MIB,
            max_text_bytes=MIB,
        )

    def read_query(self, response: HttpResponse) -> Observation:
        """Return the status of a task, or raise the error that the answer holds."""
        answer = ParsedResponse.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        data = envelope.get("data")
        if refusal is not None and not has_known_status(data, _STATUSES):
            raise refusal_error(answer, refusal)
        if (running := parse_running(data, _STATUSES)) is not None:
            return running
        task = answer.parse(_Task, data, "data")
        status = _STATUSES.get(task.status, UNKNOWN)
        delivery = _delivery(task, answer.body) if status.state is JobState.SUCCEEDED else DeliveredImages()
        failure = task.error_message or task.fail_message or envelope.get("failMsg")
        return Observation(
            task_id=task.task_id,
            state=status.state,
            status=task.status,
            known_status=status.known,
            queued=status.queued,
            images=delivery.images,
            missing=delivery.missing,
            error=answer.clean_text(failure, MESSAGE) if status.state is JobState.FAILED else None,
            model=task.model,
            credits_used=task.credits_used,
            credits_refunded=task.credits_refunded,
            created_at=task.created_at,
            completed_at=task.completed_at,
            request_id=parse_word(envelope.get("request_id")),
            raw=without_inline_images(envelope) if status.state in TERMINAL_STATES else {},
        )

    def read_callback(self, body: bytes) -> Observation:
        """Raise `UnexpectedResponse`: this gateway sends no callbacks."""
        answer = ParsedResponse(self, body)
        del body  # it may hold the API key, and some tools show the locals of a traceback
        raise answer.unexpected("this gateway does not send callbacks")


def _delivery(task: _Task, body: bytes) -> DeliveredImages:
    """Return all of `resultUrls` if it has more than one entry, otherwise the first field that holds an image."""
    urls = parse_nested_json(task.output.result_urls)
    listed = urls if isinstance(urls, list) else [urls]
    several = parse_delivered(listed, body) if len(listed) > 1 else DeliveredImages()
    if several.images:
        return several
    first = parse_first_delivered((task.primary_url, task.image_url, *listed), body)
    return DeliveredImages(first.images, several.missing[1:]) if first.images else first


def _flag(value: object) -> bool | None:
    return _FLAGS.get(str(value).lower()) if isinstance(value, (str, int)) else None


def _find_refusal(envelope: Mapping[str, Any]) -> Refusal | None:
    """Return the error in an envelope: `success` is false, or it is missing and `error` is there."""
    error, success = envelope.get("error"), _flag(envelope.get("success"))
    details = error if isinstance(error, dict) else {}
    if success or (success is None and not (details.get("code") or details.get("message"))):
        return None
    code = parse_word(details.get("code")) or parse_word(envelope.get("code"))
    texts = (details.get("message"), error, envelope.get("message"), code)
    message = next((text for text in texts if isinstance(text, str) and text.strip()), NO_MESSAGE)
    return Refusal(message, code, parse_word(envelope.get("request_id")))
