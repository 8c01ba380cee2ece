"""Read and write `results.jsonl`, with a line for each row that has ended, and check the images of each line."""

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from nanobanana_async.escaping import json_line
from nanobanana_async.images.object_store import ObjectUrl
from nanobanana_async.report import ReportRow
from nanobanana_async.report.row import values_of

IMAGES = "images"
RESULTS = "results.jsonl"

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@frozen(kw_only=True)
class Result:
    """One line: the row as the report shows it, and the digests of its files."""

    row: ReportRow
    sha256: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    saved_at: datetime | None = None
    """When the files were last verified."""
    earlier_images: tuple[str, ...] = ()
    """The images of the row's earlier purchases, before it was changed."""

    def to_json(self) -> str:
        """Return the line without a newline."""
        more = {
            "sha256": self.sha256,
            "bytes": self.sizes,
            "saved_at": None if self.saved_at is None else self.saved_at.isoformat(),
            "earlier_images": self.earlier_images,
        }
        return f"{self.row.to_json()[:-1]}, {json_line(json.dumps(more))[1:]}"

    @classmethod
    def from_json(cls, line: bytes) -> "Result":
        """Parse a line; raises ValueError for other content, such as a truncated line."""
        row = ReportRow.from_json(line)
        facts: dict[str, Any] = json.loads(line)
        digests, sizes = values_of(facts, "sha256", str), values_of(facts, "bytes", int)
        if not len(row.images) == len(digests) == len(sizes):
            raise ValueError("not every image has a digest")
        return cls(
            row=row,
            sha256=digests,
            sizes=sizes,
            saved_at=to_time(facts.get("saved_at")),  # None: the files are hashed
            earlier_images=values_of(facts, "earlier_images", str),
        )

    def files_intact(self, folder: Path) -> bool:
        """Return True if every image exists with the saved content.

        A file of the right size that was not modified since it was saved is trusted; any other is hashed.
        """
        return all(map(self._is_intact, (folder / path for path in self.row.images), self.sha256, self.sizes))

    def _is_intact(self, path: Path, digest: str, size: int) -> bool:
        try:
            seen = path.lstat()
            if not stat.S_ISREG(seen.st_mode) or seen.st_size != size:
                return False
            return (self.saved_at is not None and seen.st_mtime <= self.saved_at.timestamp()) or _sha256(path) == digest
        except (OSError, ValueError):  # ValueError: a NUL in the path, or half of a surrogate pair
            return False


def with_files(result: Result, places: Iterable[Path | str], folder: Path, now: datetime) -> Result:
    """Return a result with its saved images; blocks while it hashes files."""
    digests: list[str] = []
    sizes: list[int] = []
    images: list[str] = []
    for place in places:
        if isinstance(place, ObjectUrl):
            found = (place.size, place.sha256, str(place))
        else:
            path = Path(place)
            found = (path.stat().st_size, _sha256(path), path.relative_to(folder).as_posix())
        sizes.append(found[0])
        digests.append(found[1])
        images.append(found[2])
    row = evolve(result.row, images=tuple(images))
    return evolve(result, row=row, sha256=tuple(digests), sizes=tuple(sizes), saved_at=now)


def to_time(text: object) -> datetime | None:
    """Return a time from its ISO form; None for anything else."""
    when = datetime.fromisoformat(text) if isinstance(text, str) else None
    return when if when is not None and when.tzinfo is not None else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Results:
    """The results file. `begin` writes a new file beside the old one, `commit` replaces the old one; `add` appends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RESULTS
        self._part = folder / f".nanobanana-{secrets.token_hex(8)}.jsonl.part"
        self._offsets: dict[str, int] = {}
        """Key of the job -> offset of its line."""
        self._size = 0
        self._hash_sum = 0
        """Sum of the hashes of all lines, which does not depend on their order."""
        self._descriptor: int | None = None
        self.committed = False
        """Whether the file holds the results of this run."""

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    def begin(self) -> None:
        """Start the new file beside the old one."""
        self._offsets, self._size, self._hash_sum = {}, 0, 0
        self._descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)

    def commit(self) -> bool:
        """Replace the old file by the new one, to which further lines are appended.

        Returns False if both have the same lines in any order; then the new file keeps the old modification time.
        """
        self.close()
        changed = True
        with suppress(FileNotFoundError), self.path.open("rb") as old:
            changed = sum(map(hash, old)) != self._hash_sum
            if not changed:
                seen = os.fstat(old.fileno())
                os.utime(self._part, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        os.replace(self._part, self.path)
        self.committed = True
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | _NO_FOLLOW)
        return changed

    def add(self, result: Result) -> None:
        """Append a line without buffering, so that a killed process loses none."""
        if self._descriptor is None:
            raise RuntimeError("add() must be called between begin() and close()")
        line = f"{result.to_json()}\n".encode()
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)  # a partial line would corrupt the next one
            raise
        self._offsets[result.row.job_key] = self._size
        self._size += len(line)
        self._hash_sum += hash(line)

    def get(self, key: str) -> Result | None:
        """Return the result of a job's key from the file."""
        offset = self._offsets.get(key)
        return None if offset is None else next(read(self.path, [offset]), None)

    def close(self) -> None:
        """Flush the file to disk and close it; idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def reorder(self, keys: Iterable[str]) -> None:
        """Rewrite the file in the order of these keys."""
        old, path = self._offsets, self.path
        self.close()
        self.begin()
        for result in read(path, [old[key] for key in keys if key in old]):
            self.add(result)
        self.commit()

    def discard(self) -> None:
        """Remove the new file unless it was committed; idempotent."""
        self.close()
        self._part.unlink(missing_ok=True)


@frozen
class OldResults:
    """Where the results of earlier runs have the last line of each job."""

    path: Path
    offsets: dict[str, int] = field(factory=dict)
    """By the key of the job."""
    jobs: dict[str, str] = field(factory=dict)
    """By the row's own key: the key of the job of its last line."""

    @classmethod
    def read(cls, path: Path) -> "OldResults":
        """Read the file, which may be missing or truncated."""
        found = cls(path)
        with suppress(FileNotFoundError), path.open("rb") as file:
            offset = 0
            for line in file:
                with suppress(ValueError):  # a truncated line of a killed process
                    row = Result.from_json(line).row
                    found.offsets[row.job_key] = offset
                    if row.key is not None and row.job_key:
                        found.jobs[row.key] = row.job_key
                offset += len(line)
        return found

    def of_row(self, row_key: str) -> Result | None:
        """Return the last result of a row."""
        return self.of_job(self.jobs.get(row_key, ""))

    def of_job(self, job_key: str) -> Result | None:
        """Return the last result of a job."""
        offset = self.offsets.get(job_key)
        return None if offset is None else next(read(self.path, [offset]), None)


def read(path: Path, offsets: Iterable[int]) -> Iterator[Result]:
    """Yield the results at these offsets of the file, which may be missing if there are none."""
    places = list(offsets)
    if not places:
        return
    with path.open("rb") as file:
        for offset in places:
            file.seek(offset)
            yield Result.from_json(file.readline())
