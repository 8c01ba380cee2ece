"""Detect many equal errors in a row, which are not the fault of single rows."""

from nanobanana_async.batch.messages import with_message
from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    CreditLimitReached,
    DownloadError,
    GatewayError,
    IdempotencyConflict,
    InsufficientCredits,
    LedgerError,
    NanoBananaError,
    SaveError,
)

SAME_ERRORS = 20

# Errors of the account, the ledger or the folder: they would repeat for each row.
ACCOUNT_ERRORS = (AuthenticationError, InsufficientCredits, AccessDenied, CreditLimitReached, LedgerError, SaveError)


class ErrorStreak:
    """Counts errors of one kind in a row."""

    def __init__(self) -> None:
        self._kind: object = None
        self._count = 0

    def add(self, error: NanoBananaError) -> bool:
        """Count an error. Return True for the `SAME_ERRORS`th of its kind in a row."""
        kind: object = type(error)
        if isinstance(error, GatewayError):  # without a status the library itself refused the row
            kind = (type(error), error.code, error.status is None)
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        return self._count >= SAME_ERRORS

    def add_if_store_failed(self, error: NanoBananaError) -> bool:
        """Count the error of a reference image if its store has failed: that would repeat for each row of the store."""
        return isinstance(error, DownloadError) and self.add(error)

    def reset(self) -> None:
        """Restart the count after a success."""
        self._kind, self._count = None, 0


def stop_reason(error: NanoBananaError, what: str) -> NanoBananaError:
    """Return the error that stops a batch after a streak of this error; `what` says what happened to the rows."""
    if isinstance(error, IdempotencyConflict) and error.status is not None:
        return _ledger_may_be_lost(error)
    return with_message(error, f"{SAME_ERRORS} rows in a row {what} for the same reason: {error.message}")


def _ledger_may_be_lost(error: IdempotencyConflict) -> IdempotencyConflict:
    """Return the error that stops a batch whose keys the gateway already knows, row after row."""
    why = (
        f"the gateway knows the keys of {SAME_ERRORS} rows in a row, and this ledger does not: the ledger of this batch"
        " may be lost, or another host has bought the batch. Use that ledger, or resolve the jobs"
    )
    return IdempotencyConflict(why, status=error.status, code=error.code, safe_to_repeat=False)
