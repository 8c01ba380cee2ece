"""Image links, and the images behind them."""

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
_LONG_EDGE = {"1K": 1024, "2K": 2048, "4K": 4096}
_MAX_RATIO = 8.0


@frozen
class Link:
    """A parsed image link: when it was issued, and which image it names."""

    issued_at: float
    task_id: str
    index: int


def links(task: Task, now: float, base_url: str) -> list[str]:
    """Return new links to all images of a job. Each contains its time of issue."""
    stamp = f"{round(now * 1000):x}" if now > 0 else "0"
    folder = f"{base_url}{PREFIX}{stamp}/{task.task_id}"
    extension = task.request.output_format
    return [f"{folder}/image-{number:02d}.{extension}" for number in range(1, task.request.image_count + 1)]


def read_link(path: str) -> Link | None:
    """Parse a path of the CDN; None if it is not an image link."""
    if (match := _PATH.fullmatch(path)) is None:
        return None
    stamp, task_id, number = match.groups()
    return Link(int(stamp, 16) / 1000, task_id, int(number or 1) - 1)


def image_spec(task: Task, index: int, settings: EmulatorSettings) -> ImageSpec:
    """Return the spec of one image of a job."""
    width, height = size_of(task.request.aspect_ratio, task.request.resolution, settings.image_scale)
    return ImageSpec(
        prompt=task.request.prompt,
        task_id=task.task_id,
        seed=settings.seed,
        index=index,
        width=width,
        height=height,
        is_png=task.request.output_format == "png",
    )


def data_uris(task: Task, settings: EmulatorSettings) -> list[str]:
    """Paint all images of a job and return them as data URIs."""
    return [data_uri(image_spec(task, index, settings)) for index in range(task.request.image_count)]


def content_type(task: Task) -> str:
    """Return the media type of a job's images."""
    return media_type(png=task.request.output_format == "png")


def has_pillow() -> bool:
    """Return whether Pillow is installed."""
    return importlib.util.find_spec("PIL") is not None


def require_pillow() -> None:
    """Raise an ImportError that says what to install if Pillow is missing."""
    if not has_pillow():
        raise ImportError("the emulator paints its images with Pillow: pip install 'nanobanana-async[emulator]'")


def size_of(aspect_ratio: str | None, resolution: str, scale: float) -> tuple[int, int]:
    """Return width and height. The resolution is the long edge; ratios are clipped to 8:1."""
    wide, _, high = (aspect_ratio or "1:1").partition(":")
    ratio = min(_MAX_RATIO, max(1 / _MAX_RATIO, int(wide) / int(high)))
    long_edge = max(8, round(_LONG_EDGE[resolution] * scale))
    if ratio >= 1:
        return long_edge, max(1, round(long_edge / ratio))
    return max(1, round(long_edge * ratio)), long_edge


def media_type(*, png: bool) -> str:
    """Return the media type of PNG or JPEG."""
    return "image/png" if png else "image/jpeg"


def data_uri(spec: ImageSpec) -> str:
    """Return an image as a data URI. Without Pillow it is always a PNG."""
    body = paint(spec)
    kind = media_type(png=body.startswith(b"\x89PNG"))
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"


@functools.lru_cache(maxsize=32)
def paint(spec: ImageSpec) -> bytes:
    """Return the encoded image. This is slow for 4K: call it in a thread."""
    if not has_pillow():
        return plain_png(spec)
    from nanobanana_async.emulator.painting import paint_with_pillow

    return paint_with_pillow(spec)


def plain_png(spec: ImageSpec) -> bytes:
    """Return an 8x8 PNG of one colour, made without Pillow."""
    colours, _ = palette(spec.bits())
    row = b"\x00" + bytes(colours[1]) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
