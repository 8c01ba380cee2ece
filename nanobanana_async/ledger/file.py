"""Create, identify, migrate and open a ledger's file. A file that is not a ledger is never changed."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

from attrs import frozen

from nanobanana_async.errors import LedgerError

APPLICATION_ID = 0x6E62616E  # "nban": identifies a ledger, also to the command `file`

_WAL_RETRY_S = 0.02

_IDENTIFY = (
    "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),"
    " (SELECT count(*) FROM sqlite_schema)"
)

CACHE_KIB = 8 * 1024

_CREATE_LOCK = threading.Lock()


@frozen(kw_only=True)
class Schema:
    """The script that creates a ledger, and the steps that migrate older ones, one for each version from `first` on."""

    script: str
    steps: Sequence[str] = ()
    first_version: int = 1
    """The oldest version that can be migrated."""

    @property
    def version(self) -> int:
        """`PRAGMA user_version` of an up-to-date ledger."""
        return self.first_version + len(self.steps)


@cache
def current_schema() -> Schema:
    """Return the schema of this version of the library."""
    script = files("nanobanana_async.ledger").joinpath("schema.sql").read_text(encoding="utf-8")
    return Schema(script=script, first_version=3)


_PARTS = (
    "SELECT type || ' ' || name FROM sqlite_schema WHERE sql IS NOT NULL UNION ALL"
    " SELECT 'column ' || t.name || '.' || c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c"
    " WHERE t.type = 'table'"
)


def missing_parts(connection: sqlite3.Connection, schema: Schema) -> list[str]:
    """Return what a ledger lacks of its tables, columns, indexes and triggers, such as "table jobs"."""
    with closing(sqlite3.connect(":memory:")) as made:
        made.executescript(schema.script)
        wanted = [part for (part,) in made.execute(_PARTS)]
    found = {part for (part,) in connection.execute(_PARTS)}
    return [part for part in wanted if part not in found]


def open_writable(path: Path, schema: Schema, *, busy_s: float) -> sqlite3.Connection:
    """Open a ledger for writing, creating it if needed. Raises `LedgerError`, `sqlite3.Error` or OSError."""
    if not path.parent.is_dir():
        raise LedgerError(f"ledger {path}: the folder {path.parent} does not exist: create it first")
    if path.is_dir():
        raise LedgerError(f"ledger {path}: this is a folder: name a file in it")
    _create_private(path)
    connection = _connect(path, "mode=rw", busy_s)
    try:
        _configure_and_migrate(connection, path, schema, busy_s)
    except BaseException:
        connection.close()
        raise
    return connection


def open_read_only(path: Path, schema: Schema, *, busy_s: float) -> sqlite3.Connection:
    """Open an existing ledger without changing anything; raises as `open_writable` does."""
    if not path.is_file():
        raise LedgerError(f"ledger {path}: no such file")
    try:
        return _open_identified(path, "mode=ro", schema, busy_s)
    except sqlite3.OperationalError:
        # SQLite may not create its -wal and -shm files here. If there is no -wal content, the file itself is complete
        # and no other process is writing to it, so it can be read as immutable.
        if _size_or_zero(path.with_name(f"{path.name}-wal")):
            raise
    return _open_identified(path, "mode=ro&immutable=1", schema, busy_s)


def _open_identified(path: Path, mode: str, schema: Schema, busy_s: float) -> sqlite3.Connection:
    connection = _connect(path, mode, busy_s)
    try:
        found = _read_version(connection, path, schema)
        if found < schema.version:
            raise LedgerError(f"ledger {path}: version {found or 'none'}: open it for writing once, which migrates it")
    except BaseException:
        connection.close()
        raise
    return connection


def _size_or_zero(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _create_private(path: Path) -> None:
    # Readable by this user only from the start; SQLite gives the -wal and -shm files the same permissions. The lock is
    # needed since closing a file drops every POSIX lock of this process on it, also those of another ledger object.
    with _CREATE_LOCK, suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _connect(path: Path, mode: str, busy_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?{mode}", uri=True, timeout=busy_s, isolation_level=None, cached_statements=64
    )


def _read_version(connection: sqlite3.Connection, path: Path, schema: Schema) -> int:
    """Return the version of a ledger, 0 for an empty file; raise `LedgerError` for any other file."""
    # One statement reads one snapshot: another process may be creating the same file.
    application, version, tables = connection.execute(_IDENTIFY).fetchone()
    if (application, version, tables) == (0, 0, 0):
        return 0
    if application != APPLICATION_ID or version < 1:
        raise LedgerError(f"ledger {path}: the database of another application: choose another path")
    if version > schema.version:
        raise LedgerError(
            f"ledger {path}: written by a newer nanobanana_async (ledger version {version}, this one knows"
            f" {schema.version}): upgrade the library"
        )
    if version < schema.first_version:
        raise LedgerError(
            f"ledger {path}: written by an unreleased nanobanana_async (ledger version {version}; the oldest that this"
            f" one reads is {schema.first_version}): move the file away. The version that wrote it can read its jobs"
        )
    return int(version)


def _configure_and_migrate(connection: sqlite3.Connection, path: Path, schema: Schema, busy_s: float) -> None:
    _read_version(connection, path, schema)  # raises for a foreign file, before anything is changed
    _switch_to_wal(connection, path, busy_s)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone leaves data in the drive's cache
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    if _read_version(connection, path, schema) < schema.version:
        with transaction(connection):
            _migrate(
                connection, _read_version(connection, path, schema), schema
            )  # read again: another process may have migrated it


def _switch_to_wal(connection: sqlite3.Connection, path: Path, busy_s: float) -> None:
    # SQLite's busy timeout does not cover this switch, and two processes may be creating the same file.
    tries_left = int(busy_s / _WAL_RETRY_S)
    while (mode := _try_wal_mode(connection, last_try=not tries_left)) is None:
        tries_left -= 1
        time.sleep(_WAL_RETRY_S)
    if mode != "wal":
        raise LedgerError(f"ledger {path}: this file system has no support for WAL mode: use a file on a local disk")


def _try_wal_mode(connection: sqlite3.Connection, *, last_try: bool) -> str | None:
    try:
        return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
    except sqlite3.OperationalError as error:
        if last_try or error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return None


def _migrate(connection: sqlite3.Connection, found: int, schema: Schema) -> None:
    for script in schema.steps[found - schema.first_version :] if found else (schema.script,):
        for statement in _split_statements(script):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {schema.version}")


@contextmanager
def transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Commit the block's statements together, or roll all of them back."""
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            if connection.in_transaction:  # after some errors SQLite has already rolled back
                connection.execute("ROLLBACK")
        raise


def _split_statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; `executescript` would commit the open transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
