"""Create, check and migrate the tables of a ledger in its PostgreSQL schema."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

from attrs import frozen
from psycopg import errors, sql

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.postgres import driver
from nanobanana_async.ledger.postgres.parts import script
from nanobanana_async.ledger.postgres.url import PostgresUrl

CLIENT = 1
"""The version of the tables that this library writes; `meta.min_client` is compared with it."""


@frozen(kw_only=True)
class Step:
    """A step from one version of the tables to the next. During a rolling deploy old and new clients run together.

    So a step only adds; what old clients could not live with comes a release later, with a higher `min_client`.
    """

    script: str
    min_client: int = 1


@frozen(kw_only=True)
class Tables:
    """The script that creates the tables, the steps that migrate older ones, and the version of the client."""

    script: str
    steps: Sequence[Step] = ()
    client: int = CLIENT

    @property
    def version(self) -> int:
        """The version of tables that are up to date."""
        return 1 + len(self.steps)


@cache
def current_tables() -> Tables:
    """Return the tables of this version of the library."""
    return Tables(script=script())


def prepare(
    db: driver.Connection, url: PostgresUrl, tables: Tables, settings: Mapping[str, str], *, may_write: bool
) -> None:
    """Check the tables; create or migrate them if needed and `may_write`. Raises `LedgerError` or `psycopg.Error`."""
    if db.info.parameter_status("server_encoding") not in ("UTF8", None):
        raise LedgerError(f"ledger {url}: the database is not in UTF-8: create one with `createdb --encoding UTF8`")
    with _transaction(db, settings):
        found = read_version(db, url, tables)
    if found == tables.version or (found is not None and found > tables.version):
        return
    if not may_write:
        state = "there is no ledger in this schema" if found is None else f"version {found}"
        raise LedgerError(f"ledger {url}: {state}: open it for writing once, which creates or migrates it")
    db.answer_s = driver.BULK_TIMEOUT_S
    with _transaction(db, settings):  # the lock ends with it: two hosts may open an empty database at once
        db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"nanobanana_async {url.schema}",))
        found = read_version(db, url, tables)
        if found is None:
            _create_schema(db, url)
        if found is None or found < tables.version:
            try:
                _run_steps(db, found, tables)
            except errors.InsufficientPrivilege:
                raise LedgerError(_how_to_migrate(db, url, found, tables)) from None


@contextmanager
def _transaction(db: driver.Connection, settings: Mapping[str, str]) -> Iterator[None]:
    with db.transaction():
        db.execute(driver.SETTINGS.encode(), settings)
        yield


def read_version(db: driver.Connection, url: PostgresUrl, tables: Tables) -> int | None:
    """Return the version of the tables, None if there are none; raise `LedgerError` if this client is too old."""
    meta = sql.SQL("{}.meta").format(sql.Identifier(url.schema))
    exists = (
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relname = 'meta'"
    )
    if db.execute(exists, (url.schema,)).fetchone() is None:
        return None
    try:
        found = db.execute(sql.SQL("SELECT version, min_client FROM {}").format(meta)).fetchone()
    except errors.UndefinedColumn:
        found = None
    if found is None:
        raise LedgerError(f"ledger {url}: its table `meta` is not that of a ledger: choose another schema")
    version, min_client = int(str(found[0])), int(str(found[1]))
    if min_client > tables.client:
        raise LedgerError(
            f"ledger {url}: written by a newer nanobanana_async (it needs clients of ledger version {min_client}, this"
            f" one is {tables.client}): upgrade the library on this host"
        )
    return version


def _create_schema(db: driver.Connection, url: PostgresUrl) -> None:
    """Create the schema; raise `LedgerError` if this user may not, or if others have tables in it."""
    name = url.schema
    if db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (name,)).fetchone() is None:
        try:
            with db.transaction():
                db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        except errors.InsufficientPrivilege:
            raise LedgerError(_how_to_create(db, url, "create the schema")) from None
        return
    others = "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s LIMIT 1"
    if (table := db.execute(others, (name,)).fetchone()) is not None:
        raise LedgerError(
            f"ledger {url}: schema {name!r} holds other tables, such as {table[0]!r}: choose another schema"
        )
    may_create = db.execute("SELECT has_schema_privilege(%s, 'CREATE')", (name,)).fetchone()
    if may_create is None or not may_create[0]:
        raise LedgerError(_how_to_create(db, url, "create tables in the schema"))


def _how_to_create(db: driver.Connection, url: PostgresUrl, what: str) -> str:
    user, name = db.info.user, url.schema
    return (
        f"ledger {url}: user {user!r} may not {what} {name!r}: let an administrator run"
        f' `CREATE SCHEMA IF NOT EXISTS "{name}" AUTHORIZATION "{user}"` in database {db.info.dbname!r},'
        " or open the ledger once as a user who may"
    )


def _how_to_migrate(db: driver.Connection, url: PostgresUrl, found: int | None, tables: Tables) -> str:
    return (
        f"ledger {url}: the tables are of version {found}, this library needs version {tables.version}, and user"
        f" {db.info.user!r} may not migrate them: run `nanobanana ledger migrate` once as their owner"
    )


def _run_steps(db: driver.Connection, found: int | None, tables: Tables) -> None:
    if found is None:
        db.execute(tables.script.encode())
        db.execute("INSERT INTO meta VALUES (1, 1)")
        found = 1
    for step in tables.steps[found - 1 :]:
        db.execute(step.script.encode())
        db.execute("UPDATE meta SET min_client = greatest(min_client, %s)", (step.min_client,))
    db.execute("UPDATE meta SET version = %s", (tables.version,))
