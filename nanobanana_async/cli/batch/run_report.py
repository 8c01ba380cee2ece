"""Write the report page during a run and at its end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.to_thread

from nanobanana_async import Gateway
from nanobanana_async.cli.batch.folder import REPORT, unwritable
from nanobanana_async.cli.batch.input_file import InputFile
from nanobanana_async.cli.batch.results import Results
from nanobanana_async.cli.batch.rows import unfinished
from nanobanana_async.report import Recorder, ReportRow, write_report


class RunReport:
    """Write `index.html` from the current results; `cancelled` returns True once the run is cancelled."""

    def __init__(
        self, folder: Path, file: InputFile, gateway: Gateway, results: Results, cancelled: Callable[[], bool]
    ) -> None:
        self.recorder = Recorder()
        self.written = False
        self._folder = folder
        self._file = file
        self._gateway = gateway
        self._results = results
        self._cancelled = cancelled
        self._report_version = 0

    async def write(self) -> None:
        """Write the page; raises `ConfigurationError` if it can't be written."""
        self._report_version += 1
        path, title, rows = self._folder / REPORT, self._file.batch, self._rows(self._report_version)

        def write() -> None:
            write_report(path, rows, title=title, run=self.recorder)

        self.written = False
        try:
            await anyio.to_thread.run_sync(write, abandon_on_cancel=True)
        except OSError as error:
            raise unwritable(self._folder, error, REPORT) from None
        self.written = True

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
            if self._cancelled() or report_version != self._report_version:
                raise InterruptedError
            result = self._results.get(row.key)
            yield unfinished(row) if result is None else result.row
