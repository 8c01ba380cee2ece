"""Small copies of a page's images, in a folder beside the page, so that a page of thousands stays quick."""

import io
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath

from nanobanana_async.images.thumbnail import file_thumbnail, thumbnail
from nanobanana_async.references import STORE_SCHEMES

THUMBNAILS = "thumbnails"
_SCHEMES = frozenset({*STORE_SCHEMES, "file"})  # a store on this machine has file:// URLs
_STORED = "images"  # the folder in `thumbnails` for images in a store
PIXELS = 512  # of the longer edge: a card is about 300 wide, on screens with up to twice as many pixels


def is_in_store(image: str) -> bool:
    """Return whether an image of a row is in an object store, and not a file."""
    return image.partition("://")[0] in _SCHEMES and "://" in image


def make_thumbnail(folder: Path, image: str, content: bytes | None = None) -> bool:
    """Make the thumbnail of an image, unless there is one, and return whether there is one now.

    `image` is the path of `ReportRow.images`, or a URL with its `content`; `folder` that of the page. There is none
    without Pillow, or for a file that can't be read or written; then the page shows the image itself. The function
    blocks: call it in a thread.
    """
    if find_thumbnail(folder, image) is not None:
        return True
    path = _path(folder, image)
    if path is None:
        return False
    part = folder / f".nanobanana-{secrets.token_hex(8)}.part"
    try:
        small = thumbnail(io.BytesIO(content), PIXELS) if content else file_thumbnail(folder / image, PIXELS)
        if small is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.resolve() != folder.resolve() / path.parent.relative_to(folder):
            return False  # a symbolic link that leads out of the folder
        part.write_bytes(small)
        os.replace(part, path)
    except (OSError, ValueError):  # ValueError: a null character in the name
        with suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True


def find_thumbnail(folder: Path, image: str) -> str | None:
    """Return the thumbnail's path relative to the page; None if there is none, or the image has changed since."""
    path = _path(folder, image)
    if path is None:
        return None
    try:
        made = path.lstat()
        newer = is_in_store(image) or made.st_mtime_ns >= (folder / image).lstat().st_mtime_ns
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(made.st_mode) or not newer:
        return None
    return path.relative_to(folder).as_posix()


def _path(folder: Path, image: str) -> Path | None:
    """Return where the thumbnail belongs; None for a path that leaves the folder."""
    if is_in_store(image):
        image = f"{_STORED}/{image.rpartition('/')[2]}"
    parts = PurePosixPath(image).parts
    if not parts or PurePosixPath(image).is_absolute() or ".." in parts:
        return None
    return folder.joinpath(THUMBNAILS, *parts[:-1], f"{parts[-1]}.webp")
