"""Find the result of a row that ended in an earlier run, in the old results, the ledger and the folder."""

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from attrs import evolve

from nanobanana_async import ConfigurationError, Gateway, JobState, SaveError
from nanobanana_async.cli.batch.changed import Change, RowChangeDetector
from nanobanana_async.cli.batch.folder import LEDGER
from nanobanana_async.cli.batch.input_file import FileRow, InputFile
from nanobanana_async.cli.batch.other_accounts import OtherAccounts
from nanobanana_async.cli.batch.results import IMAGES, OldResults, Result, read, with_files
from nanobanana_async.cli.batch.rows import (
    at_new_position,
    is_not_bought_again,
    is_record_of_row,
    result_from_record,
    unfinished,
)
from nanobanana_async.cli.batch.stored import StoredImages
from nanobanana_async.images.object_store import StoreUrl
from nanobanana_async.images.saved import SavedImages
from nanobanana_async.jobs import JobRecord, with_indexes
from nanobanana_async.ledger.base import StoredLedger


class FinishedRows:
    """Return the results of finished rows, and count the unfinished rows of other accounts."""

    def __init__(
        self,
        folder: Path,
        file: InputFile,
        gateway: Gateway,
        ledger: StoredLedger,
        old: OldResults,
        *,
        retry_failed: bool,
        buy_changed: bool,
        store: StoreUrl | None = None,
        ours: Collection[str] = (),
    ) -> None:
        self.other_accounts = OtherAccounts(gateway, folder / LEDGER, ours)
        self._changed = RowChangeDetector(file, gateway, ledger, old, buy=buy_changed, ours=ours)
        self._folder = folder
        self._gateway = gateway
        self._ledger = ledger
        self._old_results = old
        self._retry_failed = retry_failed
        self._saved_images: SavedImages | None = None
        self._changed_keys: set[str] = set()
        """Keys of the jobs of changed rows."""
        self._stored = None if store is None else StoredImages(store, ledger)

    async def begin(self) -> None:
        """Look for the images of the old results in the store, if they go there.

        Raises `ConfigurationError` if the store can't be read: nothing is bought yet.
        """
        if self._stored is not None and (offsets := self._old_results.offsets):
            try:
                await self._stored.read(read(self._old_results.path, offsets.values()))
            except SaveError as error:
                raise ConfigurationError(f"{error}; nothing was bought") from None

    async def find(self, row: FileRow) -> Result | None:
        """Return the result of a row that has ended; None if something is left to do for it.

        The lines of the row are removed from the old results: those that stay are of rows that left the file.
        """
        given_key, offsets = row.key, self._old_results.offsets
        row, change = await self._changed.current(row)
        offset = offsets.pop(row.key, None)
        if row.own_key is not None:
            offsets.pop(self._old_results.jobs.get(row.own_key, ""), None)
        if change is not None:
            await self._add_changed(row, given_key)
            return self.with_earlier_images(self._as_bought(row, change, offset))
        if row.key != given_key:
            await self._add_changed(row, given_key)
            offsets.pop(given_key, None)
        found = await self._find(row, offset)
        return None if found is None else self.with_earlier_images(found)

    def _as_bought(self, row: FileRow, change: Change, offset: int | None) -> Result:
        """Return what was bought for a row before it changed, with its images, and that it has changed."""
        old, record = self._old(offset), change.record
        if record is None:
            return self._as_listed(row, change, old)
        bought = evolve(row, request=record.request, given=None)
        result = self._from_record(bought, record, self._intact(old))
        if result is None:  # it still runs, or its images are not saved
            result = result_from_record(bought, record, self._gateway)
            done = record.state is not JobState.SUCCEEDED
            result = result if done else evolve(result, row=evolve(result.row, status="unfinished"))
        error = change.why if result.row.error is None else f"{result.row.error}; {change.why}"
        return evolve(result, row=evolve(result.row, changed=change.names, error=error))

    def _as_listed(self, row: FileRow, change: Change, old: Result | None) -> Result:
        """Return what the old results list of a changed row whose job was pruned."""
        if old is None:
            raise RuntimeError("a change without a record is one of a listed row")
        earlier = (
            (old.row.error or "").removesuffix(change.why).removesuffix("; ")
        )  # this run is not the first to say so
        result = at_new_position(old, row)
        if result.row.status == "succeeded" and self._intact(old) is None:
            result = evolve(result, row=evolve(result.row, status="unfinished", images=()), sha256=(), sizes=())
        error = "; ".join(filter(None, (earlier, change.why)))
        return evolve(result, row=evolve(result.row, changed=change.names, error=error))

    async def _add_changed(self, row: FileRow, first_key: str) -> None:
        self._changed_keys.add(row.key)
        if self._stored is not None and row.own_key is not None:
            await self._stored.add_first(row.own_key, first_key)

    def with_earlier_images(self, result: Result) -> Result:
        """Return a result with the images of earlier purchases of its row, if it has changed."""
        if result.row.key is None or result.row.job_key not in self._changed_keys:
            return result
        if self._stored is not None:
            return evolve(result, earlier_images=self._stored.earlier_images(result.row.key, result.row.images))
        bought_here = result.row.job_key if result.row.images else ""
        names = self._read_saved_images().files_of_earlier_jobs(result.row.key, bought_here)
        return evolve(result, earlier_images=tuple(f"{IMAGES}/{name}" for name in names))

    def _read_saved_images(self) -> SavedImages:
        self._saved_images = self._saved_images or SavedImages.read(self._folder / IMAGES)
        return self._saved_images

    async def _find(self, row: FileRow, offset: int | None) -> Result | None:
        intact = self._intact(self._old(offset))
        if intact is not None and row.own_key is None:  # a derived key identifies the request
            return at_new_position(intact, row)
        record = await self._ledger.find(row.key)
        if record is None:  # pruned
            same = intact is not None and intact.row.prompt == unfinished(row).prompt
            return at_new_position(intact, row) if intact is not None and same else None
        result = self._from_record(row, record, intact)
        if result is None:
            self.other_accounts.add(record)
        return result

    def _old(self, offset: int | None) -> Result | None:
        return None if offset is None else next(read(self._old_results.path, [offset]), None)

    def _intact(self, old: Result | None) -> Result | None:
        """Return an old result if all its images are still there."""
        if old is None or old.row.status != "succeeded" or not old.row.images:
            return None
        there = old.files_intact(self._folder) if self._stored is None else self._stored.intact(old.row.job_key)
        return old if there else None

    def _from_record(self, row: FileRow, record: JobRecord, intact: Result | None) -> Result | None:
        if not is_record_of_row(row, record, self._gateway):
            return None  # the batch will report the conflict
        if record.state is not JobState.SUCCEEDED:
            done = is_not_bought_again(record, retry_failed=self._retry_failed)
            return result_from_record(row, record, self._gateway) if done else None
        if intact is not None and record.task_id == intact.row.task_id:
            return at_new_position(intact, row)
        indexes = [index for index, _ in with_indexes(record.images, record.missing)]
        if self._stored is not None:
            return None  # the batch finds its images in the store
        paths = self._read_saved_images().find(record.key, record.task_id or "", indexes)
        if not paths:
            return None
        return with_files(result_from_record(row, record, self._gateway), paths, self._folder, datetime.now(UTC))
