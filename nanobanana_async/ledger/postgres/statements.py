"""The SQL statements on the table `jobs` on PostgreSQL, with the ownership rules.

Each method is the work of one call (`pipeline.py`): it runs in the transaction of a flush, which holds the row of this
owner, so that it can't be buried before the commit. A burial releases its jobs: what has an owner has a living one.
"""

import secrets
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord
from nanobanana_async.ledger.base import Allowance, Claim, NotOurs, TaskTaken, Upload
from nanobanana_async.ledger.columns import COLUMNS, IDENTITY, PROGRESS, same_identity, sql_list
from nanobanana_async.ledger.postgres.charges import CHARGES, INSERT_CHARGES, Charges, charges_row
from nanobanana_async.ledger.postgres.columns import (
    SELECTED,
    as_text,
    from_text,
    identity_row,
    none_or_text,
    progress_row,
    record_of,
    recordset,
    utc,
)
from nanobanana_async.ledger.postgres.known import Known
from nanobanana_async.ledger.postgres.pipeline import Statement, StatementRow, Work
from nanobanana_async.policy.prices import Price

ACTIVE = f"state IN ({sql_list(ACTIVE_STATES)})"

_INSERT_JOB = (
    f"INSERT INTO jobs ({', '.join(COLUMNS)}, owner)"
    f" SELECT u.*, %(me)s FROM {recordset(*COLUMNS)}"
    " ON CONFLICT (key) DO NOTHING RETURNING key"
)


TASK_HOLDER = (
    "SELECT h.key FROM jobs AS h WHERE h.account = u.account AND h.task_id = u.task_id AND h.key <> u.key"
    " AND h.first_sent_at IS NOT NULL"
)


def _compare_and_swap(columns: tuple[str, ...], also: tuple[str, ...] = ()) -> str:
    changed = ", ".join(f"{column} = u.{column}" for column in columns)
    given = dict.fromkeys(("key", "before", "account", *columns, *also))
    return (
        f"UPDATE jobs AS j SET {changed}, owner = %(me)s FROM {recordset(*given)}"
        f" WHERE j.key = u.key AND j.revision = u.before AND (j.owner = %(me)s OR NOT j.{ACTIVE})"
        f" AND (u.task_id IS NOT DISTINCT FROM j.task_id OR NOT EXISTS ({TASK_HOLDER})) RETURNING j.key"
    )


_UPDATE_PROGRESS = _compare_and_swap(PROGRESS)
_UPDATE_ALL = _compare_and_swap(IDENTITY + PROGRESS)
# One statement, so that there is neither a charge without its transition nor a transition without its charge.
_UPDATE_AND_CHARGE = (
    f"WITH swapped AS ({_compare_and_swap(IDENTITY + PROGRESS, (CHARGES,))}, j.id, j.generation, j.account,"
    f" u.{CHARGES}), charged AS ({INSERT_CHARGES})"
    " SELECT key FROM swapped"
)
_SELECT_BY_KEY = f"SELECT {SELECTED}, j.owner FROM {recordset('key')} JOIN jobs AS j ON j.key = u.key"
_TAKE_OWNERSHIP = (
    f"WITH free AS (SELECT j.id FROM {recordset('key')} JOIN jobs AS j ON j.key = u.key WHERE j.{ACTIVE}"
    " AND (j.owner IS NULL OR NOT EXISTS (SELECT FROM owners AS o WHERE o.id = j.owner AND o.buried_by IS NULL))"
    " ORDER BY j.key FOR UPDATE OF j)"
    " UPDATE jobs AS j SET owner = %(me)s FROM free WHERE j.id = free.id RETURNING j.key"
)
_RELEASE = (
    f"UPDATE jobs AS j SET owner = NULL FROM {recordset('key')}"
    f" WHERE j.key = u.key AND j.owner = %(me)s AND j.{ACTIVE} RETURNING j.key"
)
_SELECT_BY_TASKS = (  # the newest, if two keys have the same task
    f"SELECT DISTINCT ON (j.task_id) {SELECTED} FROM jobs AS j"
    " WHERE j.account = %(account)s AND j.task_id = ANY(%(task_ids)s::text[]) ORDER BY j.task_id, j.id DESC"
)
_SELECT_TASK_HOLDER = f"SELECT u.key, ({TASK_HOLDER} LIMIT 1) FROM {recordset('key', 'account', 'task_id')}"
_COUNT_FOREIGN_SLOTS = (
    "SELECT coalesce(sum(slots), 0) FROM jobs"
    " WHERE account = %(account)s AND state IN ('submitting', 'running', 'uncertain')"
    " AND owner IS DISTINCT FROM %(me)s AND (%(since)s::timestamptz IS NULL"
    " OR coalesce(running_since, first_sent_at, created_at) >= %(since)s::timestamptz)"
)
_ADD_SECRET = "INSERT INTO secrets VALUES ('callbacks', %(value)s) ON CONFLICT (name) DO NOTHING"
_INSERT_NOTICE = (
    "INSERT INTO callback_notices SELECT owner, key, %(task_id)s FROM jobs"
    f" WHERE key = %(key)s AND owner <> %(me)s AND {ACTIVE}"
    " ON CONFLICT (owner, key) DO UPDATE SET task_id = excluded.task_id"
)
_TAKE_NOTICES = "DELETE FROM callback_notices WHERE owner = %(me)s RETURNING key, task_id"
_REMEMBER = (
    "INSERT INTO learned VALUES (%(account)s, %(facts)s) ON CONFLICT (account) DO UPDATE SET facts = excluded.facts"
)
_SELECT_UPLOAD = "SELECT url, size, uploaded_at FROM uploads WHERE account = %(account)s AND digest = %(digest)s"
_REMEMBER_UPLOAD = (
    "INSERT INTO uploads VALUES (%(account)s, %(digest)s, %(url)s, %(size)s, %(uploaded_at)s)"
    " ON CONFLICT (account, digest) DO UPDATE SET url = excluded.url, size = excluded.size,"
    " uploaded_at = excluded.uploaded_at"
)


class PostgresTable:
    """The tables of the ledger as one owner may read and write them; the owner None may only read.

    `commit_in_doubt`: the answer to an earlier commit of the same calls was lost, so they may be stored already.
    """

    def __init__(self, owner: int | None, *, commit_in_doubt: bool = False) -> None:
        self.owner = owner
        self.charges = Charges(owner)
        self._commit_in_doubt = self.commit_in_doubt = commit_in_doubt
        self.written: dict[str, Known | None] = {}
        """The records that were written or adopted, by key; None: the job was released."""

    def claim(self, record: JobRecord) -> Work[Claim]:
        """Insert a job as its owner, or return the stored record; an active job without an owner becomes ours."""
        (inserted,) = yield [StatementRow(_INSERT_JOB, {**identity_row(record), **progress_row(record)})]
        if inserted:
            return self._note(Claim(record=record, is_new=True, is_ours=record.state in ACTIVE_STATES))
        found = yield from self._take_and_find(record.key)
        if found is None:
            raise LedgerError(f"job {record.key} was pruned by another host meanwhile: repeat", key=record.key)
        if self._commit_in_doubt and found == (record, self.owner):
            return self._note(Claim(record=record, is_new=True, is_ours=record.state in ACTIVE_STATES))
        return self._claim_of(*found)

    def advance(self, before: JobRecord, after: JobRecord) -> Work[None]:
        """Replace `before` if it is unchanged and ours, or ended, and update its charge."""
        if (yield from self._write(before, after)) and after.is_counted:
            yield from self.charges.update_from_record(before, after)

    def advance_and_reserve(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Work[Allowance]:
        """Replace `before` by a row that is about to be sent, and add its charges, if they fit."""
        if self._commit_in_doubt and (yield from self._is_stored(after)):
            self.written[after.key] = Known(record=after, owned=True)
            return (yield from self.charges.reserved_before(after))
        counts = yield from self.charges.counts_of(after, max_credits)
        allowance = yield from self.charges.allowance(after, price, counts)
        if allowance.refusal is None:
            yield from self._write(before, after, charges_row(counts, allowance.price))
            yield from self.charges.release_other_days(after, counts)
        return allowance

    def _write(self, before: JobRecord, after: JobRecord, charges: dict[str, Any] | None = None) -> Work[bool]:
        """Compare and swap, and add charges; return False if `after` was stored by a commit whose answer was lost."""
        row = {"key": as_text(before.key), "before": before.revision, "account": as_text(after.account)}
        row.update(progress_row(after))
        if charges is not None:
            request = StatementRow(_UPDATE_AND_CHARGE, {**row, **identity_row(after), **charges})
        elif same_identity(before, after):
            request = StatementRow(_UPDATE_PROGRESS, row)
        else:
            request = StatementRow(_UPDATE_ALL, {**row, **identity_row(after)})
        (swapped,) = yield [request]
        if swapped or (self._commit_in_doubt and (yield from self._is_stored(after))):
            reserved = None if charges is None else charges[CHARGES]
            self.written[after.key] = Known(record=after, owned=after.state in ACTIVE_STATES, charges=reserved)
            return bool(swapped)
        raise (yield from self._why_refused(before, after))

    def _why_refused(self, before: JobRecord, after: JobRecord) -> Work[LedgerError]:
        """Return the error of a write that changed nothing."""
        task = {"key": as_text(after.key), "account": as_text(after.account), "task_id": none_or_text(after.task_id)}
        ((_, holder),), found = yield [StatementRow(_SELECT_TASK_HOLDER, task), _by_key(before.key)]
        if after.task_id not in (None, before.task_id) and holder is not None:
            return TaskTaken(after.task_id, from_text(holder), key=after.key)
        if not found:
            return LedgerError(f"job {before.key} is not in the ledger", key=before.key, safe_to_repeat=False)
        yield [Statement("UPDATE owners SET refused = refused + 1 WHERE id = %(me)s", returns_rows=False)]
        unchanged = record_of(found[0][:-1]).revision == before.revision
        why = "is not owned by this ledger (any more)" if unchanged else "was changed by another owner"
        return NotOurs(f"job {before.key} {why}", key=before.key)

    def _is_stored(self, after: JobRecord) -> Work[bool]:
        """Return whether exactly this record is stored, and we wrote it: its revision, owner and content are ours."""
        (found,) = yield [_by_key(after.key)]
        return bool(found) and found[0][-1] == self.owner and record_of(found[0][:-1]) == after

    def adopt(self, key: str) -> Work[Claim | None]:
        """Take ownership of an active job that has no living owner; return the stored record."""
        found = yield from self._take_and_find(key)
        return None if found is None else self._claim_of(*found)

    def _take_and_find(self, key: str) -> Work[tuple[JobRecord, int | None] | None]:
        """Own an active job that has no living owner; return the record and its owner as they are then."""
        yield [StatementRow(_TAKE_OWNERSHIP, {"key": as_text(key)})]
        (found,) = yield [_by_key(key)]
        return (record_of(found[0][:-1]), found[0][-1]) if found else None

    def _claim_of(self, record: JobRecord, owner: int | None) -> Claim:
        return self._note(Claim(record=record, is_ours=owner == self.owner and record.state in ACTIVE_STATES))

    def _note(self, claim: Claim) -> Claim:
        if claim.is_new or claim.is_ours:
            self.written[claim.record.key] = Known(record=claim.record, owned=claim.is_ours)
        return claim

    def release(self, key: str) -> Work[None]:
        """Give up ownership of a job that is ours."""
        yield [StatementRow(_RELEASE, {"key": as_text(key)})]
        self.written[key] = None

    def find(self, key: str) -> Work[JobRecord | None]:
        """Return the job with this key."""
        (found,) = yield [_by_key(key)]
        return record_of(found[0][:-1]) if found else None

    def find_task(self, account: str, task_id: str) -> Work[JobRecord | None]:
        """Return the job with this task id; the newest, if two keys have the same task."""
        return (yield from self.known_tasks(account, [task_id])).get(task_id)

    def known_tasks(self, account: str, task_ids: Iterable[str]) -> Work[dict[str, JobRecord | None]]:
        """Return those of the tasks that a job of the account has, with the job."""
        values = {"account": as_text(account), "task_ids": list(map(as_text, task_ids))}
        (found,) = yield [Statement(_SELECT_BY_TASKS, values)]
        records = map(record_of, found)
        return {record.task_id: record for record in records if record.task_id is not None}

    def count_foreign_slots(self, account: str, since: datetime | None) -> Work[int]:
        """Count the slots of jobs that may hold them and are not ours."""
        (found,) = yield [Statement(_COUNT_FOREIGN_SLOTS, {"account": as_text(account), "since": since})]
        return int(found[0][0])

    def callback_secret(self) -> Work[bytes]:
        """Return the key that signs callback URLs; the first call makes it."""
        _, found = yield [
            Statement(_ADD_SECRET, {"value": secrets.token_bytes(32)}, returns_rows=False),
            Statement("SELECT value FROM secrets WHERE name = 'callbacks'"),
        ]
        return bytes(found[0][0])

    def notify_owner(self, key: str, task_id: str | None) -> Work[None]:
        """Leave a callback notice for the owner of an active job, unless that is this owner."""
        values = {"key": as_text(key), "task_id": none_or_text(task_id)}
        yield [Statement(_INSERT_NOTICE, values, returns_rows=False)]

    def take_notices(self) -> Work[list[tuple[str, str | None]]]:
        """Remove and return the callback notices for this owner."""
        (rows,) = yield [Statement(_TAKE_NOTICES)]
        return [(from_text(key), None if task_id is None else from_text(task_id)) for key, task_id in rows]

    def recall(self, account: str) -> Work[str | None]:
        """Return what was learned about an account."""
        (found,) = yield [
            Statement("SELECT facts FROM learned WHERE account = %(account)s", {"account": as_text(account)})
        ]
        return from_text(found[0][0]) if found else None

    def remember(self, account: str, learned: str) -> Work[None]:
        """Store what was learned about an account."""
        values = {"account": as_text(account), "facts": as_text(learned)}
        yield [Statement(_REMEMBER, values, returns_rows=False)]

    def find_upload(self, account: str, digest: str) -> Work[Upload | None]:
        """Return the last upload of this content by the account."""
        (found,) = yield [Statement(_SELECT_UPLOAD, {"account": as_text(account), "digest": as_text(digest)})]
        if not found:
            return None
        url, size, uploaded_at = found[0]
        return Upload(digest=digest, url=from_text(url), size=size, uploaded_at=utc(uploaded_at))

    def remember_upload(self, account: str, upload: Upload) -> Work[None]:
        """Store an upload, in place of an earlier one of the same content."""
        values = {
            "account": as_text(account),
            "digest": as_text(upload.digest),
            "url": as_text(upload.url),
            "size": upload.size,
            "uploaded_at": upload.uploaded_at,
        }
        yield [Statement(_REMEMBER_UPLOAD, values, returns_rows=False)]


def _by_key(key: str) -> StatementRow:
    return StatementRow(_SELECT_BY_KEY, {"key": as_text(key)})
