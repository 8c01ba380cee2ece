"""What SQLite says when it can't, as a `LedgerError` that says what to do. None of it has changed anything."""

import sqlite3
from pathlib import Path

from nanobanana_async.errors import LedgerError

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


def translated(error: sqlite3.Error, path: Path, *, busy_s: float) -> LedgerError:
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


def about(trouble: LedgerError, *, key: str | None, safe_to_repeat: bool) -> LedgerError:
    """Return a copy for one of those whom the trouble hits: each raises an exception of its own."""
    return LedgerError(trouble.message, key=key, safe_to_repeat=safe_to_repeat)
