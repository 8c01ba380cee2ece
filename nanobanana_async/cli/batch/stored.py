"""The images of a batch that are in an object store: which of the earlier results are there."""

import asyncio
from collections.abc import Iterable, Iterator

from nanobanana_async.cli.batch.results import Result
from nanobanana_async.images.object_store import StoreUrl
from nanobanana_async.images.saved import PurchasedImage
from nanobanana_async.images.store_destination import find_object
from nanobanana_async.jobs import with_indexes
from nanobanana_async.ledger.base import StoredLedger

AT_ONCE = 32


class StoredImages:
    """Knows which rows of the last results have all of their images in the store, and which images a row had."""

    def __init__(self, store: StoreUrl, ledger: StoredLedger) -> None:
        self._store = store
        self._ledger = ledger
        self._intact: set[str] = set()
        self._of_rows: dict[str, dict[str, None]] = {}
        """By row key: the URLs of all images that the row ever had."""

    async def read(self, results: Iterable[Result]) -> None:
        """Look for the images of these results; one request an image. Raises `SaveError` if the store can't be read."""
        left = iter(results)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._read(left))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _read(self, results: Iterator[Result]) -> None:
        for result in results:
            images = result.row.images
            if result.row.key is not None:
                urls = self._of_rows.setdefault(result.row.key, {})
                urls.update(dict.fromkeys((*result.earlier_images, *images)))
            names = [self._store.name_of(url) for url in images]
            for name, digest in zip(names, result.sha256, strict=True):
                if name is None or not await self._store.has_content(name, digest):
                    break
            else:
                self._intact.add(result.row.job_key)

    def intact(self, key: str) -> bool:
        """Return whether all images that the results have of a job are in the store."""
        return key in self._intact

    async def add_first(self, row_key: str, key: str) -> None:
        """Look for the images of the first purchase of a row that has changed since."""
        record = await self._ledger.find(key)
        if record is None or record.task_id is None:
            return
        urls = self._of_rows.setdefault(row_key, {})
        for index, _ in with_indexes(record.images, record.missing):
            image = PurchasedImage(key=record.key, task_id=record.task_id, index=index)
            if (saved := await find_object(self._store, image)) is not None:
                urls[str(saved.place)] = None

    def earlier_images(self, row_key: str, now: Iterable[str]) -> tuple[str, ...]:
        """Return the images that a row had and that are not those of now."""
        return tuple(url for url in self._of_rows.get(row_key, ()) if url not in set(now))
