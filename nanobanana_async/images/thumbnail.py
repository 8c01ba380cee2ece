"""Make small copies of images. Pillow makes them; without it there are none."""

import base64
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from nanobanana_async.images.formats import FORMATS, check_size

_QUALITY = 80
_METHOD = 2  # of 0 (fast) to 6 (small)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def thumbnail(source: BinaryIO, pixels: int) -> bytes | None:
    """Return a WebP of at most `pixels` by `pixels`; None without Pillow, or if it can't decode the image.

    Blocks: a large PNG takes a third of a second.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        return None
    Image.init()
    readable = [form.name.upper() for form in FORMATS if form.name.upper() in Image.OPEN]
    small = io.BytesIO()
    try:
        with Image.open(source, formats=readable) as image:
            check_size(image.width, image.height)
            image.thumbnail((pixels, pixels))  # a JPEG is decoded at a reduced size
            upright = ImageOps.exif_transpose(image)
            profile = image.info.get("icc_profile") if upright.mode in ("RGB", "RGBA") else None
            upright.save(small, "WEBP", quality=_QUALITY, method=_METHOD, icc_profile=profile, exif=b"")
    except Exception:  # decoders raise many kinds of exceptions, and this Pillow may write no WebP
        return None
    return small.getvalue()


def file_thumbnail(path: Path, pixels: int) -> bytes | None:
    """Return the thumbnail of a file; None as above, or if it can't be read or is a link, a pipe or a device."""
    try:
        with open(os.open(path, os.O_RDONLY | _NO_FOLLOW), "rb") as file:
            return thumbnail(file, pixels) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None


def as_data_uri(small: bytes) -> str:
    """Return a thumbnail as a data URI."""
    return f"data:image/webp;base64,{base64.b64encode(small).decode()}"
