"""Copy the input of a batch to a temporary file as UTF-8, so that nothing that happens to the file later is bought.

A workbook becomes one JSON array of texts for each row of its sheet.
"""

import codecs
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from attrs import frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import one_line
from nanobanana_async.values import did_you_mean

_CHUNK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # it begins with the next one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WORKBOOKS = {b"PK\x03\x04": "a workbook or another ZIP archive", b"\xd0\xcf\x11\xe0": "an old Office document"}
_SAMPLE = 40
_MARK = "\ufeff"
_JOINED = re.compile(f"(?<=[\r\n]){_MARK}+")
"""Byte order marks at the beginning of lines, where files were joined."""


@frozen
class InputCopy:
    """A copy of the input, and a sentence about how it was read, which may be empty."""

    path: Path
    note: str = ""


@contextmanager
def copy_input(
    source: BinaryIO, title: str, *, workbook: bool, encoding: str | None, sheet: str | None
) -> Iterator[InputCopy]:
    """Copy the input; the copy is removed at the end. Raises `ConfigurationError` for text that can't be read."""
    if source.isatty():
        print("nanobanana: enter one prompt per line; Ctrl-D ends the input", file=sys.stderr)
    with ExitStack() as stack:
        raw, text = (stack.enter_context(_temporary_file()) for _ in range(2))
        with raw.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        if workbook:
            yield InputCopy(text, _write_sheet(raw, text, title, sheet))
            return
        if sheet is not None:
            raise ConfigurationError(f"--sheet is for workbooks, and {title} is text")
        found, note = (encoding, "") if encoding is not None else _detect(raw, title)
        sample = _transcode(raw, text, found, title)
        yield InputCopy(text, f"{note}{f': a line reads {sample!r}' if note and sample else ''}")


@contextmanager
def _temporary_file() -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix="nanobanana-", suffix=".rows")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _detect(raw: Path, title: str) -> tuple[str, str]:
    """Return the encoding of a file, and a sentence if it is neither UTF-8 nor marked as something else."""
    with raw.open("rb") as file:
        start = file.read(4096)
    for bom, encoding in _BOMS:
        if start.startswith(bom):
            return encoding, f"{title} is {encoding.upper()} text" if encoding != "utf-8-sig" else ""
    if kind := next((kind for magic, kind in _WORKBOOKS.items() if start.startswith(magic)), None):
        raise ConfigurationError(f"{title} is {kind}, not text: give it the ending of its format, such as .xlsx")
    if len(start) >= 4 and (found := _wide_without_mark(start)):
        return found, f"{title} is read as {found[:6].upper()} text"
    valid, invalid = _count_utf8(raw)
    if not invalid:
        return "utf-8", ""
    if valid >= invalid:  # one bad byte must not make all the good letters of the file wrong
        line = _first_undecodable_line(raw)
        why = f"line {line} is not UTF-8, and other lines are: correct it, or pass --encoding NAME"
        raise ConfigurationError(f"{title}, {why}")
    return "cp1252", f"{title} is not UTF-8 and is read as Windows-1252 (--encoding NAME reads it as another)"


def _wide_without_mark(start: bytes) -> str | None:
    """Return UTF-16 or UTF-32 by the zero bytes in its letters."""
    half, quarter = len(start) // 2, len(start) // 4
    zeros = [start[number::4].count(0) > 0.8 * quarter for number in range(4)]
    if zeros[2:] == [True, True] or zeros[:2] == [True, True]:
        return "utf-32-le" if zeros[3] else "utf-32-be"
    if start[1::2].count(0) > 0.8 * half:
        return "utf-16-le"
    return "utf-16-be" if start[::2].count(0) > 0.8 * half else None


def _count_utf8(raw: Path) -> tuple[int, int]:
    """Return the number of letters beyond ASCII that are valid UTF-8, and of bytes that are not."""
    valid = invalid = 0
    with raw.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        while chunk := file.read(_CHUNK):
            if not chunk.isascii():
                bad = sum("\udc80" <= letter <= "\udcff" for letter in chunk)
                invalid += bad
                valid += sum(letter > "\x7f" for letter in chunk) - bad
    return valid, invalid


def _first_undecodable_line(raw: Path) -> int:
    with raw.open(encoding="utf-8", errors="surrogateescape") as file:
        bad = (number for number, line in enumerate(file, 1) if any("\udc80" <= letter <= "\udcff" for letter in line))
        return next(bad, 0)


def _transcode(raw: Path, text: Path, encoding: str, title: str) -> str:
    """Write a file as UTF-8, and return the beginning of the first line that has letters beyond ASCII."""
    sample, at_start = "", True
    try:
        with raw.open(encoding=encoding, newline="") as source, text.open("w", encoding="utf-8", newline="") as out:
            while chunk := source.read(_CHUNK):
                if "\0" in chunk:
                    why = f"has NUL characters as {encoding}, so it is no text of that encoding"
                    raise ConfigurationError(f"{title} {why}: save it as UTF-8, or pass --encoding NAME")
                chunk = _JOINED.sub("", chunk.lstrip(_MARK) if at_start else chunk)
                out.write(chunk)
                at_start = chunk[-1:] in ("", "\r", "\n")
                if not sample and not chunk.isascii():
                    sample = next(line for line in re.split("[\r\n]", chunk) if not line.isascii())
    except LookupError:
        raise ConfigurationError(f"--encoding {encoding} is unknown: such as utf-8, cp1252, utf-16") from None
    except UnicodeError:
        why = f"{title} can't be read as {encoding}: save it as UTF-8, or pass --encoding NAME"
        raise ConfigurationError(why) from None
    first = next((at for at, letter in enumerate(sample) if letter > "\x7f"), 0)
    begin = max(0, first - _SAMPLE // 2)
    return one_line(sample[begin : begin + _SAMPLE])


def _write_sheet(raw: Path, text: Path, title: str, name: str | None) -> str:
    """Write the rows of a sheet as lines of JSON; return a sentence if the workbook has other sheets."""
    try:
        from python_calamine import CalamineError, CalamineWorkbook
    except ImportError:
        why = f"{title}: workbooks need python-calamine: pip install 'nanobanana-async[xlsx]', or save it as CSV"
        raise ConfigurationError(why) from None
    try:
        with CalamineWorkbook.from_path(raw) as workbook:
            sheets = workbook.sheet_names
            if name is not None and name not in sheets:
                listed = ", ".join(sheets)
                raise ConfigurationError(f"{title} has no sheet {name!r}{did_you_mean(name, sheets)}; it has {listed}")
            chosen = name or sheets[0]
            with text.open("w", encoding="utf-8") as out:
                for cells in workbook.get_sheet_by_name(chosen).iter_rows():
                    out.write(f"{json.dumps([_cell_text(cell) for cell in cells])}\n")
    except CalamineError as error:
        why = f"{title} can't be read as a workbook: {one_line(str(error))}"
        raise ConfigurationError(f"{why}; save it as .xlsx, or as CSV with the ending .csv") from None
    if name is not None or len(sheets) == 1:
        return ""
    return f"{title}: sheet {chosen!r} is read; --sheet NAME reads another ({', '.join(sheets[1:])})"


def _cell_text(cell: Any) -> str:
    match cell:
        case bool():
            return str(cell).upper()
        case float() if cell.is_integer():
            return str(int(cell))
        case datetime() | date() | time():
            return cell.isoformat()
        case timedelta():  # of a ratio such as 32:9, which is no time of day
            hours, rest = divmod(int(cell.total_seconds()), 3600)
            return f"{hours}:{rest // 60:02}:{rest % 60:02}"
        case _:
            return str(cell)
