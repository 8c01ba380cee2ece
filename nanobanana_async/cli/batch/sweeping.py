"""`nanobanana batch --prompt`: the rows of a batch from a template and lists of values."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from nanobanana_async.batch.columns import COLUMNS, Columns, HeaderError, field_of_column
from nanobanana_async.batch.sweeps import Sweep
from nanobanana_async.cli.batch.formats import ENDINGS
from nanobanana_async.cli.batch.input_file import InputFile
from nanobanana_async.cli.batch.notes import Notes
from nanobanana_async.cli.batch.parsers import ParsedRow, ReadingOptions, broken_csv, csv_cells, text_lines
from nanobanana_async.cli.batch.spool import copy_input
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.extra import to_extra, value_of_text
from nanobanana_async.formatting import plural
from nanobanana_async.images.names import slug
from nanobanana_async.references import text_to_reference

_SLUG = 40


@frozen(kw_only=True)
class SweepOptions:
    """The options of a sweep."""

    prompt: str
    vary: Sequence[str] = ()
    vary_files: Sequence[Path] = ()
    crossed: dict[str, str | None] = field(factory=dict)
    """Options that take several values, separated by commas."""
    encoding: str | None = None
    sheet: str | None = None


@frozen
class SweepInput(InputFile):
    """A sweep in the place of a file of rows."""

    sweep: Sweep = field(kw_only=True)
    heading_if_unnamed: str = field(default="", kw_only=True)
    """The prompt with its variables, if the batch has no name that was given."""

    @property
    def heading(self) -> str:
        return self.heading_if_unnamed or self.batch

    @property
    def row_word(self) -> str:
        return "row"

    def parse_rows(self, notes: Notes) -> Iterator[ParsedRow]:
        notes.unit = self.row_word
        yield from enumerate(self.sweep, 1)


def sweep_options(
    file: str | None,
    prompt: str | None,
    vary: Sequence[str] | None,
    vary_files: Sequence[Path] | None,
    crossed: dict[str, str | None],
    for_files: Mapping[str, object],
    *,
    encoding: str | None,
    sheet: str | None,
) -> SweepOptions | None:
    """Return the options of a sweep; None if the rows are in a file. Raises `ConfigurationError` for a mixture."""
    if prompt is not None:
        if file is not None:
            raise ConfigurationError(f"pass a FILE or --prompt, not both: {file} has prompts of its own")
        if given := [name for name, value in for_files.items() if value]:
            raise ConfigurationError(f"{given[0]} is for a FILE of rows, not for --prompt")
        return SweepOptions(
            prompt=prompt,
            vary=vary or (),
            vary_files=vary_files or (),
            crossed=crossed,
            encoding=encoding,
            sheet=sheet,
        )
    if file is None:
        raise ConfigurationError(
            "name a FILE of rows, or pass --prompt 'a {product} in {style}' with --vary style=oil,ink"
        )
    if vary or vary_files:
        raise ConfigurationError("--vary and --vary-file are for a sweep: pass --prompt in the place of the FILE")
    for name, value in crossed.items():
        if value is not None and "," in value:
            option = f"--{name.replace('_', '-')}"
            raise ConfigurationError(f"{option} {value}: several values are for a sweep, with --prompt; here pass one")
    return None


@contextmanager
def open_sweep(options: SweepOptions, name: str | None, reading: ReadingOptions) -> Iterator[SweepInput]:
    """Read the values of a sweep. The batch's name is made of its template, unless it is given."""
    rows = [list(_rows_of_file(file, options)) for file in options.vary_files]
    values: dict[str, list[Any]] = {}
    for given in options.vary:
        variable, equals, text = given.partition("=")
        if not equals or not variable.strip():
            raise ConfigurationError(f"--vary {given}: write NAME=VALUE,VALUE or NAME=@FILE, such as style=oil,ink")
        values.setdefault(variable.strip(), []).extend(_values(variable.strip(), text, options))
    for crossed, listed in options.crossed.items():
        if listed is not None and crossed in values:
            raise ConfigurationError(
                f"--vary {crossed} and --{crossed.replace('_', '-')}: give the values in one of them"
            )
        values |= {} if listed is None else {crossed: _cells(crossed, listed)}
    if not rows and not values:
        raise ConfigurationError("nothing varies: pass --vary style=oil,ink (`generate` buys a single prompt)")
    sweep = Sweep(options.prompt, rows, values)
    digest = hashlib.sha256(options.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    batch = f"{slug(options.prompt)[:_SLUG].strip('-')}-{digest}" if name is None else name
    if not batch.strip():
        raise ConfigurationError("--name is empty")
    note = f"{sweep.shape}: {plural(len(sweep), 'row')}"
    template = options.prompt if name is None else ""
    yield SweepInput(Path(), "the sweep", "jsonl", batch, reading, note, sweep=sweep, heading_if_unnamed=template)


def file_of_values(given: str) -> Path | None:
    """Return the file that a --vary names after @; None if it lists its values."""
    text = given.partition("=")[2]
    return Path(text[1:]).expanduser() if text.startswith("@") else None


def _values(name: str, text: str, options: SweepOptions) -> list[Any]:
    """Return the values of --vary: a list with commas, quoted as in CSV, or the lines of a file after @."""
    file = file_of_values(f"{name}={text}")
    if file is None:
        folder, listed = Path(), _cells(name, text)
    else:
        folder = file.parent
        with _copied(file, options, workbook=False) as copy, copy.open(encoding="utf-8") as lines:
            listed = [line for _, line in text_lines(lines, ReadingOptions())]
    return [_value(name, each, folder) for each in listed]


def _value(name: str, text: str, folder: Path) -> Any:
    if name == "image" and text:
        return text_to_reference(text, folder)
    return value_of_text(text) if name.startswith("extra.") else text


def _cells(name: str, text: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True, strict=True), [])]
    except csv.Error as error:
        raise ConfigurationError(
            f"{name}={text}: {error}: quote a value with commas, as in {name}='\"a, b\",c'"
        ) from None


@contextmanager
def _copied(file: Path, options: SweepOptions, *, workbook: bool) -> Iterator[Path]:
    try:
        source = file.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{file} can't be read: {error.strerror or error}") from None
    sheet = options.sheet if workbook else None
    with source, copy_input(source, str(file), workbook=workbook, encoding=options.encoding, sheet=sheet) as copy:
        yield copy.path


def _rows_of_file(file: Path, options: SweepOptions) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, whose columns go together; columns that are no field are variables."""
    kind = ENDINGS.get(file.suffix.lower())
    if kind not in ("csv", "xlsx"):
        raise ConfigurationError(f"--vary-file {file}: name a table with a header: .csv, .tsv or .xlsx")
    with _copied(file, options, workbook=kind == "xlsx") as copy, copy.open(encoding="utf-8", newline="") as lines:
        cells = csv_cells(lines, Notes()) if kind == "csv" else enumerate(map(json.loads, lines), 1)
        try:
            yield from _table(cells, file)
        except csv.Error as error:
            raise ConfigurationError(f"{file}: {broken_csv(error)}") from None


def _refuse_hidden_fields(file: Path, names: Iterable[str | None]) -> None:
    """Raise `ConfigurationError` for metadata that would set a field: in a sweep both have one name."""
    for name in filter(None, names):
        if name == "metadata" or (name.startswith("metadata.") and name.removeprefix("metadata.") in COLUMNS):
            raise ConfigurationError(
                f"{file}: in a sweep the column {name} would set a field of the request, or be taken for one: give it a"
                " name of its own (every column that is no field is metadata)"
            )


def _table(rows: Iterable[tuple[int, list[str]]], file: Path) -> Iterator[dict[str, Any]]:
    columns: Columns | None = None
    for number, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            names = [field_of_column(cell) for cell in cells]
            if twice := [name for name in names if name is not None and names.count(name) > 1]:
                raise ConfigurationError(f"{file}: two columns are {twice[0].removeprefix('metadata.')}")
            _refuse_hidden_fields(file, names)
            columns = Columns(tuple(names))
            continue
        try:
            fields = columns.row_fields([cell.strip() for cell in cells])
            extra = {f"extra.{name}": value for name, value in to_extra(fields.pop("extra", None)).items()}
        except (HeaderError, InvalidRequest) as error:
            why = error.message if isinstance(error, InvalidRequest) else error
            raise ConfigurationError(f"{file}, row {number}: {why}") from None
        if "images" in fields:
            fields["images"] = [text_to_reference(image, file.parent) for image in fields["images"]]
        yield {**fields.pop("metadata", {}), **fields, **extra}
    if columns is None:
        raise ConfigurationError(
            f"{file} is empty: its first row has the names of the columns ({', '.join(COLUMNS)}, ...)"
        )
