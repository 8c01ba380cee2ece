"""The commands with `-o s3://...`: images in the store, everything else in a folder, and the same command continues."""

import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

from nanobanana_async.cli.batch.folder import MARKER
from nanobanana_async.emulator import Emulator
from tests.cli.batches import Command, emulated, requests
from tests.store.server import S3, bucket, environment_of, variables
from tests.store.shelves import digest
from tests.support.command import environment, nanobanana

pytestmark = pytest.mark.slow


@pytest.fixture
async def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3]:
    async with bucket(s3_url) as made:
        for name, value in environment_of(made).items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    command = Command(tmp_path, monkeypatch, capsys)
    command.out = tmp_path / "foxes"
    return command


async def test_batch_of_a_store_is_not_bought_again_from_another_folder(batch: Command, s3: S3) -> None:
    url, other = f"s3://{s3.bucket}/spring", ("--folder", "other")
    async with emulated(batch) as emulator:
        assert (await batch(batch.prompts(1), folder=url)).code == 0
        for _ in range(2):
            said = await batch("foxes.txt", *other, folder=url)
            assert said.code == 2
            assert f"{url} holds images of the batch 'foxes', whose ledger is in the folder {batch.out} of" in said.err
            assert "--new-ledger if it is lost" in said.err
        assert (await batch("foxes.txt", folder=url)).code == 0
        assert emulator.stats().creates_accepted == 1
        assert (await batch("foxes.txt", *other, "--new-ledger", folder=url)).code == 0
        said = await batch("foxes.txt", folder=url)
    assert (said.code, f"whose ledger is in the folder {batch.folder / 'other'} of" in said.err) == (2, True)


async def test_moved_folder_and_other_batches_share_a_store(batch: Command, s3: S3) -> None:
    url = f"s3://{s3.bucket}/spring"
    async with emulated(batch) as emulator:
        assert (await batch(batch.prompts(1), folder=url)).code == 0
        batch.out.rename(batch.folder / "moved")
        assert (await batch("foxes.txt", "--folder", "moved", folder=url)).code == 0
        assert emulator.stats().creates_accepted == 1
        assert (await batch("foxes.txt", "--name", "owls", folder=url)).code == 0
        assert (await batch("foxes.txt", "--gateway", "emulator", folder=url)).code == 0  # a rehearsal is no claim
        assert (await batch("foxes.txt", "--folder", "moved", folder=url)).code == 0


async def test_images_go_to_the_store_and_the_rest_into_a_folder(batch: Command, s3: S3) -> None:
    url = f"s3://{s3.bucket}/spring"
    async with emulated(batch):
        said = await batch(batch.prompts(3), "--sidecar", folder=url)
    urls = [f"{url}/000{number}-a-fox-{number - 1}.png" for number in (1, 2, 3)]
    assert said.code == 0
    assert sorted(line.split("\t")[2] for line in said.out.splitlines()) == urls
    objects = await s3.images()
    lines = batch.lines().values()
    assert sorted(image for line in lines for image in line["images"]) == urls
    for line in lines:
        name = line["images"][0].removeprefix(f"s3://{s3.bucket}/")
        content, facts = objects[name]
        assert (line["sha256"], line["bytes"]) == ([digest(content)], [len(content)])
        assert facts["Content-Type"] == "image/png"
        sidecar = json.loads(objects[name.replace(".png", ".json")][0])
        assert (sidecar["prompt"], sidecar["sha256"]) == (line["prompt"], digest(content))
        assert (sidecar["job_key"], sidecar["task_id"], sidecar["credits"]) == (line["job_key"], line["task_id"], 8)
        assert sidecar["completed_at"] is not None
    with (batch.out / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        assert sorted(cells["images"] for cells in csv.DictReader(file)) == urls
    page = (batch.out / "index.html").read_text(encoding="utf-8")
    assert all(f'<img src="./thumbnails/images/{each.rpartition("/")[2]}.webp"' in page for each in urls)
    assert all(each in page for each in urls)
    assert not (batch.out / "images").exists()


async def test_same_command_continues_and_puts_nothing_twice(batch: Command, s3: S3) -> None:
    url = f"s3://{s3.bucket}/spring"
    async with emulated(batch) as emulator:
        await batch(batch.prompts(3), folder=url)
        before = requests(emulator)
        s3.requests.clear()
        assert (await batch("foxes.txt", folder=url)).code == 0
        assert (requests(emulator), s3.counts()) == (before, {"HEAD": 3, "GET": 1})
        await batch(batch.prompts(4), folder=url)
        assert emulator.stats().creates_accepted == 4
        assert len(await s3.images()) == 4


async def test_removed_object_is_saved_again_without_a_purchase(batch: Command, s3: S3) -> None:
    import obstore
    from obstore.store import S3Store

    url = f"s3://{s3.bucket}/spring"
    async with emulated(batch) as emulator:
        await batch(batch.prompts(3), folder=url)
        await obstore.delete_async(S3Store(s3.bucket), "spring/0002-a-fox-1.png")
        assert len(await s3.images()) == 2
        assert (await batch("foxes.txt", folder=url)).code == 0
        assert emulator.stats().creates_accepted == 3
    assert len(await s3.images()) == 3


async def test_results_that_are_lost_are_found_again_in_the_store(batch: Command, s3: S3) -> None:
    url = f"s3://{s3.bucket}/spring"
    async with emulated(batch) as emulator:
        await batch(batch.prompts(3), folder=url)
        lines = {prompt: line["images"] for prompt, line in batch.lines().items()}
        (batch.out / "results.jsonl").unlink()
        s3.requests.clear()
        assert (await batch("foxes.txt", folder=url)).code == 0
        assert emulator.stats().creates_accepted == 3
    assert "PUT" not in s3.counts()
    assert {prompt: line["images"] for prompt, line in batch.lines().items()} == lines


async def test_changed_row_lists_the_objects_of_its_earlier_purchases(batch: Command, s3: S3) -> None:
    url = f"s3://{s3.bucket}/x"
    async with emulated(batch):
        for prompt in ("a red gate", "a RED gate", "a blue gate"):
            await batch(batch.write("foxes.csv", "key,prompt", f"gate,{prompt}"), "--buy-changed", folder=url)
        line = batch.lines()["a blue gate"]
    assert line["images"] == [f"{url}/gate-3.png"]
    assert sorted(line["earlier_images"]) == [f"{url}/gate-2.png", f"{url}/gate.png"]


async def test_row_that_could_not_be_saved_is_saved_by_the_next_run(batch: Command, s3: S3) -> None:
    url = f"s3://{s3.bucket}/spring"
    s3.faults = lambda method, name: "no permission" if (method, name[-7:]) == ("PUT", "x-1.png") else None
    async with emulated(batch) as emulator:
        said = await batch(batch.prompts(3), folder=url)
        assert (said.code, emulator.stats().creates_accepted) == (1, 3)
        line = batch.lines()["a fox 1"]
        assert (line["status"], line["error_kind"], line["images"]) == ("unfinished", "SaveError", [])
        assert "no permission (HTTP 403" in line["error"]
        s3.faults = lambda *_: None
        assert (await batch("foxes.txt", folder=url)).code == 0
        assert emulator.stats().creates_accepted == 3
    assert set(batch.statuses()) == {"succeeded"}


async def test_store_that_refuses_stops_the_command_before_a_purchase(batch: Command, s3: S3) -> None:
    s3.faults = lambda method, _: "no permission" if method == "PUT" else None
    async with emulated(batch) as emulator:
        said = await batch(batch.prompts(3), folder=f"s3://{s3.bucket}/spring")
        assert (said.code, emulator.stats().creates_received) == (3, 0)
    assert f"s3://{s3.bucket}/spring can't be written: no permission" in said.err


async def test_folder_belongs_to_one_store(batch: Command, s3: S3) -> None:
    url = f"s3://{s3.bucket}/spring"
    async with emulated(batch) as emulator:
        await batch(batch.prompts(1), folder=url)
        other = await batch("foxes.txt", folder=f"s3://{s3.bucket}/other")
        assert other.code == 2
        assert f"foxes holds a batch whose images are in {url}: pass that with -o" in other.err
        assert (await batch("foxes.txt", folder="foxes")).code == 2
        said = await batch("foxes.txt", "--folder", "second", "--name", "second", folder=f"s3://{s3.bucket}/other")
        assert (said.code, emulator.stats().creates_accepted) == (0, 2)
        refused = await batch("foxes.txt", "--folder", "x", folder="out")
        assert (refused.code, "--folder is for images in an object store" in refused.err) == (2, True)
    assert json.loads((batch.out / MARKER).read_text())["store"] == url
    assert (batch.folder / "second" / "results.jsonl").exists()


async def test_generate_and_fetch_print_the_urls_of_objects(batch: Command, s3: S3) -> None:
    url = f"s3://{s3.bucket}/one"
    async with emulated(batch) as emulator:
        environ = {**environment(emulator), **environment_of(s3)}
        said = await nanobanana("generate", "a fox", "-o", url, "--sidecar", environ=environ)
        assert (said.code, said.out.split()) == (0, [f"{url}/a-fox.png"])
        (task,) = [
            json.loads(content)["task_id"] for name, (content, _) in (await s3.images()).items() if ".json" in name
        ]
        s3.requests.clear()
        again = await nanobanana("jobs", "fetch", task, "-o", url, "--sidecar", environ=environ)
        assert (again.code, again.out.split()) == (0, [f"{url}/a-fox.png"])
        assert "PUT" not in s3.counts()
        assert emulator.stats().creates_accepted == 1


@pytest.mark.parametrize("command", [("generate", "a fox"), ("batch", "foxes.txt"), ("jobs", "fetch", "img_x")])
async def test_store_that_ends_with_the_command_is_refused(batch: Command, command: tuple[str, ...]) -> None:
    batch.prompts(1)
    said = await nanobanana(*command, "-o", "memory://x")
    assert said.code == 2
    assert "a store in memory ends with the command" in said.err


async def test_generate_ends_with_2_where_store_or_folder_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    async with Emulator() as emulator:
        environ = {**environment(emulator), **variables("http://127.0.0.1:9")}
        for output in ("s3://bucket/x", "taken"):
            said = await nanobanana("generate", "a fox", "-o", output, environ=environ, folder=tmp_path)
            assert (said.code, "can't be written" in said.complaint) == (2, True)
        assert emulator.stats().creates_received == 0
