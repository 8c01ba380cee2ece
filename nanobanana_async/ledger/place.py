"""An open ledger file as its thread holds it: connection, owner's lock, and the desk between them."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.desk import Desk
from nanobanana_async.ledger.file import Schema, current_schema, opened, opened_for_reading
from nanobanana_async.ledger.owners import Owner, Owners
from nanobanana_async.ledger.troubles import translated


class OpenFile:
    """Everything that closing must give back."""

    def __init__(self, path: Path, connection: sqlite3.Connection, owner: Owner | None, *, busy_s: float) -> None:
        self.connection = connection
        self.desk = Desk(connection, None if owner is None else owner.id, Owners(path).alive)
        self._path = path
        self._owner = owner
        self._busy_s = busy_s
        self._log = path.with_name(f"{path.name}-wal")
        files = [path] if owner is None else [path, self._log, path.with_name(f"{path.name}-shm"), owner.file]
        self._identities = {file: file.stat() for file in files}

    def check(self) -> None:
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

    def trouble(self, error: Exception) -> LedgerError:
        """Say what an error means to the user."""
        return trouble(error, self._path, self._busy_s)

    def close(self) -> None:
        """Close the database, then give up the jobs."""
        with suppress(sqlite3.Error):
            self.connection.close()
        if self._owner is not None:
            self._owner.resign()


def open_file(path: Path, *, read_only: bool, busy_s: float, schema: Schema | None = None) -> OpenFile:
    """Open a ledger; raises nothing but `LedgerError`."""
    try:
        path = Path(os.path.realpath(path))  # links lead to one file: all who use it must meet at one place
        schema = schema or current_schema()
        if read_only:
            return OpenFile(path, opened_for_reading(path, schema, busy_s=busy_s), None, busy_s=busy_s)
        connection = opened(path, schema, busy_s=busy_s)
        try:
            return OpenFile(path, connection, Owners(path).enlist(), busy_s=busy_s)
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
            return translated(error, path, busy_s=busy_s)
        case OSError():
            return LedgerError(f"ledger {path}: {error}: check that this user may write the file and its folder")
        case _:
            return LedgerError(f"ledger {path}: {type(error).__name__}: {error}")
