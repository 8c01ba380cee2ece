"""Local reference images on the command line and in batch files."""

import json
from pathlib import Path

import pytest

from nanobanana_async.emulator import API_KEY, Emulator, Fixed
from tests.cli.batches import Command, emulated
from tests.support.command import environment, nanobanana
from tests.support.held import BUYING_S, HeldJobs
from tests.support.images import make_image
from tests.support.references import sha256, written

CAT, DOG = make_image(seed=1), make_image(seed=2)

pytestmark = pytest.mark.slow


def references(emulator: Emulator) -> list[str]:
    return sorted(digest for job in emulator.jobs() for digest in job.reference_digests if digest is not None)


@pytest.mark.parametrize("gateway", ["apimall", "defapi"])
async def test_generate_sends_the_content_of_files(gateway: str, tmp_path: Path) -> None:
    written(tmp_path / "my cat.png", CAT)
    written(tmp_path / "dog.png", DOG)
    async with Emulator(duration=Fixed(0.1), image_scale=0.1, check_references=True) as emulator:
        environ = environment(emulator, NANOBANANA_GATEWAY=gateway, DEFAPI_API_KEY=API_KEY)
        options = ("--image", "my cat.png", "--image", "dog.png", "-o", "out")
        said = await nanobanana("generate", "as a watercolour", *options, environ=environ, folder=tmp_path)
    assert (said.code, said.out) == (0, "out/as-a-watercolour.png\n")
    assert references(emulator) == sorted([sha256(CAT), sha256(DOG)])


async def test_missing_file_is_a_usage_error_before_anything_is_bought(tmp_path: Path) -> None:
    async with Emulator() as emulator:
        environ = environment(emulator)
        said = await nanobanana("generate", "a fox", "--image", "cat.png", environ=environ, folder=tmp_path)
    assert said.code == 2
    assert "reference image cat.png does not exist" in said.complaint
    assert emulator.stats().creates_received == 0


async def test_same_content_under_another_name_continues_the_run(tmp_path: Path) -> None:
    written(tmp_path / "cat.png", CAT)
    written(tmp_path / "copy.png", CAT)
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.1) as emulator:
        environ = environment(emulator)
        first = ("generate", "a fox", "--image", "cat.png", "--timeout", BUYING_S, "-o", "out")
        assert (await nanobanana(*first, environ=environ, folder=tmp_path)).code == 1
        held.release(emulator)
        again = ("generate", "a fox", "--image", "copy.png", "-o", "out")
        said = await nanobanana(*again, environ=environ, folder=tmp_path)
    assert said.code == 0
    assert "an earlier run of this command did not deliver everything: 1 job of it did not end" in said.err
    stats = emulator.stats()
    assert (stats.creates_accepted, stats.uploads) == (1, {sha256(CAT): 1})


async def test_jobs_show_names_the_digest(tmp_path: Path) -> None:
    written(tmp_path / "cat.png", CAT)
    async with Emulator(duration=Fixed(0.1), image_scale=0.1) as emulator:
        environ = environment(emulator)
        await nanobanana("generate", "a fox", "--image", "cat.png", "-o", "out", environ=environ, folder=tmp_path)
        jobs = await nanobanana("jobs", environ=environ, folder=tmp_path)
        said = await nanobanana("jobs", "show", jobs.out.split("\t")[0], environ=environ, folder=tmp_path)
    assert f"images           sha256:{sha256(CAT)}" in said.out


@pytest.mark.parametrize("gateway", ["apimall", "defapi"])
async def test_columns_name_files_relative_to_the_table(batch: Command, gateway: str) -> None:
    (folder := batch.folder / "tables").mkdir()
    written(folder / "my cat.png", CAT)
    written(folder / "dog.png", DOG)
    rows = ["prompt,image,images", "a,my cat.png,", "b,,dog.png|my.png", f"c,{folder / 'dog.png'},", "d,,"]
    written(folder / "my.png", CAT)
    batch.write("tables/rows.csv", *rows)
    async with emulated(batch, gateway, check_references=True) as emulator:
        said = await batch("tables/rows.csv")
        assert said.code == 0
        assert references(emulator) == sorted([sha256(CAT), sha256(DOG), sha256(CAT), sha256(DOG)])
        for name in ("my cat.png", "my.png"):  # the same content under another name is the same row
            (folder / name).rename(folder / f"other {name}")
        batch.write("tables/rows.csv", *(row.replace("my", "other my") for row in rows if "|" not in row))
        again = await batch("tables/rows.csv")
        assert again.code == 0
        assert emulator.stats().creates_accepted == 4
    settings = batch.lines()["a"]["settings"]
    assert settings["images"] == [f"my cat.png (sha256:{sha256(CAT)})"]
    assert "my cat.png (sha256:" in (batch.out / "index.html").read_text(encoding="utf-8")


async def test_dry_run_counts_local_images_and_uploads(batch: Command) -> None:
    written(batch.folder / "cat.png", CAT)
    written(batch.folder / "dog.png", DOG)
    lines = [{"prompt": "a", "image": "cat.png"}, {"prompt": "b", "images": ["cat.png", "https://a.example/x.png"]}]
    batch.write("rows.jsonl", *map(json.dumps, lines))
    async with emulated(batch) as emulator:
        said = await batch("rows.jsonl", "--dry-run")
        assert {"local images\t1", "uploads\t1"} <= set(said.out.splitlines())
        assert set(emulator.stats().requests) == {"apimall.balance"}
        assert (await batch("rows.jsonl")).code == 0
        more = [*lines, {"prompt": "c", "image": "cat.png"}, {"prompt": "d", "image": "dog.png"}]
        batch.write("rows.jsonl", *map(json.dumps, more))
        said = await batch("rows.jsonl", "--dry-run")
        assert {"local images\t2", "uploads\t1"} < set(said.out.splitlines())


async def test_bad_references_are_named_with_their_rows_before_anything_is_bought(batch: Command) -> None:
    (batch.folder / "folder.png").mkdir()
    written(batch.folder / "text.png", b"no image")
    with written(batch.folder / "large.png", b"\x89PNG\r\n\x1a\n").open("r+b") as sparse:
        sparse.truncate(33 << 20)
    names = ("missing.png", "folder.png", "text.png", "large.png")
    batch.write("rows.csv", "prompt,image", *(f"row of {name},{name}" for name in names), "good,")
    async with emulated(batch, "defapi") as emulator:
        said = await batch("rows.csv")
    assert said.code == 2
    whys = ("does not exist", "is a folder", "is no image of a known format", "has 33 MiB, more than the limit of 32")
    for number, name, why in zip(range(2, 6), names, whys, strict=True):
        assert f"rows.csv, row {number}: reference image {name} {why}" in said.err
    assert "nothing was bought: correct 4 rows of 5 first" in said.err
    assert emulator.stats().creates_received == 0
    assert not batch.out.exists()


async def test_changed_file_under_a_key_is_a_changed_row(batch: Command) -> None:
    written(batch.folder / "cat.png", CAT)
    batch.write("rows.csv", "prompt,image,key", "a,cat.png,one")
    async with emulated(batch) as emulator:
        assert (await batch("rows.csv")).code == 0
        written(batch.folder / "cat.png", DOG)
        said = await batch("rows.csv")
        assert "the row with key one has changed since it was bought: images was" in said.err
        assert emulator.stats().creates_accepted == 1
