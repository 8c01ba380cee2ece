"""Batches that save their images: in the background, complete, listed, and once."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import DownloadError, ImageRequest, Outcome, Session
from nanobanana_async.emulator import Emulator
from nanobanana_async.emulator.faults import Script, delay, error
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.models import GenerationResult
from nanobanana_async.testing import FakeTransport
from tests.batch.fakes import CountingInput, PromptGateway, all_of, slots
from tests.support.fakes import apimall, virtually
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
    files = [path for path in folder.iterdir() if path.name != "SHA256SUMS"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


async def test_images_are_saved_by_key_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    async with emulated() as emulator:
        rows = ["one", ImageRequest("two", num_images=3), {"prompt": "three", "key": "my-key"}]
        outcomes = await saved_batch(emulator, folder, rows)
        assert emulator.stats().credential_leaks == 0
    assert [len(outcome.saved) for outcome in outcomes] == [1, 3, 1]
    assert [path.stem for path in outcomes[1].saved] == [f"{outcomes[1].key}-{number:02d}" for number in (1, 2, 3)]
    assert outcomes[2].saved[0].stem == "my-key-01"
    assert {path.name for outcome in outcomes for path in outcome.saved} == set(hashed(folder))
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


async def test_deleted_image_is_saved_again(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "out", tmp_path / "jobs.sqlite"
    async with emulated() as emulator:
        first = await saved_batch(emulator, folder, FIVE, ledger=ledger)
        first[2].saved[0].unlink()
        await saved_batch(emulator, folder, FIVE, ledger=ledger)
        assert charged(emulator.stats(), 5)
    assert listed(folder) == hashed(folder)
    assert len(hashed(folder)) == 5


async def test_expired_links_are_refreshed(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "out", tmp_path / "jobs.sqlite"
    async with emulated(links_expire_after_s=0.3, expired_link_status=410) as emulator:
        await saved_batch(emulator, None, FIVE, ledger=ledger)
        queries = emulator.stats().polls
        await asyncio.sleep(0.4)
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


async def test_outcomes_are_saved_before_they_are_yielded(tmp_path: Path) -> None:
    slow = Script({"cdn": [delay(0.3)]}, repeat_last=True)
    async with (
        emulated(script=slow) as emulator,
        quick(emulator, concurrency=slots(5)) as session,
        session.generate_many(CountingInput(20), save_to=tmp_path) as batch,
    ):
        outcome = await anext(batch)
        assert outcome.saved[0].exists()
        assert emulator.stats().creates_accepted == 20
        assert len(await all_of(batch)) == 19


class FakeSaver:
    """Saves without a disk; a save takes the seconds given for the job's key, or `default_s`."""

    def __init__(self, seconds: dict[str, float] | None = None, default_s: float = 5.0) -> None:
        self.seconds = seconds or {}
        self.default_s = default_s
        self.at_once = self.most = self.saved = 0

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def save(_: ImageSaver, result: GenerationResult, folder: Path) -> tuple[Path, ...]:
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
