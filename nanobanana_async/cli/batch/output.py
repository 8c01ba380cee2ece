"""Print the results of a batch: one line for each image on stdout, a summary on stderr."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import anyio.lowlevel
import anyio.to_thread

from nanobanana_async.cli.batch.changed import changed_sentence
from nanobanana_async.cli.batch.costs import Costs
from nanobanana_async.cli.batch.display import BatchDisplay
from nanobanana_async.cli.batch.folder import LEDGER, REPORT
from nanobanana_async.cli.batch.notes import row_numbers_text
from nanobanana_async.cli.batch.results import RESULTS, Result
from nanobanana_async.cli.display import shorten
from nanobanana_async.cli.options import in_cli_words, with_option_names
from nanobanana_async.cli.purchase_notes import REHEARSAL_NOTE
from nanobanana_async.commands import resolve_advice
from nanobanana_async.errors import ConfigurationError, CreditLimitReached, NanoBananaError, TaskNotFound
from nanobanana_async.escaping import escape_exactly
from nanobanana_async.events import Event, PriceAboveEstimate
from nanobanana_async.formatting import credit_count, number, plain_number, plural
from nanobanana_async.images.files import why_unwritable
from nanobanana_async.report import STATUSES, is_in_store

MAX_ERRORS = 5  # rows of each status that are listed one by one


class StdoutLines:
    """Print a line for each image on stdout, unless stdout is a terminal: key, status and path, separated by tabs.

    A row without images has one line without a path.
    """

    def __init__(self) -> None:
        # Keep the real stdout: the live display replaces it.
        self._out = sys.stdout
        self._enabled = not self._out.isatty()
        self._lines: list[bytes] = []

    @property
    def enabled(self) -> bool:
        """Whether lines are printed."""
        return self._enabled

    def add(self, result: Result, folder: Path) -> None:
        """Queue the lines of a row."""
        if self._enabled:
            start = f"{escape_exactly(result.row.key or result.row.job_key)}\t{result.row.status}"
            paths = [image if is_in_store(image) else str(folder / image) for image in result.row.images] or [""]
            lines = "".join(f"{start}\t{escape_exactly(path)}\n" for path in paths)
            self._lines.append(lines.encode(self._out.encoding or "utf-8", "backslashreplace"))

    async def flush(self) -> None:
        """Print the queued lines. Waits for a slow reader; nothing is printed once the reader has closed the pipe.

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
            self._enabled = False
            with suppress(OSError, ValueError):  # so that Python's flush at exit does not fail
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            if not isinstance(error, BrokenPipeError):
                raise ConfigurationError(why_unwritable("standard output", error)) from None


class BatchSummary:
    """Collect what a run prints on stderr at its start and at its end."""

    def __init__(self, folder: Path, unit: str = "row", *, rehearsal: bool = False) -> None:
        self._folder = folder
        self._unit = unit
        self._rehearsal = rehearsal
        self.finished_before = 0
        """Rows that had ended before this run."""
        self.removed = 0
        """Rows of earlier runs that are no longer in the file."""
        self.spent_before: Decimal | None = None
        """What the batch had cost when this run began to buy; None: it has not begun."""
        self.stop_reason: NanoBananaError | None = None
        self.overspent = Decimal(0)
        """By how much the total cost of the batch exceeds its cap."""
        self.uncollected = 0
        """Jobs of rows without a result that are bought."""
        self.unanswered = 0
        """Jobs of rows without a result whose create has no stored answer: it was accepted, refused, or got lost."""
        self.cost_left: Costs | None = None
        """What the rows that are left cost, if the cap stopped the buying."""
        self._above_estimate: list[PriceAboveEstimate] = []
        self._problems: list[tuple[int, str]] = []
        self._counts: Counter[str] = Counter()
        self._listed: Counter[str] = Counter()
        """Rows that are listed one by one, by their status."""
        self._unlisted: Counter[str] = Counter()
        """Rows that are only counted."""
        self._unknown_tasks = 0
        """Rows whose tasks the gateway does not know."""
        self.changed: list[tuple[int, str, tuple[str, ...]]] = []
        """The rows that have changed since they were bought: number, why they are not bought, changed fields."""
        self._failed: list[int] = []
        """The numbers of the rows that --retry-failed buys again."""
        self._failed_and_changed: list[int] = []
        """The numbers of the rows that failed, and have changed since."""
        self._moderated: list[int] = []
        """The numbers of the rows that moderation stopped, and that have not changed since."""
        self.incomplete = 0
        """Rows of which the gateway did not deliver all images."""
        self._uncertain: list[str] = []
        """The keys of the jobs of uncertain rows."""

    def add(self, result: Result) -> None:
        """Count a row that has ended."""
        row = result.row
        self._counts[row.status] += 1
        self._unknown_tasks += row.error_kind == TaskNotFound.__name__
        self.incomplete += bool(row.missing)
        if row.status in ("failed", "refused"):
            moderated = row.status == "failed" and row.failure_kind == "moderation"
            numbers = self._moderated if moderated else self._failed
            (self._failed_and_changed if row.changed else numbers).append(row.number)
        self._uncertain += [row.job_key] if row.status == "uncertain" else []
        if row.changed:
            self.changed.append((row.number, row.error or "", row.changed))
        elif row.status != "succeeded" and self._listed[row.status] < MAX_ERRORS:
            self._listed[row.status] += 1
            job = f" [job {row.key or row.job_key}]" if row.status == "uncertain" else ""
            why = "" if row.error is None else f": {shorten(row.error, 300)}"
            sentence = f"{self._unit} {row.number} {row.status}: {shorten(row.prompt, 40)}{why}{job}"
            self._problems.append((row.number, sentence))
        elif row.status != "succeeded":
            self._unlisted[row.status] += 1

    def observe(self, event: Event) -> None:
        """Remember a job that cost more than its estimate."""
        if isinstance(event, PriceAboveEstimate):
            self._above_estimate.append(event)

    def beginning(self) -> str:
        """Return the line about earlier runs."""
        return f"{plural(self._counts.total(), 'row')} had ended before: {self._counted()}"

    def ending(self, display: BatchDisplay, left: int, *, interrupted: bool, reported: bool) -> Iterator[str]:
        """Yield the lines about the end: problems, counts, and what the user can do next."""
        yield from (sentence for _, sentence in sorted(self._problems))
        for status, rows in self._unlisted.items():
            page = f"{self._folder / REPORT} and " if reported else ""
            yield f"{rows} more {status}: see {page}{self._folder / RESULTS}"
        if self.incomplete > MAX_ERRORS:
            yield f"{plural(self.incomplete, 'row')} with missing images: see {self._folder / RESULTS}"
        if self.changed:
            yield changed_sentence(self.changed, self._unit)
        if self.removed:
            removed = plural(self.removed, "row")
            yield f"{removed} of earlier runs left the file: their images stay, the results leave them out"
        counts = self._counted() or "none has ended"
        reserved = ""
        if display.reserved:
            reserved = f", and {number(display.reserved)} reserved for jobs that run or are in doubt"
        all_rows = plural(display.total or display.done, "row")
        rest = f", {left:,} left" if left and self._counts else ""
        before = self._earlier(display.spent)
        yield f"{all_rows}: {counts}{rest}; {number(display.spent)} credits spent{reserved}{before}"
        if self._rehearsal:
            yield REHEARSAL_NOTE
        yield from self._advice(left, display.spent + display.reserved, interrupted=interrupted)
        if self._counts and (self._folder / RESULTS).exists():
            shown = f"{self._folder / REPORT} shows them, " if reported else ""
            yield f"{shown}{self._folder / RESULTS} lists them"

    def _earlier(self, spent: Decimal) -> str:
        """Return how much of the cost is that of earlier runs."""
        if not self.spent_before:
            return ""
        if self.spent_before == spent:
            return "; none of them by this run"
        return f"; {number(self.spent_before)} of them before this run"

    def _counted(self) -> str:
        return ", ".join(f"{self._counts[status]} {status}" for status in STATUSES if self._counts[status])

    def _moderation(self) -> str:
        """Return which rows moderation stopped: they are the failed ones that are not bought again."""
        stopped = sorted(self._moderated)
        which, them = row_numbers_text(stopped, self._unit), _them(len(stopped))
        rows = plural(len(stopped), "row")
        return f"{rows} stopped by moderation ({which}): change {them}; --retry-failed does not buy {them} again"

    def _advice(self, left: int, used: Decimal, *, interrupted: bool) -> Iterator[str]:
        if failed := len(self._failed):
            yield f"{plural(failed, 'row')} failed: --retry-failed buys {_them(failed)} again"
        if changed := sorted(self._failed_and_changed):
            which, have = row_numbers_text(changed, self._unit), "has" if len(changed) == 1 else "have"
            yield (
                f"{plural(len(changed), 'row')} failed, and {have} changed since ({which}): --buy-changed buys"
                f" {_them(len(changed))} again, --retry-failed does not"
            )
        if self._moderated:
            yield self._moderation()
        if uncertain := len(self._uncertain):
            advice = resolve_advice(self._folder / LEDGER, *(self._uncertain if uncertain == 1 else ()))
            yield f"{plural(uncertain, 'row')} uncertain, perhaps bought, never sent again: {advice}"
        if self._unknown_tasks:
            yield (
                f"the tasks of {plural(self._unknown_tasks, 'row')} are not known to the gateway; an emulator forgets"
                " them when it ends: then begin in another folder"
            )
        if self.overspent:
            yield f"nanobanana: the batch has cost {credit_count(self.overspent)} more than --max-credits"
            yield from (_describe_above_estimate(event) for event in self._above_estimate[:MAX_ERRORS])
        if self.stop_reason is not None:
            yield f"nanobanana: the buying stopped: {with_option_names(in_cli_words(self.stop_reason))}"
        costs = self.cost_left
        if left and costs is not None and isinstance(self.stop_reason, CreditLimitReached):
            command = f"run the same command with --max-credits {plain_number(used + costs.total)}"
            yield f"{plural(left, 'row')} left to buy, for about {credit_count(costs.total)}: {command} to go on"
        elif left and (interrupted or self.stop_reason is not None):
            yield f"{plural(left, 'row')} left{self._paid_for(left)}: run the same command to continue"

    def _paid_for(self, left: int) -> str:
        """Return how many of the rows that are left have been bought, or may have been; empty if none has."""
        bought = min(left, self.uncollected)
        doubtful = min(left - bought, self.unanswered)
        if self._rehearsal:
            lost = bought + doubtful
            return f", {lost:,} of them with jobs that ended with the emulator, to be bought again" if lost else ""
        paid = f", {bought:,} of them bought and not collected" if bought else ""
        of_them = "" if bought else " of them"
        return f"{paid}, {doubtful:,}{of_them} perhaps bought" if doubtful else paid


def _them(rows: int) -> str:
    return "it" if rows == 1 else "them"


def _describe_above_estimate(event: PriceAboveEstimate) -> str:
    record, price = event.record, event.record.credits_used or Decimal(0)
    prompt = "" if record.request is None else f" ({shorten(record.request.prompt, 40)})"
    return (
        f"job {record.key}{prompt} cost {number(price)}, {number(event.estimate)} were reserved:"
        f" --expected-credits {plain_number(price)} reserves that for such jobs"
    )
