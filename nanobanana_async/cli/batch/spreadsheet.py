"""`results.csv`: the results as a table that spreadsheets open, with numbers as numbers and text that is no formula."""

import csv
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nanobanana_async.cli.batch.results import Result
from nanobanana_async.models import json_number

SPREADSHEET = "results.csv"

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SETTING_NAMES = ("aspect_ratio", "resolution", "num_images", "output_format", "model", "extra")
_COLUMNS = (
    *("row", "key", "status", "prompt", "images", "credits", "seconds", "error", "missing", "earlier_images"),
    *_SETTING_NAMES,
    *("task_id", "job_key", "created_at", "ended_at"),
)


def write_spreadsheet(folder: Path, results: Callable[[], Iterable[Result]], delimiter: str) -> None:
    """Write the results, which are read twice: first for the names of their metadata. Replaces the file atomically.

    A byte order mark says that it is UTF-8; without it spreadsheets guess.
    """
    names: dict[str, None] = {}
    for result in results():
        metadata = result.row.metadata
        names.update(dict.fromkeys(map(str, metadata)) if isinstance(metadata, dict) else {})
    part = folder / f".nanobanana-{secrets.token_hex(8)}.csv.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow([*_COLUMNS, *(escape_formula(f"metadata.{name}") for name in names)])
            for result in results():
                writer.writerow([escape_formula(cell) for cell in _cells(result, names)])
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / SPREADSHEET)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def escape_formula(cell: Any) -> Any:
    """Return a cell that a spreadsheet takes as text: one that begins like a formula gets an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _cells(result: Result, names: Iterable[str]) -> list[Any]:
    row = result.row
    metadata = row.metadata if isinstance(row.metadata, dict) else {}
    return [
        row.number,
        row.key or "",
        row.status,
        row.prompt,
        "\n".join(row.images),
        "" if row.credits is None else json_number(row.credits),
        "" if row.seconds is None else round(row.seconds, 3),
        row.error or "",
        "\n".join(row.missing),
        "\n".join(result.earlier_images),
        *(_setting(row.settings.get(name, "")) for name in _SETTING_NAMES),
        row.task_id or "",
        row.job_key,
        "" if row.created_at is None else row.created_at.isoformat(),
        "" if row.ended_at is None else row.ended_at.isoformat(),
        *(_text(metadata.get(name)) for name in names),
    ]


def _setting(value: Any) -> Any:
    return json.dumps(dict(value), ensure_ascii=False, sort_keys=True) if isinstance(value, Mapping) else value


def _text(value: Any) -> Any:
    return "" if value is None else value if isinstance(value, (str, int, float)) else str(value)
