"""Where a stored ledger is: the path of an SQLite file, or the URL of a PostgreSQL server."""

import os
from pathlib import Path

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.url import PostgresUrl, is_postgres_url
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.validators import as_file

Location = Path | PostgresUrl
"""As a text it shows no password."""


def as_location(name: str, value: object) -> Location:
    """Return where a ledger is; raise `ConfigurationError` for what is neither a path nor a PostgreSQL URL."""
    value = read_url(value)
    if isinstance(value, ConfigurationError):
        raise value
    return value if isinstance(value, PostgresUrl) else as_file(name, value)


def ledger_at(location: str | os.PathLike[str] | PostgresUrl, *, read_only: bool = False) -> StoredLedger:
    """Return the ledger at a path or URL, not yet open."""
    where = read_url(location)
    del location  # it may hold a password, and some tools show the locals of a traceback
    match where:
        case ConfigurationError():
            raise where
        case PostgresUrl():
            return PostgresLedger(where.url, schema=where.schema, read_only=read_only)
        case _:
            return SqliteLedger(where, read_only=read_only)  # type: ignore[arg-type]


def read_url(location: object) -> object:
    """Return the URL of a server that a text is, or the error in it, which is not raised here; else the value."""
    return PostgresUrl.read(str(location)) if is_postgres_url(location) else location
