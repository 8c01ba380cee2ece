"""Make stdin, stdout and stderr usable for the whole command line, however the process was started.

A stream that is closed (`>&-`, a service, `pythonw`) becomes an empty one, a character that the encoding lacks is
escaped, and an stderr that can't be written any more (a closed pipe or terminal) is ignored: none of them may end a
command that has bought something.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def usable_streams() -> Iterator[None]:
    """Replace streams that are closed or may raise, until the end of the block."""
    occupy_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    # A type checker takes the streams for always present; Python sets a closed one to None.
    found: list[Any] = list(before)
    stdin, stdout, stderr = (
        _open_null_device(mode) if stream is None else stream
        for stream, mode in zip(found, ("r", "w", "w"), strict=True)
    )
    for stream in (stdout, stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdin, sys.stdout, sys.stderr = stdin, stdout, LastingStream(stderr)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def occupy_descriptors() -> None:
    """Open the null device in place of closed descriptors 0 to 2: else a ledger could get one, and be printed into."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one


def silence(stream: TextIO) -> None:
    """Redirect a stream that can't be written to the null device, so that Python's flush at exit does not fail."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _open_null_device(mode: str) -> Any:
    descriptor = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
    return os.fdopen(descriptor, mode, encoding="utf-8", closefd=False)


class LastingStream(io.TextIOBase):
    """A text stream that ignores its failures: after the first one nothing is written any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            silence(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            silence(self._stream)

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors
