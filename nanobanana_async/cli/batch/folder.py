"""Own the folder of a batch: one run at a time, one batch for ever; foreign files are never touched."""

import json
import os
import re
import secrets
import stat
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from nanobanana_async.cli.batch.results import IMAGES, RESULTS, to_time
from nanobanana_async.commands import quoted
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.file_locks import try_lock
from nanobanana_async.images.files import make_folder, rename_exclusive, why_unwritable
from nanobanana_async.images.names import safe_name
from nanobanana_async.images.target import Target
from nanobanana_async.report import THUMBNAILS

LEDGER = "jobs.sqlite"
REPORT = "index.html"
MARKER = ".nanobanana-batch"

CHANGED_IN_PLACE = (LEDGER, *(f"{LEDGER}-{suffix}" for suffix in ("wal", "shm", "journal")))
"""Files that are written in place; all others are replaced atomically."""
FILES = (RESULTS, "results.csv", REPORT, *CHANGED_IN_PLACE)
FOLDERS = (IMAGES, THUMBNAILS, f"{LEDGER}-owners")

_PART = re.compile(r"\.nanobanana-[0-9a-f]{16}(?:\.jsonl|\.html|\.csv)?\.part")
_MARKER_BYTES = 1 << 20
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@frozen
class FolderOwner:
    """The batch that owns a folder, whether its images come from the emulator, and the store where they are."""

    batch: str
    emulated: bool
    store: str | None = None
    names: str | None = None
    """The template of the names of its images; None: the default."""
    unknown_until: datetime | None = None
    """The user consented that the ledger does not know what was sent until then."""

    def to_json(self) -> str:
        """Return the content of the marker file."""
        unknown_until = None if self.unknown_until is None else self.unknown_until.isoformat()
        more = {"store": self.store, "names": self.names, "unknown_until": unknown_until}
        given = {name: value for name, value in more.items() if value is not None}
        return json.dumps({"batch": self.batch, "emulated": self.emulated, **given})

    @classmethod
    def from_json(cls, content: bytes) -> "FolderOwner":
        """Parse a marker file; raises ValueError for other content."""
        try:
            facts = json.loads(content)
        except RecursionError:
            facts = None
        if isinstance(facts, dict) and isinstance(batch := facts.get("batch"), str):
            store, names, until = (
                text if isinstance(text := facts.get(name), str) else None
                for name in ("store", "names", "unknown_until")
            )
            return cls(batch, bool(facts.get("emulated")), store, names, to_time(until))
        raise ValueError("not a marker file")


class BatchFolder:
    """Hold the lock of a folder: `with BatchFolder(path, owner)`. The lock ends with the process.

    Raises `ConfigurationError` when the folder can't be written, another run holds it, it belongs to another batch, or
    a foreign file has one of the names that a run writes.
    """

    def __init__(self, path: Path, owner: FolderOwner) -> None:
        self.path = path
        self._owner = owner
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            make_folder(self.path)
            if not check_owner(self.path, self._owner):
                self._mark()
            self._descriptor = os.open(self.path / MARKER, os.O_RDWR | _NO_FOLLOW)
        except OSError as error:
            raise unwritable_error(self.path, error) from None
        try:
            if not self._try_lock():
                raise ConfigurationError(f"{self.path}: another batch is running in this folder")
            found = check_owner(self.path, self._owner)  # another run may have written its marker first
            if found not in (None, self._owner):
                self._rewrite()
            _remove_stale_parts(self.path)
        except OSError as error:
            self._unlock()
            raise unwritable_error(self.path, error) from None
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unlock()

    def _try_lock(self) -> bool:
        try:
            return try_lock(self._descriptor)
        except OSError:  # the file system has no locks: opening the ledger, which needs them, raises the error
            return True

    def _mark(self) -> None:
        """Create the marker atomically, unless it exists."""
        part = self.path / f".nanobanana-{secrets.token_hex(8)}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(self._owner.to_json().encode())
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another run created it first
                rename_exclusive(part, self.path / MARKER)
        finally:
            part.unlink(missing_ok=True)

    def _rewrite(self) -> None:
        """Write the marker again, in place, since the lock is on this file: by one short write, so whole."""
        size = os.fstat(self._descriptor).st_size
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, self._owner.to_json().encode().ljust(size))  # JSON may end with spaces
        os.fsync(self._descriptor)

    def _unlock(self) -> None:
        os.close(self._descriptor)


def unwritable_error(folder: Path, error: OSError, file: str = "") -> ConfigurationError:
    """Return the error for a folder, or a file in it, that can't be written; the message says what to do."""
    other = ""  # with a ledger here, another folder would buy all rows again
    try:
        (folder / LEDGER).lstat()
    except (FileNotFoundError, NotADirectoryError):
        other = "name another folder with -o"
    except OSError:
        pass
    return ConfigurationError(why_unwritable(folder / file, error, or_else=other))


def check_owner(path: Path, owner: FolderOwner) -> FolderOwner | None:
    """Return what the marker of a folder of this batch says, None if the folder is free.

    Raises `ConfigurationError` if it belongs to another batch, or if a name that a run writes is taken: in a folder
    without a marker by any file, in a marked folder by a link or special file. Other files are ignored.
    """
    taken = [name for name in (*FILES, *FOLDERS) if os.path.lexists(path / name)]
    found = _read_marker(path)  # read last: a starting run writes the marker before the other files
    if found is None:
        if taken:
            raise ConfigurationError(
                f"{path} holds {', '.join(taken)}, which this command did not create: name another folder with -o"
                f" (if an earlier run created them and only {MARKER} was lost, write {owner.to_json()} into it)"
            )
        return None
    for name in taken:
        with suppress(FileNotFoundError):  # SQLite creates and removes files beside the ledger
            _check_own(path / name)
    if found.emulated != owner.emulated:
        source = "images from the emulator" if found.emulated else "images from a gateway"
        raise ConfigurationError(f"{path} holds {source}: name another folder with -o")
    if found.batch != owner.batch:
        raise ConfigurationError(
            f"{path} holds the batch {found.batch!r}, and this one is {owner.batch!r}: name another folder with -o,"
            f" or pass --name {quoted(found.batch)} if it is the same batch"
        )
    if found.store != owner.store:
        there = "in its folder images" if found.store is None else f"in {found.store}"
        raise ConfigurationError(
            f"{path} holds a batch whose images are {there}: pass that with -o, or another --folder"
        )
    return found


def _read_marker(path: Path) -> FolderOwner | None:
    """Return the owner in the marker; None if there is no marker."""
    marker = path / MARKER
    try:
        _check_own(marker)
        with open(os.open(marker, os.O_RDONLY | _NO_FOLLOW), "rb") as file:
            return FolderOwner.from_json(file.read(_MARKER_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{marker} can't be read: {error.strerror or error}") from None
    except ValueError:
        raise ConfigurationError(f"{marker} was not written by this command: move it away") from None


def _check_own(path: Path) -> None:
    """Raise `ConfigurationError` if a file of a marked folder is a link or not of the expected type."""
    seen = path.lstat()
    wanted, kind = (stat.S_ISDIR, "folder") if path.name in FOLDERS else (stat.S_ISREG, "regular file")
    if stat.S_ISLNK(seen.st_mode):
        raise ConfigurationError(f"{path} is a symbolic link, which is not followed: put the {kind} itself there")
    if not wanted(seen.st_mode):
        raise ConfigurationError(f"{path} is not a {kind}: move it away")
    if path.name in CHANGED_IN_PLACE and seen.st_nlink > 1:
        raise ConfigurationError(
            f"{path} has a second name (a hard link), whose content would change too: put a copy in its place"
        )


def _remove_stale_parts(path: Path) -> None:
    """Remove temporary files of killed runs."""
    for part in path.glob(".nanobanana-*.part"):
        with suppress(FileNotFoundError):
            if _PART.fullmatch(part.name) and stat.S_ISREG(part.lstat().st_mode):
                part.unlink()


def folder_of_run(output: Target, folder: Path | None, batch: str) -> Path:
    """Return the folder of results and ledger; the images are there too, unless they go to a store."""
    if isinstance(output, Path):
        if folder is not None:
            raise ConfigurationError("--folder is for images in an object store: here -o is the folder")
        return output
    return Path(safe_name(batch)) if folder is None else folder
