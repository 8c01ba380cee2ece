"""Convert a job's record to a row of the table `jobs` on PostgreSQL and back.

A statement works on as many rows as there are to write: each column is sent as an array, which `unnest` makes rows of.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.columns import (
    COLUMNS,
    IDENTITY,
    PROGRESS,
    READERS,
    Row,
    identity_values,
    progress_values,
    read_credits,
)
from nanobanana_async.ledger.columns import record_of as _record_of
from nanobanana_async.ledger.feeding import FedBatch, FedRow

_TIMES = ("created_at", "first_sent_at", "sent_at", "lost_at", "conflict_at", "running_since", "ended_at")
_JSON = ("request", "candidates", "images", "missing", "failure")
_TEXTS = ("key", "gateway", "account", "batch", "budget", "group_name", "task_id", "model")
_TYPES: Mapping[str, str] = {
    **dict.fromkeys(_TIMES, "timestamptz"),
    **dict.fromkeys(("priority", "slots", "revision", "before", "generation", "attempts"), "integer"),
    **dict.fromkeys(("row_index", "place"), "bigint"),
    **dict.fromkeys(("credits_used", "credits_refunded", "credits", "cap"), "numeric"),
    **dict.fromkeys((*_JSON, "charges"), "json"),
    **dict.fromkeys(("in_doubt", "owned"), "boolean"),
    "body": "bytea",
}

_MARK = "json:"


def as_text(text: str) -> str:
    """Return a text as PostgreSQL can store it: a NUL, or half of a surrogate pair, only in its JSON form."""
    try:
        storable = "\0" not in text and not text.startswith(_MARK)
        text.encode()
    except UnicodeEncodeError:
        storable = False
    return text if storable else _MARK + json.dumps(text)


def from_text(stored: str) -> str:
    """Return the text that `as_text` has made storable."""
    return str(json.loads(stored.removeprefix(_MARK))) if stored.startswith(_MARK) else stored


def none_or_text(text: str | None) -> str | None:
    """Return `as_text` of a text that may be missing."""
    return None if text is None else as_text(text)


def recordset(*columns: str) -> str:
    """Return the SQL of a table `u` with rows of these columns; each column is a parameter of its name, an array."""
    arrays = ", ".join(f"%({column})b::{_TYPES.get(column, 'text')}[]" for column in columns)
    return f"unnest({arrays}) AS u({', '.join(columns)})"


def scalar(column: str) -> str:
    """Return the SQL of a parameter with one value of this column."""
    return f"%({column})s::{_TYPES.get(column, 'text')}"


SELECTED = ", ".join(f"j.{column}::text" if column in _JSON else f"j.{column}" for column in COLUMNS)
"""The columns of `jobs AS j` in the form that `record_of` reads."""

_LISTS = ("candidates", "images", "missing")


def _read_list(column: str) -> Callable[[str], Any]:
    """Return the reader of a column that is empty in most rows."""
    read = READERS[column]
    return lambda text: () if text == "[]" else read(text)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_TEXTS, from_text),
    **dict.fromkeys(_TIMES, lambda when: when.astimezone(UTC)),
    **{column: READERS[column] for column in (*_JSON, "state")},
    **{column: _read_list(column) for column in _LISTS},
    **dict.fromkeys(("credits_used", "credits_refunded"), read_credits),
    "body": bytes,
}


def record_of(row: Row) -> JobRecord:
    """Return the record of a row of `SELECTED`; raises `LedgerError` if this version can't read it."""
    return _record_of(row, _READERS)


def fed_batch_of(row: Row) -> FedBatch:
    """Return what a row of `fed_batches` says."""
    batch, name, gateway, account, max_credits, expected_credits, fed = row
    return FedBatch(
        batch=from_text(batch),
        name=from_text(name),
        gateway=from_text(gateway),
        account=from_text(account),
        max_credits=max_credits,
        expected_credits=expected_credits,
        rows=fed,
    )


def fed_row_of(row: Row) -> FedRow:
    """Return the fed row of a row of `fed_rows` and of `SELECTED`."""
    index, place, own_key, digest, metadata, name, *columns = row
    return FedRow(
        record=record_of(tuple(columns)),
        index=index,
        place=place,
        own_key=None if own_key is None else from_text(own_key),
        digest=digest,
        metadata=metadata,
        name=from_text(name),
    )


def identity_row(record: JobRecord) -> dict[str, Any]:
    """Return the record's values of the columns `IDENTITY`."""
    row: dict[str, Any] = dict(zip(IDENTITY, identity_values(record), strict=True))
    for column in ("key", "gateway", "account"):
        row[column] = as_text(row[column])
    for column in ("batch", "budget", "group_name"):
        row[column] = none_or_text(row[column])
    return row


def progress_row(record: JobRecord) -> dict[str, Any]:
    """Return the record's values of the columns `PROGRESS`."""
    row: dict[str, Any] = dict(zip(PROGRESS, progress_values(record), strict=True))
    row["in_doubt"] = record.in_doubt
    row["task_id"] = none_or_text(record.task_id)
    row["model"] = none_or_text(record.model)
    return row


def utc(when: datetime) -> datetime:
    """Return a time in UTC; the server returns it in the time zone of its session."""
    return when.astimezone(UTC)
