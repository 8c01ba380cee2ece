"""A long check of rows says how far it has come."""

import io
import sys

import pytest

from nanobanana_async.cli.batch import checking as module
from nanobanana_async.cli.batch.checking import checking
from tests.cli.batches import Command, emulated
from tests.support.command import TerminalStream


class Clock:
    """A clock that a second passes on with each reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def printed(patch: pytest.MonkeyPatch, stream: io.StringIO, items: int) -> str:
    patch.setattr(sys, "stderr", stream)
    assert list(checking(range(items), "rows checked", Clock())) == list(range(items))
    return stream.getvalue()


def test_a_log_gets_a_line_after_growing_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [line.split()[0] for line in printed(monkeypatch, io.StringIO(), 30).splitlines()]
    assert counts == ["2", "8", "20"]


def test_a_terminal_has_one_line_which_is_removed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, TerminalStream(), 7)
    assert text == "\r2 rows checked, nothing is bought yet\033[K\r5 rows checked, nothing is bought yet\033[K\r\033[K"


def test_a_short_check_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(monkeypatch, io.StringIO(), 2) == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prompt=a {p}", "--vary=p=mug,pot,cup"), "2 rows checked, nothing is bought yet"),
        (("foxes.txt",), "2 rows checked, nothing is bought yet"),
        (("foxes.jsonl",), "1 rows read, nothing is bought yet"),
    ],
)
async def test_rows_of_each_input_are_counted(
    batch: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    batch.prompts(3)
    batch.write("foxes.jsonl", *[f'{{"prompt": "a fox {number}"}}' for number in range(3)])
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    file, *options = arguments
    async with emulated(batch):
        said = await batch(file, *options, "--dry-run")
    assert (said.code, says in said.err) == (0, True)
