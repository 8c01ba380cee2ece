"""What the content of a file says about its format, when its name says nothing or something else."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal

from nanobanana_async.batch.columns import COLUMNS, field_of_column
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import one_line

Format = Literal["txt", "jsonl", "json", "csv", "xlsx"]

ENDINGS: Mapping[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".xls": "xlsx",
    ".ods": "xlsx",
}
_SAMPLE_LINES = 20
_LONGEST_NAME = 40  # of a column
_MOST_LINE_CHARACTERS = 60
_SPACE = re.compile(r"[ \t\r\n]*")


def refuse_misnamed(copy: Path, title: str, *, named: bool) -> None:
    """Raise `ConfigurationError` if text is a table or JSON, whose lines would be bought as prompts.

    `named` says that the file has a name, which the user may change.
    """
    with copy.open(encoding="utf-8") as file:
        lines = list(islice((text for line in file if (text := line.strip())), _SAMPLE_LINES))
    if not lines:
        return
    kind = _json_kind(lines[0]) or _table_kind(lines)
    if kind is None:
        return
    shown = one_line(lines[0] if len(lines[0]) <= _MOST_LINE_CHARACTERS else f"{lines[0][:_MOST_LINE_CHARACTERS]}...")
    what = {"csv": "a table", "json": "a JSON array", "jsonl": "JSON lines"}.get(kind, "a table with | between columns")
    advice = f"rename it to .{kind}, or pass --format {kind}" if named else f"pass --format {kind}"
    if kind == "|":
        advice = "separate the columns by commas, semicolons or tabs, and save it as .csv"
    raise ConfigurationError(
        f"{title} is {what}, and each of its lines would be bought as a prompt; the first is {shown!r}: {advice}"
        " (--format txt buys its lines)"
    )


def _json_kind(line: str) -> Format | None:
    if line in ("[", "[{"):
        return "json"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list):
        return "json"
    names = map(field_of_column, found) if isinstance(found, dict) else ()  # a prompt itself may be written as JSON
    return "jsonl" if "prompt" in names else None


def _table_kind(lines: list[str]) -> str | None:
    """Return "csv" if the first line names columns, "|" if that is what separates them, or None."""
    if field_of_column(lines[0].strip('"')) == "prompt":
        return "csv"
    for delimiter in ",\t;|":
        names = [name.strip().strip('"').strip() for name in lines[0].split(delimiter)]
        meant = [field_of_column(name) for name in names]
        if len(names) == 1 or "prompt" not in meant or max(map(len, names)) > _LONGEST_NAME:
            continue
        known = all(name in COLUMNS or (name or "").startswith("extra.") for name in meant)
        if known or _split_alike(lines[1:], delimiter, len(names)):
            return "|" if delimiter == "|" else "csv"
    return None


def _split_alike(lines: list[str], delimiter: str, cells: int) -> bool:
    try:
        rows = list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return False
    return 2 * sum(len(row) == cells for row in rows) >= len(rows)


def begins_array(copy: Path) -> bool:
    """Return whether a file begins with a JSON array."""
    with copy.open(encoding="utf-8") as file:
        first = next((text for line in file if (text := line.strip())), "")
    return first.startswith("[")


def array_to_lines(copy: Path, title: str) -> Format:
    """Write the items of a JSON array as lines of JSON, and return the format that the file has now.

    A .json file that has an object per line stays as it is. Raises `ConfigurationError` for anything else.
    """
    text = copy.read_text(encoding="utf-8")
    begin = _SPACE.match(text)
    start = 0 if begin is None else begin.end()
    if not text[start:]:
        return "json"  # the caller says that it has no rows
    if text[start] != "[":
        _check_lines(text[start:], title)
        return "jsonl"
    try:
        lines = list(_items(text, start + 1))
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{title}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise ConfigurationError(f"{title}: broken JSON: it is nested too deeply") from None
    copy.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return "json"


def _check_lines(text: str, title: str) -> None:
    try:
        first = json.loads(text.splitlines()[0])
    except (ValueError, RecursionError):
        first = None
    if not isinstance(first, dict):
        raise ConfigurationError(
            f"{title} is neither a JSON array of prompts or objects, nor JSON lines, which have an object on each line:"
            ' write it as ["a fox", "an owl"] or [{"prompt": "a fox"}], or save it as .jsonl'
        )


def _items(text: str, at: int) -> Iterator[str]:
    """Yield each item of an array as an object on one line: a string becomes the object with that prompt."""
    decoder = json.JSONDecoder()
    at = _after_space(text, at)
    while text[at : at + 1] != "]":
        value, end = decoder.raw_decode(text, at)
        item = re.sub(r"[\r\n]+", " ", text[at:end])  # between its parts: strings have no line breaks
        yield f'{{"prompt": {item}}}' if isinstance(value, str) else item
        at = _after_space(text, end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    if (rest := _after_space(text, at + 1)) < len(text):
        raise json.JSONDecodeError("Extra data after the array", text, rest)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
