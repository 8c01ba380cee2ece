"""A job's record as a row of the table `jobs`, and back: the same record, whoever reads it."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

from cattrs.preconf.json import make_converter

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import Failure, JobRecord, JobState
from nanobanana_async.models import ImageRequest

T = TypeVar("T")
Row = tuple[Any, ...]

IDENTITY = ("key", "gateway", "account", "request", "body", "created_at", "batch")
"""What a job is: it changes with a new generation only."""

PROGRESS = (
    "state",
    "revision",
    "generation",
    "attempts",
    "first_sent_at",
    "in_doubt",
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
"""What became of it."""

COLUMNS = IDENTITY + PROGRESS

# Fields at their defaults are left out, as they are on the wire; fields that a later version adds are passed over.
_CONVERTER = make_converter(omit_if_default=True)


def moment(when: datetime) -> str:
    """Return a time as the ledger keeps it; one without a zone is taken as local."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def identity_values(record: JobRecord) -> Row:
    """Return what the job is, in the order of `DEED`."""
    request = None if record.request is None else _json(_CONVERTER.unstructure(record.request))
    return (record.key, record.gateway, record.account, request, record.body, moment(record.created_at), record.batch)


def progress_values(record: JobRecord) -> Row:
    """Return what became of the job, in the order of `STORY`."""
    return (
        record.state.value,
        record.revision,
        record.generation,
        record.attempts,
        _maybe(moment, record.first_sent_at),
        int(record.in_doubt),
        record.task_id,
        _maybe(moment, record.running_since),
        _maybe(moment, record.ended_at),
        _json(record.images) if record.images else "[]",
        _json(record.missing) if record.missing else "[]",
        _maybe(str, record.credits_used),
        _maybe(str, record.credits_refunded),
        record.model,
        None if record.failure is None else _json(_CONVERTER.unstructure(record.failure)),
    )


def same_identity(one: JobRecord, other: JobRecord) -> bool:
    """Whether two records are about the same order, so that only the story needs writing."""
    return all(getattr(one, fact) == getattr(other, fact) for fact in IDENTITY)


def record_of(row: Row) -> JobRecord:
    """Return the record that a row holds, its columns in the order of `COLUMNS`.

    Raises `LedgerError` for what this version can't read.
    """
    facts: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    try:
        for name, read in _READERS.items():
            if facts[name] is not None:
                facts[name] = read(facts[name])
        return JobRecord(**facts)
    except Exception as error:
        raise LedgerError(
            f"job {facts['key']} can't be read from the ledger: {type(error).__name__}: {error}"
            " (was its row edited by hand, or written by a newer nanobanana_async?)",
            key=str(facts["key"]),
            safe_to_repeat=False,
        ) from error


def _structured(kind: type[T]) -> Callable[[str], T]:
    return lambda text: _CONVERTER.structure(json.loads(text), kind)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "request": _structured(ImageRequest),
    "created_at": datetime.fromisoformat,
    "state": JobState,
    "first_sent_at": datetime.fromisoformat,
    "in_doubt": bool,
    "running_since": datetime.fromisoformat,
    "ended_at": datetime.fromisoformat,
    "images": lambda text: tuple(json.loads(text)),
    "missing": lambda text: tuple((int(place), str(why)) for place, why in json.loads(text)),
    "credits_used": Decimal,
    "credits_refunded": Decimal,
    "failure": _structured(Failure),
}


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # a gateway's message may hold half a character; what it told must not be lost for that
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return text


def _maybe(write: Callable[[T], str], value: T | None) -> str | None:
    return None if value is None else write(value)
