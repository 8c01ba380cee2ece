"""API Mall (gateway.apimall.ai): envelope with `success` and `error`, `Idempotency-Key`, webhooks of the account."""

import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn, override

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.gateways.apimall_files import MAX_UPLOAD_BYTES, build_upload, parse_upload
from nanobanana_async.gateways.apimall_history import build_history, parse_history
from nanobanana_async.gateways.apimall_webhooks import (
    build_webhook_list,
    build_webhook_registration,
    build_webhook_removal,
    parse_delivery,
    parse_signature,
    parse_webhook_registration,
    parse_webhooks,
)
from nanobanana_async.gateways.balance import parse_balance
from nanobanana_async.gateways.base import GatewaySettings, check_extra, task_type, unsupported_field_error
from nanobanana_async.gateways.capabilities import HistoryPage, Signature, UploadAnswer, Webhook, WebhookPage
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
from nanobanana_async.keys import validate_key
from nanobanana_async.models import ImageRequest
from nanobanana_async.validators import DAY_S, within

_STATUSES = {
    "pending": TaskStatus(queued=True),
    "processing": TaskStatus(),
    "unknown": TaskStatus(),
    "completed": TaskStatus(JobState.SUCCEEDED),
    "failed": TaskStatus(JobState.FAILED),
}
NO_CONTENT = 204
_BOOLEAN_BY_WORD = {"true": True, "1": True, "false": False, "0": False}


@frozen
class _Created:
    task_id: str
    request_id: str | None = None
    credits_used: Decimal | None = None
    remaining_credits: Decimal | None = None
    model: str | None = None


CONVERTER.register_structure_hook(
    _Created, make_dict_structure_fn(_Created, CONVERTER, task_id=override(struct_hook=parse_task_id))
)


@frozen(kw_only=True, repr=False)
class ApiMall(GatewaySettings):
    """API Mall: `ApiMall(api_key="...")`, or `ApiMall.from_env()` with `APIMALL_API_KEY` set."""

    short_name: ClassVar[str] = "apimall"  # in ledgers
    title: ClassVar[str] = "API Mall"  # in messages
    key_variable: ClassVar[str] = "APIMALL_API_KEY"  # where `from_env` finds the key
    credits_per_image: ClassVar[Decimal] = Decimal(8)  # the example of the reference

    base_url: str = "https://gateway.apimall.ai"  # where requests and the API key go
    model: str = "nano-banana-pro"  # of requests that name none
    key_lifetime_s: float = field(default=1800.0, validator=within(endless=True))
    """Seconds after the first send for which keys are taken to be recognised; the reference gives no number."""
    history_delay_s: float = field(default=40.0, validator=within(above=0, most=DAY_S))
    """Seconds after a create until its task is in the history; "task not found" was seen for up to 35 s."""
    upload_lifetime_s: float = field(default=86400.0, validator=within(endless=True))
    """Seconds for which an uploaded reference image is used again. The reference gives no number; a day is what stores
    of temporary files keep at least."""

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
            raise unsupported_field_error(self, "callback_url")
        if request.task_type == "image-to-image" and not request.images:
            raise InvalidRequest("task_type image-to-image needs images")
        if request.task_type == "upscale" and not (request.images or "input_image" in request.extra):
            raise InvalidRequest("task_type upscale needs images: the one to enlarge")
        if request.task_type == "text-to-image" and request.images:
            raise unsupported_field_error(self, "images", " with task_type text-to-image")
        check_extra(request)

    def encode(self, request: ImageRequest) -> bytes:
        """Return the canonical body: the fields that are set, in the order of the reference; then `extra`, sorted."""
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
        return to_json(fields, request.extra)

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
        answer = GatewayAnswer.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        data = envelope.get("data")
        if refusal is not None:
            raise create_refusal_error(answer, refusal, data)
        created = answer.parse_fields(_Created, data, "data")
        request_id = parse_word(envelope.get("request_id"))
        return Accepted(
            task_id=created.task_id,
            credits_used=created.credits_used,
            credits_remaining=created.remaining_credits,
            model=created.model and sys.intern(created.model),  # one string for all jobs in memory
            request_id=request_id or created.request_id,
            provider_request_id=created.request_id if request_id else None,
        )

    def build_query(self, task_id: str) -> HttpRequest:
        """Return the request for the status of a task."""
        return HttpRequest(
            method="GET",
            url=f"{self.base_url}/api/v1/images/{quote_task_id(task_id)}",
            headers={"Accept": "application/json"},
            max_answer_bytes=64 * MIB,
            max_text_bytes=MIB,
        )

    def read_query(self, response: HttpResponse) -> Observation:
        """Return the status of a task, or raise the error that the answer holds."""
        answer = GatewayAnswer.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        data = envelope.get("data")
        if refusal is not None and not has_known_status(data, _STATUSES):
            raise refusal_error(answer, refusal)
        request_id = parse_word(envelope.get("request_id"))
        return parse_task(answer, envelope, data, _STATUSES, refusal=refusal, request_id=request_id)

    def build_balance(self) -> HttpRequest:
        """Return the request for the balance."""
        url = f"{self.base_url}/api/v1/account/balances"
        return HttpRequest(method="GET", url=url, headers={"Accept": "application/json"})

    def read_balance(self, response: HttpResponse) -> Decimal:
        """Return the credits that the API may spend, or raise the error that the answer holds."""
        answer, envelope = self._unwrap_or_raise(response)
        return parse_balance(answer, envelope.get("data"), "api_credits")

    def build_history(self, page: int) -> HttpRequest:
        """Return the request for a page of the account's tasks, counted from 1."""
        return build_history(self.base_url, page)

    def read_history(self, response: HttpResponse) -> HistoryPage:
        """Return a page of the account's tasks, or raise the error that the answer holds."""
        answer, envelope = self._unwrap_or_raise(response)
        return parse_history(answer, envelope)

    @property
    def max_upload_bytes(self) -> int:
        """The most bytes of one uploaded image."""
        return MAX_UPLOAD_BYTES

    def build_upload(self, content: bytes, *, content_type: str, filename: str) -> HttpRequest:
        """Return the upload itself, or for a large image the request for a pre-signed URL."""
        return build_upload(self.base_url, content, content_type=content_type, filename=filename)

    def read_upload(self, response: HttpResponse) -> UploadAnswer:
        """Return where the image is, or raise the error that the answer holds."""
        answer, envelope = self._unwrap_or_raise(response)
        return parse_upload(answer, envelope.get("data"))

    def read_callback(self, body: bytes) -> Observation:
        """Raise `UnexpectedResponse`: this gateway calls no URL of a single job; see `read_delivery`."""
        answer = GatewayAnswer(self, body)
        del body  # it may hold the API key, and some tools show the locals of a traceback
        raise answer.unexpected_response("this gateway does not send callbacks")

    def build_webhook_list(self, page: int = 1, cursor: str | None = None) -> HttpRequest:
        """Return the request for a page of the account's webhooks, counted from 1; `cursor` is that of the last one."""
        return build_webhook_list(self.base_url, page, cursor)

    def read_webhook_list(self, response: HttpResponse) -> WebhookPage:
        """Return a page of the account's webhooks, or raise the error that the answer holds."""
        answer, envelope = self._unwrap_or_raise(response)
        return parse_webhooks(answer, envelope)

    def build_webhook_registration(self, url: str, *, secret: str) -> HttpRequest:
        """Return the request that registers a webhook; raise `ConfigurationError` for a URL that is never called."""
        request = build_webhook_registration(self.base_url, url, secret)
        del secret  # some tools show the locals of a traceback
        if isinstance(request, ConfigurationError):
            raise request
        return request

    def read_webhook_registration(self, response: HttpResponse) -> Webhook:
        """Return the webhook that was registered, or raise the error that the answer holds."""
        answer, envelope = self._unwrap_or_raise(response)
        return parse_webhook_registration(answer, envelope.get("data"))

    def build_webhook_removal(self, webhook_id: str) -> HttpRequest:
        """Return the request that removes a webhook."""
        return build_webhook_removal(self.base_url, webhook_id)

    def read_webhook_removal(self, response: HttpResponse) -> None:
        """Raise the error that the answer holds: `TaskNotFound` if there is no such webhook."""
        if response.status != NO_CONTENT:
            self._unwrap_or_raise(response)

    def read_delivery(self, body: bytes) -> str:
        """Return the task id that a delivery names, or raise `UnexpectedResponse`. Do not trust it."""
        answer = GatewayAnswer(self, body)
        del body  # it may hold the API key, and some tools show the locals of a traceback
        return parse_delivery(answer)

    def read_signature(self, headers: Mapping[str, str], body: bytes, *, secret: str) -> Signature | None:
        """Return the signature of a delivery; None if there is none, or one of an unknown form."""
        return parse_signature(headers, body, secret)

    def _unwrap_or_raise(self, response: HttpResponse) -> tuple[GatewayAnswer, Mapping[str, Any]]:
        """Return an answer about the account and its envelope, or raise the error that it holds."""
        answer = GatewayAnswer.from_response(self, response)
        envelope, refusal = unwrap(answer, _find_refusal)
        if refusal is not None:
            raise refusal_error(answer, refusal)
        return answer, envelope


def _parse_boolean(value: object) -> bool | None:
    return _BOOLEAN_BY_WORD.get(str(value).lower()) if isinstance(value, (str, int)) else None


def _find_refusal(envelope: Mapping[str, Any]) -> Refusal | None:
    """Return the error in an envelope: `success` is false, or it is missing and `error` is there."""
    error, success = envelope.get("error"), _parse_boolean(envelope.get("success"))
    details = error if isinstance(error, dict) else {}
    if success or (success is None and not (details.get("code") or details.get("message"))):
        return None
    code = parse_word(details.get("code")) or parse_word(envelope.get("code"))
    texts = (details.get("message"), error, envelope.get("message"), code)
    message = next((text for text in texts if isinstance(text, str) and text.strip()), NO_MESSAGE)
    return Refusal(message, code, parse_word(envelope.get("request_id")), body_wait_s(envelope))
