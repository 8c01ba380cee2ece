"""The errors of rows: their messages name the row's own key, and a bug becomes an error of its row."""

import copy

from nanobanana_async.batch.rows import Row
from nanobanana_async.errors import NanoBananaError, SessionClosed
from nanobanana_async.events import log_failure


def with_message(error: NanoBananaError, message: str) -> NanoBananaError:
    """Return a copy of an error with another message."""
    copied = copy.copy(error)
    copied.message, copied.args = message, (message,)
    return copied


def with_own_key(error: NanoBananaError, row: Row) -> NanoBananaError:
    """Return an error whose message names the row's own key beside the key that the batch derived from it."""
    if row.own_key is None or row.own_key == row.key or row.key not in error.message:
        return error
    return with_message(error, error.message.replace(row.key, f"{row.key} (the row's key is {row.own_key})", 1))


def without_derived_key(error: NanoBananaError, row: Row) -> NanoBananaError:
    """Return the error of a row that was withdrawn, as the reason why a batch stopped: no one knows the job's key."""
    message = error.message.removeprefix(f"job {row.key} was withdrawn: ")
    return error if message == error.message else with_message(error, message)


def log_crash_as_error(index: int, failure: BaseException) -> NanoBananaError:
    """Log an exception that no row may cause, and return the error of the row at this index. The log counts from 1."""
    log_failure("batch.crashed", failure, row=index + 1)
    return NanoBananaError(f"a bug in nanobanana_async: {failure!r}; see the log")


def session_closed_error() -> SessionClosed:
    """Return the error of a batch whose session was closed."""
    return SessionClosed("the session was closed before the batch ended")
