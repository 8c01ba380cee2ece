"""An open ledger file: the SQLite connection, the owner's lock and the job table; and errors as `LedgerError`."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.file import Schema, current_schema, open_read_only, open_writable, transaction
from nanobanana_async.ledger.owners import Owner, Owners
from nanobanana_async.ledger.statements import JobTable
from nanobanana_async.ledger.writer import Result, WorkItem


class LedgerConnection:
    """An open ledger file, used by one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection, owner: Owner | None, *, busy_s: float) -> None:
        self.connection = connection
        self.table = JobTable(connection, None if owner is None else owner.id, Owners(path).is_alive)
        self._path = path
        self._owner = owner
        self._busy_s = busy_s
        self._wal_file = path.with_name(f"{path.name}-wal")
        files = [path] if owner is None else [path, self._wal_file, path.with_name(f"{path.name}-shm"), owner.file]
        self._identities = {file: file.stat() for file in files}

    def check_not_replaced(self) -> None:
        """Raise `LedgerError` if the database, its log or the lock file was moved, deleted or replaced.

        SQLite would continue to write to a file that no other process reads, and a kill would lose those writes.
        Without the lock file, other processes would consider this owner dead and buy its jobs.
        """
        for file, identity in self._identities.items():
            try:
                unchanged = os.path.samestat(file.stat(), identity)
            except OSError:
                unchanged = False
            if not unchanged:
                self._checkpoint_deleted_log()
                raise LedgerError(
                    f"ledger {self._path}: the file {file.name} was moved, deleted or replaced while it was open:"
                    " nothing more is written; restore the file, or close every session that uses the ledger and open"
                    " it again"
                )

    def _checkpoint_deleted_log(self) -> None:
        """Copy the content of a deleted log into the database, since no later connection can read that log."""
        with suppress(OSError, sqlite3.Error):
            same_database = os.path.samestat(self._path.stat(), self._identities[self._path])
            if same_database and not self._wal_file.exists():
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def to_ledger_error(self, error: Exception) -> LedgerError:
        """Return an error as a `LedgerError` that says what to do."""
        return _to_ledger_error(error, self._path, self._busy_s)

    def run(self, batch: Sequence[WorkItem[Any]]) -> list[list[Result]]:
        """Run work items in one transaction; return their results after the commit."""
        return [run_in_transaction(self, batch)]

    def wait_s(self) -> float | None:
        """Return None: between transactions a file needs nothing."""
        return None

    def tend(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the database, then release the owner's lock."""
        with suppress(sqlite3.Error):
            self.connection.close()
        if self._owner is not None:
            self._owner.release()


def run_in_transaction(file: LedgerConnection, batch: Sequence[WorkItem[Any]]) -> list[Result]:
    """Run work items in one transaction; return their results after the commit."""
    writes = any(item.writes for item in batch)
    try:
        if writes:
            file.check_not_replaced()
        with transaction(file.connection, "BEGIN IMMEDIATE" if writes else "BEGIN"):
            results = [_run_item(file, item) for item in batch]
        if writes:
            file.check_not_replaced()  # if a file was replaced during the commit, no other process sees these writes
        return results
    except Exception as error:
        failure = file.to_ledger_error(error)
        return [item.failed(failure) for item in batch]


def _run_item(file: LedgerConnection, item: WorkItem[Any]) -> Result:
    try:
        return item.future, item.work(file.table), None
    except LedgerError as error:
        return item.future, None, error
    except (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError, ValueError, OverflowError) as error:
        # Only this item's values are at fault: the other items of the transaction continue.
        failure = LedgerError(f"the record can't be stored: {type(error).__name__}: {error}")
        return item.failed(failure)


def open_file(path: Path, *, read_only: bool, busy_s: float, schema: Schema | None = None) -> LedgerConnection:
    """Open a ledger; raises only `LedgerError`."""
    try:
        path = Path(os.path.realpath(path))  # all links to one file must share one -wal file and one owners folder
        schema = schema or current_schema()
        if read_only:
            return LedgerConnection(path, open_read_only(path, schema, busy_s=busy_s), None, busy_s=busy_s)
        connection = open_writable(path, schema, busy_s=busy_s)
        try:
            return LedgerConnection(path, connection, Owners(path).acquire(), busy_s=busy_s)
        except BaseException:
            connection.close()
            raise
    except Exception as error:
        raise _to_ledger_error(error, path, busy_s) from error


def _to_ledger_error(error: Exception, path: Path, busy_s: float) -> LedgerError:
    """Return an error as a `LedgerError` that says what to do."""
    match error:
        case LedgerError():
            return error
        case sqlite3.Error():
            return from_sqlite_error(error, path, busy_s=busy_s)
        case OSError():
            return LedgerError(f"ledger {path}: {error}: check that this user may write the file and its folder")
        case _:
            return LedgerError(f"ledger {path}: {type(error).__name__}: {error}")


_PRIMARY_CODE = 0xFF  # the low byte of an extended result code

ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full: free some disk space, then repeat",
    sqlite3.SQLITE_READONLY: "read-only: make the file and its folder writable, or choose another path",
    sqlite3.SQLITE_PERM: "no permission: change the owner or the permissions of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: (
        "can't be opened: check that this user may read and write the file and its folder, where SQLite makes the"
        " -wal and -shm files"
    ),
    sqlite3.SQLITE_IOERR: "disk error: check disk and file system, then repeat",
    sqlite3.SQLITE_CORRUPT: (
        "the file is damaged: move it aside with its -wal file, and restore a backup or recover it with"
        " `sqlite3 FILE .recover`; jobs missing from it may have been bought"
    ),
    sqlite3.SQLITE_NOTADB: "not a SQLite database: choose another path, or restore a backup",
}


def from_sqlite_error(error: sqlite3.Error, path: Path, *, busy_s: float) -> LedgerError:
    """Return a `LedgerError` that says what happened and what to do."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & _PRIMARY_CODE
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        advice = (
            f"locked by another process for more than {busy_s:g} s: a long write, a backup, or a database tool with an"
            " open transaction; end that, then repeat"
        )
    elif primary == sqlite3.SQLITE_ERROR and "no such " in str(error):
        advice = "its tables are of another state of the library: name another file, or use the library that made it"
    else:
        advice = ADVICE.get(primary or 0, "SQLite failed")
    return LedgerError(f"ledger {path}: {advice} [{error}]")
