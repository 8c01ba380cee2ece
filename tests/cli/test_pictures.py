"""Fetching pictures: what is no picture is refused, and a file appears whole or not at all."""

import base64
from pathlib import Path

import pytest

from nanobanana_async import DownloadError, GeneratedImage, GenerationResult, Session
from nanobanana_async.cli import pictures
from nanobanana_async.emulator import Emulator, Fixed, faults

DOT = base64.b64encode(b"picture").decode()


def result(url: str) -> GenerationResult:
    return GenerationResult(key="k", task_id="../t 1", images=(GeneratedImage(url=url),))


async def test_an_inline_picture_is_saved_under_a_harmless_name(tmp_path: Path) -> None:
    (path,) = await pictures.save(result(f"data:image/png;base64,{DOT}"), tmp_path / "new")
    assert path == tmp_path / "new" / "___t_1-01.png"
    assert path.read_bytes() == b"picture"
    assert list(path.parent.iterdir()) == [path]


async def test_an_inline_picture_may_be_percent_encoded(tmp_path: Path) -> None:
    (path,) = await pictures.save(result("data:image/gif,GIF%38"), tmp_path)
    assert path.read_bytes() == b"GIF8"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("data:image/png;base64,###", "is no picture"),
        (f"data:text/html;base64,{DOT}", "is no picture but text/html"),
        (f"data:;base64,{DOT}", "is no picture but of no type"),
        ("http://127.0.0.1:1/a.png", "could not be fetched"),
        ("http://[broken", "could not be fetched"),
    ],
)
async def test_what_is_no_picture_is_refused(url: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=complaint):
        await pictures.save(result(url), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (faults.error(410), "answered 410"),
        (faults.cut(), "could not be fetched"),
        (faults.html(200), "is no picture but text/html"),
        (faults.reset(), "could not be fetched"),
    ],
)
async def test_a_spoiled_download_leaves_no_file(fault: faults.Fault, complaint: str, tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.05), picture_scale=0.1) as emulator:
        async with Session(emulator.apimall()) as session:
            bought = await session.generate("a fox")
        emulator.queue_faults("cdn", *[fault] * 3)
        with pytest.raises(DownloadError, match=complaint):
            await pictures.save(bought, tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_picture_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 100)
    async with Emulator(duration=Fixed(0.05), picture_scale=0.1) as emulator:
        async with Session(emulator.apimall()) as session:
            bought = await session.generate("a fox")
        with pytest.raises(DownloadError, match="larger than 100 bytes"):
            await pictures.save(bought, tmp_path)


async def test_no_key_goes_to_the_pictures_host(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.05), picture_scale=0.1) as emulator:
        async with Session(emulator.apimall()) as session:
            await pictures.save(await session.generate("a fox"), tmp_path)
        seen = emulator.stats()
    assert (seen.requests["cdn"], seen.cdn_with_credentials) == (1, 0)
