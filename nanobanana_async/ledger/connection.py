"""An open ledger file as its thread holds it: connection, owner's lock, and the desk between them."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.file import Schema, current_schema, open_read_only, open_writable
from nanobanana_async.ledger.owners import Owner, Owners
from nanobanana_async.ledger.statements import JobTable


class LedgerConnection:
    """Everything that closing must give back."""

    def __init__(self, path: Path, connection: sqlite3.Connection, owner: Owner | None, *, busy_s: float) -> None:
        self.connection = connection
        self.desk = JobTable(connection, None if owner is None else owner.id, Owners(path).alive)
        self._path = path
        self._owner = owner
        self._busy_s = busy_s
        self._log = path.with_name(f"{path.name}-wal")
        files = [path] if owner is None else [path, self._log, path.with_name(f"{path.name}-shm"), owner.file]
        self._identities = {file: file.stat() for file in files}

    def check_not_replaced(self) -> None:
        """Raise `LedgerError` if a file that durability rests on was taken away.

        SQLite would go on writing where no other process looks, and a kill would lose what it wrote. Without the lock
        file other processes would take this owner for dead, and buy its jobs.
        """
        for file, identity in self._identities.items():
            try:
                there = os.path.samestat(file.stat(), identity)
            except OSError:
                there = False
            if not there:
                self._rescue()
                raise LedgerError(
                    f"ledger {self._path}: the file {file.name} was moved, deleted or replaced while it was open:"
                    " nothing more is written; put it back as it was, or close every session that uses the ledger and"
                    " open it again"
                )

    def _rescue(self) -> None:
        """Move what only a deleted log holds into the database itself, which the log would no longer reach."""
        with suppress(OSError, sqlite3.Error):
            whole = os.path.samestat(self._path.stat(), self._identities[self._path])
            if whole and not self._log.exists():
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def to_ledger_error(self, error: Exception) -> LedgerError:
        """Say what an error means to the user."""
        return trouble(error, self._path, self._busy_s)

    def close(self) -> None:
        """Close the database, then give up the jobs."""
        with suppress(sqlite3.Error):
            self.connection.close()
        if self._owner is not None:
            self._owner.release()


def open_file(path: Path, *, read_only: bool, busy_s: float, schema: Schema | None = None) -> LedgerConnection:
    """Open a ledger; raises nothing but `LedgerError`."""
    try:
        path = Path(os.path.realpath(path))  # links lead to one file: all who use it must meet at one place
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
        raise trouble(error, path, busy_s) from error


def trouble(error: Exception, path: Path, busy_s: float) -> LedgerError:
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


_PRIMARY = 0xFF  # the low byte of an extended result code

ADVICE = {
    sqlite3.SQLITE_FULL: "there is no room left: free some disk space, then repeat",
    sqlite3.SQLITE_READONLY: "it is read-only: make the file and its folder writable, or choose another path",
    sqlite3.SQLITE_PERM: "this user may not use it: change the owner or the permissions of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: (
        "it can't be opened: check that this user may read and write the file and its folder, which SQLite needs for"
        " the -wal and -shm files beside it"
    ),
    sqlite3.SQLITE_IOERR: "the disk answers with errors: check disk and file system before you go on",
    sqlite3.SQLITE_CORRUPT: (
        "the file is damaged: keep it aside with its -wal file, and restore a backup or rescue it with"
        " `sqlite3 FILE .recover`; jobs that it forgot may have been bought"
    ),
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database: choose another path, or restore a backup",
}


def from_sqlite_error(error: sqlite3.Error, path: Path, *, busy_s: float) -> LedgerError:
    """Return what happened to the ledger, and what the reader can do now."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & _PRIMARY
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        advice = (
            f"somebody else has kept it locked for more than {busy_s:g} s: another process in the middle of a long"
            " write, a backup, or a database tool with an open transaction; end that, then repeat"
        )
    else:
        advice = ADVICE.get(primary or 0, "see the message of SQLite")
    return LedgerError(f"ledger {path}: {advice} [{error}]")


def copy_for(trouble: LedgerError, *, key: str | None, safe_to_repeat: bool) -> LedgerError:
    """Return a copy for one of those whom the trouble hits: each raises an exception of its own."""
    return LedgerError(trouble.message, key=key, safe_to_repeat=safe_to_repeat)
