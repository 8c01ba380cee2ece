"""Pictures on disk: written beside their place under a hidden name, looked at, flushed, then given their name at once.

Everything here blocks, and is called in threads.
"""

import errno
import hashlib
import mmap
import os
import re
import secrets
import stat
import threading
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from nanobanana_async.images.formats import ImageFormat, check_decodes, inspect
from nanobanana_async.images.inline import FetchError
from nanobanana_async.images.manifest import NAME as MANIFEST
from nanobanana_async.images.manifest import Manifest

_PART_NAME = re.compile(r"\.nanobanana-[0-9a-f]{16}\.part")
_STALE_S = 3600.0
_MAX_NUMBER = 10_000
_FOLLOW_NOTHING = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

# Errors that speak of one file: another image, smaller or with a shorter name, can still be saved.
_OF_ONE_FILE = frozenset({errno.EFBIG, errno.ENAMETOOLONG})
_MAY_PASS = frozenset({errno.EMFILE, errno.ENFILE})
_CHECKED_WITH = b"nanobanana" * 400  # about a block: on a full disk an empty file can still be made

_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
    errno.EROFS: "let this user write there",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files",
    errno.EEXIST: "move away what is in its place",
    errno.EISDIR: "move away what is in its place",
    errno.ELOOP: "move away what is in its place",
    errno.ENOTDIR: "move away what is in its place",
}


@frozen(kw_only=True)
class SavedImage:
    """A picture on disk: whole, looked at, and listed in the folder's `SHA256SUMS`."""

    path: Path
    sha256: str
    size: int
    format: str
    """By its first bytes: "png", "jpeg", "webp" or "gif"."""


class PartialFile:
    """A hidden file that becomes a picture or nothing.

    A cancelled caller does not stop the thread that works for him. So each method has the file to itself, and after
    `discard` none does anything any more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f".nanobanana-{secrets.token_hex(8)}.part"
        self._digest = hashlib.sha256()
        self._size = 0
        self._descriptor: int | None = None
        self._discarded = False
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make the folder and the file."""
        with self._lock:
            if not self._discarded:
                make_folder(self._folder)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FOLLOW_NOTHING
                self._descriptor = os.open(self._path, flags, 0o666)

    def write(self, content: bytes) -> None:
        with self._lock:
            if self._descriptor is None:
                return
            left = memoryview(content)
            while left:
                left = left[os.write(self._descriptor, left) :]
            self._digest.update(content)
            self._size += len(content)

    def finish(self, key: str) -> SavedImage:
        """Verify the picture, flush it, and let it appear under a name made of the key.

        Where this very picture stands under the name already it stays as it is; beside another one ours gets a number.
        """
        with self._lock:
            if self._descriptor is None:
                raise FetchError("the picture was discarded")
            kind = self._verified(self._descriptor)
            os.fsync(self._descriptor)
            self._close()  # Windows moves no file that is open
            digest = self._digest.hexdigest()
            with Manifest(self._folder) as manifest:
                name = self._claim_name(manifest, safe_name(key), kind, digest)
                sync_folder(self._folder)  # for the list's own name, too
                if digest not in manifest.digests_of(name):
                    manifest.add(name, digest)
            return SavedImage(path=self._folder / name, sha256=digest, size=self._size, format=kind.name)

    def sweep(self) -> None:
        """Remove what killed processes left in the folder: hidden files of ours that nobody wrote to for an hour.

        The hour is told by the file system, whose clock need not be this machine's: by the age of our own file.
        """
        with self._lock:
            if self._descriptor is None:
                return
            now = os.fstat(self._descriptor).st_mtime
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if _PART_NAME.fullmatch(entry.name):
                        _remove_stale(entry, now)

    def discard(self) -> None:
        """Remove the hidden file; idempotent, and harmless after `publish`."""
        with self._lock:
            self._discarded = True
            self._close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _verified(self, descriptor: int) -> ImageFormat:
        if self._size == 0:
            return inspect(b"")  # nothing can't be mapped
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
            kind = inspect(content)
        with os.fdopen(os.dup(descriptor), "rb") as source:
            source.seek(0)
            check_decodes(source, kind)
        return kind

    def _claim_name(self, manifest: Manifest, stem: str, kind: ImageFormat, digest: str) -> str:
        """Give the file its name; return it."""
        for number in range(1, _MAX_NUMBER):
            name = f"{stem}{kind.extension}" if number == 1 else f"{stem}-{number}{kind.extension}"
            if manifest.digests_of(name) - {digest}:
                continue
            target = self._folder / name
            with suppress(FileExistsError):
                rename_exclusive(self._path, target)
                return name
            if _has_content(target, self._size, digest):
                return name
        raise FetchError(f"too many pictures are called {stem}{kind.extension}: save it under another key")

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def why_unwritable(path: Path | str, error: OSError) -> str:
    """Return why a file or folder can't be written, and what to do."""
    advice = _ADVICE.get(error.errno or 0, "put that right")
    return f"{path} can't be written: {error.strerror or type(error).__name__}: {advice}"


def missed(folder: Path, error: OSError) -> FetchError:
    """Return whether the folder or one image is at fault that could not be written."""
    if error.errno in _OF_ONE_FILE:
        return FetchError(f"the image can't be written to {folder}: {error.strerror}")
    return FetchError(why_unwritable(folder, error), retryable=error.errno in _MAY_PASS, unwritable=True)


def check_folder(folder: Path) -> None:
    """Make a folder if it is missing, and write a file into it that is removed again; raise OSError if that fails."""
    part = PartialFile(folder)
    try:
        part.open()
        part.write(_CHECKED_WITH)
        if os.path.lexists(folder / MANIFEST):
            with Manifest(folder):
                pass
    finally:
        part.discard()


def rename_exclusive(part: Path, target: Path) -> None:
    """Let a finished file appear under its name, whole; raises `FileExistsError` if anything stands there."""
    try:
        os.link(part, target)  # unlike a rename it fails where something stands
    except FileExistsError:
        raise
    except OSError:
        if os.name == "nt":  # pragma: no cover - there a rename fails likewise
            os.rename(part, target)
            return
        # No hard links on this file system: the name is taken first, empty, then the file put in its place. Killed in
        # between we leave an empty file, which no list names.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FOLLOW_NOTHING, 0o666))
        try:
            os.replace(part, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return
    part.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, so that they outlast a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can do that."""
    with suppress(OSError):  # Windows opens no folder; some network shares flush none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_stale(entry: os.DirEntry[str], now: float) -> None:
    with suppress(OSError):  # another process sweeps, too
        seen = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(seen.st_mode) and seen.st_mtime < now - _STALE_S:
            os.unlink(entry.path)


def _has_content(path: Path, size: int, digest: str) -> bool:
    """Tell whether a file, and no link to one, has this content."""
    try:
        seen = path.lstat()
        if not stat.S_ISREG(seen.st_mode) or seen.st_size != size:
            return False
        with os.fdopen(os.open(path, os.O_RDONLY | _FOLLOW_NOTHING), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


_MAX_LENGTH = 120  # with number and ending far below the 255 bytes that file systems take
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
# A leading dot hides a file, a leading dash is read as an option, Windows drops trailing dots.
_SAFE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # devices on Windows


def safe_name(key: str) -> str:
    """Return a file name, without ending, for a key: the key if it is safe, else a likeness and a digest of it."""
    if len(key) <= _MAX_LENGTH and _SAFE.fullmatch(key) and not _RESERVED.fullmatch(key):
        return key
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    likeness = _UNSAFE.sub("_", key)[: _MAX_LENGTH - 18].strip(".-")
    return f"_{likeness}-{digest}" if _RESERVED.fullmatch(likeness) or not likeness else f"{likeness}-{digest}"
