"""Read the rows of a batch: text with a prompt per line, JSON lines, or a table (CSV, or the sheet of a workbook)."""

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from attrs import evolve, field, frozen

from nanobanana_async.batch.columns import COLUMNS, HeaderError, column_name, read_header, with_image
from nanobanana_async.batch.rows import Row, RowInput, RowReader
from nanobanana_async.cli.batch.notes import Notes
from nanobanana_async.cli.batch.spool import spooled
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.names import NameFacts, NameTemplate, row_name
from nanobanana_async.models import ImageRequest
from nanobanana_async.references import text_to_reference
from nanobanana_async.report import ReportRow
from nanobanana_async.values import did_you_mean, is_absent

Format = Literal["txt", "jsonl", "csv", "xlsx"]

_ENDINGS: Mapping[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".xls": "xlsx",
    ".ods": "xlsx",
}
_LONGEST_CELL = 1 << 24
_SEP = re.compile(r'"?sep=(.)"?\s*')  # Excel's own first line, which it does not show

ParsedRow = tuple[int, dict[str, Any] | str]
"""The number of a row, and its fields or an error message."""


@frozen(kw_only=True)
class FileRow:
    """One row of the file: its request, or its error."""

    index: int
    number: int
    """Its line in a text file; its row in a table, where the header is row 1, as a spreadsheet shows it."""
    key: str = ""
    """The key of the row's job in the ledger."""
    own_key: str | None = None
    """The key given in the file."""
    request: ImageRequest | None = None
    """The request as it is registered: with the digests of its local images."""
    given: ImageRequest | None = None
    """The request as the file gives it: with the paths of its local images."""
    metadata: Any = None
    error: str | None = None
    name: str = ""
    """The name of its images."""

    @property
    def item(self) -> RowInput:
        """The row as input of `generate_many`, with this object as its metadata."""
        return Row(
            index=self.index,
            key=self.key,
            own_key=self.own_key,
            request=self.given,
            metadata=self,
            name=self.name,
        )


@frozen(kw_only=True)
class ReadingOptions:
    """How the rows of a file are read."""

    defaults: Mapping[str, Any] = field(factory=dict)
    """Fields of the rows that do not have them."""
    comments: str | None = None
    """Rows that begin with this text are skipped."""
    strict: bool = False
    """Whether names that are no field are refused."""
    names: NameTemplate | None = None


@frozen
class InputFile:
    """An input file with its format. It can be read several times, also concurrently: it is a copy."""

    path: Path
    title: str
    """The file's name in messages."""
    format: Format
    batch: str
    """The batch's name, from which the keys are derived."""
    options: ReadingOptions = ReadingOptions()
    note: str = ""
    """How the file was read, if that was a guess."""
    folder: Path = Path()
    """The folder from which the paths of reference images start."""
    changed_keys: dict[str, str] = field(factory=dict, repr=False)
    """The keys of rows that were bought again after a change, by the keys that they would have."""

    @property
    def unit(self) -> str:
        """What the number of a row counts."""
        return "row" if self.format in ("csv", "xlsx") else "line"

    def rows(self, gateway: Gateway, notes: Notes | None = None) -> Iterator[FileRow]:
        """Yield every row; a request that the gateway does not support becomes an error of the row."""
        notes = Notes() if notes is None else notes
        rows, own_keys = RowReader(self.batch), set[int]()
        for index, (number, found) in enumerate(self._parsed(notes)):
            if isinstance(found, str):
                yield FileRow(index=index, number=number, error=found)
                continue
            row = rows.read({**self.options.defaults, **self._with_paths(found)})
            notes.hashes += row.request is not None and row.request.prompt.startswith("#")
            file_row = FileRow(index=index, number=number, given=row.request)
            yield self._checked(file_row, rows.registered(row, gateway), own_keys, gateway)
        notes.repeated = rows.repeated

    def _with_paths(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a row with its reference images as URLs and paths."""
        images = found.get("images")
        if not isinstance(images, list):
            return found
        read = [text_to_reference(each, self.folder) if isinstance(each, str) else each for each in images]
        return {**found, "images": read}

    def _checked(self, found: FileRow, row: Row, own_keys: set[int], gateway: Gateway) -> FileRow:
        error = None if row.error is None else row.error.message.replace("idempotency_key", "key")
        name = ""
        if row.request is not None:
            facts = NameFacts(row=found.number, key=row.own_key, prompt=row.request.prompt, metadata=row.metadata)
            try:
                gateway.check(row.request)
                name = row_name(self.options.names, facts)
            except InvalidRequest as wrong:
                error = wrong.message
        if row.own_key is not None and row.error is None:
            if hash(row.own_key) in own_keys:
                error = error or f"key {row.own_key!r} belongs to an earlier row: each row needs its own key, or none"
            own_keys.add(hash(row.own_key))
        if error is None and row.metadata is not None:
            error = _unwritable(row.metadata)
        found = evolve(found, request=row.request, error=error)
        if error is not None:
            return found
        key = self.changed_keys.get(row.key, row.key)
        return evolve(found, key=key, own_key=row.own_key, metadata=row.metadata, name=name)

    def _parsed(self, notes: Notes) -> Iterator[ParsedRow]:
        notes.unit = self.unit
        # Only \n, \r\n and \r end a line: form feeds and Unicode's line separators are part of a prompt.
        newline = "" if self.format == "csv" else None
        with self.path.open(encoding="utf-8", newline=newline) as file:
            match self.format:
                case "txt":
                    yield from ((number, {"prompt": text}) for number, text in _lines(file, self.options))
                case "jsonl":
                    yield from _jsonl(file, self.options, notes)
                case "csv":
                    yield from _table(_csv_cells(file, notes), self.options, notes)
                case "xlsx":
                    yield from _table(enumerate(map(json.loads, file), 1), self.options, notes)


@contextmanager
def open_input(
    file: str,
    name: str | None,
    kind: Format | None,
    options: ReadingOptions | None = None,
    *,
    encoding: str | None = None,
    sheet: str | None = None,
) -> Iterator[InputFile]:
    """Find the file and its format, and copy it: an editor may save it while the batch runs.

    Raises `ConfigurationError` if the file can't be read.
    """
    path, title = Path(file).expanduser(), "standard input" if file == "-" else file
    if file == "-":
        kind = kind or "txt"
    elif kind is None:
        kind = _ENDINGS.get(path.suffix.lower())
        if kind is None:
            raise ConfigurationError(f"{file}: unknown format: pass --format {'|'.join(get_args(Format))}")
    name = (path.stem if file != "-" else "stdin") if name is None else name
    if not name.strip():
        raise ConfigurationError("--name is empty")
    with ExitStack() as stack:
        try:
            with sys.stdin.buffer if file == "-" else path.open("rb") as source:
                copying = spooled(source, title, workbook=kind == "xlsx", encoding=encoding, sheet=sheet)
                copy = stack.enter_context(copying)
        except OSError as error:
            raise ConfigurationError(f"{title} can't be read: {error.strerror or error}") from None
        folder = Path() if file == "-" else path.parent
        yield InputFile(copy.path, title, kind, name, options or ReadingOptions(), copy.note, folder)


def _unwritable(metadata: object) -> str | None:
    """Return why the results file can't store the metadata of a row, or None."""
    try:
        ReportRow(index=0, key="", status="unfinished", metadata=metadata).to_json()
    except ValueError as error:
        return f"metadata: {error}"
    return None


def _lines(file: Iterator[str], options: ReadingOptions) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        text = line.strip()
        if text and not (options.comments and text.startswith(options.comments)):
            yield number, text


def _jsonl(file: Iterator[str], options: ReadingOptions, notes: Notes) -> Iterator[ParsedRow]:
    for number, text in _lines(file, options):
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
    facts: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for name, value in given.items():
        meant = column_name(name) or "metadata."
        if meant in COLUMNS:
            if meant in facts:
                return f"field {meant} is given twice"
            if meant == "prompt" or not is_absent(value):
                facts[meant] = value
        elif options.strict:
            return f"unknown field {name!r}{did_you_mean(name, COLUMNS)}; the fields are {', '.join(COLUMNS)}"
        else:
            notes.unknown.setdefault(name)
            more[meant.removeprefix("metadata.")] = value
    if more:
        metadata = facts.get("metadata", {})
        if not isinstance(metadata, dict):
            return f"unknown field {next(iter(more))!r}, and metadata is no object that could keep it"
        facts["metadata"] = {**more, **metadata}
    return with_image(facts)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if a field is given twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"field {repeated!r} is given twice")
    return fields


def _csv_cells(file: Iterator[str], notes: Notes) -> Iterator[tuple[int, list[str]]]:
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


def _table(rows: Iterator[tuple[int, list[str]]], options: ReadingOptions, notes: Notes) -> Iterator[ParsedRow]:
    """Yield the rows of a table below its header, which is the first row that is not empty."""
    columns = None
    number = 0
    try:
        for number, cells in rows:
            filled = next((cell.strip() for cell in cells if cell.strip()), "")
            if not filled or (options.comments and filled.startswith(options.comments)):
                continue
            if columns is None:
                columns = read_header(cells, strict=options.strict)
                notes.unknown = dict.fromkeys(columns.unknown)
                continue
            try:
                yield number, columns.facts([cell.strip() for cell in cells])
            except HeaderError as error:
                yield number, str(error)
    except HeaderError as error:
        yield number, str(error)
    except csv.Error as error:
        yield number + 1, f"broken CSV: {error}"
