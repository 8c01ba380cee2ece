"""Where a stored ledger is: the path of an SQLite file, or the URL of a PostgreSQL server."""

import os
from pathlib import Path

from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.url import PostgresUrl, is_postgres_url
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.validators import as_file

Location = Path | PostgresUrl
"""As a text it shows no password."""


def as_location(name: str, value: object) -> Location:
    """Return where a ledger is; raise `ConfigurationError` for what is neither a path nor a PostgreSQL URL."""
    if isinstance(value, PostgresUrl):
        return value
    return PostgresUrl.parse(str(value)) if is_postgres_url(value) else as_file(name, value)


def ledger_at(location: str | os.PathLike[str] | PostgresUrl, *, read_only: bool = False) -> StoredLedger:
    """Return the ledger at a path or URL, not yet open."""
    if isinstance(location, PostgresUrl):
        return PostgresLedger(location.url, schema=location.schema, read_only=read_only)
    if is_postgres_url(location):
        return PostgresLedger(str(location), read_only=read_only)
    return SqliteLedger(location, read_only=read_only)
