"""`nanobanana demo`: no key, a lost answer, no double charge, and a page at the end."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command import in_a_process, nanobanana

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("real_processes")
async def test_the_demo_loses_an_answer_without_a_double_charge(tmp_path: Path) -> None:
    said = await in_a_process("demo", "--prompts", "8", folder=tmp_path)
    program = re.escape(f"{sys.executable} -m nanobanana_async")
    assert said.code == 0, said.err
    assert said.out == "nanobanana-demo/index.html\n"
    for pattern in (
        r"\d s  The gateway refuses more than 6 jobs at once \(429, no charge\)",
        r"\d s  An answer is lost: has 'a [^']+' been bought\?",
        r"\d s  The gateway knows the key: the job is found again and was paid for once\.",
        r"\d s  8 of 8 images; polls: \d+( \(a fixed interval with the same mean delay would have made \d+\))?\.",
        r"bought +8 jobs in \d+",
        r"credits +64; jobs paid twice: 0",
        r"lost answers +1; found again without a second purchase: 1",
        r"job limit +6, learned from \d refusal",
        r"ends seen +at most \d\.\d s after a job's end \(median\)",
        rf'  echo "a fox in snow" \| {program} batch - -o foxes --gateway emulator',
        rf'  {program} generate "a fox in snow" --gateway apimall -o images',
    ):
        assert re.search(pattern, said.err), (pattern, said.err)
    assert said.err.isascii()
    page = (tmp_path / "nanobanana-demo" / "index.html").read_text(encoding="utf-8")
    assert "<dt>credits spent</dt><dd>64</dd>" in page
    images = list((tmp_path / "nanobanana-demo" / "images").glob("*.png"))
    assert len(images) == 8
    for path in images:
        with Image.open(path) as image:
            assert image.width > image.height


async def test_a_second_demo_replaces_the_images_of_the_first(tmp_path: Path) -> None:
    images = tmp_path / "nanobanana-demo" / "images"
    assert (await nanobanana("demo", "--prompts", "3", folder=tmp_path)).code == 0
    first = {path.name for path in images.glob("*.png")}
    edited = images / min(first)
    edited.write_bytes(edited.read_bytes() + b"edited by hand")
    (images / "mine.png").write_bytes(b"another file")
    said = await nanobanana("demo", "--prompts", "2", folder=tmp_path)
    assert said.code == 0, said.err
    left = {path.name for path in images.glob("*.png")}
    second = "0002-an-old-library-in-fog.png"  # of the second demo, under the name of the one that it replaced
    assert left & (first | {"mine.png"}) == {edited.name, "mine.png", second}
    assert len(left) == 4
    page = (images.parent / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'href="\./images/([^"]+)"', page)
    assert len(shown) == 2
    assert left >= set(shown)


@pytest.mark.parametrize("name", ["index.html", "images"])
async def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine" / name
    mine.parent.mkdir()
    mine.write_text("written by hand")
    said = await nanobanana("demo", "--prompts", "1", "-o", "mine", folder=tmp_path)
    assert said.code == 2
    assert f"mine holds {name}, which this command did not create" in said.complaint
    assert mine.read_text() == "written by hand"


async def test_a_demo_that_cannot_save_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    said = await nanobanana("demo", "--prompts", "1", "-o", "taken", folder=tmp_path)
    assert said.code == 2
    assert "taken can't be written" in said.complaint
