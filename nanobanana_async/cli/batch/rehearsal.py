"""A rehearsal (`--gateway emulator`): its jobs end with the emulator, which ends with the command."""

from datetime import UTC, datetime
from pathlib import Path

from nanobanana_async import ApiMall, Gateway, JobState, SqliteLedger
from nanobanana_async.formatting import plural
from nanobanana_async.images.object_store import StoreUrl
from nanobanana_async.images.saved import PurchasedImage, SavedImages
from nanobanana_async.images.store_destination import find_object
from nanobanana_async.jobs import JobRecord, with_indexes
from nanobanana_async.references import local_digests

LOST_STATES = (JobState.SUBMITTING, JobState.RUNNING, JobState.UNCERTAIN)
"""The states of jobs whose end only the emulator knew."""


async def begin_lost_jobs_again(
    ledger: SqliteLedger, gateway: Gateway, images: Path, store: StoreUrl | None = None
) -> str:
    """Let the jobs that earlier rehearsals left without saved images be bought again; return a note, empty without any.

    Another emulator knows neither their tasks nor their images. For rehearsals only: a gateway's tasks are paid for.
    """
    saved = SavedImages.read(images)
    lost = [
        record
        async for record in ledger.jobs((*LOST_STATES, JobState.SUCCEEDED))
        if record.state is not JobState.SUCCEEDED or not await _is_saved(record, saved, store)
    ]
    begun = 0
    for record in lost:
        if record.request is None or ((claim := await ledger.adopt(record.key)) and claim.record != record):
            continue
        # As the engine stores the body of a new job: with local images it is known once they are uploaded.
        body = b"" if local_digests(record.request.images) else gateway.encode(record.request)
        await ledger.advance(record, record.next_generation(body=body, created_at=datetime.now(UTC)))
        await ledger.release(record.key)
        begun += 1
    if not begun:
        return ""
    ended, are = ("its emulator", "it is") if begun == 1 else ("their emulator", "they are")
    return (
        f"{plural(begun, 'job')} of an earlier rehearsal ended with {ended}, without saved images: {are} bought again"
    )


async def _is_saved(record: JobRecord, saved: SavedImages, store: StoreUrl | None) -> bool:
    task_id = record.task_id or ""
    indexes = [index for index, _ in with_indexes(record.images, record.missing)]
    if store is None:
        return saved.find(record.key, task_id, indexes) is not None
    images = [PurchasedImage(key=record.key, task_id=task_id, index=index) for index in indexes]
    return all([await find_object(store, image) is not None for image in images])


def emulated_account() -> Gateway:
    """Return the gateway of a rehearsal, to read and check rows with."""
    from nanobanana_async.emulator import API_KEY  # takes a fifth of a second to import

    return ApiMall(api_key=API_KEY)  # the account of earlier rehearsals, whose jobs are in the ledger
