"""Who follows a job: an owner is proven by a lock that its process holds, and that dies with it.

Beside the ledger `jobs.sqlite` stands the folder `jobs.sqlite-owners`, with one file per open ledger, locked by the
process that opened it. A lock can't outlive its holder, whatever ended it: so an owner is dead when its lock can be
taken. It needs no heartbeat and no clock, and a process that was stopped for an hour has lost nothing.

Two ledgers in one process are two owners. A forked child is none: it closes its copy of the lock at once, lest the
lock outlive the parent. The lock guards a machine, as SQLite's own do; a ledger does not belong on a network share.
"""

import contextlib
import os
import stat
import sys
import uuid
from pathlib import Path
from weakref import WeakSet

SUFFIX = ".lock"

if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _take(descriptor: int, *, shared: bool) -> bool:
        del shared  # there are none
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _take(descriptor: int, *, shared: bool) -> bool:
        """Take the lock if nobody holds it; those who only ask share it, and so don't take each other for owners."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class Owner:
    """An owner that lives: this process holds its lock until `resign` or its own end."""

    def __init__(self, owner_id: str, file: Path, descriptor: int) -> None:
        self.id = owner_id
        self.file = file
        self._descriptor: int | None = descriptor
        _HELD.add(self)

    def release(self) -> None:
        """Give the lock back; from now on anybody may adopt the jobs. Idempotent."""
        if self._descriptor is not None:
            self.close_in_child()
            _remove(self.file)

    def close_in_child(self) -> None:
        """Close this process's copy of the lock: in a forked child the parent's stays."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_HELD: WeakSet[Owner] = WeakSet()


def _forget_all() -> None:
    for owner in list(_HELD):
        owner.close_in_child()


if hasattr(os, "register_at_fork"):  # pragma: no branch - there is no fork on Windows
    os.register_at_fork(after_in_child=_forget_all)


class Owners:
    """The owners of one ledger file, as their locks tell."""

    def __init__(self, ledger: Path) -> None:
        self._folder = ledger.with_name(f"{ledger.name}-owners")

    def acquire(self) -> Owner:
        """Become an owner; raises OSError where the folder can't be written."""
        self.sweep()
        while True:
            owner_id = uuid.uuid4().hex
            file = self._folder / f"{owner_id}{SUFFIX}"
            # The last one to leave removes the folder; it may do so at any moment here.
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:
                continue
            except FileExistsError:  # it was there, and had gone when mkdir looked whether it is a folder
                if _is_not_a_folder(self._folder):
                    raise
                continue
            # Somebody who sweeps may have taken the file for a dead one's before it was locked.
            if _take(descriptor, shared=False) and _is_there(file, descriptor):
                return Owner(owner_id, file, descriptor)
            os.close(descriptor)

    def alive(self, owner_id: str) -> bool:
        """Whether this owner's process still holds its lock."""
        file = self._folder / f"{owner_id}{SUFFIX}"
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:  # it is there and may not be asked: rather wait for a dead one than outrun a living one
            return True
        try:
            return not _take(descriptor, shared=True)
        finally:
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove what the dead have left."""
        with contextlib.suppress(OSError):
            for file in list(self._folder.iterdir()):
                if file.suffix == SUFFIX:
                    _remove_if_dead(file)


def _is_not_a_folder(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_there(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _remove_if_dead(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        if not _take(descriptor, shared=False):
            return
        # While it is locked: else it may be an owner's that was just born, and has just locked it.
        _remove(file)
    finally:
        os.close(descriptor)
    _remove(file)  # Windows removes no open file, and so not a newborn owner's either


def _remove(file: Path) -> None:
    # The folder goes with the last file; what can't be removed does no harm, its lock is gone.
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()
