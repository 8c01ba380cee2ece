"""Detect many equal errors in a row, which are not the fault of single rows."""

from nanobanana_async.errors import GatewayError, NanoBananaError

SAME_ERRORS = 20


class ErrorStreak:
    """Counts errors of one kind in a row."""

    def __init__(self) -> None:
        self._kind: object = None
        self._count = 0

    def add(self, error: NanoBananaError) -> bool:
        """Count an error. Return True for the `SAME_ERRORS`th of its kind in a row."""
        kind = (type(error), error.code if isinstance(error, GatewayError) else None)
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        return self._count >= SAME_ERRORS

    def reset(self) -> None:
        """Restart the count after a success."""
        self._kind, self._count = None, 0
