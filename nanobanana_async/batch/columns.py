"""Read the header of a table: which column is which field of a row, and which are its metadata."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.extra import to_extra, value_of_text
from nanobanana_async.formatting import plural
from nanobanana_async.models import REQUEST_FIELDS, ROW_FIELDS, request_from_mapping
from nanobanana_async.values import did_you_mean, is_absent

COLUMNS = tuple(name for name in (*REQUEST_FIELDS, "image", *ROW_FIELDS) if name != "callback_url")
"""`image` is one of `images`, and may have spaces in its name."""
_PART = re.compile(r"(extra|metadata)\.(.+)", re.IGNORECASE | re.DOTALL)
"""A column of its own for a value of `extra` or of `metadata`."""
_SAME_LETTERS = {name.replace("_", ""): name for name in COLUMNS}
_SYNONYMS = {
    **dict.fromkeys(("numberofimages", "noofimages", "imagecount", "imagesperprompt"), "num_images"),
    **dict.fromkeys(("fileformat", "imageformat"), "output_format"),
    **dict.fromkeys(("referenceimage", "imagereference", "refimage"), "image"),
    **dict.fromkeys(("referenceimages", "imagereferences", "refimages"), "images"),
}
_BY_VALUES = {
    **dict.fromkeys(("size", "imagesize"), "resolution"),
    **dict.fromkeys(("ratio", "imageratio", "aspect", "imageaspect"), "aspect_ratio"),
    "format": "output_format",
    **dict.fromkeys(
        ("numberofpictures", "pictures", "photos", "numberofphotos", "outputs", "howmany", "variants", "variations"),
        "num_images",
    ),
}
"""Names that mean a field only if all their values are values of the field: a size may be 2K or 30x40 cm."""
_PROMPTS = ("text", "description", "caption", "input", "content", "idea")
"""Words that people write above a column of prompts."""


class HeaderError(Exception):
    """A header that does not say what the columns are."""


@frozen
class Columns:
    """The columns of a table."""

    names: tuple[str | None, ...]
    """The field of each column, `extra.NAME`, `metadata.NAME`, or None for a column without a name."""
    unknown: tuple[str, ...] = ()
    """The columns that no field has, and that become metadata."""
    recognised: tuple[tuple[str, str], ...] = ()
    """The columns that are a field under another name, and the field."""

    @property
    def note(self) -> str:
        """Return a sentence about columns that were recognised or become metadata; empty if there are none."""
        notes = recognised_note(self.recognised, "column"), unknown_note(self.unknown, "column")
        return "; ".join(filter(None, notes))

    def row_fields(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of a row; empty cells are left out.

        Raises `HeaderError` for a cell without a column, and for a value of `extra` that is given twice.
        """
        fields: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for number, cell in enumerate(cells):
            if is_absent(cell):
                continue
            name = self.names[number] if number < len(self.names) else None
            if name is None:
                raise HeaderError(self._nameless(number, cells))
            if name == "images" and isinstance(cell, str):
                fields[name] = cell.replace("|", " ").split()
            elif name in COLUMNS:
                fields[name] = cell
            elif name.startswith("extra."):
                extra[name.removeprefix("extra.")] = _extra_value(cell)
            else:
                fields.setdefault("metadata", {})[name.removeprefix("metadata.")] = cell
        return with_extra(with_image(fields), extra)

    def _nameless(self, number: int, cells: Sequence[Any]) -> str:
        if number >= len(self.names):
            filled = plural(max(at for at, cell in enumerate(cells, 1) if not is_absent(cell)), "cell")
            return f"{filled}, but the header has {len(self.names)}: put quotes around a cell with commas"
        return f"column {number + 1} has a value here and no name in the header"


def with_image(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row with its `image` as the first of its `images`."""
    if "image" not in fields:
        return fields
    image, more = fields.pop("image"), fields.get("images", [])
    return {**fields, "images": [image, *(more if isinstance(more, (list, tuple)) else [more])]}


def read_header(cells: Iterable[Any], *, strict: bool = False, by_values: Mapping[str, str] | None = None) -> Columns:
    """Return the columns that a header names, in any case and with spaces, dashes or nothing for underscores.

    A name that is no field becomes metadata; with `strict` it raises `HeaderError`, as a missing prompt does.
    `by_values` are names that their values make a field, see `NamesByValues`.
    """
    given = ["" if is_absent(cell) else str(cell).strip() for cell in cells]
    while given and not given[-1]:
        given.pop()
    names = [field_of_column(name, by_values) for name in given]
    unknown = tuple(name for name, meant in zip(given, names, strict=True) if name and meant == f"metadata.{name}")
    pairs = zip(given, names, strict=True)
    recognised = tuple((name, meant) for name, meant in pairs if meant is not None and is_synonym(name, meant))
    known = f"the columns are {', '.join(COLUMNS)}, extra.NAME and metadata.NAME"
    if strict and unknown:
        raise HeaderError(f"unknown {_quoted('column', unknown)}: {known}")
    named = [name for name in names if name is not None]
    if duplicates := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
        raise HeaderError(f"duplicate column {', '.join(duplicates)}")
    if named and "prompt" not in named:
        raise HeaderError(_no_prompt_message(given))
    if "metadata" in named and any(name.startswith("metadata.") for name in named):
        raise HeaderError("use either metadata or columns of its own for each value, not both")
    return Columns(tuple(names), unknown, recognised)


def _no_prompt_message(given: Sequence[str]) -> str:
    """Return that no column has the prompts, which columns there are, and which of them to rename."""
    named = [name for name in given if name]
    if len(named) == 1 and len(splits := re.split(r"[|:]", named[0])) > 1 and "prompt" in map(field_of_column, splits):
        mark = named[0][len(splits[0])]
        return f"the first row is {named[0]!r}: separate the columns by commas, semicolons or tabs, not by {mark}"
    near = [name for name in named if did_you_mean("prompt", [name]) or "prompt" in name.casefold()]
    near = near or [name for name in named if _letters(name) in _PROMPTS]
    missing = f"column prompt is missing; the table has {_quoted('column', named)}: rename"
    if near:
        return f"{missing} {near[0]!r} to prompt"
    return f"{missing} the one with the prompts to prompt (the first row of a file names the columns)"


class NamesByValues:
    """Finds the names that are a field because all their values are values of that field, over all rows."""

    def __init__(self) -> None:
        self._fits: dict[str, str] = {}
        self._wrong: set[str] = set()

    @staticmethod
    def may_have(names: Iterable[str]) -> bool:
        """Return whether one of these names could be a field by its values."""
        return any(_letters(name) in _BY_VALUES for name in names)

    def add(self, fields: Mapping[str, Any]) -> None:
        """Take the fields of a row, in which names that are no field are metadata."""
        metadata = fields.get("metadata")
        for name, value in metadata.items() if isinstance(metadata, dict) else ():
            if (meant := _BY_VALUES.get(_letters(name))) is None or is_absent(value):
                continue
            self._fits.setdefault(name, meant)
            if not _is_valid_for(meant, value):
                self._wrong.add(name)
        self._wrong.update(name for name, meant in self._fits.items() if meant in fields)

    @property
    def found(self) -> dict[str, str]:
        """The names and what they mean; of two that mean the same field none."""
        meanings = list(self._fits.values())
        return {
            name: meant for name, meant in self._fits.items() if name not in self._wrong and meanings.count(meant) == 1
        }


def _is_valid_for(field: str, value: object) -> bool:
    try:
        request_from_mapping({"prompt": "a prompt", field: value})
    except (InvalidRequest, ConfigurationError):
        return False
    return True


def _letters(name: object) -> str:
    return re.sub(r"[\s_.-]+", "", str(name).casefold())


def is_synonym(name: str, meant: str) -> bool:
    """Return whether a name is a field and not merely written in another case, or with spaces or dashes."""
    return meant in COLUMNS and re.sub(r"[\s_-]+", "_", name.strip().casefold()) != meant


def field_of_column(name: str, by_values: Mapping[str, str] | None = None) -> str | None:
    """Return the field that a name in a table or an object means; None for an empty name.

    A name that is no field is `metadata.NAME`; a value of `extra` may have a name of its own, `extra.NAME`.
    """
    if not name.strip():
        return None
    letters = _letters(name)
    field = _SAME_LETTERS.get(letters) or _SYNONYMS.get(letters) or (by_values or {}).get(name.strip())
    if field is not None:
        return field
    part = _PART.fullmatch(name.strip())
    return f"{part[1].lower()}.{part[2]}" if part else f"metadata.{name.strip()}"


def with_extra(fields: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row with these values added to its `extra`; raise `HeaderError` if one is there twice."""
    if not extra:
        return fields
    try:
        given = to_extra(fields.get("extra"))
    except InvalidRequest as error:
        raise HeaderError(error.message) from None
    if twice := [name for name in extra if name in given]:
        raise HeaderError(f"extra has {twice[0]!r}, and extra.{twice[0]} has it too: give it once")
    return {**fields, "extra": {**given, **extra}}


def _extra_value(cell: Any) -> Any:
    """Return a cell as JSON: text as the JSON that it is, and a whole float, which pandas makes of a number, as one."""
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    return value_of_text(cell) if isinstance(cell, str) else cell


def recognised_note(recognised: Iterable[tuple[str, str]], what: str) -> str:
    """Return a sentence about names that were recognised as fields; empty if there are none."""
    pairs = [f"{name!r} is read as {meant}" for name, meant in recognised]
    return f"{what} {', '.join(pairs)}" if pairs else ""


def unknown_note(unknown: Sequence[str], what: str) -> str:
    """Return a sentence about names that become metadata, with what was perhaps meant; empty if there are none."""
    if not unknown:
        return ""
    hints = [f"{name!r}{hint}" for name in unknown if (hint := did_you_mean(name, COLUMNS))]
    return f"{_quoted(what, unknown)} kept as metadata{'; ' if hints else ''}{'; '.join(hints)}"


def _quoted(what: str, names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    return f"{what if len(names) == 1 else f'{what}s'} {listed}"
