"""Verify images: scan the structure to the end, and decode with Pillow if it is installed.

A scan finds a truncated image without decoding; it returns width and height, and raises `FetchError`. It checks the
structure only, and the checksums of PNG; decoding is left to Pillow. Bytes after the end are ignored: some cameras
append videos.
"""

import io
import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from attrs import frozen

from nanobanana_async.images.inline import FetchError

Data = bytes | mmap.mmap
Size = tuple[int, int]

_MAX_STEPS = 1_000_000  # about a second; a valid PNG or GIF of 64 MB takes less than half as many

_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA

_GIF_EXTENSION, _GIF_FRAME, _GIF_END = 0x21, 0x2C, 0x3B


class ByteReader:
    """Reads the bytes of an image from a position."""

    def __init__(self, data: Data, position: int) -> None:
        self.data = data
        self.position = position
        self._steps = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes, and advance the position."""
        start = self.position
        self.skip(count)
        return self.data[start : self.position]

    def skip(self, count: int) -> None:
        """Advance the position; raise `FetchError` at the end of the data."""
        self.position += count
        self._steps += 1
        if self.position > len(self.data):
            raise truncated_error()
        if self._steps > _MAX_STEPS:
            raise FetchError("the image has too many segments")


def truncated_error() -> FetchError:
    """Return the error of an image that ends too early; another attempt may return it complete."""
    return FetchError("the image is truncated", retryable=True)


def corrupt_error() -> FetchError:
    """Return the error of an image with an invalid structure."""
    return FetchError("the image is corrupt")


def scan_png(data: Data) -> Size:
    """Scan all chunks and check their checksums."""
    reader = ByteReader(data, 8)
    size: Size | None = None
    while True:
        (length,) = struct.unpack(">I", reader.take(4))
        start = reader.position
        kind = reader.take(4)
        reader.skip(length)
        checksum = _checksum(data, start, reader.position)
        if struct.unpack(">I", reader.take(4)) != (checksum,):
            raise corrupt_error()
        if size is None:
            if kind != b"IHDR" or length != 13:
                raise corrupt_error()
            size = struct.unpack(">II", data[start + 4 : start + 12])
        if kind == b"IEND":
            return size


def _checksum(data: Data, start: int, end: int) -> int:
    with memoryview(data) as whole, whole[start:end] as chunk:  # no copy: a chunk may be as large as the image
        return zlib.crc32(chunk)


def scan_jpeg(data: Data) -> Size:
    """Scan the segments to the end marker."""
    reader = ByteReader(data, 2)
    width = height = 0
    while True:
        if reader.take(1) != b"\xff":
            raise corrupt_error()
        marker = reader.take(1)[0]
        if marker == _JPEG_END:
            return width, height
        if marker == 0xFF:  # a fill byte
            reader.position -= 1
        elif marker not in _JPEG_BARE:
            (length,) = struct.unpack(">H", reader.take(2))
            if length < 2:
                raise corrupt_error()
            segment = reader.take(length - 2)
            if marker in _JPEG_SIZES:
                tall, wide = struct.unpack(">HH", segment[1:5]) if length >= 7 else (0, 0)
                width, height = max(width, wide), max(height, tall)
            if marker == _JPEG_SCAN:
                following = _JPEG_MARKER.search(data, reader.position)
                if following is None:
                    raise truncated_error()
                reader.position = following.start()


def scan_webp(data: Data) -> Size:
    """Check the length in the file's header."""
    reader = ByteReader(data, 4)
    (length,) = struct.unpack("<I", reader.take(4))
    if len(data) < 8 + length:
        raise truncated_error()
    reader.skip(4)
    kind = reader.take(4)
    reader.skip(4)
    head = reader.take(10)
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise corrupt_error()


def scan_gif(data: Data) -> Size:
    """Scan the blocks to the end mark; the size covers the screen and every frame."""
    reader = ByteReader(data, 6)
    width, height, flags = struct.unpack("<HHB2x", reader.take(7))
    _skip_colours(reader, flags)
    while True:
        mark = reader.take(1)[0]
        if mark == _GIF_END:
            return width, height
        if mark == _GIF_FRAME:
            left, top, wide, tall, flags = struct.unpack("<HHHHB", reader.take(9))
            width, height = max(width, left + wide), max(height, top + tall)
            _skip_colours(reader, flags)
        elif mark != _GIF_EXTENSION:
            raise corrupt_error()
        reader.skip(1)  # the extension's label, or the frame's code size
        while length := reader.take(1)[0]:
            reader.skip(length)


def _skip_colours(reader: ByteReader, flags: int) -> None:
    if flags & 0x80:
        reader.skip(3 << (flags & 7) + 1)


def scan_heif(data: Data) -> Size:
    """Scan the boxes of an AVIF or HEIC file (ISO/IEC 23008-12); the size is that of the largest image in it."""
    sizes: list[Size] = []
    kinds = set()
    for kind, start, end in _boxes(data, 0, len(data)):
        kinds.add(kind)
        if kind == b"meta":
            for inner, properties, properties_end in _boxes(data, start + 4, end):
                if inner == b"iprp":
                    sizes += _image_extents(data, properties, properties_end)
        if {b"meta", b"mdat"} <= kinds:
            return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    raise truncated_error()


def _image_extents(data: Data, start: int, end: int) -> list[Size]:
    return [
        struct.unpack(">II", data[position + 4 : position + 12])
        for kind, inner_start, inner_end in _boxes(data, start, end)
        if kind == b"ipco"
        for prop, position, prop_end in _boxes(data, inner_start, inner_end)
        if prop == b"ispe" and prop_end - position >= 12
    ]


def _boxes(data: Data, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, start and end of each box; raise `FetchError` for one that ends after `end`."""
    reader = ByteReader(data, position)
    while end - reader.position >= 8:
        begin = reader.position
        length, kind = struct.unpack(">I4s", reader.take(8))
        if length == 1:
            (length,) = struct.unpack(">Q", reader.take(8))
        elif length == 0:  # the last box
            length = end - begin
        start = reader.position
        if length < start - begin:
            raise corrupt_error()
        reader.skip(begin + length - start)
        if reader.position > end:
            raise corrupt_error()
        yield kind, start, reader.position


MAX_PIXELS = 1 << 26
"""8192 by 8192: four times the largest image on sale, and below the size at which Pillow warns."""


@frozen
class ImageFormat:
    """An image format: its name, file extension, signatures and scan function."""

    name: str
    extension: str
    signatures: tuple[bytes, ...]
    """A dot stands for any byte."""
    scan: Callable[[Data], Size]

    @property
    def content_type(self) -> str:
        """The media type."""
        return f"image/{self.name}"


_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

FORMATS = (
    ImageFormat("png", ".png", (b"\x89PNG\r\n\x1a\n",), scan_png),
    ImageFormat("jpeg", ".jpg", (b"\xff\xd8\xff",), scan_jpeg),
    ImageFormat("webp", ".webp", (b"RIFF....WEBP",), scan_webp),
    ImageFormat("gif", ".gif", (b"GIF87a", b"GIF89a"), scan_gif),
    ImageFormat("avif", ".avif", (b"....ftypavif", b"....ftypavis"), scan_heif),
    ImageFormat("heif", ".heic", tuple(b"....ftyp" + brand for brand in _HEIF_BRANDS), scan_heif),
)


def scan_image(data: Data) -> ImageFormat:
    """Return the format of a complete image of allowed size; raise `FetchError` otherwise."""
    image_format = detect(data)
    width, height = image_format.scan(data)
    check_size(width, height)
    return image_format


def check_decodes(source: BinaryIO, image_format: ImageFormat) -> None:
    """Raise `FetchError` if Pillow can't decode the whole image; do nothing without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return
    pillow_name = image_format.name.upper()
    if pillow_name not in Image.OPEN:
        Image.init()  # load the rarer formats
    if pillow_name not in Image.OPEN:
        return  # this Pillow can't read the format
    try:
        with Image.open(source, formats=[pillow_name]) as image:
            check_size(image.width, image.height)  # Pillow may read a different size than the scan
            image.load()
    except FetchError:
        raise
    except Exception as error:  # its decoders raise many kinds of exceptions
        raise FetchError(f"the image is corrupt: Pillow can't decode it ({type(error).__name__})") from None


def verify_image(content: bytes) -> ImageFormat:
    """Return the format of an image that passes `scan_image` and `check_decodes`."""
    image_format = scan_image(content)
    check_decodes(io.BytesIO(content), image_format)
    return image_format


def detect(data: Data) -> ImageFormat:
    """Return the format that the first bytes show; raise `FetchError` if they show none."""
    if not data:
        raise truncated_error()
    start = data[:12]
    for image_format in FORMATS:
        for signature in image_format.signatures:
            if _matches(start, signature):
                if len(start) < len(signature):
                    raise truncated_error()
                return image_format
    raise FetchError(
        "not a PNG, JPEG, WebP, GIF, AVIF or HEIC image (`download(image, verify=False)` returns it as it is)",
        not_yet=True,
    )


def _matches(start: bytes, signature: bytes) -> bool:
    """Return whether the bytes match a signature, as far as there are any."""
    return all(expected in (ord("."), found) for found, expected in zip(start, signature, strict=False))


def check_size(width: int, height: int) -> None:
    """Raise `FetchError` for an image without pixels, or with more than `MAX_PIXELS`."""
    if width <= 0 or height <= 0:
        raise corrupt_error()
    if width * height > MAX_PIXELS:
        raise FetchError(f"the image has {width} x {height} pixels, more than the limit of {MAX_PIXELS}")
