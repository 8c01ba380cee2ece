"""What `nanobanana batch` says about many rows: the first ones, counts of the rest, and what buys which of them."""

import io
from pathlib import Path

import pytest
from attrs import evolve
from rich.console import Console

from nanobanana_async.cli.batch.display import BatchDisplay
from nanobanana_async.cli.batch.output import BatchSummary
from nanobanana_async.cli.batch.results import Result
from tests.cli.batches import Command, emulated
from tests.support.reports import row


@pytest.mark.slow
async def test_first_failed_rows_are_listed_and_the_others_counted(batch: Command) -> None:
    async with emulated(batch, failure_probability=1.0):
        said = await batch(batch.prompts(9))
    listed = [line for line in said.err.splitlines() if " failed: a fox" in line]
    assert (said.code, len(listed)) == (1, 5)
    assert "4 more failed: see out/index.html and out/results.jsonl" in said.err.splitlines()


@pytest.mark.slow
async def test_failed_rows_that_changed_are_counted_apart(batch: Command) -> None:
    async with emulated(batch, failure_probability=1.0) as emulator:
        rows = ["key,prompt", "a,a fox", "b,an owl", "c,a lynx", "d,a hare"]
        await batch(batch.write("a.csv", *rows))
        said = await batch(batch.write("a.csv", *rows[:2], "b,an elk", "c,a cat", rows[4]))
        assert emulator.stats().creates_accepted == 4
        assert "2 rows failed: --retry-failed buys them again" in said.err
        apart = "2 rows failed, and have changed since (rows 3 and 4): --buy-changed buys them again"
        assert f"{apart}, --retry-failed does not" in said.err
        await batch("a.csv", "--retry-failed")
        assert emulator.stats().creates_accepted == 6
        await batch("a.csv", "--buy-changed")
        assert emulator.stats().creates_accepted == 8


def test_many_rows_with_missing_images_are_counted() -> None:
    summary = BatchSummary(Path("out"))
    for number in range(7):
        summary.add(Result(row=evolve(row(index=number, number=number + 1), missing=("image 2: none",))))
    display = BatchDisplay(7, Console(file=io.StringIO()), lambda: 0.0)
    said = list(summary.ending(display, 0, interrupted=False, reported=False))
    assert said[0] == "7 rows with missing images: see out/results.jsonl"


@pytest.mark.parametrize(
    ("bought", "unanswered", "said"),
    [
        (0, 0, "15 rows left: run"),
        (3, 0, "15 rows left, 3 of them bought and not collected: run"),
        (3, 4, "15 rows left, 3 of them bought and not collected, 4 perhaps bought: run"),
        (0, 4, "15 rows left, 4 of them perhaps bought: run"),
        (12, 9, "15 rows left, 12 of them bought and not collected, 3 perhaps bought: run"),
    ],
)
def test_jobs_without_an_answer_are_said_to_be_perhaps_bought(bought: int, unanswered: int, said: str) -> None:
    summary = BatchSummary(Path("out"))
    summary.uncollected, summary.unanswered = bought, unanswered
    display = BatchDisplay(20, Console(file=io.StringIO()), lambda: 0.0)
    lines = list(summary.ending(display, 15, interrupted=True, reported=False))
    assert f"{said} the same command to continue" in lines


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "options", "bought"), [(b"n", (), 0), (b"y", (), 2), (b"", ("--yes",), 2)])
async def test_terminal_is_asked_about_lines_that_begin_with_a_hash(
    answer: bytes, options: tuple[str, ...], bought: int, batch: Command
) -> None:
    async with emulated(batch) as emulator:
        said = await batch(batch.write("a.txt", "# animals", "a fox"), *options, stdin=answer, terminal=True)
        assert emulator.stats().creates_accepted == bought
    assert said.code == (0 if bought else 2)
    assert "line 1 begins with # and is a prompt" in said.err
    assert ("Images of line 1 will be bought. Continue? [y/N]" in said.err) == (not options)
    assert batch.out.exists() == bool(bought)


@pytest.mark.slow
async def test_without_a_terminal_lines_with_a_hash_are_only_said(batch: Command) -> None:
    async with emulated(batch) as emulator:
        said = await batch(batch.write("a.txt", "# animals", "a fox"))
        assert (said.code, emulator.stats().creates_accepted) == (0, 2)
    assert ("[y/N]" in said.err, "line 1 begins with #" in said.err) == (False, True)
