"""Save images on disk: written to a hidden file, verified, flushed, then renamed to the final name.

Everything here blocks, and runs in threads.
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

from nanobanana_async.images.formats import ImageFormat, check_decodes, scan_image, verify_image
from nanobanana_async.images.inline import FetchError
from nanobanana_async.images.manifest import NAME as MANIFEST
from nanobanana_async.images.manifest import Manifest
from nanobanana_async.images.names import safe_name
from nanobanana_async.images.saved import PurchasedImage, add_to_list, check_list, has_content

_PART_NAME = re.compile(r"\.nanobanana-[0-9a-f]{16}\.part")
_STALE_S = 3600.0
_MAX_NUMBER = 10_000
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

# Errors of one file: another image, smaller or with a shorter name, can still be saved.
_ONE_FILE_ERRNOS = frozenset({errno.EFBIG, errno.ENAMETOOLONG})
_RETRYABLE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE})
_TEST_CONTENT = b"nanobanana" * 400  # about a block: an empty file can be made even on a full disk

_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
    errno.EROFS: "let this user write there",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files",
    errno.EEXIST: "move that away",
    errno.EISDIR: "move that away",
    errno.ELOOP: "move that away",
    errno.ENOTDIR: "move that away",
}
_REASONS = {
    errno.EEXIST: "something else has this name",
    errno.EISDIR: "a folder has this name",
    errno.ELOOP: "a symbolic link has this name",
    errno.ENOTDIR: "a part of the path is a file",
}


@frozen(kw_only=True)
class SavedImage:
    """An image on disk: complete, verified, and listed in the folder's `SHA256SUMS`."""

    path: Path
    sha256: str


class PartialFile:
    """A hidden file that becomes a saved image or is removed.

    A cancelled caller does not stop the thread that runs a method. So the methods exclude each other, and none has an
    effect after `discard`.
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
        """Create the folder and the file."""
        with self._lock:
            if not self._discarded:
                make_folder(self._folder)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW
                self._descriptor = os.open(self._path, flags, 0o666)

    def write(self, content: bytes) -> None:
        """Append bytes to the file."""
        with self._lock:
            if self._descriptor is None:
                return
            unwritten = memoryview(content)
            while unwritten:
                unwritten = unwritten[os.write(self._descriptor, unwritten) :]
            self._digest.update(content)
            self._size += len(content)

    def finish(self, name: str, purchased: PurchasedImage | None = None) -> SavedImage:
        """Verify and flush the image, rename the file to a safe form of the name, and list it.

        If the same image already has the name, that file stays; if another file has it, this image gets a number.
        """
        with self._lock:
            if self._descriptor is None:
                raise FetchError("the image was discarded")
            image_format = self._verify(self._descriptor)
            os.fsync(self._descriptor)
            self._close()  # Windows can't rename an open file
            digest = self._digest.hexdigest()
            with Manifest(self._folder) as manifest:
                name = self._claim_name(manifest, safe_name(name), image_format, digest)
                sync_folder(self._folder)  # also for the manifest's own name
                if (name, digest) not in manifest.listed(name):
                    manifest.add(name, digest)
                if purchased is not None:
                    add_to_list(self._folder, purchased, name, digest)
            return SavedImage(path=self._folder / name, sha256=digest)

    def remove_stale_parts(self) -> None:
        """Remove hidden files that killed processes left in the folder: those not written to for an hour.

        The age is relative to this file's own, since the file system's clock may differ from this machine's.
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
        """Remove the hidden file; idempotent, and without effect after `finish`."""
        with self._lock:
            self._discarded = True
            self._close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _verify(self, descriptor: int) -> ImageFormat:
        if self._size == 0:
            return scan_image(b"")  # an empty file can't be mapped
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
            image_format = scan_image(content)
        with os.fdopen(os.dup(descriptor), "rb") as source:
            source.seek(0)
            check_decodes(source, image_format)
        return image_format

    def _claim_name(self, manifest: Manifest, stem: str, image_format: ImageFormat, digest: str) -> str:
        """Rename the file to the first free name, unless a file with its content has it; return the name.

        A file that the manifest lists as this image, and that is no image any more, is replaced.
        """
        extension = image_format.extension
        for number in range(1, _MAX_NUMBER):
            name = f"{stem}{extension}" if number == 1 else f"{stem}-{number}{extension}"
            listed = manifest.listed(name)
            if listed - {(name, digest)}:  # another image, or one whose name differs in the case of its letters
                continue
            target = self._folder / name
            with suppress(FileExistsError):
                rename_exclusive(self._path, target)
                return name
            if has_content(target, digest):
                return name
            if listed and _is_damaged(target):
                os.replace(self._path, target)
                return name
        raise FetchError(f"too many images are named {stem}{extension}: save it under another name")

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def why_unwritable(path: Path | str, error: OSError, *, or_else: str = "") -> str:
    """Return why a file or folder can't be written, and what to do; `or_else` is another way out."""
    number = error.errno or 0
    why = error.strerror or type(error).__name__
    if number in _REASONS and isinstance(error.filename, (str, os.PathLike)):  # else the text is our own
        path, why = os.fspath(error.filename), _REASONS[number]
    advice = " or ".join(filter(None, (_ADVICE.get(number), or_else)))
    reason = f"{path} can't be written: {why}"
    return f"{reason}: {advice}" if advice else reason


def to_fetch_error(folder: Path, error: OSError) -> FetchError:
    """Return a `FetchError` that says whether the folder or only this image is at fault."""
    if error.errno in _ONE_FILE_ERRNOS:
        return FetchError(f"the image can't be written to {folder}: {error.strerror}")
    return FetchError(why_unwritable(folder, error), retryable=error.errno in _RETRYABLE_ERRNOS, unwritable=True)


def ensure_writable_folder(folder: Path) -> None:
    """Create a folder if it is missing, and write and remove a test file in it; raise OSError if that fails."""
    part = PartialFile(folder)
    try:
        part.open()
        part.write(_TEST_CONTENT)
        if os.path.lexists(folder / MANIFEST):
            with Manifest(folder):
                pass
        check_list(folder)
    finally:
        part.discard()


def check_place(folder: Path) -> None:
    """Raise OSError if a folder can surely not be created or written. Nothing is created."""
    place = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not place.is_dir():
        number = errno.EEXIST if place == folder else errno.ENOTDIR
    elif not os.access(place, os.W_OK | os.X_OK):
        number = errno.EACCES
    else:
        return
    raise OSError(number, os.strerror(number), str(folder))


def rename_exclusive(part: Path, target: Path) -> None:
    """Rename a complete file atomically; raise `FileExistsError` if the target exists."""
    try:
        os.link(part, target)  # unlike a rename, it fails if the target exists
    except FileExistsError:
        raise
    except OSError:
        if os.name == "nt":  # pragma: no cover - on Windows a rename fails if the target exists
            os.rename(part, target)
            return
        # Without hard links: an empty file takes the name, and the complete file replaces it. A kill in between leaves
        # an empty file that is in no manifest.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666))
        try:
            os.replace(part, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return
    part.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and flush them to the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system supports that."""
    with suppress(OSError):  # Windows can't open a folder; some network shares can't flush one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_stale(entry: os.DirEntry[str], now: float) -> None:
    with suppress(OSError):  # another process may remove it at the same time
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode) and status.st_mtime < now - _STALE_S:
            os.unlink(entry.path)


def _is_damaged(path: Path) -> bool:
    """Return whether a regular file, not a link, holds no complete image."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_FOLLOW), "rb") as file:
            verify_image(file.read())
        return False
    except FetchError:
        return True
    except OSError:
        return False
