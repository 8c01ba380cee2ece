"""Text from outside is escaped for terminals and scripts."""

import json

from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.escaping import escape_exactly, json_line, one_line
from tests.support.rows import each_row

ESCAPED = [
    ("\x1b[31m", "\\x1b[31m"),
    ("\x9b", "\\x9b"),
    ("\x7f", "\\x7f"),
    ("\u202e\u2066", "\\u202e\\u2066"),
    ("\udc9b", "\\udc9b"),
    ("\U000e0001", "\\U000e0001"),
    ("\u200b\ufeff", "\\u200b\\ufeff"),
]


@each_row(("text", "expected"), [*ESCAPED, ("a \r\n\t b\u2028c", "a b c"), ("füchse 狐", "füchse 狐")])
def test_one_line_escapes_control_characters(text: str, expected: str) -> None:
    assert one_line(text) == expected


@each_row(
    ("text", "expected"),
    [
        *ESCAPED,
        ("a  b\u3000c\xa0d", "a  b\u3000c\xa0d"),
        ("a\r\n\tb\u2028c\x85", "a\\r\\n\\tb\\u2028c\\x85"),
        ("می\u200cروم", "می\u200cروم"),
    ],
)
def test_exact_keeps_spaces_and_joiners(text: str, expected: str) -> None:
    assert escape_exactly(text) == expected


@given(st.text(st.characters()))
def test_escaped_text_is_printable(text: str) -> None:
    assert one_line(text).isprintable()
    assert len(escape_exactly(text).splitlines()) <= 1


@given(st.dictionaries(st.text(st.characters()), st.text(st.characters()), max_size=3))
def test_json_line_keeps_the_value(value: object) -> None:
    line = json_line(json.dumps(value, ensure_ascii=False))
    assert json.loads(line) == value
    assert len(line.splitlines()) == 1
    line.encode()
