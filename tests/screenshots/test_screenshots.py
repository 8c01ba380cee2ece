"""The images of README and docs are made by the script, and are those that the pages show."""

import os
import re
from pathlib import Path

import pytest

from tests.support.chromium import MISSING, find_chromium

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
PLOTS = {"accounts.png", "limit.png", "polls.png"}
"""What the benchmarks draw."""
MOST_BYTES = {".png": 300_000, ".svg": 150_000}
SIZE = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
WORDS = {
    "demo.svg": ("nanobanana demo", "jobs paid twice: 0", "found again without a second purchase: 1"),
    "batch.svg": ("nanobanana batch prompts.csv", "/30 rows", "running, limit", "of 400 credits spent"),
}
"""What a terminal must show."""


def size_of(path: Path) -> tuple[float, ...]:
    if path.suffix == ".svg":
        found = SIZE.search(path.read_text(encoding="utf-8"))
        assert found is not None
        return tuple(map(float, found.groups()))
    from PIL import Image

    with Image.open(path) as image:
        return image.size


def is_blank(path: Path) -> bool:
    """Return whether a PNG has few colours, or hardly more than one."""
    from PIL import Image

    with Image.open(path) as image:
        counts = [count for count, _ in image.convert("RGB").getcolors(1 << 20) or []]
    return len(counts) < 50 or max(counts) > 0.97 * sum(counts)


@pytest.mark.slow
@pytest.mark.timeout(280)
async def test_script_makes_the_images_of_the_pages(tmp_path: Path) -> None:
    pytest.importorskip("playwright.async_api", reason="Playwright is missing: pip install playwright")
    if find_chromium() is None:
        pytest.skip(MISSING)
    from tests.screenshots.making import FILES, make

    await make(tmp_path, quick=True)
    assert set(os.listdir(tmp_path)) == set(FILES)
    assert set(os.listdir(IMAGES)) == {*FILES, *PLOTS}
    for name in FILES:
        assert (name, size_of(tmp_path / name)) == (name, size_of(IMAGES / name))
        assert (tmp_path / name).stat().st_size < MOST_BYTES[Path(name).suffix], name
    assert [name for name in FILES if name.endswith(".png") and is_blank(tmp_path / name)] == []
    for name, words in WORDS.items():
        text = (tmp_path / name).read_text(encoding="utf-8").replace("&#160;", " ")
        assert [word for word in words if word not in text] == []


def test_committed_images_are_small_and_shown() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    found = sorted(IMAGES.iterdir())
    assert len(found) >= 8
    assert [path.name for path in found if path.stat().st_size >= MOST_BYTES[path.suffix]] == []
    assert [path.name for path in found if f"images/{path.name}" not in text] == []


def test_images_load_nothing_from_another_host() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in IMAGES.glob("*.svg")}
    assert len(texts) >= 2
    assert [name for name, text in texts.items() if re.search(r"url\(\W*https?:|href=.https?:", text)] == []
