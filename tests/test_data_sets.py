"""The recipes of docs/data-sets.md that read what the command has written; `test_docs.py` runs the others."""

import asyncio
import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_async.cli import app as cli
from nanobanana_async.emulator import Emulator, Fixed
from tests.support.command import environment
from tests.test_docs import BLOCKS, Block

pytestmark = pytest.mark.slow

RECIPES = [block for block in BLOCKS if block.name.startswith("data-sets.md:")]


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `shop` of the page's command, and the table that it names."""
    with (tmp_path / "products.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("product", "price"), ("mug", "12.5"), ("lamp", "80")])
    monkeypatch.chdir(tmp_path)
    command = ("batch", "-o", "shop", "--prompt", "a {product} in {style}", "--vary-file", "products.csv")
    async with Emulator(duration=Fixed(0.05), image_scale=0.05) as emulator:
        for name, value in environment(emulator).items():
            monkeypatch.setenv(name, value)
        code = await asyncio.to_thread(cli.run, [*command, "--vary", "style=oil,ink", "--aspect-ratio", "1:1,16:9"])
    assert code == 0
    return tmp_path


def recipe(package: str) -> Block:
    pytest.importorskip(package, reason=f"{package} is missing: pip install {package}")
    (found,) = (block for block in RECIPES if package in block.needs)
    return found


async def run(block: Block, folder: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        block.code,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(50):
        output, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    return output.decode()


def test_recipes_are_short() -> None:
    assert len(RECIPES) >= 6
    assert [block.name for block in RECIPES if block.code.strip().count("\n") >= 25] == []


async def test_duckdb_reads_the_results(shop: Path) -> None:
    output = await run(recipe("duckdb"), shop)
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    assert ["ink", "4", "32"] in found
    assert ["oil", "4", "32"] in found


async def test_folder_follows_the_rules_of_imagefolder(shop: Path) -> None:
    """The loader wants a file_name in each line, relative to the folder, of every image, and the same names in each."""
    folder = shop / "shop/images"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["file_name"] for line in lines} == {path.name for path in folder.glob("*.png")}
    assert len(lines) == 8
    assert len({tuple(line) for line in lines}) == 1
    assert {line["prompt"] for line in lines} == {f"a {p} in {s}" for p in ("mug", "lamp") for s in ("oil", "ink")}
    for line in lines:
        with Image.open(folder / line["file_name"]) as image:
            image.verify()
