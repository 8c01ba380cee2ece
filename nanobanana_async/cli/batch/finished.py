"""Find the result of a row that ended in an earlier run, in the old results, the ledger and the folder."""

from datetime import UTC, datetime
from pathlib import Path

from nanobanana_async import Gateway, JobState, SqliteLedger
from nanobanana_async.cli.batch.folder import LEDGER
from nanobanana_async.cli.batch.input_file import FileRow
from nanobanana_async.cli.batch.other_accounts import OtherAccounts
from nanobanana_async.cli.batch.results import IMAGES, RESULTS, Result, read, with_files
from nanobanana_async.cli.batch.rows import at_new_position, is_over, is_same, result_from_record, unfinished
from nanobanana_async.images.saved import SavedImages
from nanobanana_async.jobs import JobRecord, with_indexes


class FinishedRows:
    """Return the results of finished rows, and count the unfinished rows of other accounts."""

    def __init__(self, folder: Path, gateway: Gateway, ledger: SqliteLedger, *, retry_failed: bool) -> None:
        self.other_accounts = OtherAccounts(gateway, folder / LEDGER)
        self._folder = folder
        self._gateway = gateway
        self._ledger = ledger
        self._retry_failed = retry_failed
        self._saved_images: SavedImages | None = None

    async def find(self, row: FileRow, offset: int | None) -> Result | None:
        """Return the result of a row that has ended; None if something is left to do for it.

        `offset` is where the old results have the row.
        """
        old = None if offset is None else next(read(self._folder / RESULTS, [offset]), None)
        intact = (
            old is not None
            and old.row.status == "succeeded"
            and bool(old.row.images)
            and old.files_intact(self._folder)
        )
        if old is not None and intact and row.own_key is None:  # a derived key identifies the request
            return at_new_position(old, row)
        record = await self._ledger.find(row.key)
        if record is None:  # pruned
            same = old is not None and old.row.prompt == unfinished(row).prompt
            return at_new_position(old, row) if old is not None and intact and same else None
        result = self._from_record(row, record, old if intact else None)
        if result is None:
            self.other_accounts.add(record)
        return result

    def _from_record(self, row: FileRow, record: JobRecord, intact: Result | None) -> Result | None:
        if not is_same(row, record, self._gateway):
            return None  # the batch will report the conflict
        if record.state is not JobState.SUCCEEDED:
            done = is_over(record, retry_failed=self._retry_failed)
            return result_from_record(row, record, self._gateway) if done else None
        if intact is not None and record.task_id == intact.row.task_id:
            return at_new_position(intact, row)
        self._saved_images = self._saved_images or SavedImages.read(self._folder / IMAGES)
        indexes = [index for index, _ in with_indexes(record.images, record.missing)]
        paths = self._saved_images.find(record.key, record.task_id or "", indexes)
        if not paths:
            return None
        return with_files(result_from_record(row, record, self._gateway), paths, self._folder, datetime.now(UTC))
