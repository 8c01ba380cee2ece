"""Answers in the forms of OpenAI's images API: images, and errors with statuses that its clients know."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from starlette.responses import Response

from nanobanana_async import errors
from nanobanana_async.errors import GatewayError, InvalidRequest, JobFailed, NanoBananaError
from nanobanana_async.images.formats import detect
from nanobanana_async.models import GenerationResult, json_number, to_json_types

_PARAM_BY_FIELD = {
    "num_images": "n",
    "aspect_ratio": "size",
    "resolution": "size",
    "images": "image",
    "reference image": "image",
    "output_format": "output_format",
    "prompt": "prompt",
    "model": "model",
}
_FIELD = re.compile(rf"\b({'|'.join(_PARAM_BY_FIELD)})\b")


class ApiError(Exception):
    """A request that is answered with an error.

    `retry` is what `x-should-retry` says to OpenAI's clients: whether the same request again may help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        error_type: str | None = None,
        param: str | None = None,
        retry: bool = False,
        retry_after_s: float | None = None,
        key: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry = status, message, code, param, retry
        self.error_type = error_type or ("invalid_request_error" if status < 500 else "server_error")
        self.retry_after_s, self.key, self.facts = retry_after_s, key, facts or {}

    def envelope(self) -> dict[str, Any]:
        """Return the body of the answer."""
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        return {"error": {**error, **self.facts}}

    def response(self) -> Response:
        """Return the answer."""
        headers = {"x-should-retry": "true" if self.retry else "false"}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.retry:
            headers["retry-after"] = f"{max(1.0, self.retry_after_s or 0.0):.0f}"
        return json_response(self.envelope(), self.status, key=self.key, headers=headers)


@frozen
class _Answer:
    """How an exception is answered."""

    status: int
    code: str
    retry: bool = False
    error_type: str | None = None


_GATEWAY = "gateway_error"
_ERROR_ANSWERS: Sequence[tuple[type[NanoBananaError], _Answer]] = (  # the first that fits
    (errors.InvalidRequest, _Answer(400, "invalid_value")),
    (errors.PromptBlocked, _Answer(400, "moderation_blocked", error_type="image_generation_user_error")),
    (errors.IdempotencyConflict, _Answer(409, "idempotency_conflict")),
    (errors.CreditLimitReached, _Answer(429, "budget_exceeded", error_type="insufficient_quota")),
    (errors.InsufficientCredits, _Answer(429, "insufficient_quota", error_type="insufficient_quota")),
    (errors.RateLimited, _Answer(429, "rate_limit_exceeded", retry=True, error_type="rate_limit_error")),
    # The gateway refused the server's key, which is no token of a client.
    (errors.AuthenticationError, _Answer(502, "gateway_authentication", error_type=_GATEWAY)),
    (errors.AccessDenied, _Answer(502, "gateway_access_denied", error_type=_GATEWAY)),
    (errors.TaskNotFound, _Answer(502, "gateway_task_not_found", error_type=_GATEWAY)),
    (errors.JobUncertain, _Answer(500, "job_uncertain")),
    (errors.JobUnfinished, _Answer(503, "job_unfinished", retry=True)),
    (errors.JobWithdrawn, _Answer(503, "job_withdrawn")),
    (errors.SessionClosed, _Answer(503, "server_stopping", retry=True)),
    (errors.LedgerError, _Answer(503, "ledger_error", retry=True)),
    (errors.DownloadError, _Answer(502, "image_unavailable", retry=True, error_type=_GATEWAY)),
    (errors.TransportError, _Answer(502, "gateway_unreachable", retry=True, error_type=_GATEWAY)),
    (errors.GatewayUnavailable, _Answer(502, "gateway_unavailable", retry=True, error_type=_GATEWAY)),
    (errors.GatewayError, _Answer(502, "gateway_error", error_type=_GATEWAY)),
    (errors.UnexpectedResponse, _Answer(502, "gateway_error", error_type=_GATEWAY)),
)
_ANSWER_BY_FAILURE_KIND = {
    "moderation": _Answer(400, "moderation_blocked", error_type="image_generation_user_error"),
    "input": _Answer(400, "input_unusable", error_type="image_generation_user_error"),
}


def api_error(error: NanoBananaError, key: str | None = None) -> ApiError:
    """Return the answer to an error of the library. A retry of what may help is the same job, and the same payment."""
    found = next((how for kind, how in _ERROR_ANSWERS if isinstance(error, kind)), _Answer(500, "server_error"))
    message, param = error.message, None
    if isinstance(error, JobFailed):
        found = _ANSWER_BY_FAILURE_KIND.get(error.kind, _Answer(502, "generation_failed", error_type=_GATEWAY))
    elif isinstance(error, InvalidRequest):
        named = _FIELD.search(message) if error.status is None else None
        param = _PARAM_BY_FIELD[named[1]] if named else None
        if param is not None:
            message = f"{param}: {message}"
    elif isinstance(error, errors.JobUnfinished):
        message += "; the same request, or GET /v1/jobs/ with its key, waits for it again"
    facts: dict[str, Any] = {}
    if isinstance(error, errors.CreditLimitReached) and error.budget is not None:
        facts = {"budget": error.budget, "left": None if error.left is None else json_number(error.left)}
    after_s = error.retry_after_s if isinstance(error, GatewayError) else None
    return ApiError(
        found.status,
        message,
        code=found.code,
        error_type=found.error_type,
        param=param,
        retry=found.retry,
        retry_after_s=after_s,
        key=error.key or key,
        facts=facts,
    )


def json_response(
    content: Any, status: int = 200, *, key: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer; with the key of its job as the id of the request, which OpenAI's clients show."""
    ids = {} if key is None else {"x-request-id": key}
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, {**ids, **(headers or {})}, "application/json")


def images_body(result: GenerationResult, contents: Sequence[bytes] | None) -> dict[str, Any]:
    """Return the images of a job: their contents if they were downloaded, else their URLs."""
    data: list[dict[str, str]] = [{"url": image.url} for image in result.images]
    if contents is not None:
        data = [{"b64_json": base64.b64encode(content).decode()} for content in contents]
    created = result.completed_at or result.created_at
    facts: dict[str, Any] = {
        "key": result.key,
        "task_id": result.task_id,
        "model": result.model,
        "credits": result.credits,
    }
    if result.missing:
        facts["missing"] = {str(index): why for index, why in result.missing.items()}
    body: dict[str, Any] = {"created": 0 if created is None else int(created.timestamp()), "data": data}
    if contents and (extension := detect(contents[0]).extension.lstrip(".")) in ("png", "jpg", "webp"):
        body["output_format"] = "jpeg" if extension == "jpg" else extension
    return {**body, "nanobanana": to_json_types(facts)}
