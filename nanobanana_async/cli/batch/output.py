"""What a batch says and what it hears: its data on stdout, its story on stderr, Ctrl-C and SIGTERM."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio.lowlevel
import anyio.to_thread

from nanobanana_async.cli.batch.display import BatchDisplay, rows
from nanobanana_async.cli.batch.folder import LEDGER, REPORT
from nanobanana_async.cli.batch.input_file import InputFile
from nanobanana_async.cli.batch.results import RESULTS, Result
from nanobanana_async.cli.display import shorten
from nanobanana_async.cli.jobs.format import amount
from nanobanana_async.errors import ConfigurationError, NanoBananaError
from nanobanana_async.escaping import exact
from nanobanana_async.events import Event, PriceAboveEstimate
from nanobanana_async.images.files import why_unwritable
from nanobanana_async.report import STATUSES

INTERRUPTED = 130
MAX_ERRORS = 10  # rows of each kind of trouble that are told one by one


class StopSignals:
    """The first Ctrl-C asks to stop, the second one and SIGTERM end the run, the third one the process."""

    def __init__(self, board: BatchDisplay) -> None:
        self.asked = asyncio.Event()
        self.ended = False
        self._board = board
        self._task = asyncio.current_task()
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number, handler in ((signal.SIGINT, self._interrupted), (signal.SIGTERM, self._end)):
            # Not on Windows, where Ctrl-C cancels us, and not in a thread.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, handler)
                self._handled.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._handled:
            asyncio.get_running_loop().remove_signal_handler(number)

    def uncancel(self) -> None:
        """Go on to the end after having been cancelled by a signal."""
        if self._task is not None:
            self._task.uncancel()

    def _interrupted(self) -> None:
        if self.ended:
            self._board.console.show_cursor()
            os._exit(INTERRUPTED)  # the ledger has all
        if self.asked.is_set():
            self._end()
            return
        self.asked.set()
        running = 0 if self._board.stats is None else self._board.stats.slots_held
        self._board.say(f"nothing more is bought, {running} that run are collected; Ctrl-C again stops at once")

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._board.say("stopping at once; what runs is not lost: the same command collects it")
            if self._task is not None:
                self._task.cancel()


class StdoutLines:
    """What goes to stdout, unless a terminal is there: a line for each picture, of key, status and path.

    A row without pictures has one line, without a path.
    """

    def __init__(self) -> None:
        # The live display puts another stdout in place.
        self._out = sys.stdout
        self._wanted = not self._out.isatty()
        self._lines: list[bytes] = []

    def add(self, result: Result, folder: Path) -> None:
        """Take note of a row's lines."""
        if self._wanted:
            start = f"{exact(result.row.key)}\t{result.row.status}"
            paths = [str(folder / image) for image in result.row.images] or [""]
            lines = "".join(f"{start}\t{exact(path)}\n" for path in paths)
            self._lines.append(lines.encode(self._out.encoding, "backslashreplace"))

    async def tell(self) -> None:
        """Print what was added; a slow reader is waited for, one that has gone is not.

        Raises `ConfigurationError` when stdout is a file that can't be written; then nothing more is printed.
        """
        lines, self._lines = self._lines, []
        if lines:
            await anyio.to_thread.run_sync(self._print, b"".join(lines), abandon_on_cancel=True)
        else:
            await anyio.lowlevel.checkpoint()

    def _print(self, lines: bytes) -> None:
        try:
            self._out.buffer.write(lines)
            self._out.buffer.flush()
        except OSError as error:
            self._wanted = False
            with suppress(OSError, ValueError):  # lest Python's last flush complains
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            if not isinstance(error, BrokenPipeError):
                raise ConfigurationError(why_unwritable("standard output", error)) from None


class BatchSummary:
    """What is told at the beginning and at the end."""

    def __init__(self, folder: Path, file: InputFile) -> None:
        self._folder = folder
        self._file = file
        self.known = 0
        """Rows that had ended before this run."""
        self.gone = 0
        """Rows of earlier runs that stand in the file no more."""
        self.stopped: NanoBananaError | None = None
        self.overspent = Decimal(0)
        """By how much all that was ever spent on the batch passes its cap."""
        self._above_estimate: list[PriceAboveEstimate] = []
        self._told: list[tuple[int, str]] = []
        self._counts: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        """Take note of a row that has ended."""
        row = result.row
        self._counts[row.status] += 1
        if row.status != "succeeded" and self._counts[row.status] <= MAX_ERRORS:
            job = f" [job {row.key}]" if row.status == "uncertain" else ""
            why = "" if row.error is None else f": {shorten(row.error, 300)}"
            told = f"line {result.line} {row.status}: {shorten(row.prompt, 40)}{why}{job}"
            self._told.append((result.line, told))

    def hear(self, event: Event) -> None:
        """Take note of a job that cost more than was set aside for it."""
        if isinstance(event, PriceAboveEstimate):
            self._above_estimate.append(event)

    @property
    def passed_the_cap(self) -> bool:
        """Whether the price of a job of this run has passed the cap."""
        return bool(self.overspent and self._above_estimate)

    def beginning(self) -> str:
        """Say what is there from earlier runs."""
        return f"{rows(self._counts.total())} had ended before: {self._counted()}"

    def ending(self, board: BatchDisplay, left: int, *, interrupted: bool, reported: bool) -> Iterator[str]:
        """Say how it ended, and what can be done about the rest."""
        yield from (told for _, told in sorted(self._told))
        for status, count in self._counts.items():
            if status != "succeeded" and count > MAX_ERRORS:
                yield f"... and {count - MAX_ERRORS} more {status}: see {self._folder / RESULTS}"
        if self.gone:
            yield f"{rows(self.gone)} of earlier runs left the file: their pictures stay, the results leave them out"
        counts = self._counted() or "none has ended"
        yield f"{rows(board.total or board.done)}: {counts}; {amount(board.spent)} credits"
        yield from self._advice(left, interrupted=interrupted)
        shown = f"{self._folder / REPORT} shows them, " if reported else ""
        yield f"{shown}{self._folder / RESULTS} lists them"

    def _counted(self) -> str:
        return ", ".join(f"{self._counts[status]} {status}" for status in STATUSES if self._counts[status])

    def _advice(self, left: int, *, interrupted: bool) -> Iterator[str]:
        counts = self._counts
        if lost := counts["failed"] + counts["refused"]:
            yield f"{rows(lost)} failed: --retry-failed buys them again"
        if counts["uncertain"]:
            settle = f"nanobanana jobs settle KEY --ledger {self._folder / LEDGER} --as refused|buy-again|task-id [ID]"
            yield (
                f"{rows(counts['uncertain'])} uncertain, perhaps bought, never sent again:"
                f" look at the gateway's own list of tasks, then `{settle}`"
            )
        if self.passed_the_cap:
            yield f"nanobanana: --max-credits was passed by {amount(self.overspent)}: no price was known before"
            yield from (_above_estimate(event) for event in self._above_estimate[:MAX_ERRORS])
        if self.stopped is not None:
            yield f"nanobanana: the buying stopped: {self.stopped}"
        if left and (interrupted or self.stopped is not None):
            yield f"{rows(left)} left: the same command goes on"


def _above_estimate(event: PriceAboveEstimate) -> str:
    record, price = event.record, event.record.credits_used or Decimal(0)
    prompt = "" if record.request is None else f" ({shorten(record.request.prompt, 40)})"
    return (
        f"job {record.key}{prompt} cost {amount(price)}, {amount(event.estimate)} were set aside:"
        f" --expected-credits {amount(price)} sets that aside for such jobs"
    )
