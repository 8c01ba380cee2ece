"""Rows without a key that were edited since they were bought: they have new keys, and would be bought again."""

from collections import Counter

from attrs import define, evolve, field

from nanobanana_async import Gateway, JobState
from nanobanana_async.batch.rows import Row, RowReader
from nanobanana_async.cli.batch.changed import changed_fields
from nanobanana_async.cli.batch.input_file import FileRow, InputFile
from nanobanana_async.cli.batch.notes import row_numbers_text
from nanobanana_async.cli.batch.results import OldResults, read
from nanobanana_async.cli.display import shorten
from nanobanana_async.formatting import plural
from nanobanana_async.jobs import JobRecord
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.models import with_model

_BOUGHT = (JobState.SUCCEEDED, JobState.RUNNING, JobState.SUBMITTING, JobState.UNCERTAIN)
_LISTED = 3  # rows whose old prompt is shown


@define
class Edits:
    """The rows to be bought that take the place of rows that were bought and have left the file."""

    file: InputFile
    changed: dict[str, int] = field(factory=dict)
    """The rows with the same prompt and other settings: their numbers by their keys."""
    settings: Counter[str] = field(factory=Counter)
    """The names of these settings."""
    reworded: list[tuple[int, str]] = field(factory=list)
    """Rows with another prompt than the row with their number had: number and old prompt."""

    @property
    def why(self) -> str:
        """Why the changed rows are not bought; empty if there are none."""
        if not self.changed:
            return ""
        were, them, are = ("was", "it", "it is") if len(self.changed) == 1 else ("were", "them", "they are")
        return (
            f"{plural(len(self.changed), 'row')} {were} bought with other settings ({', '.join(self.settings)}):"
            f" --buy-changed buys {them} with the new ones, the old command leaves {them} as {are}"
            f" ({row_numbers_text([*self.changed.values()], self.file.unit)})"
        )

    @property
    def note(self) -> str:
        """What to know about rows with another prompt before they are bought; empty if there are none."""
        if not self.reworded:
            return ""
        unit = self.file.unit
        listed = [f"{unit} {number} was {shorten(prompt)!r}" for number, prompt in self.reworded[:_LISTED]]
        more = len(self.reworded) - len(listed)
        what = "it has another prompt now, and is a new row" if len(self.reworded) == 1 else "they are new rows now"
        rest = f" and {more:,} more" if more else ""
        return f"{self.file.title}: {', '.join(listed)}{rest} when it was bought: {what}"


async def find_edits(file: InputFile, gateway: Gateway, ledger: StoredLedger, old_results: OldResults) -> Edits:
    """Compare the rows to be bought with the bought rows that are no longer in the file. Nothing is written."""
    edits = Edits(file)
    if not (await ledger.count_by_state()).total():
        return edits
    keys = {row.key for row in file.rows(gateway)}
    gone: dict[str, list[JobRecord]] = {}
    prefix = batch_key_prefix(file.batch)
    async for record in ledger.jobs(_BOUGHT):
        if record.request is not None and record.key.startswith(prefix) and record.key not in keys:
            gone.setdefault(record.request.prompt, []).append(record)
    if not gone:
        return edits
    offsets = old_results.offsets
    old_prompts = {
        old.row.number: old.row.prompt
        for old in read(old_results.path, [offset for key, offset in offsets.items() if key not in keys])
        if old.row.prompt in gone and old.row.key is None
    }
    for row in file.rows(gateway):
        if row.request is None or row.key in offsets or await ledger.find(row.key) is not None:
            continue
        candidates = gone.get(row.request.prompt, [])
        if (before := _take_earlier_row(candidates, row, file.batch)) is not None and before.request is not None:
            edits.changed[row.key] = row.number
            names = [name for name, _, _ in changed_fields(before.request, with_model(row.request, gateway.model))]
            edits.settings.update(names or ["key"])
        elif row.own_key is None and (prompt := old_prompts.get(row.number)) not in (None, row.request.prompt):
            edits.reworded.append((row.number, str(prompt)))
    return edits


def _take_earlier_row(candidates: list[JobRecord], row: FileRow, batch: str) -> JobRecord | None:
    """Remove and return the bought row that this one was, the oldest first.

    A row with a key is only one that had none: with another key it is another row.
    """
    for at in reversed(range(len(candidates))):
        if row.own_key is None or _had_no_key(candidates[at], batch):
            return candidates.pop(at)
    return None


def _had_no_key(record: JobRecord, batch: str) -> bool:
    """Return whether the job's key was derived from its request, with a model of its own or the gateway's."""
    if record.request is None:
        return False
    requests = (record.request, evolve(record.request, model=None))
    return record.key in [
        RowReader(batch).with_request_and_key(Row(index=0, key=""), request).key for request in requests
    ]
