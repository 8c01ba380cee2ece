"""What a ledger's writer does inside a transaction: every statement about jobs, and who may make it.

Synchronous, and without a commit: the caller decides what is durable together.
"""

import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import ACTIVE_STATES, TERMINAL_STATES, JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Claim, TaskTaken
from nanobanana_async.ledger.charges import Charges
from nanobanana_async.ledger.columns import (
    COLUMNS,
    IDENTITY,
    PROGRESS,
    Row,
    identity_values,
    moment,
    progress_values,
    record_of,
    same_identity,
)
from nanobanana_async.policy.prices import Price


def _listed(states: Iterable[JobState]) -> str:
    return ", ".join(f"'{state.value}'" for state in JobState if state in frozenset(states))


_ALL = ", ".join(COLUMNS)
_IS_OPEN = f"state IN ({_listed(ACTIVE_STATES | {JobState.UNCERTAIN})})"  # word for word as the index has it
_OPEN = f"account = ? AND {_IS_OPEN}"
_ENDED = f"state NOT IN ({_listed(ACTIVE_STATES)})"

INSERT = f"INSERT INTO jobs ({_ALL}, owner) VALUES ({', '.join('?' * (len(COLUMNS) + 1))}) ON CONFLICT (key) DO NOTHING"
_SWAP = f"UPDATE jobs SET {{}}, owner = ? WHERE key = ? AND revision = ? AND (owner = ? OR {_ENDED})"
UPDATE_PROGRESS = _SWAP.format(", ".join(f"{column} = ?" for column in PROGRESS))
UPDATE_ALL = _SWAP.format(", ".join(f"{column} = ?" for column in IDENTITY + PROGRESS))
FIND = f"SELECT {_ALL}, owner FROM jobs WHERE key = ?"
FIND_TASK = f"SELECT {_ALL} FROM jobs WHERE account = ? AND task_id = ? ORDER BY id DESC LIMIT 1"
TASK_HOLDER = (
    "SELECT key FROM jobs WHERE account = ? AND task_id = ? AND key <> ? AND first_sent_at IS NOT NULL LIMIT 1"
)
ACCOUNTS = "SELECT gateway, account, count(*) FROM jobs GROUP BY gateway, account"
HAND_OVER = "UPDATE jobs SET account = ?, revision = revision + 1 WHERE gateway = ? AND account = ?"
TAKE_OWNERSHIP = "UPDATE jobs SET owner = ? WHERE key = ? AND owner IS ?"
RELEASE = f"UPDATE jobs SET owner = NULL WHERE key = ? AND owner = ? AND NOT {_ENDED}"
SLOTS_OF_OTHERS = (
    f"SELECT count(*) FROM jobs WHERE {_OPEN} AND state <> '{JobState.PENDING.value}' AND owner IS NOT ?"
    " AND (? IS NULL OR coalesce(running_since, first_sent_at, created_at) >= ?)"
)
OWNERS = f"SELECT DISTINCT owner FROM jobs WHERE {_OPEN} AND NOT {_ENDED} AND owner IS NOT NULL"
UNFINISHED_PAGE = (
    f"SELECT id, owner, {_ALL} FROM jobs WHERE {_OPEN} AND NOT {_ENDED} AND id > ?"
    " AND (owner IS NULL OR owner NOT IN ({})) ORDER BY id LIMIT ?"
)
PAGE = f"SELECT id, {_ALL} FROM jobs WHERE id < ?"
PAGE_OF_STATE = f"{PAGE} AND state = ?"
COUNTS = "SELECT state, count(*) FROM jobs GROUP BY state"
OWNER_OF = f"SELECT owner FROM jobs WHERE key = ? AND NOT {_ENDED}"
UNFINISHED_COUNTS = f"SELECT owner, state, count(*) FROM jobs WHERE {_IS_OPEN} AND NOT {_ENDED} GROUP BY owner, state"
_PRUNABLE = f"state IN ({_listed(TERMINAL_STATES)}) AND coalesce(ended_at, created_at) < ?"
PRUNABLE = f"SELECT count(*) FROM jobs WHERE {_PRUNABLE}"
PRUNE = f"DELETE FROM jobs WHERE id > ? AND id <= ? AND {_PRUNABLE}"
LEAVE_NOTICE = (
    f"INSERT OR REPLACE INTO nudges SELECT owner, key, ? FROM jobs WHERE key = ? AND owner <> ? AND NOT {_ENDED}"
)


def update_for(before: JobRecord, after: JobRecord) -> tuple[str, Row]:
    """Return what replaces a record by the next: the statement and the row; only what may differ is written."""
    if same_identity(before, after):
        return UPDATE_PROGRESS, progress_values(after)
    return UPDATE_ALL, identity_values(after) + progress_values(after)


class JobTable:
    """One owner's hand in the table. `alive` tells whether another owner lives."""

    def __init__(self, connection: sqlite3.Connection, owner: str | None, alive: Callable[[str], bool]) -> None:
        self.connection = connection
        self._owner = owner
        self._alive = alive
        self._dead: set[str | None] = {None}
        self.charges = Charges(connection, owner, self._is_unowned)

    def claim(self, record: JobRecord, row: Row) -> Claim:
        """Write a job down as ours, or say what stands under its key; what nobody follows is taken over."""
        run = self.connection.execute
        if run(INSERT, (*row, self._owner)).rowcount:
            return Claim(record=record, new=True, owned=record.state in ACTIVE_STATES)
        found = run(FIND, (record.key,)).fetchone()
        known = record_of(found[:-1])
        return Claim(record=known, owned=self._try_own(known, found[-1]))

    def advance(self, before: JobRecord, after: JobRecord, statement: str, row: Row) -> None:
        """Replace `before` by the row if it still stands there and is ours, or is over; `statement` as `swap` says."""
        self._swap(before, statement, row)
        if after.batch is not None:
            self.charges.follow(before, after)

    def set_aside(
        self,
        before: JobRecord,
        after: JobRecord,
        statement: str,
        row: Row,
        *,
        price: Price,
        max_credits: Decimal | None,
    ) -> Allowance:
        """Replace `before` by a row that is about to be sent, and note its charge, if its batch may buy it."""
        allowance = self.charges.allowance(after, price, max_credits)
        if allowance.refusal is None:
            self._swap(before, statement, row)
            self.charges.add(after, allowance.price)
        return allowance

    def _swap(self, before: JobRecord, statement: str, row: Row) -> None:
        if self.connection.execute(statement, (*row, self._owner, before.key, before.revision, self._owner)).rowcount:
            return
        found = self.connection.execute("SELECT revision FROM jobs WHERE key = ?", (before.key,)).fetchone()
        if found is None:
            why = "is not in the ledger"
        elif found == (before.revision,):
            why = "was changed by somebody else: this ledger does not own it (any more)"
        else:
            why = "was changed by somebody else"
        raise LedgerError(f"job {before.key} {why}", key=before.key, safe_to_repeat=False)

    def check_task(self, after: JobRecord) -> None:
        """Raise `TaskTaken` if another job that was bought has the task id that `after` brings."""
        taken = self.connection.execute(TASK_HOLDER, (after.account, after.task_id, after.key)).fetchone()
        if taken is not None and after.task_id is not None:
            raise TaskTaken(after.task_id, taken[0], key=after.key)

    def adopt(self, key: str) -> Claim | None:
        """Take over an unfinished job that no other living owner follows; return what stands there."""
        found = self.connection.execute(FIND, (key,)).fetchone()
        if found is None:
            return None
        record = record_of(found[:-1])
        return Claim(record=record, owned=self._try_own(record, found[-1]))

    def release(self, key: str) -> None:
        """Let go of a job that is ours."""
        self.connection.execute(RELEASE, (key, self._owner))

    def find(self, key: str) -> JobRecord | None:
        """Return the job with this key."""
        found = self.connection.execute(FIND, (key,)).fetchone()
        return None if found is None else record_of(found[:-1])

    def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job with this task id; the youngest, if two keys stand for one task."""
        found = self.connection.execute(FIND_TASK, (account, task_id)).fetchone()
        return None if found is None else record_of(found)

    def count_slots_of_others(self, account: str, since: datetime | None) -> int:
        """Count the jobs that may hold a slot and are not ours."""
        start = None if since is None else moment(since)
        return int(self.connection.execute(SLOTS_OF_OTHERS, (account, self._owner, start, start)).fetchone()[0])

    def live_owners(self, account: str) -> list[str]:
        """Return who follows unfinished jobs of this account and lives, ourselves among them."""
        return [owner for (owner,) in self.connection.execute(OWNERS, (account,)) if not self._is_unowned(owner)]

    def unfinished(
        self, account: str, living: Sequence[str], after: int, limit: int
    ) -> tuple[int | None, list[JobRecord]]:
        """Return a page of what nobody follows, and where the next one begins, if there is one."""
        page = UNFINISHED_PAGE.format(", ".join("?" * len(living)))
        rows = self.connection.execute(page, (account, after, *living, limit)).fetchall()
        free = [record_of(row[2:]) for row in rows if self._is_unowned(row[1])]  # living ones may have come since
        return _next(rows, limit), free

    def jobs(self, states: Collection[JobState] | None, before: int, limit: int) -> tuple[int | None, list[JobRecord]]:
        """Return a page of all jobs, the newest first, and where the next one begins, if there is one."""
        facts: Row = (before,)
        if states is None:
            pages = PAGE
        else:  # SQLite merges what comes sorted, and reads no more than it returns
            pages = " UNION ALL ".join([PAGE_OF_STATE] * len(states))
            facts = tuple(fact for state in states for fact in (before, state.value))
        rows = self.connection.execute(f"{pages} ORDER BY id DESC LIMIT ?", (*facts, limit)).fetchall()
        return _next(rows, limit), [record_of(row[1:]) for row in rows]

    def counts(self) -> Counter[JobState]:
        """Count the jobs by state."""
        return Counter({JobState(state): count for state, count in self.connection.execute(COUNTS)})

    def is_owned(self, key: str) -> bool:
        """Whether the job has not ended, and an owner that lives follows it."""
        found = self.connection.execute(OWNER_OF, (key,)).fetchone()
        return found is not None and not self._is_unowned(found[0])

    def count_unowned(self) -> Counter[JobState]:
        """Count the unfinished jobs that nobody follows, by state."""
        found: Counter[JobState] = Counter()
        for owner, state, count in self.connection.execute(UNFINISHED_COUNTS).fetchall():
            if self._is_unowned(owner):
                found[JobState(state)] += count
        return found

    def prunable(self, older_than: datetime) -> int:
        """Count what ended before a moment."""
        return int(self.connection.execute(PRUNABLE, (moment(older_than),)).fetchone()[0])

    def callback_secret(self) -> bytes:
        """Return what callbacks are signed with; make it when it is asked for first."""
        run = self.connection.execute
        found = run("SELECT value FROM secrets WHERE name = 'callbacks'").fetchone()
        if found is None:
            found = (secrets.token_bytes(32),)
            run("INSERT INTO secrets VALUES ('callbacks', ?)", found)
        return bytes(found[0])

    def notify_owner(self, key: str, task_id: str | None) -> None:
        """Leave word for the owner of an unfinished job, unless that is us."""
        self.connection.execute(LEAVE_NOTICE, (task_id, key, self._owner))

    def take_notices(self) -> list[tuple[str, str | None]]:
        """Take what was left for us."""
        return self.connection.execute(
            "DELETE FROM nudges WHERE owner = ? RETURNING key, task_id", (self._owner,)
        ).fetchall()

    def accounts(self) -> Counter[tuple[str, str]]:
        """Count the jobs of each gateway and account."""
        return Counter({(gateway, account): count for gateway, account, count in self.connection.execute(ACCOUNTS)})

    def hand_over(self, gateway: str, old: str, new: str) -> int:
        """Give the jobs of one account to another; the new revision fences whoever still holds an old record."""
        if self.live_owners(old):
            raise LedgerError(
                f"a session that lives follows jobs of account {old}: close it first", safe_to_repeat=True
            )
        return self.connection.execute(HAND_OVER, (new, gateway, old)).rowcount

    def last_id(self) -> int:
        """Return the id of the newest row; 0 when there is none."""
        return int(self.connection.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()[0])

    def prune(self, older_than: datetime, after: int, until: int) -> int:
        """Delete what ended before a moment, in a stretch of rows."""
        return self.connection.execute(PRUNE, (after, until, moment(older_than))).rowcount

    def _try_own(self, record: JobRecord, owner: str | None) -> bool:
        """Whether an unfinished job is ours: it was already, or it is now since nobody follows it."""
        if record.state not in ACTIVE_STATES:
            return False
        if owner == self._owner:
            return True
        return self._is_unowned(owner) and bool(
            self.connection.execute(TAKE_OWNERSHIP, (self._owner, record.key, owner)).rowcount
        )

    def _is_unowned(self, owner: str | None) -> bool:
        """Whether nobody follows what this owner followed; the dead don't come back."""
        if owner in self._dead:
            return True
        if owner is None or owner == self._owner or self._alive(owner):
            return False
        self._dead.add(owner)
        return True


def _next(rows: Sequence[Row], limit: int) -> int | None:
    return rows[-1][0] if len(rows) == limit else None
