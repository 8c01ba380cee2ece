"""What counts as a picture: its first bytes say the type, its skeleton that it is whole, Pillow that it decodes.

Neither the media type a server states nor the ending of a link is asked: both can lie.
"""

import io
from collections.abc import Callable
from typing import BinaryIO

from attrs import frozen

from nanobanana_async.http.anatomy import Data, Size, cut_short, damaged, walk_gif, walk_jpeg, walk_png, walk_webp
from nanobanana_async.http.missed import Missed

MAX_PIXELS = 1 << 26
"""8192 by 8192: four times the largest picture sold, and below the size at which Pillow begins to warn."""


@frozen
class Kind:
    """A format: how it is called, how its files end, how they begin, how they are walked."""

    name: str
    ending: str
    beginnings: tuple[bytes, ...]
    """A dot stands for any byte."""
    walk: Callable[[Data], Size]


KINDS = (
    Kind("png", ".png", (b"\x89PNG\r\n\x1a\n",), walk_png),
    Kind("jpeg", ".jpg", (b"\xff\xd8\xff",), walk_jpeg),
    Kind("webp", ".webp", (b"RIFF....WEBP",), walk_webp),
    Kind("gif", ".gif", (b"GIF87a", b"GIF89a"), walk_gif),
)


def examine(data: Data) -> Kind:
    """Return the kind of a picture that is whole and not too large; else raise `Missed`."""
    kind = _kind_of(data)
    width, height = kind.walk(data)
    _check_size(width, height)
    return kind


def decode(source: BinaryIO, kind: Kind) -> None:
    """Raise `Missed` unless Pillow can decode the whole picture; without Pillow it is taken as it is."""
    try:
        from PIL import Image
    except ImportError:
        return
    try:
        with Image.open(source, formats=[kind.name.upper()]) as image:
            _check_size(image.width, image.height)  # its reader may see another size than ours
            image.load()
    except Missed:
        raise
    except Exception as error:  # its decoders raise whatever comes to hand
        raise Missed(f"the picture is damaged: Pillow can't decode it ({type(error).__name__})") from None


def verified(content: bytes) -> Kind:
    """Return the kind of a picture that passes both."""
    kind = examine(content)
    decode(io.BytesIO(content), kind)
    return kind


def _kind_of(data: Data) -> Kind:
    if not data:
        raise cut_short()
    start = data[:12]
    for kind in KINDS:
        for beginning in kind.beginnings:
            if _begins(start, beginning):
                if len(start) < len(beginning):
                    raise cut_short()
                return kind
    raise Missed("this is no picture in PNG, JPEG, WebP or GIF format")


def _begins(start: bytes, beginning: bytes) -> bool:
    """Tell whether the bytes fit, as far as there are any."""
    return all(expected in (ord("."), found) for found, expected in zip(start, beginning, strict=False))


def _check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise damaged()
    if width * height > MAX_PIXELS:
        raise Missed(f"the picture has {width} x {height} pixels, more than the {MAX_PIXELS} that are taken")
