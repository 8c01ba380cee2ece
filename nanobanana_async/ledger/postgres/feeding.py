"""The rows of fed batches on PostgreSQL: stored in thousands, drawn in handfuls.

Feeding locks the row of the batch, so that two who feed one batch take turns. A draw locks its rows only and skips
those that others have locked, so no worker waits for another one.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

from attrs import define, field

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.columns import COLUMNS, request_text, sql_list
from nanobanana_async.ledger.feeding import UNSAVED, WITHOUT_IMAGES, Draw, Fed, FedBatch, FedRow, is_same_job
from nanobanana_async.ledger.postgres.columns import (
    SELECTED,
    as_text,
    fed_batch_of,
    fed_row_of,
    identity_row,
    none_or_text,
    progress_row,
    record_of,
    recordset,
    scalar,
)
from nanobanana_async.ledger.postgres.pipeline import Statement, Work
from nanobanana_async.ledger.postgres.statements import PostgresTable

T = TypeVar("T")

FREE_S = 2.0
"""How often a worker looks for rows of dead workers while there are others; `FREE_AT_END_S` when there are none."""
FREE_AT_END_S = 0.5

FIRST = -1  # before the first row
_BATCH_COLUMNS = "batch, name, gateway, account, max_credits, expected_credits, fed"
_OPEN = (
    "INSERT INTO fed_batches (batch, name, gateway, account, max_credits, expected_credits)"
    " VALUES (%(batch)s, %(name)s, %(gateway)s, %(account)s, %(max_credits)s::numeric, %(expected_credits)s::numeric)"
    " ON CONFLICT (batch) DO UPDATE SET max_credits = coalesce(excluded.max_credits, fed_batches.max_credits),"
    " expected_credits = coalesce(excluded.expected_credits, fed_batches.expected_credits)"
    " WHERE fed_batches.account = excluded.account AND %(change)s"
)
_SELECT_BATCH = f"SELECT {_BATCH_COLUMNS} FROM fed_batches WHERE batch = %(batch)s"

_OWN = ("key", "request", "body")
"""All rows are PENDING and were never sent: only these columns of their jobs differ."""
_FED_COLUMNS = ("row_index", "place", "own_key", "digest", "metadata", "name")
_FED_ROWS = recordset("key", *_FED_COLUMNS)
_LOWER_CAP = "UPDATE fed_batches SET max_credits = least(max_credits, %(cap)s::numeric)"
_COUNT = f"{_LOWER_CAP}, fed = fed + (SELECT count(*) FROM {{}})"
# Jobs are inserted in the order of their keys: two who insert the same ones then wait for each other, not crosswise.
_INSERT_NEW = (
    f"WITH u AS (SELECT * FROM {recordset(*_OWN, *_FED_COLUMNS)}),"
    f" new AS (INSERT INTO jobs ({', '.join(COLUMNS)}, fed)"
    f" SELECT {', '.join(f'u.{column}' if column in _OWN else scalar(column) for column in COLUMNS)}, true FROM u"
    " ORDER BY u.key ON CONFLICT (key) DO NOTHING RETURNING id, key),"
    f" stored AS (INSERT INTO fed_rows (job, batch, {', '.join(_FED_COLUMNS)})"
    f" SELECT new.id, %(fed_batch)s, {', '.join(f'u.{column}' for column in _FED_COLUMNS)}"
    " FROM new JOIN u ON u.key = new.key ORDER BY new.id),"
    f" counted AS ({_COUNT.format('new')} WHERE batch = %(fed_batch)s AND EXISTS (SELECT FROM new))"
    " SELECT key FROM u WHERE key NOT IN (SELECT key FROM new)"
)
"""Insert the rows whose jobs are new; return the keys of the others."""
_LAST_PLACE = "SELECT max(place) FROM fed_rows WHERE batch = %(batch)s AND place IS NOT NULL"
_SELECT_MISPLACED = (
    f"SELECT min(u.place) FROM {_FED_ROWS} JOIN fed_rows AS f ON f.batch = %(batch)s AND f.place = u.place"
    " JOIN jobs AS j ON j.id = f.job WHERE j.key <> u.key"
)
_SELECT_KNOWN = (
    f"SELECT f.digest IS NULL, f.digest <> u.digest OR j.account <> %(account)s, {SELECTED}"
    f" FROM {_FED_ROWS} JOIN jobs AS j ON j.key = u.key LEFT JOIN fed_rows AS f ON f.job = j.id"
    " WHERE f.job IS NULL OR f.digest <> u.digest OR j.account <> %(account)s"
    f" OR j.state IN ({sql_list(WITHOUT_IMAGES)})"
)
_INSERT_KNOWN = (
    f"WITH stored AS (INSERT INTO fed_rows (job, batch, {', '.join(_FED_COLUMNS)})"
    f" SELECT j.id, %(batch)s, {', '.join(f'u.{column}' for column in _FED_COLUMNS)}"
    f" FROM {_FED_ROWS} JOIN jobs AS j ON j.key = u.key ORDER BY u.key ON CONFLICT (job) DO NOTHING RETURNING 1)"
    f" {_COUNT.format('stored')} WHERE batch = %(batch)s AND EXISTS (SELECT FROM stored)"
)
_UPDATE_ROWS = (
    "UPDATE fed_rows AS f SET row_index = u.row_index, metadata = u.metadata, name = u.name,"
    " delivered = CASE WHEN f.delivered = j.revision THEN f.delivered END"
    f" FROM {_FED_ROWS} JOIN jobs AS j ON j.key = u.key WHERE f.job = j.id"
    " AND (f.row_index <> u.row_index OR f.metadata IS DISTINCT FROM u.metadata OR f.name <> u.name"
    " OR f.delivered <> j.revision)"
)
_MARK_JOBS = f"UPDATE jobs AS j SET fed = true FROM {_FED_ROWS} WHERE j.key = u.key AND NOT j.fed"
_DRAWN_COLUMNS = f"{', '.join(f'f.{column}' for column in _FED_COLUMNS)}, {SELECTED}"
_DRAW = (
    "WITH free AS MATERIALIZED (SELECT job FROM fed_rows WHERE batch = %(batch)s AND worker IS NULL"
    " AND delivered IS NULL AND row_index > %(after)s ORDER BY row_index, job LIMIT %(count)s FOR UPDATE SKIP LOCKED),"
    " drawn AS (UPDATE fed_rows AS f SET worker = %(me)s FROM free WHERE f.job = free.job RETURNING f.*)"
    f" SELECT {_DRAWN_COLUMNS} FROM drawn AS f JOIN jobs AS j ON j.id = f.job ORDER BY f.row_index, f.job"
)
_IN_HAND = (
    f"SELECT {_DRAWN_COLUMNS} FROM fed_rows AS f JOIN jobs AS j ON j.id = f.job"
    " WHERE f.batch = %(batch)s AND f.worker = %(me)s AND f.delivered IS NULL ORDER BY f.row_index"
)
_OF_WORKERS = "FROM fed_rows WHERE batch = %(batch)s AND worker IS NOT NULL AND delivered IS NULL"
# The workers are found one by one in the index, so that it does not take longer when they have more rows in hand.
_FREE_OF_DEAD = (
    f"WITH RECURSIVE workers AS (SELECT min(worker) AS id {_OF_WORKERS}"
    f" UNION ALL SELECT (SELECT min(worker) {_OF_WORKERS} AND worker > w.id) FROM workers AS w WHERE w.id IS NOT NULL)"
    " UPDATE fed_rows SET worker = NULL WHERE batch = %(batch)s AND delivered IS NULL AND worker IN (SELECT w.id"
    " FROM workers AS w WHERE NOT EXISTS (SELECT FROM owners AS o WHERE o.id = w.id AND o.buried_by IS NULL))"
    " RETURNING 1"
)
_UNFINISHED = (
    "SELECT EXISTS (SELECT FROM fed_rows WHERE batch = %(batch)s AND worker IS NULL AND delivered IS NULL)"
    " OR EXISTS (SELECT FROM fed_rows WHERE batch = %(batch)s AND worker IS NOT NULL AND delivered IS NULL)"
)
_DELIVER = (
    "UPDATE fed_rows AS f SET worker = NULL,"
    " delivered = CASE WHEN u.revision < 0 OR u.revision = j.revision THEN u.revision END"
    f" FROM {recordset('key', 'revision')} JOIN jobs AS j ON j.key = u.key"
    " WHERE f.job = j.id AND f.worker = %(me)s AND f.delivered IS NULL"
)
_DRAW_UNSAVED = f"UPDATE fed_rows SET delivered = NULL WHERE batch = %(batch)s AND delivered = {UNSAVED}"


@define
class DrawState:
    """What this ledger remembers of its draws."""

    last_drawn: dict[str, int] = field(factory=dict)
    """Batch -> the number of the last row that was drawn: the next draw does not read again what lies before it."""
    free_dead_rows_at: float = 0.0
    """When to free the rows of dead workers next."""
    in_hand: set[str] = field(factory=set)
    """The keys of the jobs whose rows it has drawn and not delivered."""
    failures: int = 0
    """How many draws and deliveries failed: rows may be drawn for this owner that no worker of it knows."""
    failures_seen: dict[str, int] = field(factory=dict)
    """Batch -> the number of failures when a draw last found such rows."""


class FeedingCalls(ABC):
    """The calls of a ledger on PostgreSQL about the rows of fed batches."""

    _draw_state: DrawState

    @abstractmethod
    def _submit(self, start: Callable[[PostgresTable], Work[T]], *, writes: bool = False) -> "asyncio.Future[T]": ...

    async def open_batch(self, fed: FedBatch, *, change: bool = False) -> FedBatch:
        """Store what holds for a new batch, or changes for a known one, and return what is stored."""
        return await self._submit(partial(_open_batch, fed=fed, change=change), writes=True)

    async def fed_batch(self, batch: str) -> FedBatch | None:
        """Return what holds for a batch; None if it was not fed."""
        return await self._submit(partial(_find_batch, batch=batch))

    async def feed(self, batch: str, rows: Sequence[FedRow], *, max_credits: Decimal | None = None) -> Fed:
        """Store those of the rows that are new, all in one transaction, as jobs that no owner has."""
        return await self._submit(partial(_feed, batch=batch, rows=rows, cap=max_credits), writes=True)

    async def lower_cap(self, batch: str, max_credits: Decimal) -> None:
        """Let the cap of a batch fall to this one, if it is lower."""
        await self._submit(partial(_lower_cap, batch=batch, cap=max_credits), writes=True)

    async def draw(self, batch: str, count: int) -> Draw:
        """Draw at most so many rows; their jobs are claimed as any others."""
        now = asyncio.get_running_loop().time()
        call = partial(_draw, batch=batch, count=count, state=self._draw_state, now=now)
        try:
            draw = await self._submit(call, writes=True)
        except LedgerError:
            self._draw_state.failures += 1
            raise
        self._draw_state.in_hand.update(row.record.key for row in draw.rows)
        return draw

    async def deliver(self, revisions: Mapping[str, int | None]) -> None:
        """Store that rows were delivered, or give them back."""
        try:
            await self._submit(partial(_deliver, revisions=revisions), writes=True)
        except LedgerError:
            self._draw_state.failures += 1
            self._draw_state.in_hand.clear()  # its worker gives up all rows: the next draw of this owner finds them
            raise
        self._draw_state.in_hand.difference_update(revisions)

    async def draw_unsaved(self, batch: str) -> None:
        """Let the rows be drawn again whose images could not be saved."""
        await self._submit(partial(_draw_unsaved, batch=batch), writes=True)


def _open_batch(table: PostgresTable, fed: FedBatch, *, change: bool) -> Work[FedBatch]:
    values = {
        "batch": as_text(fed.batch),
        "name": as_text(fed.name),
        "gateway": as_text(fed.gateway),
        "account": as_text(fed.account),
        "max_credits": fed.max_credits,
        "expected_credits": fed.expected_credits,
        "change": change,
    }
    _, found = yield [Statement(_OPEN, values, returns_rows=False), Statement(_SELECT_BATCH, values)]
    return fed_batch_of(found[0])


def _find_batch(table: PostgresTable, batch: str) -> Work[FedBatch | None]:
    (found,) = yield [Statement(_SELECT_BATCH, {"batch": as_text(batch)})]
    return fed_batch_of(found[0]) if found else None


def _feed(table: PostgresTable, batch: str, rows: Sequence[FedRow], cap: Decimal | None) -> Work[Fed]:
    by_key = {as_text(row.record.key): row for row in rows}
    of_batch = {"batch": as_text(batch), "account": as_text(rows[0].record.account), "cap": cap}
    _, ((last,),) = yield [Statement(f"{_SELECT_BATCH} FOR UPDATE", of_batch), Statement(_LAST_PLACE, of_batch)]
    columns = _fed_columns(by_key)
    if last is not None and any(place is not None and place <= last for place in columns["place"]):
        (((misplaced,),),) = yield [Statement(_SELECT_MISPLACED, {**of_batch, **columns})]
        if misplaced is not None:
            return Fed(misplaced=int(misplaced), other_requests={})
    (found,) = yield [
        Statement(_INSERT_NEW, {**_job_columns(by_key), **columns, "fed_batch": of_batch["batch"], "cap": cap})
    ]
    if not found:
        return Fed(new=len(by_key), other_requests={})
    known = {key: by_key[key] for (key,) in found}
    other_requests: dict[str, JobRecord] = {}
    ended: list[JobRecord] = []
    (found,) = yield [Statement(_SELECT_KNOWN, {**of_batch, **_fed_columns(known)})]
    for unfed, differs, *values in found:
        record = record_of(tuple(values))
        row = by_key[as_text(record.key)]
        if differs or (unfed and not is_same_job(record, row.record)):
            other_requests[record.key] = record
        elif record.state in WITHOUT_IMAGES:
            ended.append(record)
    stored = {key: row for key, row in known.items() if row.record.key not in other_requests}
    if stored:
        given = {**of_batch, **_fed_columns(stored)}
        yield [Statement(sql, given, returns_rows=False) for sql in (_INSERT_KNOWN, _MARK_JOBS, _UPDATE_ROWS)]
    return Fed(new=len(by_key) - len(known), other_requests=other_requests, ended=tuple(ended))


def _lower_cap(table: PostgresTable, batch: str, cap: Decimal) -> Work[None]:
    values = {"batch": as_text(batch), "cap": cap}
    yield [Statement(f"{_LOWER_CAP} WHERE batch = %(batch)s", values, returns_rows=False)]


def _draw(table: PostgresTable, batch: str, count: int, state: DrawState, now: float) -> Work[Draw]:
    after = state.last_drawn.get(batch, FIRST)
    values: dict[str, Any] = {"batch": as_text(batch), "count": count, "after": after}
    if now >= state.free_dead_rows_at:
        state.free_dead_rows_at = now + FREE_S
        (freed,) = yield [Statement(_FREE_OF_DEAD, values)]
        values["after"] = FIRST if freed else after
    found, batches = yield [Statement(_DRAW, values), Statement(_SELECT_BATCH, values)]
    if len(found) < count and values["after"] > FIRST:  # at the end: rows before it were given back
        (more,) = yield [Statement(_DRAW, {**values, "after": FIRST, "count": count - len(found)})]
        found = [*found, *more]
    rows = [fed_row_of(row) for row in found]
    state.last_drawn[batch] = rows[-1].index if len(rows) == count else FIRST
    unfinished = True
    if len(found) < count:
        (((unfinished,),),) = yield [Statement(_UNFINISHED, values)]
        state.free_dead_rows_at = min(state.free_dead_rows_at, now + FREE_AT_END_S)
    failures = state.failures
    if table.commit_in_doubt or state.failures_seen.get(batch, 0) < failures:  # what was drawn without an answer
        (drawn,) = yield [Statement(_IN_HAND, values)]
        known = state.in_hand | {each.record.key for each in rows}
        rows += [each for each in map(fed_row_of, drawn) if each.record.key not in known]
        state.failures_seen[batch] = failures
    return Draw(rows=tuple(rows), unfinished=bool(unfinished), batch=fed_batch_of(batches[0]))


def _deliver(table: PostgresTable, revisions: Mapping[str, int | None]) -> Work[None]:
    keys = sorted(revisions)
    values = {"key": [as_text(key) for key in keys], "revision": [revisions[key] for key in keys]}
    yield [Statement(_DELIVER, values, returns_rows=False)]


def _draw_unsaved(table: PostgresTable, batch: str) -> Work[None]:
    yield [Statement(_DRAW_UNSAVED, {"batch": as_text(batch)}, returns_rows=False)]


def _fed_columns(rows: Mapping[str, FedRow]) -> dict[str, list[Any]]:
    """Return the columns of `fed_rows`, with the stored keys of their jobs."""
    values = [
        (row.index, row.place, none_or_text(row.own_key), row.digest, row.metadata, as_text(row.name))
        for row in rows.values()
    ]
    return {"key": list(rows), **dict(zip(_FED_COLUMNS, map(list, zip(*values, strict=True)), strict=True))}


def _job_columns(rows: Mapping[str, FedRow]) -> dict[str, Any]:
    """Return the columns of the jobs of rows: what they have in common is sent once."""
    records = [row.record for row in rows.values()]
    own = {"request": [request_text(record) for record in records], "body": [record.body for record in records]}
    return {**identity_row(records[0]), **progress_row(records[0]), **own}
