"""`nanobanana demo`: no key, a lost answer, no double charge."""

from pathlib import Path

import pytest
from PIL import Image

from tests.support.command import in_a_process, nanobanana

pytestmark = pytest.mark.slow


async def test_the_demo_loses_an_answer_without_a_double_charge(tmp_path: Path) -> None:
    said = await in_a_process("demo", "--prompts", "5", folder=tmp_path)
    assert said.code == 0, said.err
    assert "40 credits, 0 paid twice" in said.err
    assert "5 images in nanobanana-demo" in said.out
    images = list((tmp_path / "nanobanana-demo").glob("*.png"))
    assert len(images) == 5
    for path in images:
        with Image.open(path) as image:
            assert image.width > image.height


async def test_a_demo_that_cannot_save_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    said = await nanobanana("demo", "--prompts", "1", "-o", "taken", folder=tmp_path)
    assert said.code == 2
    assert "taken can't be written" in said.complaint
