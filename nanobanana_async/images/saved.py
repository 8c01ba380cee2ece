"""`metadata.jsonl`: which saved file is which image of which job. By it a saved image is found again, under any name.

Each line is written after its file is complete and in `SHA256SUMS`. The field `file_name` and the place of the list
make the folder a data set that the ImageFolder loader of Hugging Face reads.
"""

import errno
import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from nanobanana_async.models import GeneratedImage, GenerationResult

NAME = "metadata.jsonl"

_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@frozen(kw_only=True)
class PurchasedImage:
    """Where an image comes from: the job, its task and the image's index; and what its line says about it."""

    key: str
    task_id: str
    index: int
    row_key: str | None = None
    prompt: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    model: str | None = None

    @classmethod
    def of(cls, result: GenerationResult, image: GeneratedImage, row_key: str | None) -> "PurchasedImage":
        """Return where an image of a result comes from."""
        request = result.request
        return cls(
            key=result.key,
            task_id=result.task_id,
            index=image.index,
            row_key=row_key,
            prompt=None if request is None else request.prompt,
            aspect_ratio=None if request is None else request.aspect_ratio,
            resolution=None if request is None else request.resolution,
            model=result.model or (None if request is None else request.model),
        )

    @property
    def line_prefix(self) -> bytes:
        """The beginning of its line, by which it is found."""
        return _make_line_prefix(self.key, self.task_id, self.index)

    def line(self, name: str, digest: str) -> bytes:
        """Return its line."""
        more = {
            "file_name": name,
            "sha256": digest,
            "key": self.row_key,
            "prompt": self.prompt,
            "aspect_ratio": self.aspect_ratio,
            "resolution": self.resolution,
            "model": self.model,
        }
        return self.line_prefix + json.dumps(more)[1:].encode() + b"\n"


def _make_line_prefix(key: str, task_id: str, index: int) -> bytes:
    return f"{json.dumps({'job_key': key, 'task_id': task_id, 'image': index + 1})[:-1]}, ".encode()


def add_to_list(folder: Path, image: PurchasedImage, name: str, digest: str) -> None:
    """Append the line of a saved image, unless it is the last one of the image; the caller locks the folder."""
    line = image.line(name, digest)
    if _last_line(folder, image.line_prefix) == line:
        return
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT | _FLAGS, 0o666)
    try:
        _check(descriptor)
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, max(0, size - 1), os.SEEK_SET)
        if size and os.read(descriptor, 1) != b"\n":  # after a power cut or an edit by hand
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_list(folder: Path) -> None:
    """Raise `OSError` if the list exists and can't be appended to, or is a link."""
    if os.path.lexists(folder / NAME):
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_APPEND | _FLAGS)
        try:
            _check(descriptor)
        finally:
            os.close(descriptor)


def find_saved(folder: Path, image: PurchasedImage) -> tuple[Path, str] | None:
    """Return file and digest of an image that was saved before and is intact; None if there is none."""
    line = _last_line(folder, image.line_prefix)
    facts = {} if line is None else _facts(line)
    path = _intact(folder, facts)
    return None if path is None else (path, facts["sha256"])


def listed_name(folder: Path, image: PurchasedImage) -> str | None:
    """Return the file name that the list has of an image, whether the file is still there or not."""
    line = _last_line(folder, image.line_prefix)
    name = None if line is None else _facts(line).get("file_name")
    return name if isinstance(name, str) and Path(name).name == name else None


@frozen
class SavedImages:
    """The list of a folder, read once to find many images."""

    _folder: Path
    _lines: dict[bytes, tuple[str, str]]
    _rows: dict[str, dict[str, str]]
    """By row key: the jobs of its files, by their names."""

    @classmethod
    def read(cls, folder: Path) -> "SavedImages":
        """Read the list, which may be missing."""
        lines: dict[bytes, tuple[str, str]] = {}
        rows: dict[str, dict[str, str]] = {}
        with suppress(OSError), open(os.open(folder / NAME, os.O_RDONLY | _FLAGS), "rb") as file:
            for line in file:
                facts = _facts(line)
                with suppress(KeyError, TypeError, ValueError, RecursionError):
                    beginning = _make_line_prefix(facts["job_key"], facts["task_id"], facts["image"] - 1)
                    lines[beginning] = (facts["file_name"], facts["sha256"])
                    if isinstance(facts["key"], str) and isinstance(facts["file_name"], str):
                        rows.setdefault(facts["key"], {})[facts["file_name"]] = facts["job_key"]
        return cls(folder, lines, rows)

    def find(self, key: str, task_id: str, indexes: Iterable[int]) -> list[Path] | None:
        """Return the files of these images of a task if all of them are intact, else None."""
        found: list[Path] = []
        for index in indexes:
            name, digest = self._lines.get(_make_line_prefix(key, task_id, index), (None, None))
            path = _intact(self._folder, {"file_name": name, "sha256": digest})
            if path is None:
                return None
            found.append(path)
        return found

    def files_of_earlier_jobs(self, row_key: str, job_key: str) -> list[str]:
        """Return the names of the files of a row that belong to other jobs than this one, and exist."""
        files = self._rows.get(row_key, {})
        return [name for name, key in files.items() if key != job_key and (self._folder / name).is_file()]


def has_content(path: Path, digest: str) -> bool:
    """Return whether a regular file, not a link, has this content."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with os.fdopen(os.open(path, os.O_RDONLY | _FLAGS), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except (OSError, ValueError):  # ValueError: a NUL in the name, or half of a surrogate pair
        return False


def _check(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EEXIST, f"{NAME} is not a regular file")
    if status.st_nlink > 1:
        raise OSError(errno.EEXIST, f"{NAME} is a hard link: the file would change under its other name too")


def _last_line(folder: Path, beginning: bytes) -> bytes | None:
    """Return the last line that begins so; searched, not parsed: a large list is read for each image."""
    try:
        with (
            open(os.open(folder / NAME, os.O_RDONLY | _FLAGS), "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            start = content.rfind(b"\n" + beginning) + 1
            if not start and content[: len(beginning)] != beginning:
                return None
            end = content.find(b"\n", start)
            return None if end < 0 else content[start : end + 1]
    except (OSError, ValueError):  # missing; empty
        return None


def _facts(line: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _intact(folder: Path, facts: dict[str, Any]) -> Path | None:
    name, digest = facts.get("file_name"), facts.get("sha256")
    if not isinstance(name, str) or not isinstance(digest, str) or Path(name).name != name:
        return None
    return folder / name if has_content(folder / name, digest) else None
