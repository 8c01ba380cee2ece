"""Read the input file of a batch, line by line: text with a prompt per line, JSON lines, or CSV."""

import csv
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from attrs import fields_dict, frozen

from nanobanana_async.batch.rows import Row, RowInput, RowReader
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.models import ImageRequest
from nanobanana_async.report import ReportRow

Format = Literal["txt", "jsonl", "csv"]

FIELDS = tuple(name for name in fields_dict(ImageRequest) if name != "callback_url")
COLUMNS = (*FIELDS, "key", "metadata")

_ENDINGS: Mapping[str, Format] = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
_BOM, _BOMS_OF_UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_LONGEST_CELL = 1 << 24

ParsedLine = tuple[int, dict[str, Any] | str]
"""The line at which a row begins, and its fields or an error message."""


@frozen(kw_only=True)
class FileRow:
    """One row of the file: its request, or its error."""

    index: int
    line: int
    key: str = ""
    """The key of the row's job in the ledger."""
    own_key: str | None = None
    """The key given in the file."""
    request: ImageRequest | None = None
    metadata: Any = None
    error: str | None = None

    @property
    def item(self) -> RowInput:
        """The row as input of `generate_many`, with this object as its metadata."""
        return Row(index=self.index, key=self.key, own_key=self.own_key, request=self.request, metadata=self)


@frozen
class InputFile:
    """An input file with its format. It can be read several times, also concurrently."""

    path: Path
    title: str
    """The file's name in messages."""
    format: Format
    batch: str
    """The batch's name, from which the keys are derived."""

    def rows(self, gateway: Gateway) -> Iterator[FileRow]:
        """Yield every row; a request that the gateway does not support becomes an error of the row."""
        rows, own_keys = RowReader(self.batch), set[int]()
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise ConfigurationError(f"{self.title} can't be read: {error.strerror or error}") from None
        with file:
            for index, (line, found) in enumerate(_READERS[self.format](file)):
                if isinstance(found, str):
                    yield FileRow(index=index, line=line, error=found)
                else:
                    yield _row(index, line, rows.read(found), found.get("key"), own_keys, gateway)


def _row(index: int, line: int, row: Row, own_key: str | None, own_keys: set[int], gateway: Gateway) -> FileRow:
    error = None if row.error is None else row.error.message.replace("idempotency_key", "key")
    if row.request is not None:
        error = _refused(gateway, row.request)
    if own_key is not None and row.error is None:
        if hash(own_key) in own_keys:
            error = error or f"key {own_key!r} belongs to an earlier row: each row needs its own key, or none"
        own_keys.add(hash(own_key))
    if error is None and row.metadata is not None:
        error = _unwritable(row.metadata)
    if error is not None:
        return FileRow(index=index, line=line, request=row.request, error=error)
    return FileRow(index=index, line=line, key=row.key, own_key=own_key, request=row.request, metadata=row.metadata)


@contextmanager
def open_input(file: str, name: str | None, kind: Format | None) -> Iterator[InputFile]:
    """Find the file and its format; a pipe is copied to a temporary file, since rows are read several times.

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
    try:
        if file != "-" and path.is_file():
            with path.open("rb"):  # check that it exists and is readable
                pass
            yield InputFile(path, title, kind, name)
            return
        with sys.stdin.buffer if file == "-" else path.open("rb") as source:
            spool = _spooled(source)
    except OSError as error:
        raise ConfigurationError(f"{title} can't be read: {error.strerror or error}") from None
    try:
        yield InputFile(spool, title, kind, name)
    finally:
        spool.unlink(missing_ok=True)


def _spooled(source: BinaryIO) -> Path:
    if source.isatty():
        print("nanobanana: enter one prompt per line; Ctrl-D ends the input", file=sys.stderr)
    descriptor, name = tempfile.mkstemp(prefix="nanobanana-", suffix=".rows")
    try:
        with open(descriptor, "wb") as spool:
            shutil.copyfileobj(source, spool)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def _refused(gateway: Gateway, request: ImageRequest) -> str | None:
    try:
        gateway.check(request)
    except InvalidRequest as error:
        return error.message
    return None


def _unwritable(metadata: object) -> str | None:
    """Return why the results file can't store the metadata of a row, or None."""
    try:
        ReportRow(index=0, key="", status="unfinished", metadata=metadata).to_json()
    except ValueError as error:
        return f"metadata: {error}"
    return None


class _Unreadable(Exception):
    """A line that is not UTF-8 text."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def _decoded(line: int, raw: bytes) -> str:
    if line == 1:
        if raw.startswith(_BOMS_OF_UTF16):
            raise _Unreadable(line, "UTF-16 is not supported: save the file as UTF-8")
        raw = raw.removeprefix(_BOM)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _Unreadable(line, f"byte {error.start + 1} is not UTF-8: save the file as UTF-8") from None


def _parse_lines(file: BinaryIO, read: Callable[[str], dict[str, Any] | str]) -> Iterator[ParsedLine]:
    for line, raw in enumerate(file, 1):
        try:
            text = _decoded(line, raw).strip()
        except _Unreadable as error:
            yield line, str(error)
            if raw.startswith(_BOMS_OF_UTF16):  # so are all following lines
                return
            continue
        if text:
            yield line, read(text)


def _txt(file: BinaryIO) -> Iterator[ParsedLine]:
    yield from _parse_lines(file, lambda text: {"prompt": text})


def _jsonl(file: BinaryIO) -> Iterator[ParsedLine]:
    yield from _parse_lines(file, _object)


def _object(text: str) -> dict[str, Any] | str:
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        return f"broken JSON at column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return f"broken JSON: {error}"
    if not isinstance(facts, dict):
        return 'a row must be an object, such as {"prompt": "a fox"}'
    if unknown := [name for name in facts if name not in COLUMNS]:
        return f"unknown field {', '.join(map(repr, unknown))}: the fields are {', '.join(COLUMNS)}"
    return {name: value for name, value in facts.items() if value is not None}


def _csv(file: BinaryIO) -> Iterator[ParsedLine]:
    csv.field_size_limit(_LONGEST_CELL)
    lines = (_decoded(line, raw) for line, raw in enumerate(file, 1))
    line = 1
    try:
        first = next(lines, "")
        # Many locales of spreadsheets write semicolons; column names contain no delimiter.
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
        header = _header(next((cells for cells in reader if any(cells)), []))
        if isinstance(header, str):
            yield 1, header
            return
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, _fields_of(header, cells)
            line = reader.line_num + 1
    except _Unreadable as error:
        yield error.line, str(error)
    except csv.Error as error:
        yield line, f"broken CSV: {error}"


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _header(cells: list[str]) -> list[str] | str:
    names = [_column(cell.strip()) for cell in cells]
    known = f"the columns are {', '.join(COLUMNS)} and metadata.NAME"
    unknown = [name for name in names if name not in COLUMNS and not re.fullmatch(r"metadata\..+", name)]
    if unknown:
        return f"unknown column {', '.join(map(repr, unknown))}: {known}"
    duplicates = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if duplicates:
        return f"duplicate column {', '.join(duplicates)}"
    if names and "prompt" not in names:
        return f"column prompt is missing: {known}"
    if "metadata" in names and any(name.startswith("metadata.") for name in names):
        return "use either metadata or metadata.NAME, not both"
    return names


def _column(name: str) -> str:
    """Return a column name in lower case, except the part after `metadata.`."""
    start, dot, rest = name.partition(".")
    return f"{start.lower()}{dot}{rest}"


def _fields_of(header: list[str], cells: list[str]) -> dict[str, Any] | str:
    if len(cells) > len(header):
        return f"{len(cells)} cells, but the header has {len(header)}"
    facts: dict[str, Any] = {}
    for name, cell in zip(header, (cell.strip() for cell in cells), strict=False):
        if not cell:
            continue
        match name:
            case "images":
                facts[name] = cell.replace("|", " ").split()
            case "num_images":
                facts[name] = int(cell) if cell.isascii() and cell.isdigit() and len(cell) < 4 else cell
            case _ if name in COLUMNS:
                facts[name] = cell
            case _:
                facts.setdefault("metadata", {})[name.removeprefix("metadata.")] = cell
    return facts


_READERS: Mapping[Format, Callable[[BinaryIO], Iterator[ParsedLine]]] = {"txt": _txt, "jsonl": _jsonl, "csv": _csv}
