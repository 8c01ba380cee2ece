"""Read the rows of a batch: text with a prompt per line, JSON lines, or a table (CSV, or the sheet of a workbook)."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from attrs import evolve, field, frozen

from nanobanana_async.batch.columns import NamesByValues
from nanobanana_async.batch.rows import Row, RowInput, RowReader, canonical_request
from nanobanana_async.cli.batch.checking import checking
from nanobanana_async.cli.batch.formats import ENDINGS, Format, array_to_lines, begins_array, refuse_misnamed
from nanobanana_async.cli.batch.notes import Notes
from nanobanana_async.cli.batch.parsers import ParsedRow, ReadingOptions, csv_cells, jsonl, table, text_lines
from nanobanana_async.cli.batch.spool import copy_input
from nanobanana_async.cli.batch.stored_images import read_stored_images
from nanobanana_async.cli.options import in_cli_words
from nanobanana_async.cli.settings.sources import current
from nanobanana_async.errors import ConfigurationError, InvalidRequest, NanoBananaError
from nanobanana_async.extra import to_extra
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.local_facts import LocalFacts
from nanobanana_async.images.names import NameFacts, row_name
from nanobanana_async.models import REQUEST_FIELDS, ImageRequest
from nanobanana_async.references import LocalImage, StoreObject, text_to_reference
from nanobanana_async.report import ReportRow

STANDARD_INPUT = "standard input"
"""The title of rows that are read from there."""
_EXTRA = re.compile(r"pass extra=\{'(\w+)': \.\.\.\}")
"""What the library advises for a field that a gateway does not take."""


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
    own_fields: frozenset[str] = frozenset()
    """The fields of the request that the file gives; the options of the command give the others."""
    metadata: Any = None
    error: str | None = None
    name: str = ""
    """The name of its images."""

    @property
    def batch_input(self) -> RowInput:
        """The row as input of `generate_many`, with this object as its metadata."""
        return Row(
            index=self.index,
            key=self.key,
            own_key=self.own_key,
            request=self.given,
            metadata=self,
            name=self.name,
        )


@frozen
class InputFile:
    """An input file with its format. It can be read several times, also concurrently: it is a copy."""

    path: Path
    title: str
    """The file's name in messages."""
    format: Format
    batch: str
    """The batch's name, from which the keys are derived."""
    options: ReadingOptions = field(factory=ReadingOptions)
    note: str = ""
    """How the file was read, if that was a guess."""
    folder: Path = Path()
    """The folder from which the paths of reference images start."""
    changed_keys: dict[str, str] = field(factory=dict, repr=False)
    """The keys of rows that were bought again after a change, by the keys that they would have."""
    known: dict[LocalImage, LocalFacts | NanoBananaError] = field(factory=dict, repr=False, eq=False)
    """The reference images in object stores, as they were when the command began."""

    @property
    def heading(self) -> str:
        """What the page of the images is called."""
        return self.batch

    @property
    def unit(self) -> str:
        """What the number of a row counts."""
        if self.is_table:
            return "row"
        return "item" if self.format == "json" else "line"

    @property
    def is_table(self) -> bool:
        """Whether the file has a header."""
        return self.format in ("csv", "xlsx")

    def names_by_values(self) -> dict[str, str]:
        """Return the names of columns or fields that their values make a field of the request."""
        if self.format == "txt":
            return {}
        names, notes = NamesByValues(), Notes()
        for _, found in checking(
            evolve(self, options=evolve(self.options, strict=False)).parse_rows(notes), "rows read"
        ):
            if self.is_table and not names.may_have(notes.unknown):
                break
            if isinstance(found, dict):
                names.add(found)
        return names.found

    def rows(self, gateway: Gateway, notes: Notes | None = None) -> Iterator[FileRow]:
        """Yield every row; a request that the gateway does not support becomes an error of the row."""
        requests = None if notes is None else set[int]()
        notes = Notes() if notes is None else notes
        rows, own_keys, repeats = RowReader(self.batch), set[int](), 0
        for index, (number, found) in enumerate(self.parse_rows(notes)):
            if isinstance(found, str):
                yield FileRow(index=index, number=number, error=found)
                continue
            try:
                row = rows.read(self._with_defaults(self._with_paths(found)))
            except InvalidRequest as error:
                yield FileRow(index=index, number=number, error=error.message)
                continue
            if row.request is not None and row.request.prompt.startswith("#") and self.format not in ("json", "jsonl"):
                notes.hashes.append(number)
            own_fields = frozenset(found.keys() & set(REQUEST_FIELDS))
            file_row = FileRow(index=index, number=number, given=row.request, own_fields=own_fields)
            row = rows.registered(row, gateway, self.known)
            if requests is not None and row.request is not None:
                before = len(requests)
                requests.add(hash(canonical_request(row.request)))
                repeats += len(requests) == before
            yield self._checked(file_row, row, own_keys, gateway)
        notes.repeated, notes.same_request = rows.repeated, max(0, repeats - rows.repeated)

    def read_stored_images(self, gateway: Gateway) -> None:
        """Read the reference images in object stores, each once. Raises `DownloadError` if a store fails."""
        self.known.update(read_stored_images(self._objects(), gateway, self.unit))

    def _objects(self) -> Iterator[tuple[int, LocalImage]]:
        for number, found in checking(self.parse_rows(Notes()), "rows searched for reference images"):
            images: list[object] = []
            with suppress(InvalidRequest):  # it will be the error of the row
                images = [] if isinstance(found, str) else self._with_paths(found).get("images") or []
            for image in images if isinstance(images, list) else ():
                if isinstance(image, LocalImage) and isinstance(image.source, StoreObject):
                    yield number, image

    def _with_defaults(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a row and the defaults of those that it lacks; the values of `extra` count singly."""
        fields = {**self.options.defaults, **found}
        if "extra" in found and "extra" in self.options.defaults:
            with suppress(InvalidRequest):  # the row will say what is wrong with its own
                fields["extra"] = {**self.options.defaults["extra"], **to_extra(found["extra"])}
        return fields

    def _with_paths(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a row with its reference images as URLs and paths."""
        images = found.get("images")
        if not isinstance(images, list):
            return found
        read = [text_to_reference(each, self.folder) if isinstance(each, str) else each for each in images]
        return {**found, "images": read}

    def _checked(self, found: FileRow, row: Row, own_keys: set[int], gateway: Gateway) -> FileRow:
        error = None if row.error is None else row.error.message
        name = ""
        if row.request is not None:
            facts = NameFacts(row=found.number, key=row.own_key, prompt=row.request.prompt, metadata=row.metadata)
            try:
                gateway.check(row.request)
                name = row_name(self.options.names, facts)
            except InvalidRequest as wrong:
                error = in_cli_words(_as_column(wrong.message, found.own_fields))
                error = current().name_origin(error, found.own_fields)
        if row.own_key is not None and row.error is None:
            if hash(row.own_key) in own_keys:
                error = error or f"key {row.own_key!r} belongs to an earlier row: each row needs its own key, or none"
            own_keys.add(hash(row.own_key))
        if error is None and row.metadata is not None:
            error = _why_unstorable(row.metadata)
        found = evolve(found, request=row.request, error=error)
        if error is not None:
            return found
        key = self.changed_keys.get(row.key, row.key)
        return evolve(found, key=key, own_key=row.own_key, metadata=row.metadata, name=name)

    def parse_rows(self, notes: Notes) -> Iterator[ParsedRow]:
        """Yield the number and the fields of every row, or an error message."""
        notes.unit = self.unit
        # Only \n, \r\n and \r end a line: form feeds and Unicode's line separators are part of a prompt.
        newline = "" if self.format == "csv" else None
        with self.path.open(encoding="utf-8", newline=newline) as file:
            match self.format:
                case "txt":
                    yield from ((number, {"prompt": text}) for number, text in text_lines(file, self.options))
                case "jsonl" | "json":
                    yield from jsonl(file, self.options, notes)
                case "csv":
                    yield from table(csv_cells(file, notes), self.options, notes)
                case "xlsx":
                    yield from table(enumerate(map(json.loads, file), 1), self.options, notes)


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
    path, title = Path(file).expanduser(), STANDARD_INPUT if file == "-" else file
    sure = kind is not None
    if file == "-":
        kind = kind or "txt"
    elif kind is None:
        kind = ENDINGS.get(path.suffix.lower())
    name = (path.stem if file != "-" else "stdin") if name is None else name
    with ExitStack() as stack:
        try:
            with sys.stdin.buffer if file == "-" else path.open("rb") as source:
                if kind is None:  # asked only now: of a file that does not exist it would mislead
                    raise ConfigurationError(
                        f"{file}: unknown format: pass --format with one of {', '.join(get_args(Format))}"
                    )
                copying = copy_input(source, title, workbook=kind == "xlsx", encoding=encoding, sheet=sheet)
                copy = stack.enter_context(copying)
        except OSError as error:
            raise ConfigurationError(f"{title} can't be read: {error.strerror or error}") from None
        if not name.strip():
            raise ConfigurationError("--name is empty")
        if kind == "json" or (kind == "jsonl" and begins_array(copy.path)):
            kind = array_to_lines(copy.path, title)
        elif not sure and kind == "txt":
            refuse_misnamed(copy.path, title, named=file != "-")
        folder = Path() if file == "-" else path.parent
        found = InputFile(copy.path, title, kind, name, options or ReadingOptions(), copy.note, folder)
        yield evolve(found, options=evolve(found.options, by_values=found.names_by_values()))


def _as_column(message: str, own_fields: frozenset[str]) -> str:
    """Return an error that names the column to use in place of `extra`, where the row itself has the value."""
    if (given := _EXTRA.search(message)) and given[1] in own_fields:
        return message.replace(given[0], f"name it extra.{given[1]}")
    return message


def _why_unstorable(metadata: object) -> str | None:
    """Return why the results file can't store the metadata of a row, or None."""
    try:
        ReportRow(index=0, job_key="", status="unfinished", metadata=metadata).to_json()
    except ValueError as error:
        return f"metadata: {error}"
    return None
