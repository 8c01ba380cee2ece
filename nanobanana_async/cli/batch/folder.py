"""The folder of a batch: held by one run at a time, and by one batch for ever; nothing foreign in it is touched."""

import json
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from nanobanana_async.cli.batch.results import PICTURES, RESULTS
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.file_locks import try_lock
from nanobanana_async.images.files import make_folder, rename_exclusive, why_unwritable

LEDGER = "jobs.sqlite"
REPORT = "index.html"
MARKER = ".nanobanana-batch"

CHANGED = (LEDGER, *(f"{LEDGER}-{beside}" for beside in ("wal", "shm", "journal")))
"""Files that are written to as they are; the others are replaced at once."""
FILES = (RESULTS, REPORT, *CHANGED)
FOLDERS = (PICTURES, f"{LEDGER}-owners")

_PART = re.compile(r"\.nanobanana-[0-9a-f]{16}(?:\.jsonl|\.html)?\.part")
_MARKER_BYTES = 1 << 20
_FOLLOW_NOTHING = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@frozen
class FolderOwner:
    """Whose results a folder holds. What an emulator painted is no result of a gateway."""

    batch: str
    emulated: bool

    def to_json(self) -> str:
        """Return what the marker of such a folder holds."""
        return json.dumps({"batch": self.batch, "emulated": self.emulated})

    @classmethod
    def from_json(cls, content: bytes) -> "FolderOwner":
        """Read a marker back; raise ValueError for anything else."""
        facts = json.loads(content)
        if isinstance(facts, dict) and isinstance(batch := facts.get("batch"), str):
            return cls(batch, bool(facts.get("emulated")))
        raise ValueError("this is no marker")


class BatchFolder:
    """Holds the folder: `with BatchFolder(path, identity)`. The lock dies with the process.

    Raises `ConfigurationError` when it can't be written, when another run holds it, when it is another batch's, or when
    something foreign has one of the names that a run writes to.
    """

    def __init__(self, path: Path, identity: FolderOwner) -> None:
        self.path = path
        self._identity = identity
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            make_folder(self.path)
            if not check_owner(self.path, self._identity):
                self._mark()
            self._descriptor = os.open(self.path / MARKER, os.O_RDWR | _FOLLOW_NOTHING)
        except OSError as error:
            raise unwritable(self.path, error) from None
        try:
            if not self._try_lock():
                raise ConfigurationError(f"{self.path}: another `nanobanana batch` is at work in this folder")
            check_owner(self.path, self._identity)  # another run may have been faster
            _sweep(self.path)
        except OSError as error:
            self._let_go()
            raise unwritable(self.path, error) from None
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def _try_lock(self) -> bool:
        try:
            return try_lock(self._descriptor)
        except OSError:  # the file system has no locks: opening the ledger, which needs them, raises the error
            return True

    def _mark(self) -> None:
        """Let the marker appear whole, under a name that was free."""
        part = self.path / f".nanobanana-{secrets.token_hex(8)}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FOLLOW_NOTHING, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(self._identity.to_json().encode())
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another run was faster
                rename_exclusive(part, self.path / MARKER)
        finally:
            part.unlink(missing_ok=True)

    def _let_go(self) -> None:
        os.close(self._descriptor)


def unwritable(folder: Path, error: OSError, file: str = "") -> ConfigurationError:
    """Return what to do about a folder, or a file in it, that can't be written."""
    other = ""  # in another folder all would be bought once more
    try:
        (folder / LEDGER).lstat()
    except (FileNotFoundError, NotADirectoryError):
        other = ", or name another folder with -o"
    except OSError:
        pass
    return ConfigurationError(f"{why_unwritable(folder / file, error)}{other}")


def check_owner(path: Path, identity: FolderOwner) -> bool:
    """Tell whether the folder is this batch's already.

    Raises `ConfigurationError` if it is another's, and if what a run would write has a name that is taken: in a folder
    without a marker by anything, in a marked one by what leads elsewhere, such as a link. Other files are left alone.
    """
    taken = [name for name in (*FILES, *FOLDERS) if os.path.lexists(path / name)]
    found = _marker(path)  # read last: a run that is just beginning writes it first
    if found is None:
        if taken:
            raise ConfigurationError(
                f"{path} holds {', '.join(taken)}, which no run of this command made: name another folder with -o"
                f" (if an earlier run made them and only {MARKER} was lost, write {identity.to_json()} into it)"
            )
        return False
    for name in taken:
        with suppress(FileNotFoundError):  # SQLite's files beside the ledger come and go
            _check_own(path / name)
    if found.emulated != identity.emulated:
        whose = "what the emulator painted" if found.emulated else "what a gateway sold"
        raise ConfigurationError(f"{path} holds {whose}: name another folder with -o")
    if found.batch != identity.batch:
        raise ConfigurationError(
            f"{path} holds the batch {found.batch!r}, and this one is {identity.batch!r}: name another folder with -o,"
            f" or say --name {found.batch} if it is the same"
        )
    return True


def _marker(path: Path) -> FolderOwner | None:
    """Return what the marker says; None if there is none."""
    marker = path / MARKER
    try:
        _check_own(marker)
        with open(os.open(marker, os.O_RDONLY | _FOLLOW_NOTHING), "rb") as file:
            return FolderOwner.from_json(file.read(_MARKER_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{marker} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{marker} is not what this command writes there: move it away") from None


def _check_own(path: Path) -> None:
    """Raise `ConfigurationError` where a file of a marked folder leads elsewhere, or is no file."""
    seen = path.lstat()
    wanted, kind = (stat.S_ISDIR, "folder") if path.name in FOLDERS else (stat.S_ISREG, "regular file")
    if stat.S_ISLNK(seen.st_mode):
        raise ConfigurationError(f"{path} is a symbolic link, which is not followed: put the {kind} itself there")
    if not wanted(seen.st_mode):
        raise ConfigurationError(f"{path} is no {kind}: move it away")
    if path.name in CHANGED and seen.st_nlink > 1:
        raise ConfigurationError(
            f"{path} has another name elsewhere (a hard link), and would change there too: put a copy in its place"
        )


def _sweep(path: Path) -> None:
    """Remove the hidden files of runs that were killed."""
    for part in path.glob(".nanobanana-*.part"):
        with suppress(FileNotFoundError):
            if _PART.fullmatch(part.name) and stat.S_ISREG(part.lstat().st_mode):
                part.unlink()
