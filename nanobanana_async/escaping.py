"""Escape text from outside, so that it can't control a terminal or break a line.

What is not printable (control characters of C0 and C1, DEL, bidirectional overrides, lone surrogates, line and
paragraph separators) is written as Python would write it in a string: ``\\x1b``, ``\\u202e``.
"""

import json
import unicodedata
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Joiners change the shape of neighbouring letters, in Persian, Hindi and emoji. They are harmless.
_JOINERS = "\u200c\u200d"


class _Escapes(dict[int, str]):
    """A table for `str.translate`. It does not cache: text from outside must not fill memory."""

    def __init__(self, keeps: Callable[[str], bool], escape: Callable[[str], str]) -> None:
        super().__init__()
        self._keeps = keeps
        self._escape = escape

    def __missing__(self, code: int) -> str:
        character = chr(code)
        return character if self._keeps(character) else self._escape(character)


def _is_text(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _in_python(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _in_json(character: str) -> str:
    if character == "\x7f":  # the one control character that JSON does not escape
        return "\\u007f"
    return json.dumps(character)[1:-1]


_ONE_LINE = _Escapes(str.isprintable, _in_python)
_EXACT = _Escapes(_is_text, _in_python)
_JSON = _Escapes(_is_text, _in_json)


def as_plain_str(value: T) -> T:
    """Return text of a subclass, such as a member of `class Size(str, Enum)`, as plain text; other values as they are.

    `str()` and f-strings would give the name of the member, "Size.WIDE".
    """
    return str.__str__(value) if isinstance(value, str) else value  # type: ignore[return-value]


def one_line(text: str) -> str:
    """Return text for display: on one line, each run of whitespace as one space."""
    line = " ".join(text.split())
    return line if line.isprintable() else line.translate(_ONE_LINE)


def escape_exactly(text: str) -> str:
    """Return a value for scripts, such as a path or a URL: spaces and joiners are kept."""
    return text if text.isprintable() else text.translate(_EXACT)


def json_line(line: str) -> str:
    """Return a line of unescaped JSON with the characters escaped that a terminal or a line reader would act on."""
    return line if line.isprintable() else line.translate(_JSON)
