"""Recognise the gateways' error envelopes, and turn them into exceptions."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    GatewayError,
    GatewayUnavailable,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidRequest,
    PromptBlocked,
    RateLimited,
    TaskNotFound,
    UnexpectedResponse,
)
from nanobanana_async.gateways.contract import MIB
from nanobanana_async.gateways.parsing import GatewayAnswer, names_task, parse_word
from nanobanana_async.gateways.rate_limits import (
    body_wait_s,
    budget_used_up_for_s,
    limit_kind,
    retry_after_s,
    slug,
    throttle_wait_s,
)
from nanobanana_async.gateways.redaction import MAX_MESSAGE_LENGTH, excerpt

SUCCESS_STATUSES = (200, 201, 202)
ERROR_BY_STATUS: dict[int, type[GatewayError]] = {
    400: InvalidRequest,
    401: AuthenticationError,
    402: InsufficientCredits,
    403: AccessDenied,
    404: TaskNotFound,
    409: IdempotencyConflict,
    413: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    451: PromptBlocked,
    500: GatewayUnavailable,
    502: GatewayUnavailable,
    503: GatewayUnavailable,
    504: GatewayUnavailable,
}
NO_MESSAGE = "the gateway gave no reason"
_PROXY_REFUSALS = (413, 429)
"""These count without the gateway's envelope as well: a proxy that answers so did not pass the request on."""

# The status that the words of a refusal imply, first match first. Errors of the gateway itself come first, because a
# message such as "upstream: ..." may quote anything.
_STATUS_BY_WORDS = tuple(
    (status, re.compile(words))
    for status, words in (
        (503, r"upstream|provider(?:_|$)|unavailable|overload|maintenance|time_?out|timed_out"),
        (500, r"(?:^|_)(?:busy|internal)(?:_|$)|server_error"),
        (409, r"idempoten"),
        (
            402,
            r"insufficient_(?:\w{1,40}_)?(?:credit|balance|fund)|not_enough_(?:credit|balance)|(?:out|short)_of_credit",
        ),
        (402, r"(?:credits?|balance)_(?:is_|are_)?(?:insufficient|exhausted|too_low|not_enough)|payment_required"),
        (429, r"(?:^|_)rate_?limit|too_many|concurren|throttl|queue_full"),
        (451, r"moderat|prompt_(?:was_|is_)?block|content_(?:policy|filter|block)|nsfw"),
        (401, r"api_?key|unauthori[sz]ed|unauthenticated|authentication|(?:invalid|expired)_token"),
        (403, r"forbidden|access_(?:denied|not_approved)|not_approved|non_gateway|permission"),
        (404, r"not_found"),
        (400, r"invalid_(?:request|param|argument|input|model|prompt|field)|bad_request|validation|is_required"),
    )
)


_BALANCE = re.compile(r"(?:^|_)(?:credits?|balance|funds)(?:_|$)")


@frozen
class Refusal:
    """An error in the gateway's own envelope. The texts are not redacted yet."""

    message: str
    code: str | None = None
    request_id: str | None = None
    wait_s: float | None = None
    """How long the body asks to wait."""


FindRefusal = Callable[[Mapping[str, Any]], Refusal | None]


def unwrap(answer: GatewayAnswer, find: FindRefusal) -> tuple[dict[str, Any], Refusal | None]:
    """Return the envelope of a 2xx and the refusal in it, if any; raise the error of any other status."""
    if answer.status in SUCCESS_STATUSES:
        envelope = answer.json_object()
        return envelope, find(envelope)
    fields = _error_fields(answer)
    refusal = find(fields) if answer.status in ERROR_BY_STATUS else None
    if refusal is not None and refusal.message == NO_MESSAGE and answer.status not in _PROXY_REFUSALS:
        refusal = None
    if refusal is None and answer.status in _PROXY_REFUSALS and not _names_a_task(fields):
        message = excerpt(answer.body, secret=answer.gateway.api_key) or NO_MESSAGE
        refusal = Refusal(message, wait_s=body_wait_s(fields))
    if refusal is None:
        why = "unexpected status, or a body that is not the gateway's error format"
        if answer.status not in ERROR_BY_STATUS or answer.status == 404:
            why += f": check base_url, which is {answer.gateway.base_url}"
        raise answer.unexpected_response(why)
    raise refusal_error(answer, refusal)


def _names_a_task(envelope: Mapping[str, Any]) -> bool:
    data = envelope.get("data")
    return any(names_task(fields.get("task_id")) for fields in (envelope, data) if isinstance(fields, Mapping))


def _error_fields(answer: GatewayAnswer) -> dict[str, Any]:
    """Return the JSON object of an error; an empty one if the body is large or no JSON object."""
    if len(answer.body) > MIB:
        return {}
    try:
        return answer.json_object()
    except UnexpectedResponse:
        return {}


def refusal_error(answer: GatewayAnswer, refusal: Refusal) -> GatewayError:
    """Return the exception for a refusal.

    A refusal inside a 200 whose words are not recognised becomes `GatewayUnavailable`, so that the job is in doubt:
    treating it as final would be a guess about money.
    """
    status = answer.status if answer.status in ERROR_BY_STATUS else _status_from_words(refusal)
    if status in (400, 401) and _BALANCE.search(slug(f"{refusal.code or ''} {refusal.message}")):
        status = 402  # defapi counts a sufficient balance as a part of valid authentication
    message = answer.clean_text(refusal.message, MAX_MESSAGE_LENGTH) or NO_MESSAGE
    request_id = refusal.request_id or parse_word(answer.header("x-request-id"))
    if status == 429:
        limited = RateLimited(
            message,
            kind=limit_kind(refusal.code, message, answer.headers),
            status=answer.status,
            code=answer.clean_text(refusal.code, MAX_MESSAGE_LENGTH),
            request_id=request_id,
            retry_after_s=throttle_wait_s(answer.headers, refusal.wait_s),
        )
        if limited.kind != "jobs":
            limited.used_up_for_s = budget_used_up_for_s(refusal.code, message, answer.headers, refusal.wait_s)
        return limited
    if status == 401:  # the error of a stored job keeps nothing but this message
        gateway = answer.gateway
        message += f"; it is the key of account {gateway.account}, from {gateway.key_variable} or api_key="
    if status == 403:
        message += f"; either access to the API is not approved, or {answer.gateway.base_url} is not the gateway"
    kind = ERROR_BY_STATUS.get(status or 0, GatewayUnavailable)
    return kind(
        message,
        status=answer.status,
        code=answer.clean_text(refusal.code, MAX_MESSAGE_LENGTH),
        request_id=request_id,
        retry_after_s=retry_after_s(answer.headers),
    )


def create_refusal_error(answer: GatewayAnswer, refusal: Refusal, data: object) -> GatewayError | UnexpectedResponse:
    """Return the exception for a create that was refused inside a 200. With a task id as well, the job is in doubt."""
    if isinstance(data, dict) and names_task(data.get("task_id")):
        return answer.unexpected_response("the answer is an error and a task id at the same time")
    return refusal_error(answer, refusal)


def _status_from_words(refusal: Refusal) -> int | None:
    code = refusal.code or ""
    if code.isdecimal() and int(code) in ERROR_BY_STATUS:
        return int(code)
    for text in (slug(code), slug(refusal.message)):
        for status, words in _STATUS_BY_WORDS:
            if words.search(text):
                return status
    return None
