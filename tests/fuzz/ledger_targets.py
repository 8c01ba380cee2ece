"""The rows and facts of ledgers: odd cells in SQLite files and PostgreSQL rows, damaged files, edited JSON."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from attrs import evolve

from nanobanana_async.candidates import Candidate
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.columns import COLUMNS, IDENTITY, PROGRESS, identity_values, progress_values, record_of
from nanobanana_async.ledger.location import as_location
from nanobanana_async.ledger.postgres import columns as postgres
from nanobanana_async.ledger.postgres.url import PostgresUrl, is_postgres_url
from nanobanana_async.models import ImageRequest
from tests.fuzz.target import LEAVES, VALUES, Target, json_of, json_shapes, objects_with, texts_of
from tests.support.records import NOON, record

SUCCEEDED = record(
    state=JobState.SUCCEEDED,
    task_id="t1",
    batch="b-",
    budget="studio",
    first_sent_at=NOON,
    sent_at=NOON,
    running_since=NOON,
    ended_at=NOON,
    images=("https://a.example/1.png",),
    missing=((1, "no link"),),
    credits_used=Decimal("8.5"),
    credits_refunded=Decimal(1),
    model="m",
    request=ImageRequest("a fox", num_images=2, extra={"seed": 7}),
)
UNCERTAIN = record(
    key="order-2",
    state=JobState.UNCERTAIN,
    in_doubt=True,
    lost_at=NOON,
    conflict_at=NOON,
    candidates=(Candidate(task_id="t2", created_at=NOON),),
    failure=Failure(kind="TransportError", message="lost", status=502),
)

_INTEGERS = ("priority", "slots", "revision", "generation", "attempts", "in_doubt")
_MAY_BE_NULL: tuple[str, ...] = (
    "request",
    "batch",
    "budget",
    "group_name",
    "first_sent_at",
    "sent_at",
    "lost_at",
    "conflict_at",
)
_MAY_BE_NULL += ("task_id", "running_since", "ended_at", "credits_used", "credits_refunded", "model", "failure")


def as_row(job: JobRecord) -> list[Any]:
    """Return a record as SQLite stores it."""
    return [*identity_values(job), *progress_values(job)]


def _cells(data: bytes) -> dict[str, Any]:
    """Return the cells that an input changes: a JSON object, in which {"hex": ...} are bytes."""
    given = json_of(data)
    cells = given if isinstance(given, dict) else {"request": given}
    return {
        name: bytes.fromhex(cell["hex"]) if isinstance(cell, dict) and is_hex(cell.get("hex")) else cell
        for name, cell in cells.items()
        if name in COLUMNS
    }


def is_hex(text: object) -> bool:
    """Return whether a text has bytes in hex."""
    with suppress(ValueError):
        return isinstance(text, str) and text.isascii() and bytes.fromhex(text) is not None
    return False


def use(job: JobRecord) -> None:
    """What a session, a listing and the next write do with a record."""
    progress_values(job)
    identity_values(job)
    _ = job.credits, job.may_run_since, job.wire_key, job.possibly_bought, job.never_accepted, job.is_counted
    assert job.may_run_since.tzinfo is not None
    assert max(job.created_at, NOON) - timedelta(days=1) < job.created_at or job.created_at <= NOON
    evolve(job, attempts=job.attempts + 1, revision=job.revision + 1, generation=job.generation + 1)
    assert isinstance(job.body, bytes)
    assert all(isinstance(text, str) for text in (job.key, job.gateway, job.account, *job.images))
    assert all(
        text is None or isinstance(text, str)
        for text in (job.task_id, job.batch, job.budget, job.group_name, job.model)
    )
    assert job.credits is None or job.credits.is_finite()
    assert job.request is None or job.request.to_dict()
    assert hash(job.key)


def _sqlite_row(data: bytes) -> None:
    cells = dict(zip(COLUMNS, as_row(SUCCEEDED), strict=True))
    cells |= {
        name: _stored(name, cell) for name, cell in _cells(data).items() if cell is not None or name in _MAY_BE_NULL
    }
    use(record_of(tuple(cells.values())))


def _stored(name: str, cell: Any) -> Any:
    """Return a cell as the table has it, which is STRICT: of the type of its column."""
    if cell is None:
        return None
    if name in _INTEGERS:
        return max(-(2**63), min(2**63 - 1, cell)) if isinstance(cell, int) else len(str(cell))
    if name == "body":
        return cell if isinstance(cell, bytes) else str(cell).encode("utf-8", "replace")
    return cell if isinstance(cell, str) else str(cell)


def _postgres_row(data: bytes) -> None:
    cells = dict(zip(COLUMNS, as_row(SUCCEEDED), strict=True)) | _cells(data)
    use(postgres.record_of(tuple(_sent(name, cell) for name, cell in cells.items())))


def _sent(name: str, cell: Any) -> Any:
    """Return a cell as the driver returns it."""
    if name == "in_doubt":
        return bool(cell)
    if name in _INTEGERS:
        return cell if isinstance(cell, int) and abs(cell) < 2**31 else len(str(cell))
    if name == "body":
        return cell if isinstance(cell, bytes) else str(cell).encode("utf-8", "replace")
    if cell is None:
        return None if name in _MAY_BE_NULL else _sent(name, "")
    if name.endswith("_at") or name == "running_since":
        return _time(cell)
    if name.startswith("credits"):
        with suppress(ArithmeticError):
            return Decimal(str(cell)[:60])
        return None
    return cell if isinstance(cell, str) else json.dumps(cell, default=str)


def _time(cell: object) -> datetime:
    with suppress(ValueError, OverflowError):
        found = datetime.fromisoformat(str(cell))
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return NOON


def _stored_text(data: bytes) -> None:
    text = texts_of(data)
    stored = postgres.as_text(text)
    assert "\0" not in stored
    assert stored.encode().decode() == stored
    assert postgres.from_text(stored) == text


def _from_text(data: bytes) -> None:
    cells = {name: data.decode("utf-8", "replace").replace("\0", "") for name in ("task_id", "model")}
    row = dict(zip(COLUMNS, as_row(SUCCEEDED), strict=True)) | cells
    times = {name: NOON for name in COLUMNS if name.endswith("_at") or name == "running_since"}
    row |= times | {"credits_used": None, "credits_refunded": None, "in_doubt": False}
    use(postgres.record_of(tuple(row.values())))


def _url(data: bytes) -> None:
    text = texts_of(data)
    is_postgres_url(text)
    as_location("the ledger", text)
    url = PostgresUrl.parse(text)
    password = url._part("password")
    assert not password or len(password) < 4 or f":{password}@" not in str(url)
    assert PostgresUrl.parse(url.url, url.schema) == url
    _ = url.masked_url, url.has_several_hosts, url.mask(text)


_ROW_SEED = json.dumps(
    dict(
        zip(
            IDENTITY,
            [each if not isinstance(each, bytes) else {"hex": each.hex()} for each in identity_values(SUCCEEDED)],
            strict=True,
        )
    )
).encode()
_PROGRESS_SEED = json.dumps(dict(zip(PROGRESS, progress_values(UNCERTAIN), strict=True))).encode()
_NAMES = [f'"{name}"'.encode() for name in COLUMNS]
_STORED = objects_with(list(COLUMNS), LEAVES | json_shapes(VALUES).map(lambda text: text.decode()))

TARGETS = (
    Target(
        name="sqlite-row",
        run=_sqlite_row,
        errors=(LedgerError,),
        seeds=(_ROW_SEED, _PROGRESS_SEED),
        words=tuple(_NAMES),
        shapes=json_shapes(_STORED),
    ),
    Target(
        name="postgres-row",
        run=_postgres_row,
        errors=(LedgerError,),
        seeds=(_ROW_SEED, _PROGRESS_SEED),
        words=tuple(_NAMES),
        shapes=json_shapes(_STORED),
    ),
    Target(
        name="postgres-text", run=_stored_text, seeds=(b"json:", b'json:"a"', "\ud800".encode("utf-8", "surrogatepass"))
    ),
    Target(name="postgres-stored-text", run=_from_text, errors=(LedgerError,), seeds=(b'json:"\\ud800"', b"json:[1]")),
    Target(
        name="postgres-url",
        run=_url,
        errors=(ConfigurationError,),
        seeds=(b"postgresql://u:secret@h:5432,i/db?schema=s&sslmode=require", b"postgres://[::1]/d?password=secret"),
        words=(b"?password=", b"%40", b"@", b"://", b"schema="),
    ),
)
