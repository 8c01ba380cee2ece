"""Rows that have changed under their key since they were bought: they are bought again only if the user says so."""

import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any

from attrs import evolve, fields, frozen

from nanobanana_async import Gateway
from nanobanana_async.batch.rows import canonical_request
from nanobanana_async.cli.batch.input_file import FileRow, InputFile
from nanobanana_async.cli.batch.notes import row_numbers_text
from nanobanana_async.cli.batch.rows import is_record_of_row
from nanobanana_async.cli.display import shorten
from nanobanana_async.jobs import JobRecord
from nanobanana_async.keys import batch_key_prefix
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
    record: JobRecord
    """What was bought."""


class RowChangeDetector:
    """Find the job of each row by its key and its request. `find` reads the ledger."""

    def __init__(
        self,
        file: InputFile,
        gateway: Gateway,
        find: Callable[[str], Awaitable[JobRecord | None]],
        *,
        buy: bool,
        ours: Collection[str] = (),
    ) -> None:
        self._ours = {gateway.account, *ours}
        self._file = file
        self._gateway = gateway
        self._find = find
        self._buy = buy

    async def current(self, row: FileRow) -> tuple[FileRow, Change | None]:
        """Return the row under the key of its job, and the change for which it is not bought; None if it may be bought.

        A changed row that is bought again has a job of its own: the key in the ledger is then derived from its request
        too, so that later runs find it.
        """
        if row.own_key is None or row.request is None:
            return row, None
        record = await self._find(row.key)
        if record is None or record.request is None or is_record_of_row(row, record, self._gateway):
            return row, None
        if record.account not in self._ours and not record.never_accepted:
            return row, None  # the batch reports that it belongs to another account
        wanted = with_model(row.request, self._gateway.model)
        text = f"changed {row.own_key} {canonical_request(wanted)}"
        key = batch_key_prefix(self._file.batch) + hashlib.sha256(text.encode()).hexdigest()[:32]
        if not (self._buy or record.never_accepted) and await self._find(key) is None:
            names = tuple(name for name, _, _ in changed_fields(record.request, wanted))
            return row, Change(row.number, _why(row.own_key, record.request, wanted), names, record)
        self._file.changed_keys[row.key] = key
        return evolve(row, key=key), None


def changed_sentence(rows: Sequence[tuple[int, str, Sequence[str]]], unit: str) -> str:
    """Return one sentence about all changed rows: their numbers, why one is not bought, and the fields that differ."""
    if len(rows) == 1:
        return f"{unit} {rows[0][0]}: {rows[0][1]}"
    names = ", ".join(dict.fromkeys(name for _, _, names in rows for name in names))
    return (
        f"{row_numbers_text([number for number, _, _ in rows], unit)} have changed since they were bought ({names}):"
        " --buy-changed buys them again and keeps the images of before; to buy one as another row, give it another key"
    )


def _why(row_key: str, bought: ImageRequest, wanted: ImageRequest) -> str:
    changes = "; ".join(
        f"{name} was {_shown(was)} and is {_shown(now)}" for name, was, now in changed_fields(bought, wanted)
    )
    return (
        f"the row with key {row_key} has changed since it was bought: {changes}. --buy-changed buys it again and keeps"
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
