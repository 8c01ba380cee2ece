"""`nanobanana demo` needs nothing, loses an answer, and pays once."""

from pathlib import Path

from PIL import Image

from tests.cli.command import nanobanana


async def test_the_demo_loses_an_answer_and_pays_once(tmp_path: Path) -> None:
    said = await nanobanana("demo", "--prompts", "5", folder=tmp_path)
    assert said.code == 0, said.err
    assert "40 credits, 0 paid twice" in said.err
    assert "5 pictures in nanobanana-demo" in said.out
    pictures = list((tmp_path / "nanobanana-demo").glob("*.png"))
    assert len(pictures) == 5
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width > picture.height


async def test_a_demo_that_can_not_save_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    said = await nanobanana("demo", "--prompts", "1", "-o", "taken", folder=tmp_path)
    assert said.code == 1
    assert "0 pictures in taken" in said.out
    assert "Traceback" not in said.err
