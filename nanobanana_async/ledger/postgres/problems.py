"""Errors of PostgreSQL and its driver as `LedgerError` that say what to do, never with a password."""

import psycopg
from psycopg import errors

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.postgres.driver import FailedOver, NoAnswer
from nanobanana_async.ledger.postgres.url import PostgresUrl

# What the server or libpq says when a connection is refused -> what the user can do. Connections have no error codes.
_CONNECT_ADVICE = (
    (
        ("starting up", "shutting down", "recovery mode", "not yet accepting"),
        "the server is starting or stopping: repeat in a moment",
    ),
    (("server login",), "the pooler can't reach the server, or the server refuses its user: see the pooler's log"),
    (
        ("password authentication failed", "no password supplied", "fe_sendauth"),
        "the server refuses the user or the password: check the user in the URL, and the password in ~/.pgpass,"
        " PGPASSWORD or the URL",
    ),
    (("pg_hba.conf",), "the server lets this user in from no such address: ask its administrator (pg_hba.conf)"),
    (('role "',), "the server does not know this user: name another in the URL, or create it with `createuser`"),
    (
        ('database "', "no such database"),
        "there is no such database, or this user may not connect to it: name another in the URL, or create it with"
        " `createdb`",
    ),
    (
        ("invalid", "missing "),
        "the URL can't be used as it is: check its options, and escape special characters as %XX",
    ),
    (("read-only", "hot standby"), "the server takes no writes: name the primary, or all servers, in the URL"),
    (("too many", "remaining connection slots"), "the server has no connection left: use a pooler such as pgbouncer"),
)
_UNREACHABLE_ADVICE = "the server can't be reached: check that it runs, and host, port and network"

_NO_WRITES_ADVICE = "the server takes no writes: it is a standby now, or was set to read-only"
_ADVICE: dict[type[psycopg.Error], str] = {
    FailedOver: "the server has failed over, and its hosts get the time to write again what it has lost",
    NoAnswer: "the server is overloaded, or a pooler or the network before it is stuck",
    errors.InsufficientPrivilege: (
        "this user may not use the tables: let their owner grant USAGE on the schema, and SELECT, INSERT, UPDATE and"
        " DELETE on all its tables"
    ),
    errors.UndefinedTable: "a table is missing: was the schema dropped or changed by hand? Restore a backup",
    errors.UndefinedColumn: "a column is missing: was the schema changed by hand? Restore a backup",
    errors.DiskFull: "the server's disk is full: free some space, then repeat",
    errors.ReadOnlySqlTransaction: _NO_WRITES_ADVICE,
    errors.FeatureNotSupported: _NO_WRITES_ADVICE,
    errors.LockNotAvailable: (
        "a row or a table stayed locked, by a long transaction of another program or by another host that migrates the"
        " tables: wait for its end or end it, then repeat"
    ),
    errors.CheckViolation: "the batch would have passed its cap: nothing was bought",
}

# A standby refuses BEGIN READ WRITE as a feature that is not supported, and writes as those of a read-only transaction.
_TRANSIENT = (
    FailedOver,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.ReadOnlySqlTransaction,
    errors.FeatureNotSupported,
)
_TOO_LARGE = "54"  # the class of the errors about values beyond the limits of the server
_TRANSIENT_CODES = ("25P03", "25P04")  # the server ended a transaction that stood idle, or took too long


def is_transient(error: Exception) -> bool:
    """Return whether the same work may succeed later, over this connection or another one."""
    code = getattr(error, "sqlstate", None) or ""
    return (isinstance(error, _TRANSIENT) and not code.startswith(_TOO_LARGE)) or code in _TRANSIENT_CODES


def breaks_connection(error: Exception) -> bool:
    """Return whether the next try needs another connection, perhaps to another server."""
    others = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable, FailedOver)
    return is_transient(error) and not isinstance(error, others)


def to_ledger_error(error: Exception, url: PostgresUrl, *, connecting: bool = False) -> LedgerError:
    """Return an error as a `LedgerError` that says what to do."""
    if isinstance(error, LedgerError):
        return error
    said = url.mask(" ".join(str(error).split()))
    if not isinstance(error, psycopg.Error):
        return LedgerError(f"ledger {url}: {type(error).__name__}: {said}")
    if connecting and isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        advice = "the URL can't be read: check its form, postgresql://user@host:port/database?option=value"
        return LedgerError(f"ledger {url}: {advice}")  # the driver's text may show parts of the password
    advice = next((advice for kind, advice in _ADVICE.items() if isinstance(error, kind)), "")
    if not advice and connecting and (error.sqlstate or "08").startswith("08"):  # the class of connection errors
        advice = next(
            (text for words, text in _CONNECT_ADVICE if any(word in said for word in words)), _UNREACHABLE_ADVICE
        )
    return LedgerError(f"ledger {url}: {advice or 'PostgreSQL failed'} [{said}]")
