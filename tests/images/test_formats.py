"""What is taken for a picture, and what is not."""

import io
import random
import struct
import sys
import warnings
import zlib

import pytest
from PIL import Image

from nanobanana_async.images.formats import MAX_PIXELS, check_decodes, inspect, scan_gif, verify
from nanobanana_async.images.inline import FetchError
from tests.images.scenes import FORMATS, chunk, picture, png_claiming

LARGE = 8193, 8192


def refusal(content: bytes) -> FetchError:
    with pytest.raises(FetchError) as caught:
        verify(content)
    return caught.value


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_known_by_its_bytes(kind: str) -> None:
    assert verify(picture(kind)).name == kind


@pytest.mark.parametrize(
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
def test_the_dialects_of_the_formats_are_known_too(kind: str, options: dict[str, object]) -> None:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), "blue").save(out, kind.upper(), **options)
    assert verify(out.getvalue()).name == kind
    for cut in range(len(out.getvalue())):
        with pytest.raises(FetchError):
            inspect(out.getvalue()[:cut])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_cut_at_any_byte_is_cut_short_with_or_without_pillow(kind: str) -> None:
    whole = picture(kind)
    for cut in range(len(whole)):
        with pytest.raises(FetchError) as caught:
            inspect(whole[:cut])
        assert caught.value.retryable is True, cut


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_after_the_end_are_left_alone(kind: str) -> None:
    assert verify(picture(kind) + b"and a video").name == kind


@pytest.mark.parametrize(
    "content",
    [
        b"<html><body>404</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"MZ",
        b"BM" + bytes(60),
        b"\x1f\x8b\x08" + bytes(40),
        b"\x00\x00\x00\x20ftypavif" + bytes(40),
        b"II*\x00" + bytes(40),
        bytes(100),
        b"RIFF\x20\x00\x00\x00WAVEfmt ",
        b"SIMPLE  =                    T",
        b"/* XPM */",
        b"%!PS-Adobe-3.0 EPSF-3.0",
    ],
)
def test_anything_else_is_no_picture_whatever_pillow_could_make_of_it(content: bytes) -> None:
    missed = refusal(content)
    assert missed.why == "this is no picture in PNG, JPEG, WebP or GIF format"
    assert missed.retryable is False


@pytest.mark.parametrize("kind", FORMATS)
def test_a_right_beginning_with_wrong_flesh_is_no_picture(kind: str) -> None:
    assert refusal(picture(kind)[:12] + random.Random(1).randbytes(4000)).why


@pytest.mark.parametrize("at", range(8, len(picture()), 7))
def test_a_png_with_any_wrong_byte_is_refused_also_without_pillow(at: int) -> None:
    spoiled = bytearray(picture())
    spoiled[at] ^= 0x10
    with pytest.raises(FetchError):
        inspect(bytes(spoiled))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_spoiled_picture_is_refused_or_decodes_and_nothing_else_happens(kind: str) -> None:
    dice = random.Random(7)
    for _ in range(150):
        spoiled = bytearray(picture(kind))
        for _ in range(3):
            spoiled[dice.randrange(12, len(spoiled))] = dice.randrange(256)
        try:
            verify(bytes(spoiled))
        except FetchError as missed:
            assert missed.why  # noqa: PT017 - it may also pass


def jpeg_claiming(width: int, height: int) -> bytes:
    content = picture("jpeg")
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]


def webp_claiming(width: int, height: int) -> bytes:
    content = bytearray(picture("webp", lossless=True))
    content[21:25] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(content)


def gif_claiming(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + picture("gif")[10:]


BOMBS = {"png": png_claiming, "jpeg": jpeg_claiming, "webp": webp_claiming, "gif": gif_claiming}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(kind: str) -> None:
    with pytest.raises(FetchError, match="8193 x 8192 pixels, more than"):
        inspect(BOMBS[kind](*LARGE))


def test_a_real_image_bomb_is_refused() -> None:
    rows = zlib.compressobj()
    body = b"".join(rows.compress(bytes(3 * 30_000 + 1)) for _ in range(30)) + rows.flush()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert "30000 x 30000 pixels" in refusal(bomb).why


def test_a_frame_of_a_gif_counts_as_well_as_its_screen() -> None:
    frame = b"\x2c" + struct.pack("<HHHHB", 60_000, 60_000, 9_000, 9_000, 0) + b"\x02\x01\x00\x00"
    assert scan_gif(b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + frame + b"\x3b") == (69_000, 69_000)


def test_a_size_that_only_pillow_sees_is_capped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = inspect(picture())
    monkeypatch.setattr("nanobanana_async.images.formats.MAX_PIXELS", 24 * 16 - 1)
    with pytest.raises(FetchError, match="24 x 16 pixels"):
        check_decodes(io.BytesIO(picture()), kind)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_picture_without_pixels_is_damaged(size: tuple[int, int]) -> None:
    assert refusal(png_claiming(*size)).why == "the picture is damaged"


def test_below_our_cap_pillow_does_not_warn() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_a_users_own_lower_cap_of_pillow_refuses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "DecompressionBombError" in refusal(picture()).why


def test_pixels_that_are_missing_behind_a_whole_skeleton_are_found_by_pillow() -> None:
    assert inspect(png_claiming(50, 50)).name == "png"
    assert refusal(png_claiming(50, 50)).why.startswith("the picture is damaged: Pillow can't decode it")


def test_without_pillow_the_skeleton_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert verify(png_claiming(50, 50)).name == "png"


@pytest.mark.parametrize(
    "content",
    [
        picture()[:8] + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        picture()[:8] + chunk(b"IHDR", b"short") + chunk(b"IEND", b""),
        picture("jpeg")[:2] + b"\xff\xe0\x00\x01" + picture("jpeg")[2:],
        picture("jpeg")[:2] + b"\xff\xc0\x00\x04ab" + b"\xff\xd9" + bytes(9),
        picture("jpeg")[:2] + b"\xff\xe0\x00\x02" + b"x" + bytes(20),
        picture("webp")[:12] + b"EVIL" + picture("webp")[16:],
        picture("gif")[:-1] + b"\x99",
    ],
)
def test_a_broken_skeleton_is_damaged(content: bytes) -> None:
    assert refusal(content).why == "the picture is damaged"


def test_fillers_and_bare_markers_of_jpeg_are_stepped_over() -> None:
    whole = picture("jpeg")
    assert inspect(whole[:2] + b"\xff\xff\xff\x01" + whole[2:]).name == "jpeg"


def test_a_walk_takes_only_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanobanana_async.images.formats._MAX_STEPS", 1000)
    endless = b"GIF89a" + bytes(7) + b"\x21\xfe" + b"\x01x" * 5000
    assert refusal(endless).why == "the picture is made of too many pieces"
