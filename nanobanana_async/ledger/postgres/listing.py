"""The SQL statements that list, count, hand over and prune the jobs of a ledger on PostgreSQL."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime

from attrs import frozen

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import TERMINAL_STATES, JobRecord, JobState
from nanobanana_async.ledger.columns import sql_list
from nanobanana_async.ledger.postgres.columns import SELECTED, as_text, from_text, record_of
from nanobanana_async.ledger.postgres.pipeline import Rows, Statement, Work
from nanobanana_async.ledger.postgres.statements import ACTIVE, PostgresTable

Page = tuple[int | None, list[JobRecord]]

# The server's clock wrote the time of the beat and reads it here; no clock is compared with another one.
_SELECT_SILENT_OWNERS = (
    "SELECT id FROM owners WHERE buried_by IS NULL AND id IS DISTINCT FROM %(me)s"
    " AND beat_at < clock_timestamp() - make_interval(secs => lease_s)"
)
_OWNERS = (
    "SELECT id, host, process, client, beat_at < clock_timestamp() - make_interval(secs => lease_s)"
    " FROM owners WHERE buried_by IS NULL ORDER BY id"
)
WAITS = "(fed AND state = 'pending')"
"""The row of a fed batch waits for a worker: it is nothing that an owner has left."""

_ADOPTABLE_PARTS = (  # each has an index that returns its rows in order
    "state = 'pending' AND owner IS NULL AND NOT fed",
    "state IN ('submitting', 'running') AND owner IS NULL",
    f"{ACTIVE} AND NOT {WAITS} AND owner = ANY(%(silent)s::bigint[])",
)
_ADOPTABLE_PAGE = " UNION ALL ".join(
    f"(SELECT id, {SELECTED} FROM jobs AS j WHERE account = %(account)s AND {part} AND id > %(after)s"
    " ORDER BY id LIMIT %(limit)s)"
    for part in _ADOPTABLE_PARTS
)
_SELECT_ADOPTABLE = f"{_ADOPTABLE_PAGE} ORDER BY id LIMIT %(limit)s"
_SELECT_UNCERTAIN = (
    f"SELECT id, {SELECTED} FROM jobs AS j WHERE account = %(account)s AND state = 'uncertain' AND id > %(after)s"
    " ORDER BY id LIMIT %(limit)s"
)
_SELECT_JOBS = f"SELECT id, {SELECTED} FROM jobs AS j WHERE id < %(before)s ORDER BY id DESC LIMIT %(limit)s"
_SELECT_JOBS_OF_STATE = (
    f"SELECT id, {SELECTED} FROM jobs AS j WHERE state = %(state)s AND id < %(before)s ORDER BY id DESC LIMIT %(limit)s"
)
_SELECT_BETWEEN = f"SELECT {SELECTED} FROM jobs AS j WHERE key BETWEEN %(first)s AND %(last)s ORDER BY key"
_HAS_OWNER = (
    f"SELECT 1 FROM jobs WHERE key = %(key)s AND {ACTIVE} AND owner IS NOT NULL"
    f" AND owner NOT IN ({_SELECT_SILENT_OWNERS})"
)
_COUNT_UNOWNED = (
    f"SELECT state, count(*) FROM jobs WHERE {ACTIVE} AND NOT {WAITS}"
    f" AND (owner IS NULL OR owner IN ({_SELECT_SILENT_OWNERS})) GROUP BY state"
)
_ENDED_BEFORE = f"state IN ({sql_list(TERMINAL_STATES)}) AND coalesce(ended_at, created_at) < %(time)s"
# Their charges and fed rows go with them here, not by foreign keys: those cost each insert a locked row and its log.
_PRUNE = (
    f"WITH gone AS (DELETE FROM jobs WHERE id > %(after)s AND id <= %(until)s AND {_ENDED_BEFORE} RETURNING id),"
    " charges_gone AS (DELETE FROM charges USING gone WHERE job = gone.id),"
    " rows_gone AS (DELETE FROM fed_rows USING gone WHERE job = gone.id) SELECT 1 FROM gone"
)
_FORGET_OLD = (
    "DELETE FROM uploads WHERE uploaded_at < %(time)s",
    "DELETE FROM owners WHERE buried_by IS NOT NULL AND buried_at < %(time)s",
)
_SELECT_OWNED = f"SELECT 1 FROM jobs WHERE account = %(old)s AND {ACTIVE} AND owner IS NOT NULL LIMIT 1"
_COPY_ACCOUNT_FACTS = (
    "INSERT INTO learned SELECT %(new)s, facts FROM learned WHERE account = %(old)s ON CONFLICT (account) DO NOTHING",
    "INSERT INTO uploads SELECT %(new)s, digest, url, size, uploaded_at FROM uploads WHERE account = %(old)s"
    " ON CONFLICT (account, digest) DO NOTHING",
)
_CHANGE_ACCOUNT_OF_FED = "UPDATE fed_batches SET account = %(new)s WHERE gateway = %(gateway)s AND account = %(old)s"
_CHANGE_ACCOUNT = (
    "WITH moved AS (UPDATE jobs SET account = %(new)s, revision = revision + 1"
    " WHERE gateway = %(gateway)s AND account = %(old)s RETURNING 1) SELECT count(*) FROM moved"
)


def silent_owners(table: PostgresTable) -> Work[list[int]]:
    """Return the other owners that are not buried and have been silent for longer than their lease."""
    (rows,) = yield [Statement(_SELECT_SILENT_OWNERS)]
    return [owner for (owner,) in rows]


@frozen
class OwnerFacts:
    """Which process an owner is, and whether it has been silent for longer than its lease."""

    number: int
    host: str
    process: int
    client: str
    is_silent: bool


def owners(table: PostgresTable) -> Work[list[OwnerFacts]]:
    """Return the owners that are not buried."""
    (rows,) = yield [Statement(_OWNERS)]
    return [OwnerFacts(*row) for row in rows]


def adoptable_page(table: PostgresTable, account: str, silent: Sequence[int], after: int, limit: int) -> Work[Page]:
    """Return a page of active jobs without an owner, or of these silent owners, and where the next page starts."""
    values = {"account": as_text(account), "silent": list(silent), "after": after, "limit": limit}
    (rows,) = yield [Statement(_SELECT_ADOPTABLE, values)]
    return _page(rows, limit)


def uncertain_page(table: PostgresTable, account: str, after: int, limit: int) -> Work[Page]:
    """Return a page of UNCERTAIN jobs, and where the next page starts, if there is one."""
    (rows,) = yield [Statement(_SELECT_UNCERTAIN, {"account": as_text(account), "after": after, "limit": limit})]
    return _page(rows, limit)


def jobs_page(table: PostgresTable, states: Collection[JobState] | None, before: int, limit: int) -> Work[Page]:
    """Return a page of all jobs, the newest first, and where the next page starts, if there is one."""
    values = {"before": before, "limit": limit}
    if states is None:
        requests = [Statement(_SELECT_JOBS, values)]
    else:
        requests = [Statement(_SELECT_JOBS_OF_STATE, {**values, "state": state.value}) for state in states]
    answers: list[Rows] = yield requests
    newest = sorted((row for rows in answers for row in rows), key=lambda row: row[0], reverse=True)
    return _page(newest[:limit], limit)


def jobs_in_key_range(table: PostgresTable, first_key: str, last_key: str) -> Work[list[JobRecord]]:
    """Return the jobs whose keys lie between two keys, these included, in the order of their keys."""
    (rows,) = yield [Statement(_SELECT_BETWEEN, {"first": as_text(first_key), "last": as_text(last_key)})]
    return [record_of(row) for row in rows]


def count_by_state(table: PostgresTable) -> Work[Counter[JobState]]:
    """Count the jobs by state."""
    (rows,) = yield [Statement("SELECT state, count(*) FROM jobs GROUP BY state")]
    return Counter({JobState(state): count for state, count in rows})


def has_owner(table: PostgresTable, key: str) -> Work[bool]:
    """Return whether the job is active and has an owner that is not silent."""
    (rows,) = yield [Statement(_HAS_OWNER, {"key": as_text(key)})]
    return bool(rows)


def count_unowned(table: PostgresTable) -> Work[Counter[JobState]]:
    """Count the active jobs without an owner, or with a silent one, by state."""
    (rows,) = yield [Statement(_COUNT_UNOWNED)]
    return Counter({JobState(state): count for state, count in rows})


def count_by_account(table: PostgresTable) -> Work[Counter[tuple[str, str]]]:
    """Count the jobs of each gateway and account."""
    (rows,) = yield [Statement("SELECT gateway, account, count(*) FROM jobs GROUP BY gateway, account")]
    return Counter({(from_text(gateway), from_text(account)): count for gateway, account, count in rows})


def batch_prefixes(table: PostgresTable) -> Work[list[str]]:
    """Return the prefixes of the keys of all named batches."""
    (rows,) = yield [Statement("SELECT DISTINCT batch FROM jobs WHERE batch IS NOT NULL")]
    return [from_text(batch) for (batch,) in rows]


def hand_over(table: PostgresTable, gateway: str, old: str, new: str) -> Work[int]:
    """Move an account's jobs and charges to another one; the new revision makes writes with older records fail."""
    values = {"gateway": as_text(gateway), "old": as_text(old), "new": as_text(new)}
    # Locked: no other host may adopt one of the jobs between the check and the change.
    lock = Statement("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE", returns_rows=False)
    _, owned = yield [lock, Statement(_SELECT_OWNED, values)]
    if owned:
        raise LedgerError(
            f"an open session still owns jobs of account {old}: close that session first; if its process was killed,"
            " repeat in half a minute",
            safe_to_repeat=True,
        )
    yield from table.charges.hand_over(gateway, old, new)
    copies = [Statement(copy, values, returns_rows=False) for copy in (*_COPY_ACCOUNT_FACTS, _CHANGE_ACCOUNT_OF_FED)]
    *_, ((moved,),) = yield [*copies, Statement(_CHANGE_ACCOUNT, values)]
    return int(moved)


def last_id(table: PostgresTable) -> Work[int]:
    """Return the id of the newest row; 0 when there is none."""
    (((newest,),),) = yield [Statement("SELECT coalesce(max(id), 0) FROM jobs")]
    return int(newest)


def count_prunable(table: PostgresTable, older_than: datetime) -> Work[int]:
    """Count the jobs that ended before a time."""
    (((count,),),) = yield [Statement(f"SELECT count(*) FROM jobs WHERE {_ENDED_BEFORE}", {"time": older_than})]
    return int(count)


def prune(table: PostgresTable, older_than: datetime, after: int, until: int) -> Work[int]:
    """Delete the jobs with ids in (after, until] that ended before a time; return how many."""
    (rows,) = yield [Statement(_PRUNE, {"time": older_than, "after": after, "until": until})]
    return len(rows)


def forget_old(table: PostgresTable, older_than: datetime) -> Work[None]:
    """Delete the uploads that were made, and the owners that were buried, before a time."""
    yield [Statement(sql, {"time": older_than}, returns_rows=False) for sql in _FORGET_OLD]


def _page(rows: Rows, limit: int) -> Page:
    return (rows[-1][0] if len(rows) == limit else None), [record_of(row[1:]) for row in rows]
