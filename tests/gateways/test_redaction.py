"""Text of gateways in errors: short, on one line, without secrets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.gateways.redaction import excerpt, redact
from nanobanana_async.gateways.secret import Secret
from tests.support.rows import each_row

SECRET = "mall-key-0123456789"


@each_row(
    ("text", "expected"),
    [
        ("plain words", "plain words"),
        ("two\r\n  lines", "two lines"),
        ("bell \x07, escape \x1b[31m, \u202e", "bell \\x07, escape \\x1b[31m, \\u202e"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("Bearer token required", "Bearer token required"),
        ("bearer%20abcdef", "Bearer ***"),
        ("key sk-abcdef123456 or dk_live_1234", "key sk-*** or dk_***"),
        ("task-12345 stays", "task-12345 stays"),
        (f"you sent {SECRET}!", "you sent ***!"),
        ('{"api_key": "abcdef"}', '{"api_key": "***"}'),
        ("X-Api-Key: abcdef", "X-Api-Key: ***"),
        ("authorization=Basic QWxhZGRpbg==", "authorization=Basic ***"),
        ("see https://me:pw@a.example/x", "see https://***@a.example/x"),
        ("https://a.example/1.png?X-Sig=abc&e=1 gone", "https://a.example/1.png?... gone"),
        (r"https:\/\/a.example\/1.png?X-Sig=abc", r"https:\/\/a.example\/1.png?..."),
        ('"data:image/png;base64,' + "A" * 900 + '" end', '"data:image/png;base64,..." end'),
        ('"data:image\\/png;base64,' + "A" * 900 + '" end', '"data:image\\/png;base64,..." end'),
    ],
)
def test_excerpt_is_redacted_and_escaped(text: str, expected: str) -> None:
    assert redact(text, secret=Secret(SECRET)) == expected
    assert excerpt(text.encode(), secret=Secret(SECRET)) == expected


def test_short_secret_is_not_masked() -> None:
    assert redact("test the test", secret=Secret("test")) == "test the test"


@pytest.mark.parametrize("text", ["word " * 100, "\x00" * 199, "x" * 201, "y" * 10_000_000])
def test_excerpt_is_short(text: str) -> None:
    short = redact(text)
    assert len(short) <= 200
    assert short.endswith("...")


@each_row("before", range(4070, 4100))
def test_secret_cut_by_the_window_is_not_shown(before: int) -> None:
    lead = '"data:image/png;base64,'
    text = lead + "A" * (before - len(lead) - 2) + '" ' + SECRET + " and more" * 100
    assert SECRET[:6] not in redact(text, secret=Secret(SECRET))


@given(st.text(), st.binary())
def test_excerpt_is_always_printable(text: str, body: bytes) -> None:
    assert redact(text).isprintable()
    assert excerpt(body).isprintable()
