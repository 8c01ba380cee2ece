"""Batches that save their images: in the background, complete, listed, and once."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import ConfigurationError, DownloadError, ImageRequest, Outcome, Session
from nanobanana_async.emulator import Emulator
from nanobanana_async.emulator.faults import Script, delay, error
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.models import GenerationResult
from nanobanana_async.testing import FakeTransport
from tests.batch.fakes import CountingInput, PromptGateway, all_of, file_of, slots
from tests.support.fakes import apimall, virtually
from tests.support.held import let_pass
from tests.support.loopback import GatewayName, charged, emulated, quick

FIVE = [f"image {number}" for number in range(5)]


async def saved_batch(
    emulator: Emulator, folder: Path | None, rows: Any, gateway: GatewayName = "apimall", **options: Any
) -> list[Outcome]:
    """Run a named batch in a session of its own; its ledger stands beside the folder."""
    ledger = options.pop("ledger", None)
    async with quick(emulator, gateway, ledger=ledger) as session:
        name = None if ledger is None else "spring"
        return await all_of(session.generate_many(rows, ordered=True, save_to=folder, batch=name, **options))


def listed(folder: Path) -> dict[str, str]:
    """Return the manifest: file name -> digest."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def hashed(folder: Path) -> dict[str, str]:
    """Return what stands in the folder, in the manifest's form."""
    files = [path for path in folder.iterdir() if path.name not in ("SHA256SUMS", "metadata.jsonl")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


async def test_images_are_named_by_row_and_prompt_or_key(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    async with emulated() as emulator:
        rows = ["one", ImageRequest("two", num_images=3), {"prompt": "three", "key": "my-key"}]
        outcomes = await saved_batch(emulator, folder, rows)
        assert emulator.stats().credential_leaks == 0
    assert [len(outcome.saved) for outcome in outcomes] == [1, 3, 1]
    assert [Path(path).stem for path in outcomes[0].saved] == ["0001-one"]
    assert [Path(path).stem for path in outcomes[1].saved] == ["0002-two-1", "0002-two-2", "0002-two-3"]
    assert [Path(path).stem for path in outcomes[2].saved] == ["my-key"]
    assert {Path(path).name for outcome in outcomes for path in outcome.saved} == set(hashed(folder))
    assert listed(folder) == hashed(folder)
    assert len(listed(folder)) == 5


async def test_second_run_saves_nothing_twice(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "out", tmp_path / "jobs.sqlite"
    async with emulated() as emulator:
        first = await saved_batch(emulator, folder, FIVE, ledger=ledger)
        lines, stamps = (
            (folder / "SHA256SUMS").read_text(),
            {path: path.stat().st_mtime_ns for path in folder.iterdir()},
        )
        again = await saved_batch(emulator, folder, FIVE, ledger=ledger)
        assert charged(emulator.stats(), 5)
    assert [outcome.saved for outcome in again] == [outcome.saved for outcome in first]
    assert (folder / "SHA256SUMS").read_text() == lines
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps


async def test_saved_images_keep_their_names_and_are_not_downloaded_again(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "out", tmp_path / "jobs.sqlite"
    async with emulated() as emulator:
        first = await saved_batch(emulator, folder, FIVE, ledger=ledger)
        requests = dict(emulator.stats().requests)
        again = await saved_batch(emulator, folder, ["new", *FIVE], ledger=ledger, names="{slug}")
        assert emulator.stats().requests["cdn"] == requests["cdn"] + 1
        assert charged(emulator.stats(), 6)
    assert [outcome.saved for outcome in again[1:]] == [outcome.saved for outcome in first]
    assert again[0].saved == (folder / "new.png",)
    assert listed(folder) == hashed(folder)


async def test_folder_is_a_data_set_that_an_image_folder_loader_reads(tmp_path: Path) -> None:
    async with emulated() as emulator:
        rows = ["one", {"prompt": "zwei", "key": "k", "num_images": 2, "aspect_ratio": "16:9"}, "three"]
        await saved_batch(emulator, tmp_path, rows)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert {line["file_name"]: line["sha256"] for line in lines} == hashed(tmp_path)  # each image once, and no other
    assert len({tuple(line) for line in lines}) == 1  # the loader wants the same fields in each line
    two = sorted((line for line in lines if line["key"] == "k"), key=lambda line: line["image"])
    facts = [(line["file_name"], line["prompt"], line["aspect_ratio"], line["image"]) for line in two]
    assert facts == [("k-1.png", "zwei", "16:9", 1), ("k-2.png", "zwei", "16:9", 2)]


async def test_names_of_a_template_are_safe_and_differ(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "metadata": {"shelf": "../x/Y"}},
        {"prompt": "b", "metadata": {"shelf": "../x/y"}},  # one file on macOS and Windows
        {"prompt": "c", "metadata": {"shelf": "con"}},
        {"prompt": "d"},
    ]
    async with emulated() as emulator:
        outcomes = await saved_batch(emulator, tmp_path, rows, names="{metadata[shelf]}")
        assert charged(emulator.stats(), 3)
    names = sorted(Path(path).name for outcome in outcomes for path in outcome.saved)
    assert names[0] == "_con.png"
    assert names[1:] in (["_x_Y-2.png", "_x_y.png"], ["_x_Y.png", "_x_y-2.png"])  # whichever was saved first
    assert str(outcomes[3].error) == (
        "names has {metadata[shelf]}, and this row's metadata has no 'shelf' (change the request)"
    )


async def test_single_result_is_named_by_its_key_its_prompt_or_as_wanted(tmp_path: Path) -> None:
    async with emulated() as emulator, quick(emulator) as session:
        plain = await session.generate("A lighthouse, in Fog!")
        keyed = await session.generate({"prompt": "fog", "key": "order-17"})
        both = await session.generate("fog", num_images=2)
        names = [path.name for result in (plain, keyed, both) for path in await session.save(result, tmp_path)]
        assert names == ["a-lighthouse-in-fog.png", "order-17.png", "fog-1.png", "fog-2.png"]
        wanted = await session.save(plain, tmp_path / "other", name="hero {slug}.png")
        assert [path.name for path in wanted] == ["hero_a-lighthouse-in-fog.png"]
        before = emulator.stats().requests["cdn"]
        assert [path.name for path in await session.save(plain, tmp_path, name="hero")] == ["a-lighthouse-in-fog.png"]
        assert emulator.stats().requests["cdn"] == before
        with pytest.raises(ConfigurationError, match=r"name has \{row\}: it takes \{key\}, \{slug\}"):
            await session.save(plain, tmp_path, name="{row}")


async def test_wrong_template_is_refused_before_anything_is_bought(tmp_path: Path) -> None:
    async with emulated() as emulator, quick(emulator) as session:
        with pytest.raises(ConfigurationError, match=r"names has \{prompt\}"):
            session.generate_many(FIVE, save_to=tmp_path, names="{prompt}")
        assert charged(emulator.stats(), 0)


async def test_deleted_image_is_saved_again(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "out", tmp_path / "jobs.sqlite"
    async with emulated() as emulator:
        first = await saved_batch(emulator, folder, FIVE, ledger=ledger)
        file_of(first[2]).unlink()
        await saved_batch(emulator, folder, FIVE, ledger=ledger)
        assert charged(emulator.stats(), 5)
    assert listed(folder) == hashed(folder)
    assert len(hashed(folder)) == 5


@pytest.mark.slow
async def test_expired_links_are_refreshed(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "out", tmp_path / "jobs.sqlite"
    async with emulated(links_expire_after_s=300.0, expired_link_status=410) as emulator:
        await saved_batch(emulator, None, FIVE, ledger=ledger)
        queries = emulator.stats().polls
        let_pass(emulator, 301.0)
        outcomes = await saved_batch(emulator, folder, FIVE, ledger=ledger)
        assert charged(emulator.stats(), 5)
        assert emulator.stats().polls == queries + 5
    assert [outcome.ok for outcome in outcomes] == [True] * 5
    assert listed(folder) == hashed(folder)


async def test_unavailable_image_is_an_error_beside_its_result(tmp_path: Path) -> None:
    gone = Script({"cdn": [error(410)]}, repeat_last=True)
    async with emulated(script=gone) as emulator:
        outcomes = await saved_batch(emulator, tmp_path, ["one"])
        assert charged(emulator.stats(), 1)
    assert isinstance(outcomes[0].error, DownloadError)
    assert outcomes[0].error.link_expired
    assert str(outcomes[0].error).endswith("the link has expired (HTTP 410)")  # also the new one
    assert outcomes[0].result is not None
    assert outcomes[0].saved == ()
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 - nothing else runs


@pytest.mark.slow
async def test_refused_request_for_a_new_link_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanobanana_async.policy.retry.LATE_REPLICA_S", 0.1)  # how long an unknown task is asked for
    gone = Script({"cdn": [error(410)]}, repeat_last=True)
    async with emulated(script=gone) as emulator, Session(emulator.apimall()) as session:
        result = await session.generate("one")
        image = evolve(result.images[0], task_id="img_unknown")
        with pytest.raises(DownloadError, match=r"the link has expired \(HTTP 410\); the gateway gave no new link: "):
            await session.download(image)
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("save", [False, True])
async def test_inline_images_are_fetched_again_by_the_next_run(tmp_path: Path, save: bool) -> None:
    ledger, folder = tmp_path / "jobs.sqlite", tmp_path / "out"
    async with emulated(data_uris=True) as emulator:
        first = await saved_batch(emulator, folder, FIVE, "defapi", ledger=ledger)
        queries = emulator.stats().polls
        again = await saved_batch(emulator, folder if save else None, FIVE, "defapi", ledger=ledger)
        assert charged(emulator.stats(), 5)
        assert emulator.stats().polls == queries + 5
        assert "cdn" not in emulator.stats().requests
    for one, other in zip(first, again, strict=True):
        assert one.unwrap().url.startswith("data:image/")
        assert other.unwrap().images == one.unwrap().images
        assert other.saved == (one.saved if save else ())
    assert listed(folder) == hashed(folder)
    assert len(hashed(folder)) == 5


async def test_bug_in_saving_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("an unforeseen error")

    monkeypatch.setattr(ImageDownloader, "save", broken)
    async with emulated() as emulator, quick(emulator) as session:
        outcomes = await all_of(session.generate_many(["one", "two"], save_to=tmp_path))
        assert [str(outcome.error).startswith("a bug in nanobanana_async") for outcome in outcomes] == [True, True]
        assert all(outcome.result for outcome in outcomes)
        assert (await session.generate("afterwards")).images


@pytest.mark.slow
async def test_outcomes_are_saved_before_they_are_yielded(tmp_path: Path) -> None:
    slow = Script({"cdn": [delay(0.3)]}, repeat_last=True)
    async with (
        emulated(script=slow) as emulator,
        quick(emulator, concurrency=slots(5)) as session,
        session.generate_many(CountingInput(20), save_to=tmp_path) as batch,
    ):
        outcome = await anext(batch)
        assert file_of(outcome).exists()
        assert emulator.stats().creates_accepted == 20
        assert len(await all_of(batch)) == 19


class FakeSaver:
    """Saves without a disk; a save takes the seconds given for the job's key, or `default_s`."""

    def __init__(self, seconds: dict[str, float] | None = None, default_s: float = 5.0) -> None:
        self.seconds = seconds or {}
        self.default_s = default_s
        self.at_once = self.most = self.saved = 0

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def save(_: ImageSaver, result: GenerationResult, folder: Path, *__: Any, **___: Any) -> tuple[Path, ...]:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            await asyncio.sleep(self.seconds.get(result.key, self.default_s))
            self.at_once -= 1
            self.saved += 1
            return (folder / result.key,)

        async def check(_: ImageSaver, folder: Path) -> None:
            return None

        monkeypatch.setattr(ImageSaver, "save", save)
        monkeypatch.setattr(ImageSaver, "check", check)


def test_slow_saving_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtually
    async def stays_in_order() -> None:
        saver = FakeSaver({"row-1": 100.0, "row-3": 100.0}, default_s=1.0)
        saver.put_in(monkeypatch)
        # Row 3 is being saved when row 1 ends, and both still are when row 2 is saved.
        rows = [{"prompt": f"{took} s", "key": f"row-{number}"} for number, took in enumerate((20, 40, 60, 20))]
        async with apimall(FakeTransport(PromptGateway().answer)) as session:
            outcomes = await all_of(session.generate_many(rows, ordered=True, save_to="out"))
        assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3]

    stays_in_order()


def test_concurrent_saves_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtually
    async def stays_bounded() -> None:
        saver, gateway = FakeSaver(default_s=100.0), PromptGateway(job_s=1)
        saver.put_in(monkeypatch)
        async with apimall(FakeTransport(gateway.answer), concurrency=slots(20)) as session:
            async for _ in session.generate_many(CountingInput(100), save_to="out"):
                assert saver.most <= 8
                assert len(gateway.sold) - saver.saved <= 20 + 8 + 24 + 30
        assert saver.saved == 100

    stays_bounded()


def test_ended_rows_are_saved_after_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtually
    async def saves_on() -> None:
        saver, gateway = FakeSaver(), PromptGateway()
        saver.put_in(monkeypatch)
        async with apimall(FakeTransport(gateway.answer), concurrency=slots(5)) as session:
            async for _ in session.generate_many(CountingInput(), save_to="out"):
                break
            await asyncio.sleep(100)
            assert saver.saved == len(gateway.sold) > 5

    saves_on()
