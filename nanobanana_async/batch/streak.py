"""The same error again and again: then the rows are not what is wrong."""

from nanobanana_async.errors import GatewayError, NanoBananaError

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
