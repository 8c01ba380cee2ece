"""Check the input of a batch before anything is bought, and read data frames row by row."""

import os
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from nanobanana_async.batch.columns import HeaderError, NamesByValues, read_header
from nanobanana_async.batch.rows import Requests, Row
from nanobanana_async.commands import command_line
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.events import log
from nanobanana_async.models import ImageRequest
from nanobanana_async.values import to_mapping


def to_requests(requests: Any) -> Requests:
    """Return the rows of an input; raise `ConfigurationError`, which says what to pass, for one that has none.

    The rows of a pandas or polars DataFrame are its rows: iterating one yields the names of its columns.
    """
    frame = _frame_rows(requests)
    if frame is not None:
        return frame
    if why := _why_no_input(requests):
        raise ConfigurationError(f"requests must be an iterable of prompts, {why}")
    if not isinstance(requests, (Iterable, AsyncIterable)):
        hint = ": call .collect() on it" if callable(getattr(requests, "collect", None)) else ""
        hint = hint or (": call .to_pylist() on it" if callable(getattr(requests, "to_pylist", None)) else "")
        raise ConfigurationError(f"requests must be an iterable of prompts, not {type(requests).__name__}{hint}")
    return requests


def _why_no_input(requests: object) -> str | None:
    """Return why an object is no input although some such objects can be iterated; None if it may be one."""
    kind = type(requests).__name__
    match requests:
        case str() if os.path.splitext(requests)[1].lower() in (".txt", ".csv", ".jsonl", ".tsv", ".xlsx"):
            return f"not the name of a file: read it, as in open({requests[:80]!r}).read().splitlines()"
        case str():
            return "not str: pass [prompt] for one prompt, or text.splitlines()"
        case os.PathLike():
            command = command_line("batch", "FILE")
            return f"not {kind}: read the file, as in path.read_text().splitlines(), or run `{command}`"
        case bytes() | bytearray() | memoryview():
            return f"not {kind}: decode it, and pass the list of its lines"
        case Mapping():
            return f"not {kind}: pass [row] for one row, or the list of its values"
        case ImageRequest():
            return "not ImageRequest: pass [request] for one request"
    if to_mapping(requests) is not None:  # a Series that is one row of a DataFrame: its values are no prompts
        return f"not a {kind} that is one row: pass [row.to_dict()]"
    return None


def _frame_rows(frame: Any) -> "FrameRows | None":
    if isinstance(frame, type):
        return None
    if callable(getattr(frame, "iter_rows", None)):  # polars
        return FrameRows(frame, frame.columns, frame.iter_rows)
    if callable(getattr(frame, "itertuples", None)):  # pandas
        return FrameRows(frame, frame.columns, lambda: frame.itertuples(index=False, name=None))
    return None


class FrameRows:
    """The rows of a DataFrame as mappings. Columns that no field has become metadata."""

    def __init__(self, frame: Any, columns: Iterable[Any], rows: Any) -> None:
        try:
            given = list(columns)
            self._columns = read_header(given)
            if NamesByValues.may_have(self._columns.unknown):
                names = NamesByValues()
                for cells in rows():
                    with suppress(HeaderError):  # the row will be an outcome with this error
                        names.add(self._columns.row_fields(cells))
                self._columns = read_header(given, by_values=names.found)
        except HeaderError as error:
            raise ConfigurationError(f"the DataFrame can't be bought: {error}") from None
        if None in self._columns.names or "prompt" not in self._columns.names:
            raise ConfigurationError("the DataFrame needs a name for each column, and one with the name prompt")
        self._frame, self._rows = frame, rows

    def __len__(self) -> int:
        return len(self._frame)

    def __iter__(self) -> Iterator[dict[str, Any] | Row]:
        if self._columns.note:
            log.warning("batch.columns note=%s", repr(self._columns.note))
        for cells in self._rows():
            try:
                facts = self._columns.row_fields(cells)
            except HeaderError as error:
                yield Row(index=-1, key="", error=InvalidRequest(str(error)))
                continue
            yield facts if "prompt" in facts else {"prompt": "", **facts}
