"""Read the header of a table: which column is which field of a row, and which are its metadata."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen

from nanobanana_async.formatting import count
from nanobanana_async.models import REQUEST_FIELDS, ROW_FIELDS
from nanobanana_async.values import did_you_mean, is_absent

COLUMNS = tuple(name for name in (*REQUEST_FIELDS, "image", *ROW_FIELDS) if name != "callback_url")
"""`image` is one of `images`, and may have spaces in its name."""
_METADATA = re.compile(r"metadata\.(.+)", re.IGNORECASE | re.DOTALL)


class HeaderError(Exception):
    """A header that does not say what the columns are."""


@frozen
class Columns:
    """The columns of a table."""

    names: tuple[str | None, ...]
    """The field of each column, `metadata.NAME`, or None for a column without a name."""
    unknown: tuple[str, ...] = ()
    """The columns that no field has, and that become metadata."""

    @property
    def note(self) -> str:
        """Return a sentence about the columns that become metadata; empty if there are none."""
        return unknown_note(self.unknown, "column")

    def facts(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of a row; empty cells are left out. Raises `HeaderError` for a cell without a column."""
        facts: dict[str, Any] = {}
        for number, cell in enumerate(cells):
            if is_absent(cell):
                continue
            name = self.names[number] if number < len(self.names) else None
            if name is None:
                raise HeaderError(self._nameless(number, cells))
            if name == "images" and isinstance(cell, str):
                facts[name] = cell.replace("|", " ").split()
            elif name in COLUMNS:
                facts[name] = cell
            else:
                facts.setdefault("metadata", {})[name.removeprefix("metadata.")] = cell
        return with_image(facts)

    def _nameless(self, number: int, cells: Sequence[Any]) -> str:
        if number >= len(self.names):
            filled = count(max(at for at, cell in enumerate(cells, 1) if not is_absent(cell)), "cell")
            return f"{filled}, but the header has {len(self.names)}: put quotes around a cell with commas"
        return f"column {number + 1} has a value here and no name in the header"


def with_image(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row with its `image` as the first of its `images`."""
    if "image" not in facts:
        return facts
    image, more = facts.pop("image"), facts.get("images", [])
    return {**facts, "images": [image, *(more if isinstance(more, (list, tuple)) else [more])]}


def read_header(cells: Iterable[Any], *, strict: bool = False) -> Columns:
    """Return the columns that a header names, in any case and with spaces or dashes for underscores.

    A name that is no field becomes metadata; with `strict` it raises `HeaderError`, as a missing prompt does.
    """
    given = ["" if is_absent(cell) else str(cell).strip() for cell in cells]
    while given and not given[-1]:
        given.pop()
    names = [column_name(name) for name in given]
    unknown = tuple(name for name in given if name and column_name(name) == f"metadata.{name}")
    known = f"the columns are {', '.join(COLUMNS)} and metadata.NAME"
    if strict and unknown:
        raise HeaderError(f"unknown {_quoted('column', unknown)}: {known}")
    named = [name for name in names if name is not None]
    if duplicates := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
        raise HeaderError(f"duplicate column {', '.join(duplicates)}")
    if named and "prompt" not in named:
        hint = next(filter(None, (did_you_mean("prompt", [name]) for name in unknown)), "")
        raise HeaderError(f"column prompt is missing{hint or f': the first row names the columns; {known}'}")
    if "metadata" in named and any(name.startswith("metadata.") for name in named):
        raise HeaderError("use either metadata or columns of its own for each value, not both")
    return Columns(tuple(names), unknown)


def column_name(name: str) -> str | None:
    """Return the field that a name in a table or an object means, or `metadata.NAME`; None for an empty name."""
    if not name.strip():
        return None
    field = re.sub(r"[\s_-]+", "_", name.strip().casefold())
    if field in COLUMNS:
        return field
    metadata = _METADATA.fullmatch(name.strip())
    return f"metadata.{metadata[1] if metadata else name.strip()}"


def unknown_note(unknown: Sequence[str], what: str) -> str:
    """Return a sentence about names that become metadata, with what was perhaps meant; empty if there are none."""
    if not unknown:
        return ""
    hints = [f"{name!r}{hint}" for name in unknown if (hint := did_you_mean(name, COLUMNS))]
    return f"{_quoted(what, unknown)} kept as metadata{'; ' if hints else ''}{'; '.join(hints)}"


def _quoted(what: str, names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    return f"{what if len(names) == 1 else f'{what}s'} {listed}"
