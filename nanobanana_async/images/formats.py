"""How pictures are built: each format is walked to its end, so that a cut is found without decoding, and its size.

A walk returns width and height, and raises `Missed`. It looks at the skeleton only (of PNG at the checksums, too);
whether the flesh can be decoded is Pillow's to say. Bytes after the end are left alone: cameras put videos there.
"""

import io
import mmap
import re
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

from attrs import frozen

from nanobanana_async.images.inline import FetchError

Data = bytes | mmap.mmap
Size = tuple[int, int]

_MAX_STEPS = 1_000_000  # about a second; 64 MB of honest PNG or GIF take less than half of it

_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers that nothing belongs to
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA

_GIF_EXTENSION, _GIF_FRAME, _GIF_END = 0x21, 0x2C, 0x3B


class ByteReader:
    """A place in the bytes of a picture."""

    def __init__(self, data: Data, at: int) -> None:
        self.data = data
        self.at = at
        self._steps = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes, and stand behind them."""
        start = self.at
        self.skip(count)
        return self.data[start : self.at]

    def skip(self, count: int) -> None:
        self.at += count
        self._steps += 1
        if self.at > len(self.data):
            raise truncated()
        if self._steps > _MAX_STEPS:
            raise FetchError("the picture is made of too many pieces")


def truncated() -> FetchError:
    """Return the trouble of a picture that ends too early: the next attempt may bring it whole."""
    return FetchError("the picture is cut short", retryable=True)


def corrupt() -> FetchError:
    return FetchError("the picture is damaged")


def scan_png(data: Data) -> Size:
    """Follow the chunks to the last one, checking each."""
    cursor = ByteReader(data, 8)
    size: Size | None = None
    while True:
        (length,) = struct.unpack(">I", cursor.take(4))
        start = cursor.at
        kind = cursor.take(4)
        cursor.skip(length)
        checksum = _checksum(data, start, cursor.at)
        if struct.unpack(">I", cursor.take(4)) != (checksum,):
            raise corrupt()
        if size is None:
            if kind != b"IHDR" or length != 13:
                raise corrupt()
            size = struct.unpack(">II", data[start + 4 : start + 12])
        if kind == b"IEND":
            return size


def _checksum(data: Data, start: int, end: int) -> int:
    with memoryview(data) as whole, whole[start:end] as chunk:  # no copy: a chunk may be as large as the picture
        return zlib.crc32(chunk)


def scan_jpeg(data: Data) -> Size:
    """Follow the segments and scans to the end marker."""
    cursor = ByteReader(data, 2)
    width = height = 0
    while True:
        if cursor.take(1) != b"\xff":
            raise corrupt()
        marker = cursor.take(1)[0]
        if marker == _JPEG_END:
            return width, height
        if marker == 0xFF:  # a filler
            cursor.at -= 1
        elif marker not in _JPEG_BARE:
            (length,) = struct.unpack(">H", cursor.take(2))
            if length < 2:
                raise corrupt()
            segment = cursor.take(length - 2)
            if marker in _JPEG_SIZES:
                tall, wide = struct.unpack(">HH", segment[1:5]) if length >= 7 else (0, 0)
                width, height = max(width, wide), max(height, tall)
            if marker == _JPEG_SCAN:
                following = _JPEG_MARKER.search(data, cursor.at)
                if following is None:
                    raise truncated()
                cursor.at = following.start()


def scan_webp(data: Data) -> Size:
    """Check the length that the file states for itself."""
    cursor = ByteReader(data, 4)
    (length,) = struct.unpack("<I", cursor.take(4))
    if len(data) < 8 + length:
        raise truncated()
    cursor.skip(4)
    kind = cursor.take(4)
    cursor.skip(4)
    head = cursor.take(10)
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise corrupt()


def scan_gif(data: Data) -> Size:
    """Follow the blocks to the end mark; the size is that of the screen and of every frame on it."""
    cursor = ByteReader(data, 6)
    width, height, flags = struct.unpack("<HHB2x", cursor.take(7))
    _skip_colours(cursor, flags)
    while True:
        mark = cursor.take(1)[0]
        if mark == _GIF_END:
            return width, height
        if mark == _GIF_FRAME:
            left, top, wide, tall, flags = struct.unpack("<HHHHB", cursor.take(9))
            width, height = max(width, left + wide), max(height, top + tall)
            _skip_colours(cursor, flags)
        elif mark != _GIF_EXTENSION:
            raise corrupt()
        cursor.skip(1)  # the extension's kind, or the frame's code size
        while length := cursor.take(1)[0]:
            cursor.skip(length)


def _skip_colours(cursor: ByteReader, flags: int) -> None:
    if flags & 0x80:
        cursor.skip(3 << (flags & 7) + 1)


MAX_PIXELS = 1 << 26
"""8192 by 8192: four times the largest picture sold, and below the size at which Pillow begins to warn."""


@frozen
class ImageFormat:
    """A format: how it is called, how its files end, how they begin, how they are walked."""

    name: str
    extension: str
    signatures: tuple[bytes, ...]
    """A dot stands for any byte."""
    scan: Callable[[Data], Size]


FORMATS = (
    ImageFormat("png", ".png", (b"\x89PNG\r\n\x1a\n",), scan_png),
    ImageFormat("jpeg", ".jpg", (b"\xff\xd8\xff",), scan_jpeg),
    ImageFormat("webp", ".webp", (b"RIFF....WEBP",), scan_webp),
    ImageFormat("gif", ".gif", (b"GIF87a", b"GIF89a"), scan_gif),
)


def inspect(data: Data) -> ImageFormat:
    """Return the kind of a picture that is whole and not too large; else raise `Missed`."""
    kind = _kind_of(data)
    width, height = kind.scan(data)
    _check_size(width, height)
    return kind


def check_decodes(source: BinaryIO, kind: ImageFormat) -> None:
    """Raise `Missed` unless Pillow can decode the whole picture; without Pillow it is taken as it is."""
    try:
        from PIL import Image
    except ImportError:
        return
    try:
        with Image.open(source, formats=[kind.name.upper()]) as image:
            _check_size(image.width, image.height)  # its reader may see another size than ours
            image.load()
    except FetchError:
        raise
    except Exception as error:  # its decoders raise whatever comes to hand
        raise FetchError(f"the picture is damaged: Pillow can't decode it ({type(error).__name__})") from None


def verify(content: bytes) -> ImageFormat:
    """Return the kind of a picture that passes both."""
    kind = inspect(content)
    check_decodes(io.BytesIO(content), kind)
    return kind


def _kind_of(data: Data) -> ImageFormat:
    if not data:
        raise truncated()
    start = data[:12]
    for kind in FORMATS:
        for beginning in kind.signatures:
            if _begins(start, beginning):
                if len(start) < len(beginning):
                    raise truncated()
                return kind
    raise FetchError("this is no picture in PNG, JPEG, WebP or GIF format")


def _begins(start: bytes, beginning: bytes) -> bool:
    """Tell whether the bytes fit, as far as there are any."""
    return all(expected in (ord("."), found) for found, expected in zip(start, beginning, strict=False))


def _check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise corrupt()
    if width * height > MAX_PIXELS:
        raise FetchError(f"the picture has {width} x {height} pixels, more than the {MAX_PIXELS} that are taken")
