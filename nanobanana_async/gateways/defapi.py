"""defapi (api.defapi.org): envelope with `code` and `message`, callbacks, no idempotency key."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from attrs import frozen
from cattrs.gen import make_dict_structure_fn, override

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.gateways.base import GatewaySettings, unsupported_field
from nanobanana_async.gateways.contract import MIB, HttpRequest, HttpResponse
from nanobanana_async.gateways.images import DeliveredImages, parse_delivered
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
from nanobanana_async.jobs import TERMINAL_STATES, Accepted, JobState, Observation
from nanobanana_async.models import ImageRequest

MAX_REFERENCE_IMAGES = 4

_STATUSES = {
    "pending": TaskStatus(queued=True),
    "submitted": TaskStatus(queued=True),
    "in_progress": TaskStatus(),
    "success": TaskStatus(JobState.SUCCEEDED),
    "failed": TaskStatus(JobState.FAILED),
}
_NO_REFUSAL = (None, 0, "0", 200, "200")


@frozen
class _Created:
    task_id: str
    consumed: Decimal | None = None
    model: str | None = None
    request_id: str | None = None


@frozen
class _Reason:
    message: Any = None


@frozen
class _Task:
    """A `CallbackPayload`; the reference shows no other answer for a task."""

    status: str
    task_id: str | None = None
    result: Any = None
    consumed: Decimal | None = None
    status_reason: _Reason = _Reason()
    model: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    request_id: str | None = None


def _reason(value: object, _: object) -> _Reason:
    value = parse_nested_json(value)
    return CONVERTER.structure(value, _Reason) if isinstance(value, dict) else _Reason(value)


CONVERTER.register_structure_hook(
    _Created, make_dict_structure_fn(_Created, CONVERTER, task_id=override(struct_hook=task_id))
)
CONVERTER.register_structure_hook(
    _Task,
    make_dict_structure_fn(
        _Task,
        CONVERTER,
        status=override(struct_hook=status_word),
        task_id=override(struct_hook=known_task_id),
        status_reason=override(struct_hook=_reason),
    ),
)


@frozen(kw_only=True, repr=False)
class DefApi(GatewaySettings):
    """defapi: `DefApi(api_key="dk-...")`, or `DefApi.from_env()` with `DEFAPI_API_KEY` set."""

    short_name: ClassVar[str] = "defapi"
    title: ClassVar[str] = "defapi"
    key_variable: ClassVar[str] = "DEFAPI_API_KEY"
    credits_per_image: ClassVar[Decimal] = Decimal("0.5")

    base_url: str = "https://api.defapi.org"
    model: str = "google/gempix2"

    @property
    def supports_idempotency_keys(self) -> bool:
        """Whether a create that is repeated with its key is processed and charged once."""
        return False

    @property
    def supports_callbacks(self) -> bool:
        """Whether requests may have a `callback_url`."""
        return True

    @property
    def key_lifetime_s(self) -> float:
        """Zero: the gateway has no idempotency keys, so no create is repeated."""
        return 0.0

    def check(self, request: ImageRequest) -> None:
        """Raise `InvalidRequest`, which names the first field that this gateway does not take."""
        if request.num_images != 1:
            raise unsupported_field(self, "num_images", f" other than 1, not {request.num_images}")
        for name in ("aspect_ratio", "resolution", "output_format", "task_type"):
            if getattr(request, name) is not None:
                raise unsupported_field(self, name)
        if len(request.images) > MAX_REFERENCE_IMAGES:
            raise InvalidRequest(f"defapi takes at most {MAX_REFERENCE_IMAGES} images, not {len(request.images)}")

    def encode(self, request: ImageRequest) -> bytes:
        """Return the canonical body: the fields that are set, in the order of the reference."""
        self.check(request)
        return to_json(
            {
                "model": request.model or self.model,
                "prompt": request.prompt,
                "images": request.images or None,
                "callback_url": request.callback_url,
            }
        )

    def build_create(self, body: bytes, *, wire_key: str) -> HttpRequest:
        """Return the create. The gateway does not know the key: sending the request twice buys two jobs."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return HttpRequest(
            method="POST", url=f"{self.base_url}/api/image/gen", headers=headers, body=body, max_answer_bytes=MIB
        )

    def read_create(self, response: HttpResponse) -> Accepted:
        """Return the accepted task, or raise the error that the answer holds."""
        answer = ParsedResponse.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        fields = _flat(envelope)
        if refusal is not None:
            raise create_refusal_error(answer, refusal, fields)
        created = answer.parse(_Created, fields, "data")
        return Accepted(
            task_id=created.task_id,
            credits_used=created.consumed,
            model=created.model,
            request_id=created.request_id,
        )

    def build_query(self, task_id: str) -> HttpRequest:
        """Return the request for the status of a task."""
        return HttpRequest(
            method="GET",
            url=f"{self.base_url}/api/task/query?task_id={task_id_in_url(task_id)}",
            headers={"Accept": "application/json"},
            max_answer_bytes=64 * MIB,
            max_text_bytes=MIB,
        )

    def read_query(self, response: HttpResponse) -> Observation:
        """Return the status of a task, or raise the error that the answer holds."""
        answer = ParsedResponse.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        fields = _flat(envelope)
        if refusal is not None and not has_known_status(fields, _STATUSES):
            raise refusal_error(answer, refusal)
        return _observed(answer, envelope, fields)

    def read_callback(self, body: bytes) -> Observation:
        """Parse a callback, or raise `UnexpectedResponse`. Anyone who knows the URL can send one: do not trust it."""
        answer = ParsedResponse(self, body)
        del body  # it may hold the API key, and some tools show the locals of a traceback
        envelope = answer.json_object()
        observation = _observed(answer, envelope, _flat(envelope))
        if observation.task_id is None:
            raise answer.unexpected("the callback names no task")
        return observation


def _observed(answer: ParsedResponse, envelope: dict[str, Any], fields: dict[str, Any]) -> Observation:
    if (running := parse_running(fields, _STATUSES)) is not None:
        return running
    task = answer.parse(_Task, fields, "data")
    status = _STATUSES.get(task.status, UNKNOWN)
    delivery = _delivery(task, answer.body) if status.state is JobState.SUCCEEDED else DeliveredImages()
    return Observation(
        task_id=task.task_id,
        state=status.state,
        status=task.status,
        known_status=status.known,
        queued=status.queued,
        images=delivery.images,
        missing=delivery.missing,
        error=answer.clean_text(task.status_reason.message, MESSAGE) if status.state is JobState.FAILED else None,
        model=task.model,
        credits_used=task.consumed,
        created_at=task.created_at,
        completed_at=task.completed_at,
        request_id=task.request_id,
        raw=without_inline_images(envelope) if status.state in TERMINAL_STATES else {},
    )


def _flat(envelope: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the envelope merged with those of `data`, which take precedence."""
    data = envelope.get("data")
    if not isinstance(data, dict):
        return envelope
    return {**envelope, **{name: value for name, value in data.items() if value is not None}}


def _delivery(task: _Task, body: bytes) -> DeliveredImages:
    """Return the images of a list of results, of a single result, or of either as JSON in a string."""
    result = parse_nested_json(task.result)
    listed = result if isinstance(result, list) else [result]
    return parse_delivered([item.get("image", item) if isinstance(item, dict) else item for item in listed], body)


def _find_refusal(envelope: Mapping[str, Any]) -> Refusal | None:
    """Return the error in an envelope: a `code` that is not 0."""
    if envelope.get("code") in _NO_REFUSAL:
        return None
    texts = (envelope.get("message"), envelope.get("detail"))
    parts = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    return Refusal(
        ": ".join(parts) or NO_MESSAGE, parse_word(envelope.get("code")), parse_word(envelope.get("request_id"))
    )
