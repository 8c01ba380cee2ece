"""Counts equal errors in a row: after many of them the account or the ledger is at fault, not the rows."""

from nanobanana_async.errors import GatewayError, IdempotencyConflict, NanoBananaError

SAME_ERRORS = 20


class ErrorStreak:
    """Counts errors of one kind in a row."""

    def __init__(self) -> None:
        self._kind: object = None
        self._count = 0

    def add(self, error: NanoBananaError) -> bool:
        """Count an error; say whether there were too many of its kind without a success between."""
        kind = (type(error), error.code if isinstance(error, GatewayError) else None)
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        return self._count >= SAME_ERRORS

    def reset(self) -> None:
        """Note a success."""
        self._kind, self._count = None, 0


def ledger_perhaps_lost(error: IdempotencyConflict) -> IdempotencyConflict:
    """Return why a batch stops whose keys the gateway has had before, row after row."""
    why = (
        f"the gateway has had the keys of {SAME_ERRORS} rows in a row before, and this ledger has not: the ledger of"
        " this batch was perhaps lost, or another host has bought it. Go on with that ledger, or settle the jobs"
    )
    return IdempotencyConflict(why, status=error.status, code=error.code, safe_to_repeat=False)
