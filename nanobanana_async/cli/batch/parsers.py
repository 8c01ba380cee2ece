"""Parse the rows of a file: lines of text, lines of JSON, and the cells of a table."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from attrs import field, frozen

from nanobanana_async.batch.columns import (
    COLUMNS,
    HeaderError,
    field_of_column,
    is_synonym,
    read_header,
    with_extra,
    with_image,
)
from nanobanana_async.cli.batch.notes import Notes
from nanobanana_async.images.names import NameTemplate
from nanobanana_async.values import did_you_mean, is_absent

_LONGEST_CELL = 1 << 24
_SEP = re.compile(r'"?sep=(.)"?\s*')  # Excel's own first line, which it does not show

ParsedRow = tuple[int, dict[str, Any] | str]
"""The number of a row, and its fields or an error message."""


@frozen(kw_only=True)
class ReadingOptions:
    """How the rows of a file are read."""

    defaults: Mapping[str, Any] = field(factory=dict)
    """Fields of the rows that do not have them."""
    comments: str | None = None
    """Rows that begin with this text, or whose prompt does, are skipped."""
    strict: bool = False
    """Whether names that are no field are refused."""
    names: NameTemplate | None = None
    by_values: Mapping[str, str] = field(factory=dict)
    """Names that their values make a field, see `NamesByValues`."""


def text_lines(file: Iterator[str], options: ReadingOptions) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        text = line.strip()
        if text and not (options.comments and text.startswith(options.comments)):
            yield number, text


def jsonl(file: Iterator[str], options: ReadingOptions, notes: Notes) -> Iterator[ParsedRow]:
    for number, text in text_lines(file, options):
        yield number, _object(text, options, notes)


def _object(text: str, options: ReadingOptions, notes: Notes) -> dict[str, Any] | str:
    try:
        given = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        return f"broken JSON at column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return f"broken JSON: {error}"
    if not isinstance(given, dict):
        return 'a row must be an object, such as {"prompt": "a fox"}'
    fields: dict[str, Any] = {}
    more: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in given.items():
        meant = field_of_column(name, options.by_values) or "metadata."
        if meant in COLUMNS:
            if is_synonym(name, meant):
                notes.recognised.setdefault(name, meant)
            if meant in fields:
                return f"field {meant} is given twice"
            if meant == "prompt" or not is_absent(value):
                fields[meant] = value
        elif meant.startswith("extra."):
            extra[meant.removeprefix("extra.")] = value
        elif options.strict:
            return f"unknown field {name!r}{did_you_mean(name, COLUMNS)}; the fields are {', '.join(COLUMNS)}"
        else:
            notes.unknown.setdefault(name)
            more[meant.removeprefix("metadata.")] = value
    if more:
        metadata = fields.get("metadata", {})
        if not isinstance(metadata, dict):
            return f"unknown field {next(iter(more))!r}, and metadata is no object that could keep it"
        fields["metadata"] = {**more, **metadata}
    try:
        return with_extra(with_image(fields), extra)
    except HeaderError as error:
        return str(error)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if a field is given twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"field {repeated!r} is given twice")
    return fields


def csv_cells(file: Iterator[str], notes: Notes) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row, with the number that a spreadsheet shows."""
    csv.field_size_limit(_LONGEST_CELL)
    blank: list[str] = []
    first = ""
    for first in file:
        if first.strip():
            break
        blank.append(first)
    if given := _SEP.fullmatch(first):
        delimiter, lines = given[1], iter(file)
    else:
        # Many locales of spreadsheets write semicolons; names of columns contain no delimiter.
        delimiter, lines = max(",;\t", key=first.count), chain(blank, [first], file)
    notes.delimiter = delimiter
    yield from enumerate(csv.reader(lines, delimiter=delimiter, strict=True), 1)


def broken_csv(error: csv.Error) -> str:
    """Return why a CSV file can't be read, and what to look for."""
    why = f"broken CSV: {error}"
    if str(error) == "unexpected end of data":
        return f'{why}: a quote " is not closed, here or in a cell above'
    return why if "expected after" not in str(error) else f'{why}: a quote " inside of a quoted cell is written ""'


def table(rows: Iterator[tuple[int, list[str]]], options: ReadingOptions, notes: Notes) -> Iterator[ParsedRow]:
    """Yield the rows of a table below its header, which is the first row that is not empty."""
    columns, header = None, None
    number = 0
    try:
        for number, cells in rows:
            filled = next((cell.strip() for cell in cells if cell.strip()), "")
            if not filled or (options.comments and filled.startswith(options.comments)):
                continue
            if columns is None:
                columns = read_header(cells, strict=options.strict, by_values=options.by_values)
                header = cells
                notes.unknown, notes.recognised = dict.fromkeys(columns.unknown), dict(columns.recognised)
                continue
            if cells == header:
                yield number, "this row repeats the header, as in files that were joined: remove it"
                continue
            try:
                fields = columns.row_fields([cell.strip() for cell in cells])
            except HeaderError as error:
                yield number, str(error)
                continue
            if not (options.comments and fields.get("prompt", "").startswith(options.comments)):
                yield number, fields
    except HeaderError as error:
        yield number, str(error)
    except csv.Error as error:
        yield number + 1, broken_csv(error)
