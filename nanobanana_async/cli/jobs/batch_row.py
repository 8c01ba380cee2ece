"""The row of a batch that a job belongs to, as the results beside its ledger have it."""

from contextlib import suppress
from pathlib import Path

from nanobanana_async.cli.batch.results import RESULTS, Result, line_offsets, read
from nanobanana_async.ledger.location import Location
from nanobanana_async.report import is_url


def row_facts(ledger: Location, job_key: str) -> tuple[str | None, list[str]]:
    """Return the key of the row whose job has this key, and its saved images; nothing without results."""
    if not isinstance(ledger, Path):
        return None, []
    path = ledger.expanduser().with_name(RESULTS)
    found: Result | None = None
    with suppress(OSError, ValueError):
        offset = line_offsets(path).get(job_key)
        found = None if offset is None else next(read(path, [offset]), None)
    if found is None:
        return None, []
    return found.row.key, [image if is_url(image) else str(path.parent / image) for image in found.row.images]
