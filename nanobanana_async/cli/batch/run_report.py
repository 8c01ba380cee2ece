"""The report page of a run, written while it goes on and at its end."""

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
    """Writes `index.html` from the rows as they stand; `ended` says that the run was told to end at once."""

    def __init__(
        self, folder: Path, file: InputFile, gateway: Gateway, results: Results, ended: Callable[[], bool]
    ) -> None:
        self.recorder = Recorder()
        self.written = False
        self._folder = folder
        self._file = file
        self._gateway = gateway
        self._results = results
        self._ended = ended
        self._edition = 0

    async def write(self) -> None:
        """Write the page; raise `ConfigurationError` if that can't be done."""
        self._edition += 1
        path, title, rows = self._folder / REPORT, self._file.batch, self._rows(self._edition)

        def write() -> None:
            write_report(path, rows, title=title, run=self.recorder)

        self.written = False
        try:
            await anyio.to_thread.run_sync(write, abandon_on_cancel=True)
        except OSError as error:
            raise unwritable(self._folder, error, REPORT) from None
        self.written = True

    def is_newer_than_the_results(self) -> bool:
        """Tell whether the page was written after the results."""
        try:
            return (self._folder / REPORT).stat().st_mtime_ns >= self._results.path.stat().st_mtime_ns
        except OSError:
            return False

    def _rows(self, edition: int) -> Iterator[ReportRow]:
        """Yield every row as it stands, in the order of the file; in a thread, which may have been left alone."""
        for row in self._file.rows(self._gateway):
            if self._ended() or edition != self._edition:
                raise InterruptedError
            result = self._results.get(row.key)
            yield unfinished(row) if result is None else result.row
