"""A fail-over: the server's timeline has moved, because a standby was promoted or a backup was restored.

The last commits may be lost then. What a living owner knows it writes again, before anything else: each goes on under a
new number, since the numbers of lost owners are given again, and no call is answered until all had the time for that.
It is unknown which creates an owner that died across it made after the last commit that is left. So its jobs that were
not sent by then count as sent on a gateway without keys, where they are UNCERTAIN. With keys they wait as before: under
its key a job is bought once, and when it is sent it must fit under its caps.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from attrs import evolve
from psycopg import errors

from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.columns import COLUMNS
from nanobanana_async.ledger.postgres import driver
from nanobanana_async.ledger.postgres.charges import SET_CREDITS
from nanobanana_async.ledger.postgres.columns import as_text, identity_row, progress_row, recordset
from nanobanana_async.ledger.postgres.known import Known
from nanobanana_async.ledger.postgres.leases import Lease
from nanobanana_async.ledger.postgres.pipeline import Statement, Work
from nanobanana_async.ledger.postgres.statements import ACTIVE, TASK_HOLDER, PostgresTable
from nanobanana_async.policy.prices import charge_of, from_billionths, to_billionths

TIMELINE = (
    "((SELECT system_identifier::text FROM pg_control_system())"
    " || ' ' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))"
)
"""The SQL of the server's timeline. A restored dump is another system."""
NO_TIMELINE = "''"
"""In its place where the server does not show it: a fail-over is not noticed there."""

NOTE_TIMELINE = (
    "WITH begun AS (INSERT INTO timelines (timeline) VALUES (%(timeline)s::text) ON CONFLICT (timeline) DO NOTHING)"
    " SELECT (SELECT count(*) FROM timelines WHERE timeline <> %(timeline)s::text),"
    " coalesce(extract(epoch FROM clock_timestamp() - (SELECT since FROM timelines"
    " WHERE timeline = %(timeline)s::text)), 0)::float8"
)
"""Note the timeline; return how many there were before it, and since when it is known."""


def held_back_s(lease: Lease, earlier: int, age_s: float) -> float:
    """Return for how long calls wait on a timeline: as long as it takes to find an owner dead.

    A living one has written again by then what it knows.
    """
    return max(0.0, lease.silence_s + 2 * lease.beat_s - age_s) if earlier else 0.0


def timeline_sql(db: driver.Connection) -> str:
    """Return the SQL of the timeline, as this server and user allow it."""
    try:
        db.execute(f"SELECT {TIMELINE}".encode())
    except (errors.InsufficientPrivilege, errors.UndefinedFunction, errors.FeatureNotSupported):
        return NO_TIMELINE
    except errors.ObjectNotInPrerequisiteState:  # a standby: the first write says so
        return TIMELINE
    return TIMELINE


_FIND = f"SELECT j.key, j.revision, j.state, j.generation FROM {recordset('key')} JOIN jobs AS j ON j.key = u.key"
_REWRITE = (
    f"INSERT INTO jobs ({', '.join(COLUMNS)}, owner) SELECT {', '.join(f'u.{column}' for column in COLUMNS)},"
    f" CASE WHEN u.owned THEN %(me)s END FROM {recordset(*COLUMNS, 'owned')}"
    f" WHERE u.task_id IS NULL OR NOT EXISTS ({TASK_HOLDER}) ORDER BY u.key"
    f" ON CONFLICT (key) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in COLUMNS)},"
    " owner = excluded.owner WHERE jobs.revision < excluded.revision"
)
_TAKE = (
    f"UPDATE jobs AS j SET owner = %(me)s FROM {recordset('key')} WHERE j.key = u.key AND j.{ACTIVE}"
    " AND (j.owner IS NULL OR j.owner = %(before)s)"
)
_RESERVE = (  # without caps: it was allowed before
    "INSERT INTO charges (job, generation, account, batch, price_class, credits, basis)"
    " SELECT j.id, j.generation, j.account, c.batch, c.price_class, c.credits, c.basis"
    f" FROM {recordset('key', 'generation', 'charges')} JOIN jobs AS j ON j.key = u.key"
    " AND j.generation = u.generation CROSS JOIN LATERAL json_to_recordset(u.charges)"
    " AS c(batch text, price_class text, credits numeric, basis text) ON CONFLICT (job, generation, batch) DO NOTHING"
)
_OURS_BEFORE = "EXISTS (SELECT FROM owners WHERE id = %(before)s AND timeline <> %(timeline)s AND buried_by IS NULL)"
_RETIRE = (
    f"UPDATE jobs SET owner = NULL WHERE owner = %(before)s AND {ACTIVE} AND {_OURS_BEFORE}",
    # Perhaps it has delivered them in a commit that was lost: they are drawn and delivered once more.
    f"UPDATE fed_rows SET worker = NULL WHERE worker = %(before)s AND delivered IS NULL AND {_OURS_BEFORE}",
    f"DELETE FROM callback_notices WHERE owner = %(before)s AND {_OURS_BEFORE}",
    f"DELETE FROM shares WHERE owner = %(before)s AND {_OURS_BEFORE}",
    "DELETE FROM owners WHERE id = %(before)s AND timeline <> %(timeline)s AND buried_by IS NULL",
)


def write_again(table: PostgresTable, known: Sequence[Known], before: int, timeline: str) -> Work[int]:
    """Write what the server has lost of these jobs, as their owner; `before` is its last number. Return how many."""
    keys = [as_text(each.record.key) for each in known]
    (found,) = yield [Statement(_FIND, {"key": keys})]
    stored = {key: facts for key, *facts in found}
    lost = [new for key, each in zip(keys, known, strict=True) if (new := _if_lost(each, stored.get(key))) is not None]
    me = {"me": table.owner, "before": before, "timeline": timeline}
    owned = [key for key, each in zip(keys, known, strict=True) if each.owned]
    reserved = [each for each in known if each.charges is not None]
    writes = [
        (_REWRITE, _rows(lost)),
        (_TAKE, {"key": owned}),
        (_RESERVE, _charges(reserved)),
        (SET_CREDITS, _credits(reserved)),
    ]
    requests = [Statement(sql, {**me, **rows}, returns_rows=False) for sql, rows in writes if rows.get("key")]
    yield [*requests, *(Statement(sql, me, returns_rows=False) for sql in _RETIRE)]
    return len(lost)


def _if_lost(known: Known, stored: list[Any] | None) -> Known | None:
    """Return what to write of a job; None if the server has it, or something newer."""
    if stored is None or stored[0] < known.record.revision:
        return known
    revision, state, generation = stored
    same_purchase = state == JobState.UNCERTAIN.value and generation == known.record.generation
    if same_purchase and known.record.task_id is not None:  # parked by others, who did not know its task
        return evolve(known, record=evolve(known.record, revision=revision + 1))
    return None


def _rows(lost: Sequence[Known]) -> dict[str, list[Any]]:
    rows = [{**identity_row(each.record), **progress_row(each.record), "owned": each.owned} for each in lost]
    return {column: [row[column] for row in rows] for column in rows[0]} if rows else {}


def _charges(reserved: Sequence[Known]) -> dict[str, list[Any]]:
    return {
        "key": [as_text(each.record.key) for each in reserved],
        "generation": [each.record.generation for each in reserved],
        "charges": [each.charges for each in reserved],
    }


def _credits(reserved: Sequence[Known]) -> dict[str, list[Any]]:
    """Return the prices that the gateway has stated; 0 for what certainly was not bought."""
    stated = [(each.record, price) for each in reserved if (price := _price_of(each.record)) is not None]
    return {
        "key": [as_text(record.key) for record, _ in stated],
        "generation": [record.generation for record, _ in stated],
        "credits": [from_billionths(to_billionths(price)) for _, price in stated],
    }


def _price_of(record: JobRecord) -> Decimal | None:
    charge = charge_of(record)
    return Decimal(0) if charge is None else charge.credits
