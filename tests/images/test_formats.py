"""Which bytes are accepted as an image, and which are refused."""

import io
import random
import struct
import sys
import warnings
import zlib

import pytest
from PIL import Image

from nanobanana_async.images.formats import MAX_PIXELS, check_decodes, scan_gif, scan_heif, scan_image, verify_image
from nanobanana_async.images.inline import FetchError
from tests.support.images import FORMATS, chunk, make_image, png_claiming
from tests.support.rows import each_row

LARGE = 8193, 8192


def refusal(content: bytes) -> FetchError:
    with pytest.raises(FetchError) as caught:
        verify_image(content)
    return caught.value


@pytest.mark.parametrize("kind", FORMATS)
def test_format_is_detected_from_the_bytes(kind: str) -> None:
    assert verify_image(make_image(kind)).name == kind


@each_row(
    ("kind", "options"),
    [
        ("jpeg", {"progressive": True}),
        ("jpeg", {"exif": b"Exif\0\0" + b"\xff\xd9" * 20}),
        ("jpeg", {"restart_marker_blocks": 1}),
        ("webp", {"lossless": True}),
        ("webp", {"lossless": False, "exif": b"Exif\0\0"}),
        ("webp", {"save_all": True, "append_images": [Image.new("RGB", (24, 16), "red")]}),
        ("gif", {"save_all": True, "append_images": [Image.new("RGB", (24, 16), "red")], "comment": b"hello"}),
        ("png", {"interlace": 1, "dpi": (72, 72)}),
    ],
)
def test_format_variants_are_accepted(kind: str, options: dict[str, object]) -> None:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), "blue").save(out, kind.upper(), **options)
    assert verify_image(out.getvalue()).name == kind
    for cut in range(len(out.getvalue())):
        with pytest.raises(FetchError):
            scan_image(out.getvalue()[:cut])


def test_heic_is_detected_and_measured() -> None:
    image = make_image("avif")
    heic = image.replace(b"ftypavif", b"ftypheic", 1)
    assert (verify_image(heic).name, verify_image(heic).extension) == ("heif", ".heic")
    assert scan_heif(heic) == (24, 16)
    at = heic.index(b"ispe")
    huge = heic[: at + 8] + struct.pack(">II", *LARGE) + heic[at + 16 :]
    assert "8193 x 8192 pixels" in refusal(huge).reason
    without = heic.replace(b"ispe", b"free")
    assert "corrupt" in refusal(without).reason


@pytest.mark.parametrize(
    "boxes",
    [
        struct.pack(">I4sQ", 1, b"mdat", 7),  # shorter than its own header
        struct.pack(">I4s", 100, b"meta") + bytes(4) + struct.pack(">I4s", 200, b"iprp") + bytes(400),
    ],
)
def test_impossible_boxes_are_corrupt(boxes: bytes) -> None:
    assert "corrupt" in refusal(struct.pack(">I8s", 12, b"ftypheic") + boxes).reason


@pytest.mark.parametrize("kind", FORMATS)
def test_image_cut_at_any_byte_is_truncated(kind: str) -> None:
    whole = make_image(kind)
    for cut in range(len(whole)):
        with pytest.raises(FetchError) as caught:
            scan_image(whole[:cut])
        assert caught.value.retryable is True, cut


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_after_the_end_are_ignored(kind: str) -> None:
    assert verify_image(make_image(kind) + b"and a video").name == kind


@each_row(
    "content",
    [
        b"<html><body>404</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"MZ" + bytes(60),
        b"BM" + bytes(60),
        b"\x1f\x8b\x08" + bytes(40),
        b"\x00\x00\x00\x20ftypisom" + bytes(40),
        b"II*\x00" + bytes(40),
        bytes(100),
        b"RIFF\x20\x00\x00\x00WAVEfmt ",
        b"SIMPLE  =                    T",
        b"/* XPM */",
        b"%!PS-Adobe-3.0 EPSF-3.0",
    ],
)
def test_other_formats_are_refused(content: bytes) -> None:
    error = refusal(content)
    assert error.reason.startswith("not a PNG, JPEG, WebP, GIF, AVIF or HEIC image")
    assert (error.retryable, error.not_yet) == (False, True)


@pytest.mark.parametrize("kind", FORMATS)
def test_signature_with_random_content_is_refused(kind: str) -> None:
    assert refusal(make_image(kind)[:12] + random.Random(1).randbytes(4000)).reason


@each_row("at", range(8, len(make_image()), 7))
def test_png_with_a_wrong_byte_is_refused(at: int) -> None:
    spoiled = bytearray(make_image())
    spoiled[at] ^= 0x10
    with pytest.raises(FetchError):
        scan_image(bytes(spoiled))


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_image_is_refused_or_decodes(kind: str) -> None:
    rng = random.Random(7)
    for _ in range(150):
        spoiled = bytearray(make_image(kind))
        for _ in range(3):
            spoiled[rng.randrange(12, len(spoiled))] = rng.randrange(256)
        try:
            verify_image(bytes(spoiled))
        except FetchError as error:
            assert error.reason  # noqa: PT017 - it may also pass


def jpeg_claiming(width: int, height: int) -> bytes:
    content = make_image("jpeg")
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]


def webp_claiming(width: int, height: int) -> bytes:
    content = bytearray(make_image("webp", lossless=True))
    content[21:25] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(content)


def gif_claiming(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + make_image("gif")[10:]


BOMBS = {"png": png_claiming, "jpeg": jpeg_claiming, "webp": webp_claiming, "gif": gif_claiming}


@pytest.mark.parametrize("kind", BOMBS)
def test_too_many_pixels_are_refused_before_decoding(kind: str) -> None:
    with pytest.raises(FetchError, match="8193 x 8192 pixels, more than"):
        scan_image(BOMBS[kind](*LARGE))


def test_image_bomb_is_refused() -> None:
    rows = zlib.compressobj()
    body = b"".join(rows.compress(bytes(3 * 30_000 + 1)) for _ in range(30)) + rows.flush()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert "30000 x 30000 pixels" in refusal(bomb).reason


def test_gif_frames_count_towards_the_size() -> None:
    frame = b"\x2c" + struct.pack("<HHHHB", 60_000, 60_000, 9_000, 9_000, 0) + b"\x02\x01\x00\x00"
    assert scan_gif(b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + frame + b"\x3b") == (69_000, 69_000)


def test_size_read_by_pillow_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = scan_image(make_image())
    monkeypatch.setattr("nanobanana_async.images.formats.MAX_PIXELS", 24 * 16 - 1)
    with pytest.raises(FetchError, match="24 x 16 pixels"):
        check_decodes(io.BytesIO(make_image()), kind)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_image_without_pixels_is_corrupt(size: tuple[int, int]) -> None:
    assert refusal(png_claiming(*size)).reason == "the image is corrupt"


def test_pixel_limit_is_below_pillows_warning() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_lower_pillow_limit_of_the_user_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "DecompressionBombError" in refusal(make_image()).reason


def test_missing_pixels_are_found_by_pillow() -> None:
    assert scan_image(png_claiming(50, 50)).name == "png"
    assert refusal(png_claiming(50, 50)).reason.startswith("the image is corrupt: Pillow can't decode it")


def test_without_pillow_the_structure_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert verify_image(png_claiming(50, 50)).name == "png"


@each_row(
    "content",
    [
        make_image()[:8] + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        make_image()[:8] + chunk(b"IHDR", b"short") + chunk(b"IEND", b""),
        make_image("jpeg")[:2] + b"\xff\xe0\x00\x01" + make_image("jpeg")[2:],
        make_image("jpeg")[:2] + b"\xff\xc0\x00\x04ab" + b"\xff\xd9" + bytes(9),
        make_image("jpeg")[:2] + b"\xff\xe0\x00\x02" + b"x" + bytes(20),
        make_image("webp")[:12] + b"EVIL" + make_image("webp")[16:],
        make_image("gif")[:-1] + b"\x99",
    ],
)
def test_broken_structure_is_corrupt(content: bytes) -> None:
    assert refusal(content).reason == "the image is corrupt"


def test_jpeg_fill_bytes_and_bare_markers_are_skipped() -> None:
    whole = make_image("jpeg")
    assert scan_image(whole[:2] + b"\xff\xff\xff\x01" + whole[2:]).name == "jpeg"


def test_scan_has_a_maximum_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanobanana_async.images.formats._MAX_STEPS", 1000)
    endless = b"GIF89a" + bytes(7) + b"\x21\xfe" + b"\x01x" * 5000
    assert refusal(endless).reason == "the image has too many segments"
