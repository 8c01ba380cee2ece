"""defapi (api.defapi.org): envelope with `code` and `message`, callbacks, no idempotency key."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn, override

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.gateways.balance import parse_balance
from nanobanana_async.gateways.base import GatewaySettings, check_extra, unsupported_field_error
from nanobanana_async.gateways.contract import MIB, HttpRequest, HttpResponse
from nanobanana_async.gateways.parsing import (
    CONVERTER,
    GatewayAnswer,
    TaskStatus,
    parse_task_id,
    parse_word,
    quote_task_id,
    to_json,
)
from nanobanana_async.gateways.rate_limits import body_wait_s
from nanobanana_async.gateways.refusals import NO_MESSAGE, Refusal, create_refusal_error, refusal_error, unwrap
from nanobanana_async.gateways.tasks import has_known_status, parse_task
from nanobanana_async.jobs import Accepted, JobState, Observation
from nanobanana_async.models import ImageRequest
from nanobanana_async.validators import at_least_one

MAX_REFERENCE_IMAGES = 4
"""Of Nano Banana models. Other models take more: the gateway checks those."""
_NANO_BANANA = ("google/gempix2", "google/gemini-2.5-flash-image", "nano-banana")
"""The models of the reference, and what the names of others contain."""

_STATUSES = {
    "pending": TaskStatus(queued=True),
    "submitted": TaskStatus(queued=True),
    "in_progress": TaskStatus(),
    "unknown": TaskStatus(),
    "success": TaskStatus(JobState.SUCCEEDED),
    "failed": TaskStatus(JobState.FAILED),
}
_SUCCESS_CODES = (None, 0, "0", 200, "200")


@frozen
class _Created:
    task_id: str
    consumed: Decimal | None = None
    model: str | None = None
    request_id: str | None = None


CONVERTER.register_structure_hook(
    _Created, make_dict_structure_fn(_Created, CONVERTER, task_id=override(struct_hook=parse_task_id))
)


@frozen(kw_only=True, repr=False)
class DefApi(GatewaySettings):
    """defapi: `DefApi(api_key="dk-...")`, or `DefApi.from_env()` with `DEFAPI_API_KEY` set."""

    short_name: ClassVar[str] = "defapi"  # in ledgers
    title: ClassVar[str] = "defapi"  # in messages
    key_variable: ClassVar[str] = "DEFAPI_API_KEY"  # where `from_env` finds the key
    credits_per_image: ClassVar[Decimal] = Decimal("0.5")  # the example of the reference

    base_url: str = "https://api.defapi.org"  # where requests and the API key go
    model: str = "google/gempix2"  # of requests that name none
    max_inline_bytes: int = field(default=32 * MIB, validator=at_least_one)
    """The most bytes of one local reference image, which a create holds as a data URI; the reference names none."""

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
            raise unsupported_field_error(self, "num_images", f" other than 1, not {request.num_images}")
        for name in ("aspect_ratio", "resolution", "output_format", "task_type"):
            if getattr(request, name) is not None:
                why = f": pass extra={{{name!r}: ...}} if the model takes it" if name == "aspect_ratio" else ""
                raise unsupported_field_error(self, name, why)
        check_extra(request, ("aspect_ratio", "resolution", "output_format"))
        model = request.model or self.model
        if len(request.images) > MAX_REFERENCE_IMAGES and any(name in model.lower() for name in _NANO_BANANA):
            raise InvalidRequest(
                f"defapi takes at most {MAX_REFERENCE_IMAGES} images for {model}, not {len(request.images)}"
            )

    def encode(self, request: ImageRequest) -> bytes:
        """Return the canonical body: the fields that are set, in the order of the reference; then `extra`, sorted."""
        self.check(request)
        return to_json(
            {
                "model": request.model or self.model,
                "prompt": request.prompt,
                "images": request.images or None,
                "callback_url": request.callback_url,
            },
            request.extra,
        )

    def build_create(self, body: bytes, *, wire_key: str) -> HttpRequest:
        """Return the create. The gateway does not know the key: sending the request twice buys two jobs."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return HttpRequest(
            method="POST", url=f"{self.base_url}/api/image/gen", headers=headers, body=body, max_answer_bytes=MIB
        )

    def read_create(self, response: HttpResponse) -> Accepted:
        """Return the accepted task, or raise the error that the answer holds."""
        answer = GatewayAnswer.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        fields = _merge_data(envelope)
        if refusal is not None:
            raise create_refusal_error(answer, refusal, fields)
        created = answer.parse_fields(_Created, fields, "data")
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
            url=f"{self.base_url}/api/task/query?task_id={quote_task_id(task_id)}",
            headers={"Accept": "application/json"},
            max_answer_bytes=64 * MIB,
            max_text_bytes=MIB,
        )

    def read_query(self, response: HttpResponse) -> Observation:
        """Return the status of a task, or raise the error that the answer holds."""
        answer = GatewayAnswer.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        fields = _merge_data(envelope)
        if refusal is not None and not has_known_status(fields, _STATUSES):
            raise refusal_error(answer, refusal)
        return parse_task(answer, envelope, fields, _STATUSES, refusal=refusal)

    def build_balance(self) -> HttpRequest:
        """Return the request for the balance."""
        return HttpRequest(method="GET", url=f"{self.base_url}/api/user", headers={"Accept": "application/json"})

    def read_balance(self, response: HttpResponse) -> Decimal:
        """Return the credits of the account, or raise the error that the answer holds."""
        answer = GatewayAnswer.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        if refusal is not None:
            raise refusal_error(answer, refusal)
        return parse_balance(answer, _merge_data(envelope), "credit")

    def read_callback(self, body: bytes) -> Observation:
        """Parse a callback, or raise `UnexpectedResponse`. Anyone who knows the URL can send one: do not trust it."""
        answer = GatewayAnswer(self, body)
        del body  # it may hold the API key, and some tools show the locals of a traceback
        envelope = answer.json_object()
        observation = parse_task(answer, envelope, _merge_data(envelope), _STATUSES)
        if observation.task_id is None:
            raise answer.unexpected_response("the callback names no task")
        return observation


def _merge_data(envelope: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the envelope merged with those of `data`, which take precedence."""
    data = envelope.get("data")
    if not isinstance(data, dict):
        return envelope
    return {**envelope, **{name: value for name, value in data.items() if value is not None}}


def _find_refusal(envelope: Mapping[str, Any]) -> Refusal | None:
    """Return the error in an envelope: a `code` that is not 0."""
    if envelope.get("code") in _SUCCESS_CODES:
        return None
    texts = (envelope.get("message"), envelope.get("detail"))
    parts = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    return Refusal(
        ": ".join(parts) or NO_MESSAGE,
        parse_word(envelope.get("code")),
        parse_word(envelope.get("request_id")),
        body_wait_s(envelope),
    )
