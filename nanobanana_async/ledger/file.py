"""A ledger's file: made, recognised, brought up to date, opened. Nothing is changed in a file that is not ours."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

from attrs import frozen

from nanobanana_async.errors import LedgerError

APPLICATION_ID = 0x6E62616E  # "nban", for `file` and for us

_PAUSE_S = 0.02

_IDENTIFY = (
    "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),"
    " (SELECT count(*) FROM sqlite_schema)"
)

CACHE_KIB = 8 * 1024

_CREATING = threading.Lock()


@frozen(kw_only=True)
class Schema:
    """How a new ledger is made, and the steps that bring older ones up to it: the first leads from 1 to 2."""

    script: str
    steps: Sequence[str] = ()

    @property
    def version(self) -> int:
        """What `PRAGMA user_version` says of a ledger that is up to date."""
        return len(self.steps) + 1


@cache
def current_schema() -> Schema:
    """Return the schema of this version of the library."""
    return Schema(script=files("nanobanana_async.ledger").joinpath("schema.sql").read_text(encoding="utf-8"))


def open_writable(path: Path, schema: Schema, *, busy_s: float) -> sqlite3.Connection:
    """Open a ledger for writing; make it where there is none. Raises `LedgerError`, `sqlite3.Error` or OSError."""
    if not path.parent.is_dir():
        raise LedgerError(f"ledger {path}: there is no folder {path.parent}: make it first")
    if path.is_dir():
        raise LedgerError(f"ledger {path}: that is a folder: name a file in it")
    _create_private(path)
    connection = _connect(path, "mode=rw", busy_s)
    try:
        _set_up(connection, path, schema, busy_s)
    except BaseException:
        connection.close()
        raise
    return connection


def open_read_only(path: Path, schema: Schema, *, busy_s: float) -> sqlite3.Connection:
    """Open a ledger that must exist, and change nothing; raises as `opened` does."""
    if not path.is_file():
        raise LedgerError(f"ledger {path}: there is no such file")
    try:
        return _recognised(path, "mode=ro", schema, busy_s)
    except sqlite3.OperationalError:
        # SQLite wants to make files beside it and may not. When there is nothing in a -wal file all is in the file
        # itself, and nobody is about to write to it.
        if _size(path.with_name(f"{path.name}-wal")):
            raise
    return _recognised(path, "mode=ro&immutable=1", schema, busy_s)


def _recognised(path: Path, mode: str, schema: Schema, busy_s: float) -> sqlite3.Connection:
    connection = _connect(path, mode, busy_s)
    try:
        found = _version(connection, path, schema)
        if found < schema.version:
            raise LedgerError(
                f"ledger {path}: version {found or 'none'}: open it for writing once, to bring it up to date"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _create_private(path: Path) -> None:
    # For this user only, from its first moment; SQLite gives the files beside it the same permissions. The lock: to
    # close a file drops every lock that this process has on it, those of another ledger's connection too.
    with _CREATING, suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _connect(path: Path, mode: str, busy_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?{mode}", uri=True, timeout=busy_s, isolation_level=None, cached_statements=64
    )


def _version(connection: sqlite3.Connection, path: Path, schema: Schema) -> int:
    """Return the version of a ledger, 0 for an empty file; raise `LedgerError` for what is none that we know."""
    # In one statement, and so from one moment: another process may be making the same file.
    application, version, tables = connection.execute(_IDENTIFY).fetchone()
    if (application, version, tables) == (0, 0, 0):
        return 0
    if application != APPLICATION_ID or version < 1:
        raise LedgerError(f"ledger {path}: that is the database of another application: choose another path")
    if version > schema.version:
        raise LedgerError(
            f"ledger {path}: written by a newer nanobanana_async (ledger version {version}, this one knows"
            f" {schema.version}): upgrade the library"
        )
    return int(version)


def _set_up(connection: sqlite3.Connection, path: Path, schema: Schema, busy_s: float) -> None:
    _version(connection, path, schema)  # before anything is changed
    _switch_to_wal(connection, path, busy_s)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone leaves it in the drive's cache
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    if _version(connection, path, schema) < schema.version:
        with transaction(connection):
            _migrate(connection, _version(connection, path, schema), schema)  # unless somebody else just did


def _switch_to_wal(connection: sqlite3.Connection, path: Path, busy_s: float) -> None:
    # The switch does not wait for somebody else's lock by itself: two processes may be making the same file.
    tries_left = int(busy_s / _PAUSE_S)
    while (mode := _wal_mode(connection, last_try=not tries_left)) is None:
        tries_left -= 1
        time.sleep(_PAUSE_S)
    if mode != "wal":
        raise LedgerError(f"ledger {path}: this file system can't keep a write-ahead log: put it on a local disk")


def _wal_mode(connection: sqlite3.Connection, *, last_try: bool) -> str | None:
    try:
        return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
    except sqlite3.OperationalError as error:
        if last_try or error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return None


def _migrate(connection: sqlite3.Connection, found: int, schema: Schema) -> None:
    for script in schema.steps[found - 1 :] if found else (schema.script,):
        for statement in _statements(script):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {schema.version}")


@contextmanager
def transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Do all that is in it, durably, or nothing."""
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            if connection.in_transaction:  # SQLite ends it by itself after some errors
                connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; `executescript` would commit what is open."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
