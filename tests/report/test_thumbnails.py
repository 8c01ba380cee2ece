"""Thumbnails beside a page: what is made, and what is refused."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_async.report import make_thumbnail, write_report
from tests.support.reports import row


def saved(folder: Path, name: str = "images/a.png", size: tuple[int, int] = (1200, 600), mode: str = "RGB") -> Path:
    """Save an image of one colour."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return path


def page_of(folder: Path, image: str = "images/a.png") -> str:
    """Write the page of one row and return it."""
    write_report(folder / "index.html", [row(images=(image,))], title="spring")
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("mode", "size", "small"),
    [("RGB", (1200, 600), (512, 256)), ("RGBA", (600, 1200), (256, 512)), ("P", (64, 64), (64, 64))],
)
def test_a_thumbnail_fits_into_512_pixels(
    tmp_path: Path, mode: str, size: tuple[int, int], small: tuple[int, int]
) -> None:
    saved(tmp_path, size=size, mode=mode)
    assert make_thumbnail(tmp_path, "images/a.png")
    with Image.open(tmp_path / "thumbnails/images/a.png.webp") as image:
        assert image.size == small
    assert 'src="./thumbnails/images/a.png.webp"' in page_of(tmp_path)
    assert 'href="./images/a.png"' in page_of(tmp_path)
    assert not list(tmp_path.glob(".nanobanana-*"))


def test_a_rotated_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images/a.jpg"
    path.parent.mkdir()
    Image.new("RGB", (1200, 600)).save(path, exif=exif)
    assert make_thumbnail(tmp_path, "images/a.jpg")
    with Image.open(tmp_path / "thumbnails/images/a.jpg.webp") as image:
        assert image.size == (256, 512)


def test_a_page_without_thumbnails_shows_the_images(tmp_path: Path) -> None:
    saved(tmp_path)
    assert '<img src="./images/a.png"' in page_of(tmp_path)


def test_without_pillow_there_are_no_thumbnails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert not make_thumbnail(tmp_path, "images/a.png")
    assert '<img src="./images/a.png"' in page_of(tmp_path)


def test_an_image_that_changed_is_shown_until_its_thumbnail_is_made_again(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert make_thumbnail(tmp_path, "images/a.png")
    later = path.stat().st_mtime_ns + 10**10
    os.utime(path, ns=(later, later))
    assert '<img src="./images/a.png"' in page_of(tmp_path)


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "images/../../a.png", "images/\0.png", ""])
def test_a_path_out_of_the_folder_gets_no_thumbnail(tmp_path: Path, name: str) -> None:
    saved(tmp_path, "a.png")
    home = tmp_path / "home"
    home.mkdir()
    assert not make_thumbnail(home, name)
    assert list(home.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_link_a_pipe_and_a_broken_file_get_no_thumbnail(tmp_path: Path) -> None:
    images = saved(tmp_path).parent
    (images / "link.png").symlink_to(images / "a.png")
    os.mkfifo(images / "pipe.png")
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:100])
    for name in ("link.png", "pipe.png", "broken.png", "none.png"):
        assert not make_thumbnail(tmp_path, f"images/{name}")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
@pytest.mark.parametrize("link", ["thumbnails", "thumbnails/images"])
def test_no_thumbnail_is_written_through_a_link(tmp_path: Path, link: str) -> None:
    home, target = tmp_path / "home", tmp_path / "target"
    target.mkdir()
    saved(home)
    (home / link).parent.mkdir(exist_ok=True)
    (home / link).symlink_to(target, target_is_directory=True)
    assert not make_thumbnail(home, "images/a.png")
    assert not [path for path in target.rglob("*") if path.is_file()]


STORED = "s3://bucket/spring/0001-a-fox.png"


def test_an_object_is_shown_by_its_thumbnail_alone(tmp_path: Path) -> None:
    content = saved(tmp_path).read_bytes()
    assert make_thumbnail(tmp_path, STORED, content)
    assert make_thumbnail(tmp_path, STORED)  # it is there now
    page = page_of(tmp_path, STORED)
    assert page.count('href="./thumbnails/images/0001-a-fox.png.webp"') == 1
    assert 'src="./thumbnails/images/0001-a-fox.png.webp"' in page
    assert f'href="{STORED}"' not in page
    assert STORED in page  # among the facts of the large view


def test_an_object_without_a_thumbnail_is_named(tmp_path: Path) -> None:
    assert not make_thumbnail(tmp_path, STORED, b"no image")
    assert not make_thumbnail(tmp_path, STORED)
    page = page_of(tmp_path, STORED)
    assert "<img" not in page.split("</article>")[0].split("<article")[1]
    assert f'dir="auto">{STORED}</p>' in page


def test_an_object_has_no_thumbnail_outside_of_the_folder(tmp_path: Path) -> None:
    content = saved(tmp_path).read_bytes()
    for url in ("s3://bucket/..", "s3://bucket/", "s3://bucket/a/../.."):
        make_thumbnail(tmp_path, url, content)
    assert {path.name for path in tmp_path.iterdir()} <= {"images", "thumbnails"}
