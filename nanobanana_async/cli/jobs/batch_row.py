"""The row of a batch that a job belongs to, as the results beside its ledger have it."""

from contextlib import suppress
from pathlib import Path

from nanobanana_async.cli.batch.folder import MARKER, FolderOwner
from nanobanana_async.cli.batch.results import RESULTS, OldResults, Result
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.location import Location
from nanobanana_async.report import is_in_store


def batch_name(ledger: Location, prefix: str | None) -> str | None:
    """Return the name of the batch whose keys have this prefix, or else the prefix; None for a job of no batch.

    The ledger has the prefix only; the name is in the marker of the batch's folder.
    """
    if prefix is None:
        return None
    if isinstance(ledger, Path):
        with suppress(OSError, ValueError):
            marker = ledger.expanduser().with_name(MARKER)
            name = FolderOwner.from_json(marker.read_bytes()).batch
            if batch_key_prefix(name) == prefix:
                return name
    return f"{prefix.rstrip('-')} (the beginning of its keys; only the folder of a batch has the name)"


def row_facts(ledger: Location, job_key: str) -> tuple[str | None, list[str]]:
    """Return the key of the row whose job has this key, and its saved images; nothing without results."""
    if not isinstance(ledger, Path):
        return None, []
    path = ledger.expanduser().with_name(RESULTS)
    found: Result | None = None
    with suppress(OSError, ValueError):
        found = OldResults.read(path).of_job(job_key)
    if found is None:
        return None, []
    return found.row.key, [image if is_in_store(image) else str(path.parent / image) for image in found.row.images]
