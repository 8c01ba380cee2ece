"""Show what the library logs as plain sentences on stderr, each once, or not at all where the command says it anyway.

Without a handler Python prints the records themselves, which are written for programs.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nanobanana_async.escaping import one_line

_LOG = logging.getLogger("nanobanana_async")  # that of `events.py`, which would import the gateways
_SENTENCES = {
    "learned.unreadable": "what earlier runs learned about the account can't be read: this run starts without it",
    "status.unknown": "the gateway reports an unknown status, {status!r}: such jobs are polled until they end",
    "gateway.fake_address": "{text}",
    "ledger.away": "{rest}",
    "ledger.back": "{rest}",
    "ledger.buried": "{rest}",
    "ledger.failed_over": "{rest}",
}
_FAILED = "ledger.failed "
_MOST_SENTENCE_CHARACTERS = 300


@contextmanager
def plain_logs() -> Iterator[None]:
    """Show the records of the library as sentences until the end of the block."""
    handler = _SentenceHandler()
    _LOG.addHandler(handler)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)


class _SentenceHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the sentence of a record, unless it has none or was printed before."""
        try:
            sentence = _sentence(record)
        except Exception:  # a record must not end a command that buys
            return
        if sentence is None or sentence in self._said:
            return
        self._said.add(sentence)
        print(f"nanobanana: {one_line(sentence)[:_MOST_SENTENCE_CHARACTERS]}", file=sys.stderr)


def _sentence(record: logging.LogRecord) -> str | None:
    """Return what a user should know; None if it is no trouble, or if the command says it itself."""
    text = record.getMessage()
    event = getattr(record, "event", None) or text.partition(" ")[0]
    if record.exc_info is not None and (error := record.exc_info[1]) is not None:
        return f"a bug, which ended no job: {type(error).__name__}: {error} ({event})"
    if text.startswith(_FAILED):
        return f"the ledger failed: {text.partition('error=')[2]}"
    template = _SENTENCES.get(event)
    if template is None:
        return None
    return template.format(text=text, rest=text.partition(" ")[2], status=getattr(record, "status", ""))
