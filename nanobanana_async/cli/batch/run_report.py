"""Write the report page during a run and at its end, and make thumbnails of its images in the background."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from nanobanana_async import Gateway, SaveError
from nanobanana_async.cli.batch.display import BatchDisplay
from nanobanana_async.cli.batch.folder import LEDGER, REPORT, unwritable_error
from nanobanana_async.cli.batch.results import Results
from nanobanana_async.cli.batch.rows import unfinished
from nanobanana_async.cli.batch.run_options import RunOptions
from nanobanana_async.commands import resolve_command, same_command
from nanobanana_async.report import (
    MAX_CARDS,
    Advice,
    Credits,
    Recorder,
    ReportRow,
    find_thumbnail,
    make_thumbnail,
    write_report,
)

LAST_THUMBNAILS_S = 20.0
"""How long the end of a run waits for thumbnails; images without one are shown themselves."""


class RunReport:
    """Write `index.html` from the current results.

    The display has what the ledger counts.
    """

    def __init__(
        self, folder: Path, options: RunOptions, gateway: Gateway, results: Results, display: BatchDisplay
    ) -> None:
        self.recorder = Recorder()
        self.written = False
        self._folder = folder
        self._file = options.file
        self._title = f"{options.file.heading} (rehearsal)" if options.emulated else options.file.heading
        self._store = options.store
        self._gateway = gateway
        self._results = results
        self._display = display
        self._report_version = 0
        self._images: deque[str] = deque()
        """Images that may have no thumbnail yet."""
        self._added = asyncio.Event()

    def add(self, row: ReportRow) -> None:
        """Queue the images of a row for their thumbnails, if the page may show them."""
        if row.index < MAX_CARDS:
            self._images.extend(row.images)
            self._added.set()

    async def make_thumbnails(self) -> None:
        """Make thumbnails until cancelled, one at a time: the run itself needs the processor."""
        while True:
            await self._make_thumbnails()
            self._added.clear()
            await self._added.wait()

    async def finish_thumbnails(self) -> None:
        """Make the thumbnails that are left, for a limited time."""
        with anyio.move_on_after(LAST_THUMBNAILS_S):
            await self._make_thumbnails()

    async def _make_thumbnails(self) -> None:
        while self._images:
            content = await self._content(self._images[0])
            await anyio.to_thread.run_sync(
                make_thumbnail, self._folder, self._images[0], content, abandon_on_cancel=True
            )
            self._images.popleft()  # only now: what was cancelled is made again at the end

    async def _content(self, image: str) -> bytes | None:
        """Return the content of an image in the store, unless it has a thumbnail; None for a file."""
        name = None if self._store is None else self._store.name_of(image)
        if self._store is None or name is None or find_thumbnail(self._folder, image) is not None:
            return None
        with suppress(SaveError):  # the page names the object then
            return await self._store.get(name)
        return None

    async def write(self) -> None:
        """Write the page; raises `ConfigurationError` if it can't be written."""
        self._report_version += 1
        path, title, rows = self._folder / REPORT, self._title, self._rows(self._report_version)
        cost = Credits(spent=self._display.spent, reserved=self._display.reserved)
        accounts = self._display.accounts

        def write() -> None:
            write_report(
                path, rows, title=title, run=self.recorder, advice=self._advice, credits=cost, accounts=accounts
            )

        self.written = False
        try:
            await anyio.to_thread.run_sync(write, abandon_on_cancel=True)
        except OSError as error:
            raise unwritable_error(self._folder, error, REPORT) from None
        finally:
            self._report_version += 1  # a thread that was abandoned ends
        self.written = True

    def _advice(self, row: ReportRow) -> Advice:
        """Return what to do about a row that did not succeed, or has changed since it was bought."""
        if row.changed:
            collect = "" if row.status != "unfinished" else " Run it with the old row first: that collects its images."
            return Advice(f"--buy-changed buys the changed row.{collect}", same_command("--buy-changed"))
        match row.status:
            case "failed" if row.failure_kind == "moderation":
                return Advice("Moderation stopped it: change the row. --retry-failed does not buy it again.")
            case "failed":
                return Advice("--retry-failed buys it again.", same_command("--retry-failed"))
            case "refused":
                again = "Change the row, or try it unchanged with --retry-failed."
                return Advice(again, same_command("--retry-failed"))
            case "uncertain":
                decide = "Look in the gateway's own list of tasks, then decide: not-bought, buy-again or task-id ID."
                return Advice(decide, resolve_command(self._folder / LEDGER, row.job_key))
            case "invalid":
                return Advice("Correct the row, then run the same command again.")
            case _:
                return Advice("Run the same command again to continue.")

    def is_newer_than_the_results(self) -> bool:
        """Return True if the page was written after the results."""
        try:
            return (self._folder / REPORT).stat().st_mtime_ns >= self._results.path.stat().st_mtime_ns
        except OSError:
            return False

    def _rows(self, report_version: int) -> Iterator[ReportRow]:
        """Yield the current result of every row, in file order.

        Runs in a thread, which the caller may have abandoned: raises `InterruptedError` then.
        """
        for row in self._file.rows(self._gateway):
            if report_version != self._report_version:
                raise InterruptedError
            result = self._results.get(row.key)
            yield unfinished(row) if result is None else result.row
