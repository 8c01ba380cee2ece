"""The list of what a folder holds: `SHA256SUMS`, as `sha256sum -c SHA256SUMS` reads it.

A line is written when its file stands, whole and flushed. A process killed in between leaves a picture without a line,
never a line without its picture; saving the picture again adds the line. A name that the list has promised to one
picture is not given to another, so that no line is ever made wrong by us.
"""

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

NAME = "SHA256SUMS"

if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        with suppress(OSError):  # after ten seconds
            msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        with suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # A file system without locks still has whole lines: each is one write to the end. One may then stand twice.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)

    def _unlock(descriptor: int) -> None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _check_own(descriptor: int) -> None:
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode):
        raise OSError(errno.EEXIST, f"{NAME} is no regular file")
    if seen.st_nlink > 1:
        raise OSError(errno.EEXIST, f"{NAME} has another name elsewhere (a hard link), and would change there too")


class Manifest:
    """A folder's list, held by one thread of one process at a time: `with Manifest(folder) as manifest`.

    Raises `OSError` when it can't be written, or is no file of its own: a symbolic or hard link, a pipe. What is added
    to such a file would stand in somebody else's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        self._descriptor = os.open(self._path, flags | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _check_own(self._descriptor)
            _lock(self._descriptor)
            self._lines = self._read()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _unlock(self._descriptor)
        os.close(self._descriptor)

    def digests_of(self, name: str) -> set[str]:
        """Return the digests that stand beside a file name: none, one, or more if others wrote them."""
        # Searched, not split: the list of a large batch has a hundred thousand lines, and is read for each picture.
        ending = f"  {name}\n".encode()
        found: set[str] = set()
        at = self._lines.find(ending)
        while at >= 0:
            found.add(self._lines[max(at - 64, 0) : at].decode("latin-1"))
            at = self._lines.find(ending, at + 1)
        return found

    def add(self, name: str, digest: str) -> None:
        """Write a line, flushed to the disk."""
        line = f"{digest}  {name}\n".encode()
        if self._torn:
            line = b"\n" + line
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._descriptor)

    def _read(self) -> bytes:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        pieces: list[bytes] = []
        while piece := os.read(self._descriptor, 1 << 20):
            pieces.append(piece)
        lines = b"".join(pieces)
        self._torn = lines != b"" and not lines.endswith(b"\n")  # by a power cut, or by hand
        return lines + b"\n" if self._torn else lines
