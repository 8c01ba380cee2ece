"""`results.jsonl`: a line for each row that has ended, and the pictures that the lines speak of."""

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from nanobanana_async.escaping import json_line
from nanobanana_async.images.files import safe_name
from nanobanana_async.images.manifest import NAME as MANIFEST
from nanobanana_async.report import ReportRow

PICTURES = "images"
RESULTS = "results.jsonl"

_FOLLOW_NOTHING = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_LISTED = re.compile(rb"([0-9a-f]{64})  ((.+-\d\d)(?:-\d+)?\.[a-z]+)\n?")


@frozen(kw_only=True)
class Result:
    """One line: the row as the report shows it, and what is needed to trust its files."""

    row: ReportRow
    line: int = 0
    """Where the row begins in its file."""
    row_key: str | None = None
    """The key that the row brought along."""
    sha256: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    saved_at: float | None = None
    """When the files were known to be right, in seconds since 1970."""

    def to_json(self) -> str:
        """Return the line, without its end."""
        more = {
            "line": self.line,
            "row_key": self.row_key,
            "sha256": self.sha256,
            "bytes": self.sizes,
            "saved_at": self.saved_at,
        }
        return f"{self.row.to_json()[:-1]}, {json_line(json.dumps(more))[1:]}"

    @classmethod
    def from_json(cls, line: bytes) -> "Result":
        """Read a line back; raises ValueError for anything else, such as half a line."""
        row = ReportRow.from_json(line)
        facts: dict[str, Any] = json.loads(line)
        sums, sizes = facts.get("sha256") or (), facts.get("bytes") or ()
        if not len(row.images) == len(sums) == len(sizes):
            raise ValueError("not every picture has its sum")
        return cls(
            row=row,
            line=int(facts.get("line") or 0),
            row_key=facts.get("row_key"),
            sha256=tuple(map(str, sums)),
            sizes=tuple(map(int, sizes)),
            saved_at=facts.get("saved_at"),
        )

    def files_intact(self, folder: Path) -> bool:
        """Tell whether every picture is there, and the one that was saved.

        A file of the right size that nobody wrote to since it was saved is trusted; any other is read.
        """
        return all(map(self._is_whole, (folder / path for path in self.row.images), self.sha256, self.sizes))

    def _is_whole(self, path: Path, digest: str, size: int) -> bool:
        try:
            seen = path.lstat()
            if not stat.S_ISREG(seen.st_mode) or seen.st_size != size:
                return False
            return (self.saved_at is not None and seen.st_mtime <= self.saved_at) or _sum_of(path) == digest
        except OSError:
            return False


def with_files(result: Result, paths: Iterable[Path], folder: Path, now: datetime) -> Result:
    """Return a result with the pictures that were saved for it; it reads them, and blocks."""
    sums: list[str] = []
    sizes: list[int] = []
    images: list[str] = []
    for path in paths:
        sizes.append(path.stat().st_size)
        sums.append(_sum_of(path))
        images.append(path.relative_to(folder).as_posix())
    row = evolve(result.row, images=tuple(images))
    return evolve(result, row=row, sha256=tuple(sums), sizes=tuple(sizes), saved_at=now.timestamp())


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@frozen
class SavedImages:
    """What the folder of pictures says that it holds: pictures that were saved, and came into no line any more."""

    _folder: Path
    _names: dict[str, list[tuple[str, str]]] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "SavedImages":
        """Read the list; there may be none."""
        names: dict[str, list[tuple[str, str]]] = {}
        try:
            with (folder / MANIFEST).open("rb") as file:
                for line in file:
                    if listed := _LISTED.fullmatch(line):
                        digest, name, stem = (part.decode("utf-8", "replace") for part in listed.groups())
                        names.setdefault(stem, []).append((name, digest))
        except OSError:
            pass
        return cls(folder, names)

    def pictures(self, key: str, places: Iterable[int]) -> list[Path] | None:
        """Return the pictures of a job if all of them are here, and what the list says."""
        found: list[Path] = []
        for place in places:
            candidates = self._names.get(safe_name(f"{key}-{place + 1:02d}"), [])
            whole = (self._folder / name for name, digest in candidates if self._holds(name, digest))
            path = next(whole, None)
            if path is None:
                return None
            found.append(path)
        return found

    def _holds(self, name: str, digest: str) -> bool:
        path = self._folder / name
        try:
            return stat.S_ISREG(path.lstat().st_mode) and _sum_of(path) == digest
        except OSError:
            return False


class Results:
    """The file. Begun anew it replaces the old one at once, when all is written that is known; then it grows."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RESULTS
        self._part = folder / f".nanobanana-{secrets.token_hex(8)}.jsonl.part"
        self._places: dict[str, int] = {}
        """Key -> where its line begins."""
        self._size = 0
        self._sum = 0
        """Of the hashes of all lines."""
        self._descriptor: int | None = None
        self.committed = False
        """The file holds what this run knows."""

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def begin(self) -> None:
        """Begin the new file, beside the old one."""
        self._places, self._size, self._sum = {}, 0, 0
        self._descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FOLLOW_NOTHING, 0o666)

    def commit(self) -> bool:
        """Put the new file in the place of the old one; from now on lines are added to it.

        Says False if it has the same lines, in whatever order; then it is as old as the old one.
        """
        self.close()
        changed = True
        with suppress(FileNotFoundError), self.path.open("rb") as old:
            changed = sum(map(hash, old)) != self._sum
            if not changed:
                seen = os.fstat(old.fileno())
                os.utime(self._part, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        os.replace(self._part, self.path)
        self.committed = True
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | _FOLLOW_NOTHING)
        return changed

    def add(self, result: Result) -> None:
        """Write a line; the kernel has it when this returns, so that a killed process loses none."""
        if self._descriptor is None:
            raise RuntimeError("results are added between begin and close")
        line = f"{result.to_json()}\n".encode()
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)  # half a line would spoil the one that follows
            raise
        self._places[result.row.key] = self._size
        self._size += len(line)
        self._sum += hash(line)

    def get(self, key: str) -> Result | None:
        """Return the line of a key as it stands in the file."""
        place = self._places.get(key)
        return None if place is None else next(read(self.path, [place]), None)

    def close(self) -> None:
        """Flush it to the disk and let it go; idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def reorder(self, keys: Iterable[str]) -> None:
        """Write it once more, in this order."""
        old, path = self._places, self.path
        self.close()
        self.begin()
        for result in read(path, [old[key] for key in keys if key in old]):
            self.add(result)
        self.commit()

    def discard(self) -> None:
        """Leave the old file as it was, if the new one was not committed; idempotent."""
        self.close()
        self._part.unlink(missing_ok=True)


def line_offsets(path: Path) -> dict[str, int]:
    """Return where each key's last line begins in a file that may be missing, or end in half a line."""
    found: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            place = 0
            for line in file:
                with suppress(ValueError):  # half a line, of a process that was killed
                    found[Result.from_json(line).row.key] = place
                place += len(line)
    except FileNotFoundError:
        pass
    return found


def read(path: Path, at: Iterable[int]) -> Iterator[Result]:
    """Yield the lines that begin at these places."""
    with path.open("rb") as file:
        for place in at:
            file.seek(place)
            yield Result.from_json(file.readline())
