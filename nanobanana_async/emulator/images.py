"""The links to the pictures, when they expire, and what stands behind them."""

import base64
import functools
import importlib.util
import re
import struct
import zlib

from attrs import frozen

from nanobanana_async.emulator.accounts import Task
from nanobanana_async.emulator.composition import ImageSpec, palette
from nanobanana_async.emulator.settings import EmulatorSettings

PREFIX = "/cdn/"
_PATH = re.compile(r"/cdn/([0-9a-f]+)/([\w-]+)/(?:image-(\d\d)|result|cover)\.(?:png|jpe?g)")


@frozen
class Link:
    """A link as it was read back: when it was issued, whose picture it shows."""

    issued_at: float
    task_id: str
    index: int


def links(task: Task, now: float, base_url: str) -> list[str]:
    """Return fresh links to all images of a job; the moment of issue is part of each."""
    stamp = f"{round(now * 1000):x}" if now > 0 else "0"
    folder = f"{base_url}{PREFIX}{stamp}/{task.task_id}"
    ending = task.order.output_format
    return [f"{folder}/image-{number:02d}.{ending}" for number in range(1, task.order.images + 1)]


def read_link(path: str) -> Link | None:
    """Return what a path of the CDN points at, or None when it was never issued."""
    if (match := _PATH.fullmatch(path)) is None:
        return None
    stamp, task_id, number = match.groups()
    return Link(int(stamp, 16) / 1000, task_id, int(number or 1) - 1)


def picture(task: Task, index: int, settings: EmulatorSettings) -> ImageSpec:
    """Return the picture a job made, as a value that can be painted any time."""
    width, height = size_of(task.order.aspect_ratio, task.order.resolution, settings.picture_scale)
    return ImageSpec(
        prompt=task.order.prompt,
        seed=settings.seed,
        index=index,
        width=width,
        height=height,
        png=task.order.output_format == "png",
    )


def data_uris(task: Task, settings: EmulatorSettings) -> list[str]:
    """Return all images of a job as data URIs; painted now."""
    return [data_uri(picture(task, index, settings)) for index in range(task.order.images)]


def content_type(task: Task) -> str:
    """Return the media type of a job's images."""
    return media_type(png=task.order.output_format == "png")


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


def data_uri(picture: ImageSpec) -> str:
    """Return a picture as a data URI; without Pillow it is a PNG whatever was asked for."""
    body = paint(picture)
    kind = media_type(png=body.startswith(b"\x89PNG"))
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"


@functools.lru_cache(maxsize=32)
def paint(picture: ImageSpec) -> bytes:
    """Return the encoded picture; slow for 4K, so call it in a thread."""
    if not has_pillow():
        return plain_png(picture)
    from nanobanana_async.emulator.painting import paint_with_pillow

    return paint_with_pillow(picture)


def plain_png(picture: ImageSpec) -> bytes:
    """Return an eight by eight PNG in the first colour of the palette, made by hand."""
    colours, _ = palette(picture.bits())
    row = b"\x00" + bytes(colours[1]) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
