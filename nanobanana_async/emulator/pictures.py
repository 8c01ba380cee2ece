"""Pictures that follow from the prompt: a sky, a sun, hills, and the prompt as words.

Pillow is optional. Without it `paint` returns a tiny built-in picture, so that everything but the
looks of the results still works; `require_pillow` is for those who want the looks.
"""

import base64
import functools
import importlib.util
import struct
import zlib

from nanobanana_async.emulator.composition import Picture, palette

_LONG_EDGE = {"1K": 1024, "2K": 2048, "4K": 4096}
_MOST_ELONGATED = 8.0


def has_pillow() -> bool:
    """Tell whether real pictures can be painted here."""
    return importlib.util.find_spec("PIL") is not None


def require_pillow() -> None:
    """Raise an ImportError that says what to install when there can be no real pictures."""
    if not has_pillow():
        raise ImportError("the emulator paints its pictures with Pillow: pip install 'nanobanana-async[emulator]'")


def size_of(aspect_ratio: str | None, resolution: str, scale: float) -> tuple[int, int]:
    """Return width and height: the resolution is the long edge, the ratio is never over 8:1."""
    wide, _, high = (aspect_ratio or "1:1").partition(":")
    ratio = min(_MOST_ELONGATED, max(1 / _MOST_ELONGATED, int(wide) / int(high)))
    long_edge = max(8, round(_LONG_EDGE[resolution] * scale))
    if ratio >= 1:
        return long_edge, max(1, round(long_edge / ratio))
    return max(1, round(long_edge * ratio)), long_edge


def media_type(*, png: bool) -> str:
    """Return the media type of the two formats there are."""
    return "image/png" if png else "image/jpeg"


def data_uri(picture: Picture) -> str:
    """Return a picture as a data URI; without Pillow it is a PNG whatever was asked for."""
    body = paint(picture)
    kind = media_type(png=body.startswith(b"\x89PNG"))
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"


@functools.lru_cache(maxsize=32)
def paint(picture: Picture) -> bytes:
    """Return the encoded picture; slow for 4K, so call it in a thread."""
    if not has_pillow():
        return plain_png(picture)
    from nanobanana_async.emulator.painting import paint_with_pillow

    return paint_with_pillow(picture)


def plain_png(picture: Picture) -> bytes:
    """Return an eight by eight PNG in the first colour of the palette, made by hand."""
    colours, _ = palette(picture.bits())
    row = b"\x00" + bytes(colours[1]) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
