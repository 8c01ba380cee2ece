"""Parse what both gateways' answers have in common: JSON, numbers, times, task ids and status words.

A required field (status, task id) raises if it is invalid. An optional field (credits, times, model) becomes None: it
must not lose a job that was paid for.
"""

import functools
import json
from codecs import BOM_UTF8
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, TypeVar
from urllib.parse import quote

import cattrs
from attrs import field, frozen

from nanobanana_async.errors import InvalidRequest, UnexpectedResponse
from nanobanana_async.gateways.base import GatewaySettings
from nanobanana_async.gateways.contract import HttpResponse
from nanobanana_async.gateways.large_answers import LARGE, MAX_VALUES, AnswerTooLarge, lift_images, lifted_length
from nanobanana_async.gateways.progress import parse_progress
from nanobanana_async.gateways.rate_limits import retry_after_s
from nanobanana_async.gateways.redaction import excerpt, redact
from nanobanana_async.gateways.secret import MASK
from nanobanana_async.jobs import JobState, Observation

T = TypeVar("T")

MAX_TASK_ID = 512
_MAX_NUMBER = 10**15  # larger credits or milliseconds are not meant seriously
_MAX_WORD_LENGTH = 200
_LONG_NUMBER = 64
_LONG_TEXT = 1024
_LONG_RAW = 256 * 1024  # characters of an answer kept as `raw`
_MOST_DECIMALS = 18
_DECIMAL_CONTEXT = Context(prec=40)
_LONG_ANSWER = 1 << 16  # a longer answer may hold inline images: its values are searched for the key one by one
_MAX_DEPTH = 24
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEAST_EPOCH_MS = 10**11  # a larger epoch time is in milliseconds: in seconds it would be the year 5138


def _parse_integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _LONG_NUMBER else Decimal(digits)  # int() refuses thousands of digits


def _parse_fraction(digits: str) -> Decimal | None:
    try:
        return Decimal(digits) if len(digits) <= _LONG_NUMBER else _DECIMAL_CONTEXT.create_decimal(digits)
    except ArithmeticError:  # InvalidOperation or Overflow, for an exponent of twenty digits
        return None


# NaN and Infinity are not JSON. They are read as null, so that one beside a task id does not lose the task.
_JSON = json.JSONDecoder(parse_float=_parse_fraction, parse_int=_parse_integer, parse_constant=lambda _: None)


def to_json(fields: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> bytes:
    """Return the fields that are not None, then `extra`, as compact JSON in order: equal fields give equal bytes."""
    given = {name: value for name, value in fields.items() if value is not None} | dict(extra or {})
    return json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode()


@frozen
class GatewayAnswer:
    """An answer of a gateway. Its errors and texts hold no secrets."""

    gateway: GatewaySettings
    body: bytes = field(repr=False)
    status: int | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)

    @classmethod
    def from_response(cls, gateway: GatewaySettings, response: HttpResponse) -> "GatewayAnswer":
        return cls(gateway, response.body, response.status, response.headers)

    def unexpected_response(self, why: str) -> UnexpectedResponse:
        """Return the exception for an invalid answer, with a short excerpt of it."""
        return UnexpectedResponse(
            f"{self.gateway.title}: {why}",
            status=self.status,
            body=excerpt(self.body, secret=self.gateway.api_key),
            retry_after_s=retry_after_s(self.headers),
        )

    def clean_text(self, text: object, limit: int) -> str | None:
        """Return a redacted text of the gateway; None if it is empty or not text."""
        if not isinstance(text, str) or not text.strip():
            return None
        return redact(text, secret=self.gateway.api_key, limit=limit)

    def header(self, name: str) -> str | None:
        """Return a header with the API key masked."""
        value = self.headers.get(name)
        return None if value is None else self.gateway.api_key.hide(value)

    def json_object(self) -> dict[str, Any]:
        """Return the JSON object of the body with the API key masked, or raise `UnexpectedResponse`."""
        envelope = self._decode_body()
        if isinstance(envelope, str):
            raise self.unexpected_response(envelope)
        return envelope

    def _decode_body(self) -> dict[str, Any] | str:
        """Return the JSON object, or why there is none. Nothing is raised: this frame holds the unmasked text."""
        try:
            body = lift_images(self.body) if len(self.body) > LARGE else self.body
            text = body.removeprefix(BOM_UTF8).decode()
            envelope = _JSON.decode(text)
            # All text of an answer enters here or in `header`: what is masked now can't leak later.
            if len(text) > _LONG_ANSWER or self.gateway.api_key.is_in(text):
                envelope = self.gateway.api_key.hide_in_json(envelope)
        except AnswerTooLarge as error:
            return str(error)
        except ValueError:  # includes JSONDecodeError and UnicodeDecodeError
            is_page = self.body[:64].lstrip().lower().startswith((b"<!doctype", b"<html"))
            return "the answer is not JSON but an HTML page: check base_url" if is_page else "the answer is not JSON"
        except RecursionError:
            return "the answer is JSON nested too deep"
        return envelope if isinstance(envelope, dict) else "the answer is not a JSON object"

    def parse_fields(self, kind: type[T], fields: object, path: str) -> T:
        """Return the fields as an instance of `kind`, or raise `UnexpectedResponse` that names each invalid field."""
        if not isinstance(fields, (dict, Mapping)):
            raise self.unexpected_response(f"{path} is missing or is not an object")
        try:
            return CONVERTER.structure(fields, kind)
        except cattrs.BaseValidationError as error:
            lines = cattrs.transform_error(error, path, _field_error)
        raise self.unexpected_response("; ".join(lines))


def _field_error(error: BaseException, _: object) -> str:
    return "required field missing" if isinstance(error, KeyError) else str(error)


def parse_decimal(value: object, _: object = None) -> Decimal | None:
    """Return a number of credits, which may be text; None for an invalid number."""
    if isinstance(value, str) and len(value) <= _LONG_NUMBER:
        value = _parse_fraction(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _price(value) if 0 <= value < _MAX_NUMBER else None
    if not isinstance(value, Decimal):
        return None
    amount = value
    if not amount.is_finite() or not 0 <= amount < _MAX_NUMBER:
        return None
    if not amount:
        return Decimal(0)
    if amount.adjusted() < -_MOST_DECIMALS:
        return None
    # An exponent of a billion would print as a gigabyte of zeros.
    exponent = amount.as_tuple().exponent
    wanted = min(0, max(int(exponent), -_MOST_DECIMALS))
    return amount if wanted == exponent else amount.quantize(Decimal(1).scaleb(wanted), context=_DECIMAL_CONTEXT)


def parse_count(value: object, _: object = None) -> int | None:
    """Return a whole number from 0 on; None for an invalid one. `int()` would hang at 1e999999999."""
    amount = parse_decimal(value)
    return int(amount) if amount is not None and amount == amount.to_integral_value() else None


@functools.lru_cache(maxsize=256)
def _price(whole: int) -> Decimal:
    return Decimal(whole)  # cached: all jobs in memory share the same few prices


def parse_time(value: object, _: object = None) -> datetime | None:
    """Return a time in UTC from ISO text (naive means UTC) or epoch seconds or milliseconds; None if invalid."""
    try:
        if isinstance(value, str) and len(value) <= _LONG_NUMBER and not value.strip().isdecimal():
            at = datetime.fromisoformat(value.strip())
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        elif (epoch := parse_decimal(value)) is not None:
            at = _EPOCH + timedelta(seconds=float(epoch / 1000 if epoch >= _LEAST_EPOCH_MS else epoch))
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return at if at.year >= 2000 else None  # 0001-01-01 and 1970-01-01 mean that no time is set


def parse_word(value: object, _: object = None) -> str | None:
    """Return a short printable text, such as a model's name or a request id; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    fits = isinstance(value, str) and 0 < len(value := value.strip()) <= _MAX_WORD_LENGTH and value.isprintable()
    return value if fits and isinstance(value, str) else None


def parse_task_id(value: object, _: object = None) -> str:
    """Return a task id that can be part of a URL, or raise ValueError. A number becomes its digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"a task id is text, not {type(value).__name__}")
    # "." and ".." would leave the path; U+FFFD shows that the text was decoded wrongly.
    unfit = not value.isprintable() or "\ufffd" in value or value.strip() in ("", ".", "..")
    if unfit or len(value) > MAX_TASK_ID:
        raise ValueError(f"a task id is printable text of 1 to {MAX_TASK_ID} characters")
    if MASK in value:
        raise ValueError("the task id contains the API key, which must not be stored")
    return value


def names_task(value: object) -> bool:
    """Return whether an answer names a task, even one whose id can't be stored."""
    return parse_optional_task_id(value) is not None or (isinstance(value, str) and MASK in value)


def parse_optional_task_id(value: object, _: object = None) -> str | None:
    """Return a task id, or None if it is invalid: for answers where it only confirms a known id."""
    try:
        return parse_task_id(value)
    except ValueError:
        return None


def quote_task_id(value: str) -> str:
    """Return a task id percent-encoded; raise `InvalidRequest` for one that no gateway can have issued."""
    try:
        return quote(parse_task_id(value), safe="")
    except ValueError as error:
        raise InvalidRequest(f"invalid task_id: {error}") from None


def status_word(value: object, _: object = None) -> str:
    """Return the gateway's status word in lower case, or raise ValueError."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a status is a word, not {'empty' if value == '' else type(value).__name__}")
    return _redacted_word(value.strip()[:_LONG_TEXT].lower())


@functools.lru_cache(maxsize=64)
def _redacted_word(word: str) -> str:
    return redact(word, limit=_LONG_NUMBER)  # cached: a gateway has few status words


@frozen
class TaskStatus:
    """The meaning of a gateway's status word."""

    state: JobState = JobState.RUNNING
    queued: bool = False
    known: bool = True


def parse_running(fields: object, statuses: Mapping[str, TaskStatus]) -> Observation | None:
    """Return the observation of a running task from its status alone; None if the answer needs full parsing.

    Most polls find a running task. They skip the rest, since costs and images matter only at the end.
    """
    if not isinstance(fields, dict):
        return None
    status, task = fields.get("status"), fields.get("task_id")
    known = statuses.get(status) if isinstance(status, str) else None
    if known is None or known.state is not JobState.RUNNING:
        return None
    if not isinstance(task, str) or len(task) > MAX_TASK_ID or not task.isprintable() or MASK in task:
        return None
    done = None if (stated := fields.get("progress")) is None else parse_progress(stated)
    return Observation(task_id=task, state=known.state, status=str(status), queued=known.queued, progress=done)


UNKNOWN = TaskStatus(known=False)  # "unknown" and every unlisted word: the task is taken to run


def parse_nested_json(value: object) -> object:
    """Return the decoded value of a string that holds a JSON list or object; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    if len(value) > LARGE and sum(map(value.count, "[{,:")) > MAX_VALUES:
        return value
    try:
        return _JSON.decode(value)
    except (ValueError, RecursionError):
        return value


def without_inline_images(value: Any) -> Any:
    """Return decoded JSON without inline images, cut where it is too long or nested too deep."""
    return _Raw().plain(value, 0)


class _Raw:
    """Copies decoded JSON and bounds its number of characters."""

    def __init__(self) -> None:
        self._left = _LONG_RAW

    def plain(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._bounded_text(value)
        if isinstance(value, (dict, list)):
            if depth >= _MAX_DEPTH or self._left <= 0:
                return "<nested>" if depth >= _MAX_DEPTH else "<more>"
            if isinstance(value, list):
                return [self.plain(inner, depth + 1) for inner in value]
            return {self._name(name): self.plain(inner, depth + 1) for name, inner in value.items()}
        return value

    def _bounded_text(self, value: str) -> str:
        if value[:5].lower() == "data:" or (len(value) > _LONG_TEXT and ";base64," in value):
            size = len(value) + lifted_length(value)
            return f"<{value[5:40].partition(';')[0] or 'data'}, {size} characters>"
        self._left -= len(value)
        return value if self._left >= 0 else f"<{len(value)} characters>"

    def _name(self, name: str) -> str:
        self._left -= len(name)
        return name if self._left >= 0 else name[:_LONG_NUMBER]


CONVERTER = cattrs.Converter()
CONVERTER.register_structure_hook(Decimal | None, parse_decimal)
CONVERTER.register_structure_hook(datetime | None, parse_time)
CONVERTER.register_structure_hook(str | None, parse_word)
