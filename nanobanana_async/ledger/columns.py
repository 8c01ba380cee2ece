"""Convert a job's record to a row of the table `jobs` and back."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, TypeVar

from cattrs.preconf.json import make_converter

from nanobanana_async.candidates import Candidate
from nanobanana_async.errors import LedgerError
from nanobanana_async.extra import ExtraFields
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest, Reference

_MOST_DIGITS = 18  # before the point: no amount has more

T = TypeVar("T")
Row = tuple[Any, ...]

IDENTITY = (
    "key",
    "gateway",
    "account",
    "request",
    "body",
    "created_at",
    "batch",
    "budget",
    "priority",
    "group_name",
    "slots",
)
"""Columns that identify the job; they change only with a new generation."""

PROGRESS = (
    "state",
    "revision",
    "generation",
    "attempts",
    "first_sent_at",
    "in_doubt",
    "sent_at",
    "lost_at",
    "conflict_at",
    "candidates",
    "task_id",
    "running_since",
    "ended_at",
    "images",
    "missing",
    "credits_used",
    "credits_refunded",
    "model",
    "failure",
)
"""Columns that change with every transition."""

COLUMNS = IDENTITY + PROGRESS

_identity = attrgetter(*IDENTITY)
_identity_but_body = attrgetter(*(name for name in IDENTITY if name != "body"))

# Fields at their defaults are left out; fields that a later version adds are ignored.
_CONVERTER = make_converter(omit_if_default=True)
_CONVERTER.register_unstructure_hook(ExtraFields, dict)
_CONVERTER.register_structure_hook(ExtraFields, lambda fields, _: ExtraFields(fields))
# A registered request has each local image in its stored form: all are text.
_CONVERTER.register_unstructure_hook(Reference, str)
_CONVERTER.register_structure_hook(Reference, lambda value, _: str(value))


def time_to_text(when: datetime) -> str:
    """Return a time as the ledger stores it; a time without a zone is local time."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def request_text(record: JobRecord) -> str | None:
    """Return the record's value of the column `request`."""
    return None if record.request is None else _to_json(_CONVERTER.unstructure(record.request))


def identity_values(record: JobRecord) -> Row:
    """Return the record's values of the columns `IDENTITY`."""
    return (
        record.key,
        record.gateway,
        record.account,
        request_text(record),
        record.body,
        time_to_text(record.created_at),
        record.batch,
        record.budget,
        record.priority,
        record.group_name,
        record.slots,
    )


def progress_values(record: JobRecord) -> Row:
    """Return the record's values of the columns `PROGRESS`."""
    return (
        record.state.value,
        record.revision,
        record.generation,
        record.attempts,
        _none_or(time_to_text, record.first_sent_at),
        int(record.in_doubt),
        _none_or(time_to_text, record.sent_at),
        _none_or(time_to_text, record.lost_at),
        _none_or(time_to_text, record.conflict_at),
        _to_json(_CONVERTER.unstructure(record.candidates)) if record.candidates else "[]",
        record.task_id,
        _none_or(time_to_text, record.running_since),
        _none_or(time_to_text, record.ended_at),
        _to_json(record.images) if record.images else "[]",
        _to_json(record.missing) if record.missing else "[]",
        _none_or(str, record.credits_used),
        _none_or(str, record.credits_refunded),
        record.model,
        None if record.failure is None else _to_json(_CONVERTER.unstructure(record.failure)),
    )


def same_identity(one: JobRecord, other: JobRecord, *, body_too: bool = True) -> bool:
    """Return whether two records differ only in `PROGRESS`, or also in their bodies: other columns need no writing."""
    values = _identity if body_too else _identity_but_body
    return bool(values(one) == values(other))


def record_of(row: Row, readers: Mapping[str, Callable[[Any], Any]] | None = None) -> JobRecord:
    """Return the record of a row, its columns in the order of `COLUMNS`; `readers` are those of another database.

    Raises `LedgerError` for a row that this version can't read.
    """
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    try:
        for name, read in (READERS if readers is None else readers).items():
            if values[name] is not None:
                values[name] = read(values[name])
        return JobRecord(**values)
    except Exception as error:
        raise LedgerError(
            f"job {values['key']} can't be read from the ledger: {type(error).__name__}: {error}"
            " (was its row edited by hand, or written by a newer nanobanana_async?)",
            key=str(values["key"]),
            safe_to_repeat=False,
        ) from error


def _structure_as(kind: type[T]) -> Callable[[str], T]:
    return lambda text: _CONVERTER.structure(json.loads(text), kind)


def _read_time(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:  # it could not be compared with the others
        raise ValueError(f"{text} has no time zone")
    when.astimezone(UTC)  # near the years 1 and 9999 that fails
    return when


def read_credits(amount: str | Decimal) -> Decimal:
    """Return an amount in a row; raise `ValueError` for what is none, such as NaN."""
    credits_ = Decimal(amount)
    if not credits_.is_finite() or credits_.adjusted() > _MOST_DIGITS:
        raise ValueError("it is no amount of credits")
    return credits_


def _read_candidates(text: str) -> tuple[Candidate, ...]:
    found = _CONVERTER.structure(json.loads(text), list[Candidate])
    if any(each.created_at.tzinfo is None for each in found):
        raise ValueError("the time of a candidate has no time zone")
    return tuple(found)


def _read_images(text: str) -> tuple[str, ...]:
    images = json.loads(text)
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError("images is no list of links")
    return tuple(images)


READERS: Mapping[str, Callable[[Any], Any]] = {
    "request": _structure_as(ImageRequest),
    "created_at": _read_time,
    "state": JobState,
    "first_sent_at": _read_time,
    "in_doubt": bool,
    "sent_at": _read_time,
    "lost_at": _read_time,
    "conflict_at": _read_time,
    "candidates": _read_candidates,
    "running_since": _read_time,
    "ended_at": _read_time,
    "images": _read_images,
    "missing": lambda text: tuple((int(position), str(reason)) for position, reason in json.loads(text)),
    "credits_used": read_credits,
    "credits_refunded": read_credits,
    "failure": _structure_as(Failure),
}
"""How the values of columns become those of a record."""


# Made once: `json.dumps` with such options makes an encoder at each call.
_ENCODER, _ASCII_ENCODER = (
    json.JSONEncoder(ensure_ascii=ascii_only, sort_keys=True, separators=(",", ":")) for ascii_only in (False, True)
)


def _to_json(value: Any) -> str:
    text = _ENCODER.encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # a gateway's message may hold a lone surrogate, which UTF-8 can't encode
        return _ASCII_ENCODER.encode(value)
    return text


def _none_or(write: Callable[[T], str], value: T | None) -> str | None:
    return None if value is None else write(value)


def sql_list(states: Iterable[JobState]) -> str:
    """Return states as an SQL list."""
    return ", ".join(f"'{state.value}'" for state in JobState if state in frozenset(states))
