"""The list of saved images in a folder: `SHA256SUMS`, in the format of `sha256sum -c SHA256SUMS`.

A line is written once its file is complete and flushed. A process killed in between leaves an image without a line,
never a line without its image; saving the image again adds the line. A name in the list is never given to an image with
another digest, so a saved image never makes a line wrong.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from nanobanana_async.file_locks import unlock, wait_for_lock

NAME = "SHA256SUMS"


def _check_regular(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EEXIST, f"{NAME} is not a regular file")
    if status.st_nlink > 1:
        raise OSError(errno.EEXIST, f"{NAME} is a hard link: the file would change under its other name too")


class Manifest:
    """A folder's list, locked for one thread of one process: `with Manifest(folder) as manifest`.

    Raises `OSError` when the list can't be written, or is a symbolic or hard link or a pipe: lines would be added to
    a file outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        self._descriptor = os.open(self._path, flags | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _check_regular(self._descriptor)
            with suppress(OSError):  # without locks lines stay whole, each is one appending write; one may appear twice
                wait_for_lock(self._descriptor)
            self._lines = self._read()
            self._lower = self._lines.lower()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            unlock(self._descriptor)
        os.close(self._descriptor)

    def listed(self, name: str) -> set[tuple[str, str]]:
        """Return the lines of a file name, in any case of its letters: names and digests.

        Names that differ in case alone are one file on macOS and Windows.
        """
        # Searched, not split: the list of a large batch has a hundred thousand lines, and is read for each image.
        ending = f"  {name}\n".encode().lower()
        found: set[tuple[str, str]] = set()
        start = self._lower.find(ending)
        while start >= 0:
            line = self._lines[max(start - 64, 0) : start + len(ending) - 1].decode("latin-1")
            found.add((line[-len(name) :], line[: -len(name) - 2]))
            start = self._lower.find(ending, start + 1)
        return found

    def add(self, name: str, digest: str) -> None:
        """Append a line and flush it to the disk."""
        line = f"{digest}  {name}\n".encode()
        if self._torn:
            line = b"\n" + line
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._descriptor)

    def _read(self) -> bytes:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        chunks: list[bytes] = []
        while chunk := os.read(self._descriptor, 1 << 20):
            chunks.append(chunk)
        lines = b"".join(chunks)
        self._torn = lines != b"" and not lines.endswith(b"\n")  # after a power cut or an edit by hand
        return lines + b"\n" if self._torn else lines
