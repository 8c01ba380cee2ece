"""The folder of a batch: held by one run at a time, and by one batch for ever."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.http.files import make_folder

LEDGER = "jobs.sqlite"
REPORT = "index.html"
_NAME = ".nanobanana-batch"

if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _taken(descriptor: int) -> bool:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # there nobody can read what is locked
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _taken(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks; the ledger, which needs them, will say so
            return True
        return True


@frozen
class Identity:
    """Whose results a folder holds. What an emulator painted is no result of a gateway."""

    batch: str
    emulated: bool


class BatchFolder:
    """Holds the folder: `with BatchFolder(path, identity)`. The lock dies with the process.

    Raises `ConfigurationError` when it can't be written, when another run holds it, or when it is another batch's.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self._identity = identity
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            make_folder(self.path)
            self._descriptor = os.open(self.path / _NAME, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise unwritable(self.path, error) from None
        try:
            if not _taken(self._descriptor):
                raise ConfigurationError(f"{self.path}: another `nanobanana batch` is at work in this folder")
            for part in self.path.glob(".nanobanana-*.part"):  # of runs that were killed
                part.unlink(missing_ok=True)
            if not check(self.path, self._identity):
                os.lseek(self._descriptor, 0, os.SEEK_SET)
                os.truncate(self._descriptor, 0)
                os.write(self._descriptor, json.dumps(_facts(self._identity)).encode())
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

    def _let_go(self) -> None:
        os.close(self._descriptor)


def unwritable(path: Path, error: OSError) -> ConfigurationError:
    """Return what to do about a folder that can't be written."""
    return ConfigurationError(f"{path} can't be written: {error.strerror or error}: name another folder with -o")


def check(path: Path, identity: Identity) -> bool:
    """Tell whether the folder is this batch's already; raise `ConfigurationError` if it is another's."""
    facts: object = None
    with suppress(OSError, ValueError):
        facts = json.loads((path / _NAME).read_bytes())
    if not isinstance(facts, dict):
        return False
    if facts == _facts(identity):
        return True
    if bool(facts.get("emulated")) != identity.emulated:
        whose = "what the emulator painted" if facts.get("emulated") else "what a gateway sold"
        raise ConfigurationError(f"{path} holds {whose}: name another folder with -o")
    name = facts.get("batch")
    raise ConfigurationError(
        f"{path} holds the batch {name!r}, and this one is {identity.batch!r}: name another folder with -o,"
        f" or say --name {name} if it is the same"
    )


def _facts(identity: Identity) -> dict[str, object]:
    return {"batch": identity.batch, "emulated": identity.emulated}
