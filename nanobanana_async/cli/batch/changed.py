"""Rows that have changed under their key since they were bought: they are bought again only if the user says so."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from attrs import evolve, fields, frozen

from nanobanana_async import Gateway
from nanobanana_async.batch.rows import canonical_request, job_key_of_row
from nanobanana_async.cli.batch.input_file import FileRow, InputFile
from nanobanana_async.cli.batch.notes import row_numbers_text
from nanobanana_async.cli.batch.results import OldResults, Result
from nanobanana_async.cli.batch.rows import fields_changed_since
from nanobanana_async.cli.display import shorten
from nanobanana_async.jobs import JobRecord
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.models import ImageRequest, with_model, without_transient_parts


@frozen
class Change:
    """What was bought under the key of a row, and what the row is now."""

    number: int
    """The number of the row."""
    why: str
    """Why it is not bought."""
    names: tuple[str, ...]
    """The fields that differ."""
    record: JobRecord | None
    """What was bought; None if its job was pruned: then the old results alone have it."""


class RowChangeDetector:
    """Find the job of each row by its key and its request, in the ledger and in the results of earlier runs."""

    def __init__(
        self,
        file: InputFile,
        gateway: Gateway,
        ledger: StoredLedger,
        old: OldResults,
        *,
        buy: bool,
        ours: Collection[str] = (),
    ) -> None:
        self._ours = {gateway.account, *ours}
        self._file = file
        self._gateway = gateway
        self._ledger = ledger
        self._old = old
        self._buy = buy
        self._ledger_is_empty: bool | None = None
        """None until it is asked."""

    async def current(self, row: FileRow) -> tuple[FileRow, Change | None]:
        """Return the row under the key of its job, and the change for which it is not bought; None if it may be bought.

        A changed row that is bought again has a job of its own: the key in the ledger is then derived from its request
        too, so that later runs find it. If the job under the row's plain key was pruned, or never was, this one is
        looked for all the same, and the last result of the row says what was bought: a gateway that knows the plain key
        would refuse another request under it, and any other would sell the images twice.
        """
        if row.own_key is None or row.request is None:
            return row, None
        wanted = with_model(row.request, self._gateway.model)
        record, line, key = await self._ledger.find(row.key), None, ""
        if record is None:
            key = self._key_of_change(row.own_key, wanted)
            if await self._is_known(key):
                return self._under(row, key), None
            line = self._old.of_row(row.own_key)
            if line is None:
                return row, None
            row = self._under(row, line.row.job_key)
            record = await self._ledger.find(row.key)
        changes = _changes(row, wanted, record, line)
        if not changes:
            return row, None
        never_accepted = _never_accepted(line) if record is None else record.never_accepted
        if record is not None and record.account not in self._ours and not never_accepted:
            return row, None  # the batch reports that it belongs to another account
        key = key or self._key_of_change(row.own_key or "", wanted)
        if not (self._buy or never_accepted or await self._is_known(key)):
            names = tuple(name for name, _, _ in changes)
            return row, Change(row.number, _why(row.own_key or "", changes), names, record)
        return self._under(row, key), None

    def _key_of_change(self, row_key: str, wanted: ImageRequest) -> str:
        text = f"changed {row_key} {canonical_request(wanted)}"
        return batch_key_prefix(self._file.batch) + hashlib.sha256(text.encode()).hexdigest()[:32]

    async def _is_known(self, key: str) -> bool:
        if key in self._old.offsets:
            return True
        if self._ledger_is_empty is None:  # a first run asks for no row
            self._ledger_is_empty = not (await self._ledger.count_by_state()).total()
        return not self._ledger_is_empty and await self._ledger.find(key) is not None

    def _under(self, row: FileRow, key: str) -> FileRow:
        """Return the row under the key of another job."""
        if key == row.key:
            return row
        self._file.changed_keys[job_key_of_row(batch_key_prefix(self._file.batch), row.own_key or "")] = key
        return evolve(row, key=key)


def _changes(
    row: FileRow, wanted: ImageRequest, record: JobRecord | None, line: Result | None
) -> list[tuple[str, Any, Any]]:
    """Return what differs between a row and what was bought for it."""
    if record is not None:
        return [] if record.request is None else list(changed_fields(record.request, wanted))
    return [] if line is None else list(fields_changed_since(line.row, row))


def _never_accepted(line: Result | None) -> bool:
    """Return whether no create of a row was accepted, as its last result says."""
    if line is None or line.row.task_id is not None:
        return False
    return line.row.status == "refused" or line.row.sent_at is None


def changed_sentence(rows: Sequence[tuple[int, str, Sequence[str]]], unit: str) -> str:
    """Return one sentence about all changed rows: their numbers, why one is not bought, and the fields that differ."""
    if len(rows) == 1:
        return f"{unit} {rows[0][0]}: {rows[0][1]}"
    names = ", ".join(dict.fromkeys(name for _, _, names in rows for name in names))
    return (
        f"{row_numbers_text([number for number, _, _ in rows], unit)} have changed since they were bought ({names}):"
        " --buy-changed buys them again and keeps the images of before; to buy one as another row, give it another key"
    )


def _why(row_key: str, changes: Sequence[tuple[str, Any, Any]]) -> str:
    listed = "; ".join(f"{name} was {_shown(was)} and is {_shown(now)}" for name, was, now in changes)
    return (
        f"the row with key {row_key} has changed since it was bought: {listed}. --buy-changed buys it again and keeps"
        " the image of before; to buy it as another row, give it another key"
    )


def changed_fields(bought: ImageRequest, wanted: ImageRequest) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each field that differs, with what was bought and what is wanted."""
    bought, wanted = without_transient_parts(bought), without_transient_parts(wanted)
    for name in (attribute.name for attribute in fields(ImageRequest)):
        was, now = getattr(bought, name), getattr(wanted, name)
        if was != now:
            yield name, was, now


def _shown(value: object) -> str:
    return "not set" if value in (None, (), {}) else repr(shorten(str(value), 60))
