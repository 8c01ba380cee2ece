"""Ownership of jobs, proven by a file lock that ends with the process that holds it.

Beside the ledger `jobs.sqlite` is the folder `jobs.sqlite-owners`, with one file per open ledger, locked by the process
that opened it. An owner is dead when its lock can be taken. This needs no heartbeat and no clock: a process that was
suspended for an hour still owns its jobs.

Two open ledgers in one process are two owners. A forked child closes its copies of the locks at once, so that they end
with the parent. File locks work within one machine, like SQLite's own: a ledger must not be on a network share.
"""

import contextlib
import os
import stat
import uuid
from pathlib import Path
from weakref import WeakSet

from nanobanana_async.file_locks import try_lock

LOCK_SUFFIX = ".lock"


class Owner:
    """A living owner: this process holds its lock until `release` or until the process ends."""

    def __init__(self, owner_id: str, file: Path, descriptor: int) -> None:
        self.id = owner_id
        self.file = file
        self._descriptor: int | None = descriptor
        _OPEN_OWNERS.add(self)

    def release(self) -> None:
        """Give up the lock; other owners may adopt the jobs afterwards. Idempotent."""
        if self._descriptor is not None:
            self.close_lock()
            _remove_lock_file(self.file)

    def close_lock(self) -> None:
        """Close this process's copy of the lock; called in a forked child, the parent keeps its lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_OPEN_OWNERS: WeakSet[Owner] = WeakSet()


def _close_all_in_child() -> None:
    for owner in list(_OPEN_OWNERS):
        owner.close_lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - there is no fork on Windows
    os.register_at_fork(after_in_child=_close_all_in_child)


class Owners:
    """The owners of one ledger file."""

    def __init__(self, ledger: Path) -> None:
        self._folder = ledger.with_name(f"{ledger.name}-owners")

    def acquire(self) -> Owner:
        """Become an owner; raise OSError if the folder can't be written or its file system has no locks."""
        self.remove_dead()
        while True:
            owner_id = uuid.uuid4().hex
            file = self._folder / f"{owner_id}{LOCK_SUFFIX}"
            # The last owner to close removes the folder, possibly between any two of these calls.
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:
                if not self._folder.parent.exists():
                    raise
                continue
            except FileExistsError:  # from mkdir: the folder existed, and was removed before mkdir checked its type
                if _is_not_a_folder(self._folder):
                    raise
                continue
            # Another owner's `sweep` may have removed the file before it was locked.
            try:
                if try_lock(descriptor) and _is_same_file(file, descriptor):
                    return Owner(owner_id, file, descriptor)
            except OSError:
                os.close(descriptor)
                _remove_lock_file(file)
                raise
            os.close(descriptor)

    def is_alive(self, owner_id: str) -> bool:
        """Return whether this owner's process still holds its lock."""
        file = self._folder / f"{owner_id}{LOCK_SUFFIX}"
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:  # unreadable: waiting for a dead owner is safe, adopting a living one's jobs is not
            return True
        try:
            return not try_lock(descriptor, shared=True)  # shared: two checks at once must not see each other
        except OSError:
            return True
        finally:
            os.close(descriptor)

    def remove_dead(self) -> None:
        """Remove the files of dead owners."""
        with contextlib.suppress(OSError):
            for file in list(self._folder.iterdir()):
                if file.suffix == LOCK_SUFFIX:
                    _remove_if_dead(file)


def _is_not_a_folder(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_same_file(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _remove_if_dead(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        if not try_lock(descriptor):
            return
        # Removed while locked: otherwise a new owner could create and lock the file in between.
        _remove_lock_file(file)
    finally:
        os.close(descriptor)
    _remove_lock_file(file)  # Windows removes no open file, and so not a new owner's either


def _remove_lock_file(file: Path) -> None:
    # The folder is removed with its last file. A file that can't be removed is harmless: it is not locked.
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()
