"""The images of a batch that are in an object store: which are there, and what the page shows of them."""

import asyncio
from collections.abc import Iterable, Iterator

from nanobanana_async.cli.batch.results import Result
from nanobanana_async.images.object_store import StoreTarget
from nanobanana_async.images.saved import PurchasedImage
from nanobanana_async.images.store_destination import find_object
from nanobanana_async.jobs import JobRecord, with_indexes

AT_ONCE = 32


async def intact_rows(results: Iterable[Result], store: StoreTarget) -> set[str]:
    """Return the keys of the rows all of whose images are in the store; one request an image.

    Raises `SaveError` if the store can't be read.
    """
    intact: set[str] = set()
    left = iter(results)

    async def check(results: Iterator[Result]) -> None:
        for result in results:
            if result.row.images and await _all_there(result, store):
                intact.add(result.row.key)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(check(left))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return intact


async def _all_there(result: Result, store: StoreTarget) -> bool:
    for url, digest in zip(result.row.images, result.sha256, strict=True):
        name = store.name_of(url)
        if name is None or not await store.has(name, digest):
            return False
    return True


async def images_of(record: JobRecord | None, store: StoreTarget) -> list[str]:
    """Return the URLs of the images of a job that are in the store."""
    if record is None or record.task_id is None:
        return []
    indexes = [index for index, _ in with_indexes(record.images, record.missing)]
    images = [PurchasedImage(key=record.key, task_id=record.task_id, index=index) for index in indexes]
    found = [await find_object(store, image) for image in images]
    return [str(saved.place) for saved in found if saved is not None]
