"""Where images go: a folder, and not the name of an image."""

import os
from pathlib import Path

import pytest

from nanobanana_async import ConfigurationError, Session
from nanobanana_async.emulator import Emulator
from nanobanana_async.images.target import as_target
from tests.support.command import nanobanana


@pytest.mark.parametrize(
    ("name", "meant"),
    [("fox.png", "images"), ("shots/fox.JPG", "shots"), ("fox.jpeg", "images"), ("fox.webp", "images")],
)
def test_missing_folder_with_the_name_of_an_image_is_refused(
    name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        as_target("save_to", name)
    why = f"save_to: '{name}' names a folder, and looks like an image: pass a folder, such as {meant}"
    assert str(caught.value) == why
    (tmp_path / name).mkdir(parents=True)
    assert as_target("save_to", name) == Path(name)


def test_url_of_a_missing_folder_with_the_name_of_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="names a folder"):
        as_target("save_to", f"file://{tmp_path}/fox.png")


async def test_result_is_not_saved_in_a_folder_with_the_name_of_an_image(tmp_path: Path) -> None:
    async with Emulator(speed=100) as emulator, Session(emulator.apimall()) as session:
        result = await session.generate("a fox")
        with pytest.raises(ConfigurationError, match=r"target: .* names a folder"):
            await session.save(result, tmp_path / "fox.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", [("generate", "a fox", "--gateway", "emulator"), ("demo",)])
async def test_output_with_the_name_of_an_image_is_refused_before_anything_is_done(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    said = await nanobanana(*command, "-o", "fox.png", folder=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "'fox.png' names a folder, and looks like an image: pass a folder, such as images" in said.complaint
    assert os.listdir(tmp_path) == []
