"""An unwritable folder stops the batch; an unavailable image is an error of its row."""

import asyncio
import errno
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nanobanana_async import BatchStopped, DownloadError, Outcome, SaveError
from nanobanana_async.batch import runner, streak
from nanobanana_async.batch.streak import ErrorStreak
from nanobanana_async.emulator import Emulator
from nanobanana_async.emulator.faults import Script, error
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.files import PartialFile
from nanobanana_async.models import GenerationResult
from tests.batch.fakes import file_of, slots, until_stopped
from tests.support.loopback import charged, emulated, quick

ROWS = [f"image {number}" for number in range(120)]
SAVED_FIRST = 6
Breaks = Callable[[Path, pytest.MonkeyPatch], None]


def full(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def write(part: PartialFile, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(PartialFile, "write", write)


def closed_to_this_user(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def open_it(part: PartialFile) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    patch.setattr(PartialFile, "open", open_it)


def replaced_by_a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for number in itertools.count():
        folder.rename(folder.with_name(f"moved-{number}"))
        with suppress(IsADirectoryError):  # a thread of the batch has made the folder again in between
            folder.write_text("in the way")
            return


def list_replaced_by_a_link(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "link").symlink_to(folder / "old")
    os.link(folder / "SHA256SUMS", folder / "old")
    (folder / "link").replace(folder / "SHA256SUMS")  # at once, since a thread of the batch may write a list meanwhile


async def break_off(emulator: Emulator, tmp_path: Path, breaks: Breaks) -> tuple[list[Outcome], Exception | None]:
    """Run a batch whose folder can't be written any more after a few outcomes; return them all, and how it ended."""
    folder, outcomes = tmp_path / "out", list[Outcome]()
    with pytest.MonkeyPatch.context() as patch:
        async with quick(emulator, ledger=tmp_path / "jobs.sqlite", concurrency=slots(5)) as session:
            try:
                async for outcome in session.generate_many(ROWS, batch="spring", save_to=folder):
                    outcomes.append(outcome)
                    if len(outcomes) == SAVED_FIRST:
                        breaks(folder, patch)
            except BatchStopped as stopped:
                return outcomes, stopped
    return outcomes, None


@pytest.mark.slow
@pytest.mark.parametrize("breaks", [full, closed_to_this_user, replaced_by_a_file, list_replaced_by_a_link])
async def test_unwritable_folder_stops_the_batch_and_loses_nothing(breaks: Breaks, tmp_path: Path) -> None:
    async with emulated() as emulator:
        outcomes, stopped = await break_off(emulator, tmp_path, breaks)
        bought = emulator.stats().creates_accepted
        assert isinstance(stopped, BatchStopped)
        assert isinstance(stopped.cause, SaveError)
        assert str(tmp_path / "out") in str(stopped)
        assert bought == len(outcomes) == stopped.done < 60
        unsaved = [outcome for outcome in outcomes if outcome.error is not None]
        assert unsaved
        for outcome in unsaved:
            assert isinstance(outcome.error, SaveError)
            assert (outcome.error.key, outcome.error.safe_to_repeat) == (outcome.key, False)
            assert outcome.result is not None  # it was bought

        async with quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
            batch = session.generate_many(ROWS[:bought], batch="spring", save_to=tmp_path / "other")
            again = [outcome async for outcome in batch]
        assert charged(emulator.stats(), bought)
    assert all(file_of(outcome).exists() for outcome in again if outcome.ok)
    assert sum(outcome.ok for outcome in again) == bought


@pytest.mark.slow
async def test_control_runner_without_the_folder_check_buys_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(kind for kind in streak.ACCOUNT_ERRORS if kind is not SaveError)
    monkeypatch.setattr(runner, "ACCOUNT_ERRORS", others)
    monkeypatch.setattr(ErrorStreak, "add", lambda *_: False)
    async with emulated() as emulator:
        outcomes, stopped = await break_off(emulator, tmp_path, replaced_by_a_file)
        assert (stopped, emulator.stats().creates_accepted, len(outcomes)) == (None, len(ROWS), len(ROWS))


@pytest.mark.parametrize("ordered", [False, True])
async def test_folder_is_checked_before_anything_is_bought(ordered: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with emulated() as emulator, quick(emulator) as session:
        batch = session.generate_many(ROWS, save_to=tmp_path / "file" / "out", ordered=ordered)
        outcomes, stopped = await until_stopped(batch)
        assert emulator.stats().creates_received == 0
        assert (await session.generate("afterwards")).images
    assert (outcomes, stopped.done, stopped.unbought) == ([], 0, 0)
    assert isinstance(stopped.cause, SaveError)
    assert str(stopped.cause).startswith(
        f"{tmp_path / 'file' / 'out'} can't be written: a part of the path is a file: "
    )


async def test_twenty_unsaved_images_in_a_row_stop_the_batch(tmp_path: Path) -> None:
    async with (
        emulated(script=Script({"cdn": [error(410)]}, repeat_last=True)) as emulator,
        quick(emulator, concurrency=slots(5)) as session,
    ):
        outcomes, stopped = await until_stopped(session.generate_many(ROWS, save_to=tmp_path / "out"))
        assert emulator.stats().creates_accepted == len(outcomes) < 90
    assert isinstance(stopped.cause, DownloadError)
    assert stopped.cause.message.startswith("20 rows in a row were bought and have no saved images for the same reason")
    assert len(outcomes) >= 20


class Shelf:
    """Saves without a disk: of ten images it finds one."""

    def __init__(self) -> None:
        self.asked = 0

    async def save(self, result: GenerationResult, folder: Path, *_: object, **__: object) -> tuple[Path, ...]:
        self.asked += 1
        if self.asked % 10:
            raise DownloadError("the server has no such image")
        return (folder / result.key,)


async def test_missing_images_between_others_are_row_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    monkeypatch.setattr(ImageSaver, "save", lambda _, *args, **named: shelf.save(*args, **named))
    async with emulated() as emulator, quick(emulator) as session:
        outcomes = [outcome async for outcome in session.generate_many(ROWS, save_to=tmp_path)]
    assert (len(outcomes), sum(outcome.ok for outcome in outcomes)) == (120, 12)


async def test_folder_error_takes_precedence_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def saved(self: ImageSaver, image: object, *_: object) -> Path | DownloadError | SaveError:
        await asyncio.sleep(0)
        return SaveError("full") if getattr(image, "index", 0) == 2 else DownloadError("missing")

    async with emulated() as emulator, quick(emulator) as session:
        result = await session.generate("a fox", num_images=3)
        monkeypatch.setattr(ImageSaver, "_save_or_error", saved)
        with pytest.raises(SaveError, match="full"):
            await session.save(result, tmp_path)
