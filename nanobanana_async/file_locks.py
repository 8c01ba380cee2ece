"""Operating-system locks on open files, for POSIX and Windows. A lock ends with the process that holds it.

The locks are advisory on POSIX, and belong to one opening of a file: two openings in one process exclude each other.
On Windows a locked byte can't be read by other processes, so the lock is on a byte far behind the content.
"""

import os
import sys

if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    _LOCKED_BYTE = 1 << 30

    def try_lock(descriptor: int, *, shared: bool = False) -> bool:
        del shared  # Windows has exclusive locks only here
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def wait_for_lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)  # raises OSError after ten seconds

    def unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def try_lock(descriptor: int, *, shared: bool = False) -> bool:
        """Lock a file unless another holder has it; raise OSError where the file system has no locks."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait_for_lock(descriptor: int) -> None:
        """Lock a file once no other holder has it; raise OSError where the file system has no locks."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def unlock(descriptor: int) -> None:
        """Give up a lock; raise OSError where the file system has no locks."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)
