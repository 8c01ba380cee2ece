"""The rows of a batch, in each format that a file may have."""

import importlib
import zipfile
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from hypothesis import strategies as st

from nanobanana_async.batch.columns import COLUMNS, HeaderError, read_header
from nanobanana_async.cli.batch.formats import Format
from nanobanana_async.cli.batch.input_file import FileRow, open_input
from nanobanana_async.cli.batch.notes import Notes
from nanobanana_async.errors import ConfigurationError, DownloadError, InvalidRequest
from nanobanana_async.report import ReportRow
from tests.fuzz.gateway_targets import APIMALL, DEFAPI
from tests.fuzz.scratch import file_with
from tests.fuzz.target import LEAVES, VALUES, Target, json_of, json_shapes, objects_with

_FORMATS: dict[str, Format] = {"txt": "txt", "jsonl": "jsonl", "json": "json", "csv": "csv", "xlsx": "xlsx"}


def _batch(kind: str, data: bytes) -> None:
    """Read a file of rows as `nanobanana batch` does, for both gateways."""
    path = file_with(data, f"rows.{kind}")
    with open_input(str(path), None, _FORMATS[kind]) as file:
        for gateway in (APIMALL, DEFAPI):
            notes = Notes()
            rows = list(file.rows(gateway, notes))
            assert len(rows) <= len(data) + 2
            assert all(sentence.strip() for sentence in notes.sentences())
            for row in rows:
                _check_row(row)


def _check_row(row: FileRow) -> None:
    assert (row.error is None) != (row.request is None or row.error is not None)
    if row.error is None:
        assert row.request is not None
        assert row.key
        assert row.name
        assert "/" not in row.name
        ReportRow(
            index=row.index,
            number=row.number,
            job_key=row.key,
            status="unfinished",
            prompt=row.request.prompt,
            metadata=row.metadata,
        ).to_json()


def _guessed(data: bytes) -> None:
    """A file without a format: what it is, is seen in its content."""
    with open_input(str(file_with(data, "rows.txt")), None, None) as file:
        assert all(isinstance(row.number, int) for row in file.rows(APIMALL))


def _header(data: bytes) -> None:
    value = json_of(data)
    cells: list[Any] = value if isinstance(value, list) else [value]
    columns = read_header([str(cell) for cell in cells])
    assert len(columns.names) <= len(cells)
    columns.row_fields(cells)
    assert columns.note is not None


def _workbook() -> bytes:
    openpyxl = importlib.import_module("openpyxl")  # has no types

    book, out = openpyxl.Workbook(), BytesIO()
    sheet = book.active
    assert sheet is not None
    sheet.append(["prompt", "key", "aspect_ratio"])
    sheet.append(["a fox", "k1", datetime(2026, 1, 1, 16, 9, tzinfo=UTC).time()])
    book.save(out)
    return out.getvalue()


def _small_workbook() -> bytes:
    """Return a workbook without compression, so that changed bytes are changed cells."""
    out = BytesIO()
    with suppress(ImportError), zipfile.ZipFile(BytesIO(_workbook())) as book, zipfile.ZipFile(out, "w") as plain:
        for name in book.namelist():
            plain.writestr(name, book.read(name))
    return out.getvalue()


_ROWS = objects_with([*COLUMNS, "Prompt", "extra.seed", "metadata.x", "size", "ratio"])
_CELLS = st.lists(
    st.lists(
        st.text(st.characters(exclude_categories=()), max_size=8)
        | st.sampled_from([*COLUMNS, "16:9", "2k", "a|b", '{"a":1}', ""]),
        max_size=5,
    ),
    max_size=4,
)
_LINES = st.lists(json_shapes(_ROWS | VALUES), max_size=4).map(b"\n".join)
_READ = (ConfigurationError, DownloadError)


def _table(rows: list[list[str]]) -> bytes:
    text = "\n".join(
        ",".join(f'"{cell}"' if "," in cell else cell for cell in row) for row in [["prompt", "key"], *rows]
    )
    return text.encode("utf-8", "surrogatepass")


def _batch_target(kind: str, *seeds: bytes, shapes: st.SearchStrategy[bytes] | None = None, cost: int = 10) -> Target:
    words = tuple(name.encode() for name in COLUMNS)
    return Target(
        name=f"batch-{kind}",
        run=lambda data: _batch(kind, data),
        errors=_READ,
        seeds=seeds,
        words=words,
        shapes=shapes,
        cost=cost,
    )


TARGETS = (
    _batch_target(
        "json",
        b'["a fox", {"prompt": "an owl", "images": ["https://a.example/1.png"]}]',
        shapes=json_shapes(st.lists(_ROWS | st.text(), max_size=4) | VALUES),
    ),
    _batch_target(
        "csv",
        b"prompt,key,images,extra.seed\na fox,1,https://a.example/1.png,7\n",
        b"sep=;\nprompt;size\nx;2K\n",
        shapes=_CELLS.map(_table),
    ),
    _batch_target("txt", b"a fox\nan owl", "füchse".encode("utf-16"), b"\xef\xbb\xbfa"),
    _batch_target("jsonl", b'{"prompt": "a fox", "key": "a"}\n{"prompt": "b", "extra": {"seed": 1}}', shapes=_LINES),
    _batch_target("xlsx", _small_workbook(), cost=40),
    Target(
        name="batch-guessed",
        run=_guessed,
        errors=_READ,
        seeds=(b'["a"]', b"prompt,key\na,b\n", b"a\nb"),
        shapes=_LINES | _CELLS.map(_table),
        cost=10,
    ),
    Target(
        name="table-header",
        run=_header,
        errors=(HeaderError, InvalidRequest),
        seeds=(b'["prompt", "extra.seed", "Size", ""]',),
        words=tuple(f'"{name}"'.encode() for name in COLUMNS),
        shapes=json_shapes(st.lists(st.sampled_from([*COLUMNS, "extra.a", "metadata.b", "size"]) | LEAVES, max_size=6)),
    ),
)
