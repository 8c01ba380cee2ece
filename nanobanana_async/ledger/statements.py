"""The SQL statements on the table `jobs`, with the ownership rules.

Everything here is synchronous and runs in a transaction of the caller, which decides what is committed together.
"""

import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from decimal import Decimal

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import ACTIVE_STATES, TERMINAL_STATES, JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Claim, NotOurs, TaskTaken
from nanobanana_async.ledger.charges import Charges
from nanobanana_async.ledger.columns import (
    COLUMNS,
    IDENTITY,
    PROGRESS,
    Row,
    identity_values,
    progress_values,
    record_of,
    same_identity,
    sql_list,
    time_to_text,
)
from nanobanana_async.ledger.uploads import copy_uploads
from nanobanana_async.policy.prices import Price

_ALL_COLUMNS = ", ".join(COLUMNS)
# The same text as in the index `jobs_open`, or SQLite does not use it.
_NOT_TERMINAL = f"state IN ({sql_list(ACTIVE_STATES | {JobState.UNCERTAIN})})"
_NOT_TERMINAL_OF_ACCOUNT = f"account = ? AND {_NOT_TERMINAL}"
_NOT_ACTIVE = f"state NOT IN ({sql_list(ACTIVE_STATES)})"

INSERT_JOB = (
    f"INSERT INTO jobs ({_ALL_COLUMNS}, owner) VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
    " ON CONFLICT (key) DO NOTHING"
)
_COMPARE_AND_SWAP = f"UPDATE jobs SET {{}}, owner = ? WHERE key = ? AND revision = ? AND (owner = ? OR {_NOT_ACTIVE})"
UPDATE_PROGRESS = _COMPARE_AND_SWAP.format(", ".join(f"{column} = ?" for column in PROGRESS))
UPDATE_ALL = _COMPARE_AND_SWAP.format(", ".join(f"{column} = ?" for column in IDENTITY + PROGRESS))
UPDATE_PROGRESS_AND_BODY = _COMPARE_AND_SWAP.format(", ".join(f"{column} = ?" for column in ("body", *PROGRESS)))
SELECT_BY_KEY = f"SELECT {_ALL_COLUMNS}, owner FROM jobs WHERE key = ?"
SELECT_BY_TASK = f"SELECT {_ALL_COLUMNS} FROM jobs WHERE account = ? AND task_id = ? ORDER BY id DESC LIMIT 1"
SELECT_TASK_HOLDER = (
    "SELECT key FROM jobs WHERE account = ? AND task_id = ? AND key <> ? AND first_sent_at IS NOT NULL LIMIT 1"
)
SELECT_BATCHES = "SELECT DISTINCT batch FROM jobs WHERE batch IS NOT NULL"
COUNT_BY_ACCOUNT = "SELECT gateway, account, count(*) FROM jobs GROUP BY gateway, account"
CHANGE_ACCOUNT = "UPDATE jobs SET account = ?, revision = revision + 1 WHERE gateway = ? AND account = ?"
TAKE_OWNERSHIP = "UPDATE jobs SET owner = ? WHERE key = ? AND owner IS ?"
RELEASE = f"UPDATE jobs SET owner = NULL WHERE key = ? AND owner = ? AND NOT {_NOT_ACTIVE}"
COUNT_FOREIGN_SLOTS = (
    f"SELECT total(slots) FROM jobs WHERE {_NOT_TERMINAL_OF_ACCOUNT} AND state <> '{JobState.PENDING.value}'"
    " AND owner IS NOT ? AND (? IS NULL OR coalesce(running_since, first_sent_at, created_at) >= ?)"
)
SELECT_OWNERS = (
    f"SELECT DISTINCT owner FROM jobs WHERE {_NOT_TERMINAL_OF_ACCOUNT} AND NOT {_NOT_ACTIVE} AND owner IS NOT NULL"
)
SELECT_ACTIVE_PAGE = (
    f"SELECT id, owner, {_ALL_COLUMNS} FROM jobs WHERE {_NOT_TERMINAL_OF_ACCOUNT} AND NOT {_NOT_ACTIVE} AND id > ?"
    " AND (owner IS NULL OR owner NOT IN ({})) ORDER BY id LIMIT ?"
)
SELECT_UNCERTAIN_PAGE = (
    f"SELECT id, {_ALL_COLUMNS} FROM jobs WHERE {_NOT_TERMINAL_OF_ACCOUNT}"
    f" AND state = '{JobState.UNCERTAIN.value}' AND id > ? ORDER BY id LIMIT ?"
)
SELECT_PAGE = f"SELECT id, {_ALL_COLUMNS} FROM jobs WHERE id < ?"
SELECT_PAGE_OF_STATE = f"{SELECT_PAGE} AND state = ?"
SELECT_BETWEEN = f"SELECT {_ALL_COLUMNS} FROM jobs WHERE key BETWEEN ? AND ? ORDER BY key"
COUNT_BY_STATE = "SELECT state, count(*) FROM jobs GROUP BY state"
SELECT_OWNER = f"SELECT owner FROM jobs WHERE key = ? AND NOT {_NOT_ACTIVE}"
COUNT_ACTIVE_BY_OWNER = (
    f"SELECT owner, state, count(*) FROM jobs WHERE {_NOT_TERMINAL} AND NOT {_NOT_ACTIVE} GROUP BY owner, state"
)
_ENDED_BEFORE = f"state IN ({sql_list(TERMINAL_STATES)}) AND coalesce(ended_at, created_at) < ?"
COUNT_PRUNABLE = f"SELECT count(*) FROM jobs WHERE {_ENDED_BEFORE}"
PRUNE = f"DELETE FROM jobs WHERE id > ? AND id <= ? AND {_ENDED_BEFORE}"
INSERT_NOTICE = (
    "INSERT OR REPLACE INTO callback_notices"
    f" SELECT owner, key, ? FROM jobs WHERE key = ? AND owner <> ? AND NOT {_NOT_ACTIVE}"
)

UPSERT_LEARNED = "INSERT OR REPLACE INTO learned VALUES (?, ?)"
COPY_LEARNED = "INSERT INTO learned SELECT ?, facts FROM learned WHERE account = ? ON CONFLICT (account) DO NOTHING"


def update_statement_for(before: JobRecord, after: JobRecord) -> tuple[str, Row]:
    """Return the statement and the row that replace `before` by `after`; unchanged identity columns are left out."""
    if same_identity(before, after):
        return UPDATE_PROGRESS, progress_values(after)
    if same_identity(before, after, body_too=False):  # accepted: its body is never sent again
        return UPDATE_PROGRESS_AND_BODY, (after.body, *progress_values(after))
    return UPDATE_ALL, identity_values(after) + progress_values(after)


class JobTable:
    """The table `jobs` as one owner may read and write it. `is_alive` says whether another owner lives."""

    def __init__(self, connection: sqlite3.Connection, owner: str | None, is_alive: Callable[[str], bool]) -> None:
        self.connection = connection
        self._owner = owner
        self._is_alive = is_alive
        self._dead_owners: set[str | None] = {None}
        self.charges = Charges(connection, owner, self._is_unowned)

    def claim(self, record: JobRecord, row: Row) -> Claim:
        """Insert a job as its owner, or return the stored record; an active job without an owner becomes ours."""
        execute = self.connection.execute
        if execute(INSERT_JOB, (*row, self._owner)).rowcount:
            return Claim(record=record, is_new=True, is_ours=record.state in ACTIVE_STATES)
        found = execute(SELECT_BY_KEY, (record.key,)).fetchone()
        known = record_of(found[:-1])
        return Claim(record=known, is_ours=self._try_own(known, found[-1]))

    def advance(self, before: JobRecord, after: JobRecord, statement: str, row: Row) -> None:
        """Replace `before` if it is unchanged and ours, or ended; `statement` and `row` are those of `update_for`."""
        self._compare_and_swap(before, statement, row)
        if after.is_counted:
            self.charges.update_from_record(before, after)

    def advance_and_reserve(
        self,
        before: JobRecord,
        after: JobRecord,
        statement: str,
        row: Row,
        *,
        price: Price,
        max_credits: Decimal | None,
    ) -> Allowance:
        """Replace `before` by a row that is about to be sent, and add its charges, if they fit."""
        allowance = self.charges.allowance(after, price, max_credits)
        if allowance.refusal is None:
            self._compare_and_swap(before, statement, row)
            self.charges.reserve(after, allowance.price)
        return allowance

    def _compare_and_swap(self, before: JobRecord, statement: str, row: Row) -> None:
        if self.connection.execute(statement, (*row, self._owner, before.key, before.revision, self._owner)).rowcount:
            return
        found = self.connection.execute("SELECT revision FROM jobs WHERE key = ?", (before.key,)).fetchone()
        if found is None:
            raise LedgerError(f"job {before.key} is not in the ledger", key=before.key, safe_to_repeat=False)
        unchanged = found == (before.revision,)
        why = "is not owned by this ledger (any more)" if unchanged else "was changed by another owner"
        raise NotOurs(f"job {before.key} {why}", key=before.key)

    def check_task_free(self, after: JobRecord) -> None:
        """Raise `TaskTaken` if the task id of `after` belongs to another job that was sent."""
        holder = self.connection.execute(SELECT_TASK_HOLDER, (after.account, after.task_id, after.key)).fetchone()
        if holder is not None and after.task_id is not None:
            raise TaskTaken(after.task_id, holder[0], key=after.key)

    def adopt(self, key: str) -> Claim | None:
        """Take ownership of an active job that has no other living owner; return the stored record."""
        found = self.connection.execute(SELECT_BY_KEY, (key,)).fetchone()
        if found is None:
            return None
        record = record_of(found[:-1])
        return Claim(record=record, is_ours=self._try_own(record, found[-1]))

    def release(self, key: str) -> None:
        """Give up ownership of a job that is ours."""
        self.connection.execute(RELEASE, (key, self._owner))

    def find(self, key: str) -> JobRecord | None:
        """Return the job with this key."""
        found = self.connection.execute(SELECT_BY_KEY, (key,)).fetchone()
        return None if found is None else record_of(found[:-1])

    def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job with this task id; the newest, if two keys have the same task."""
        found = self.connection.execute(SELECT_BY_TASK, (account, task_id)).fetchone()
        return None if found is None else record_of(found)

    def count_foreign_slots(self, account: str, since: datetime | None) -> int:
        """Count the slots of jobs that may hold them and are not ours."""
        start = None if since is None else time_to_text(since)
        return int(self.connection.execute(COUNT_FOREIGN_SLOTS, (account, self._owner, start, start)).fetchone()[0])

    def live_owners(self, account: str) -> list[str]:
        """Return the living owners of active jobs of this account, including this one."""
        owners = self.connection.execute(SELECT_OWNERS, (account,))
        return [owner for (owner,) in owners if not self._is_unowned(owner)]

    def adoptable_page(
        self, account: str, live_owners: Sequence[str], after: int, limit: int
    ) -> tuple[int | None, list[JobRecord]]:
        """Return a page of active jobs without an owner, and where the next page starts, if there is one."""
        page = SELECT_ACTIVE_PAGE.format(", ".join("?" * len(live_owners)))
        rows = self.connection.execute(page, (account, after, *live_owners, limit)).fetchall()
        # Checked again: an owner that opened after `live_owners` was read may have adopted some.
        unowned = [record_of(row[2:]) for row in rows if self._is_unowned(row[1])]
        return _next_page_start(rows, limit), unowned

    def uncertain_page(self, account: str, after: int, limit: int) -> tuple[int | None, list[JobRecord]]:
        """Return a page of UNCERTAIN jobs, and where the next page starts, if there is one."""
        rows = self.connection.execute(SELECT_UNCERTAIN_PAGE, (account, after, limit)).fetchall()
        return _next_page_start(rows, limit), [record_of(row[1:]) for row in rows]

    def jobs_page(
        self, states: Collection[JobState] | None, before: int, limit: int
    ) -> tuple[int | None, list[JobRecord]]:
        """Return a page of all jobs, the newest first, and where the next page starts, if there is one."""
        parameters: Row = (before,)
        if states is None:
            pages = SELECT_PAGE
        else:  # SQLite merges the sorted pages, and reads no more rows than it returns
            pages = " UNION ALL ".join([SELECT_PAGE_OF_STATE] * len(states))
            parameters = tuple(parameter for state in states for parameter in (before, state.value))
        rows = self.connection.execute(f"{pages} ORDER BY id DESC LIMIT ?", (*parameters, limit)).fetchall()
        return _next_page_start(rows, limit), [record_of(row[1:]) for row in rows]

    def jobs_in_key_range(self, first_key: str, last_key: str) -> list[JobRecord]:
        """Return the jobs whose keys lie between two keys, these included, in the order of their keys."""
        return [record_of(row) for row in self.connection.execute(SELECT_BETWEEN, (first_key, last_key)).fetchall()]

    def count_by_state(self) -> Counter[JobState]:
        """Count the jobs by state."""
        return Counter({JobState(state): count for state, count in self.connection.execute(COUNT_BY_STATE)})

    def has_owner(self, key: str) -> bool:
        """Return whether the job is active and has a living owner."""
        found = self.connection.execute(SELECT_OWNER, (key,)).fetchone()
        return found is not None and not self._is_unowned(found[0])

    def count_unowned(self) -> Counter[JobState]:
        """Count the active jobs without a living owner, by state."""
        counts: Counter[JobState] = Counter()
        for owner, state, count in self.connection.execute(COUNT_ACTIVE_BY_OWNER).fetchall():
            if self._is_unowned(owner):
                counts[JobState(state)] += count
        return counts

    def count_prunable(self, older_than: datetime) -> int:
        """Count the jobs that ended before a time."""
        return int(self.connection.execute(COUNT_PRUNABLE, (time_to_text(older_than),)).fetchone()[0])

    def callback_secret(self) -> bytes:
        """Return the key that signs callback URLs; the first call makes it."""
        execute = self.connection.execute
        found = execute("SELECT value FROM secrets WHERE name = 'callbacks'").fetchone()
        if found is None:
            found = (secrets.token_bytes(32),)
            execute("INSERT INTO secrets VALUES ('callbacks', ?)", found)
        return bytes(found[0])

    def notify_owner(self, key: str, task_id: str | None) -> None:
        """Leave a callback notice for the owner of an active job, unless that is this owner."""
        self.connection.execute(INSERT_NOTICE, (task_id, key, self._owner))

    def take_notices(self) -> list[tuple[str, str | None]]:
        """Remove and return the callback notices for this owner."""
        return self.connection.execute(
            "DELETE FROM callback_notices WHERE owner = ? RETURNING key, task_id", (self._owner,)
        ).fetchall()

    def recall(self, account: str) -> str | None:
        """Return what was learned about an account."""
        found = self.connection.execute("SELECT facts FROM learned WHERE account = ?", (account,)).fetchone()
        return None if found is None else str(found[0])

    def remember(self, account: str, learned: str) -> None:
        """Store what was learned about an account."""
        self.connection.execute(UPSERT_LEARNED, (account, learned))

    def count_by_account(self) -> Counter[tuple[str, str]]:
        """Count the jobs of each gateway and account."""
        rows = self.connection.execute(COUNT_BY_ACCOUNT)
        return Counter({(gateway, account): count for gateway, account, count in rows})

    def batch_prefixes(self) -> list[str]:
        """Return the prefixes of the keys of all named batches."""
        return [batch for (batch,) in self.connection.execute(SELECT_BATCHES)]

    def hand_over(self, gateway: str, old: str, new: str) -> int:
        """Move an account's jobs and charges to another one; the new revision makes writes with older records fail."""
        if self.live_owners(old):
            raise LedgerError(
                f"an open session still owns jobs of account {old}: close that session first", safe_to_repeat=True
            )
        self.charges.hand_over(gateway, old, new)
        self.connection.execute(COPY_LEARNED, (new, old))
        copy_uploads(self.connection, old, new)
        return self.connection.execute(CHANGE_ACCOUNT, (new, gateway, old)).rowcount

    def last_id(self) -> int:
        """Return the id of the newest row; 0 when there is none."""
        return int(self.connection.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()[0])

    def prune(self, older_than: datetime, after: int, until: int) -> int:
        """Delete the jobs with ids in (after, until] that ended before a time; return how many."""
        return self.connection.execute(PRUNE, (after, until, time_to_text(older_than))).rowcount

    def _try_own(self, record: JobRecord, owner: str | None) -> bool:
        """Return whether an active job is ours, taking ownership if it has no living owner."""
        if record.state not in ACTIVE_STATES:
            return False
        if owner == self._owner:
            return True
        return self._is_unowned(owner) and bool(
            self.connection.execute(TAKE_OWNERSHIP, (self._owner, record.key, owner)).rowcount
        )

    def _is_unowned(self, owner: str | None) -> bool:
        """Return whether an owner id is null or dead. Owner ids are never reused, so a dead owner stays dead."""
        if owner in self._dead_owners:
            return True
        if owner is None or owner == self._owner or self._is_alive(owner):
            return False
        self._dead_owners.add(owner)
        return True


def _next_page_start(rows: Sequence[Row], limit: int) -> int | None:
    return rows[-1][0] if len(rows) == limit else None
