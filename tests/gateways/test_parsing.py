"""The shared parsing: JSON, numbers, times, images."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.errors import UnexpectedResponse
from nanobanana_async.gateways import ApiMall
from nanobanana_async.gateways.images import parse_first_image, parse_image_url
from nanobanana_async.gateways.parsing import (
    GatewayAnswer,
    TaskStatus,
    parse_decimal,
    parse_nested_json,
    parse_optional_task_id,
    parse_running,
    parse_task_id,
    parse_time,
    parse_word,
    status_word,
    without_inline_images,
)
from nanobanana_async.jobs import JobState
from tests.support.rows import each_row

SECRET = "mall-key-0123456789"
GATEWAY = ApiMall(api_key=SECRET)
NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)


def read(body: bytes) -> dict[str, Any]:
    return GatewayAnswer(GATEWAY, body).json_object()


# JSON


def test_amounts_are_never_floats() -> None:
    assert read(b'{"a": 0.1, "b": 3}') == {"a": Decimal("0.1"), "b": 3}
    assert isinstance(read(b'{"a": 0.5}')["a"], Decimal)


def test_byte_order_mark_is_skipped() -> None:
    assert read(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_nan_and_infinity_become_none() -> None:
    assert read(b'{"a": NaN, "b": -Infinity, "c": 1e99999999999999999999}') == {"a": None, "b": None, "c": None}


def test_integer_of_5000_digits_is_parsed() -> None:
    assert read(b'{"a": ' + b"9" * 5000 + b"}")["a"] == Decimal("9" * 5000)


def test_fraction_of_5000_digits_is_rounded() -> None:
    assert read(b'{"a": 0.' + b"3" * 5000 + b"}")["a"] == Decimal("0." + "3" * 40)


@each_row(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"a": 1} trailing', "not JSON"),
        (b"null", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"[" * 20_000, "nested too deep"),
        (b'{"a":' * 20_000, "nested too deep"),
        (b'{"a":' * 100_000, "more than 50000 values"),
    ],
)
def test_body_that_is_not_a_json_object_is_unexpected(body: bytes, why: str) -> None:
    with pytest.raises(UnexpectedResponse, match=why) as caught:
        read(body)
    assert len(caught.value.body) <= 200
    assert caught.value.__cause__ is None


@each_row(
    ("value", "expected"),
    [
        ('[{"image": "x"}]', [{"image": "x"}]),
        (' {"a": 1}', {"a": 1}),
        ("[not json", "[not json"),
        ("[" * 100_000, "[" * 100_000),
        ("text", "text"),
        (5, 5),
    ],
)
def test_json_in_a_string_is_decoded(value: object, expected: object) -> None:
    assert parse_nested_json(value) == expected


# Numbers, times, words


@each_row(
    ("value", "expected"),
    [
        (8, Decimal(8)),
        ("0.500000", Decimal("0.500000")),
        (" 7 ", Decimal(7)),
        (Decimal("1.25"), Decimal("1.25")),
        (0, Decimal(0)),
        (-1, None),
        ("-0.5", None),
        ("NaN", None),
        ("Infinity", None),
        (Decimal("1e400000"), None),
        ("1E-999999999999999999", None),
        ("0E-999999999999999999", Decimal(0)),
        ("0E+999999", Decimal(0)),
        (Decimal("1E-19"), None),
        (Decimal("1E-18"), Decimal("1E-18")),
        ("0.0500000000000000002775", Decimal("0.05")),
        (Decimal("1E+14"), Decimal(10) ** 14),
        (10**15, None),
        ("1" * 65, None),
        ("many", None),
        (True, None),
        (0.5, None),
        (None, None),
        ([], None),
    ],
)
def test_parse_decimal_accepts_text_and_never_raises(value: object, expected: Decimal | None) -> None:
    amount = parse_decimal(value)
    assert amount == expected
    assert amount is None or len(f"{amount:f}") <= 40


@each_row(
    ("value", "expected"),
    [
        ("2026-03-12T12:00:00.000Z", NOON),
        ("2026-03-12T14:00:00+02:00", NOON),
        (" 2026-03-12 12:00:00 ", NOON),
        ("2026-03-12T12:00:00.000000000Z", NOON),
        (1773316800, NOON),
        (Decimal("1773316800.0"), NOON),
        ("1773316800", NOON),
        (1773316800000, NOON),
        ("1773316800000", NOON),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+05:00", None),
        (0, None),
        (-5, None),
        (999_999_999_999_999, None),
        ("soon", None),
        ("2026-03-12T12:00:00" + "0" * 100_000, None),
        ("\ud800", None),
        (True, None),
        ({}, None),
        (None, None),
    ],
)
def test_parse_time_returns_utc_or_none(value: object, expected: datetime | None) -> None:
    at = parse_time(value)
    assert at == expected
    assert at is None or at.utcoffset() == timedelta(0)


@each_row(
    ("value", "expected"),
    [("nano", "nano"), (" nano ", "nano"), (7, "7"), ("", None), ("a\nb", None), ("x" * 201, None), (True, None)],
)
def test_parse_word_returns_short_printable_text_or_none(value: object, expected: str | None) -> None:
    assert parse_word(value) == expected


@pytest.mark.parametrize("value", ["ta-1", "a b", "ä", "x" * 512, 7])
def test_valid_task_id_is_unchanged(value: object) -> None:
    assert parse_task_id(value) == str(value)
    assert parse_optional_task_id(value) == str(value)


@each_row("value", ["", " ", ".", "..", "a\x00", "a\ud800", "x" * 513, True, None, [], {}])
def test_invalid_task_id_raises(value: object) -> None:
    with pytest.raises(ValueError, match="a task id is"):
        parse_task_id(value)
    assert parse_optional_task_id(value) is None


def test_task_id_with_replacement_character_is_invalid() -> None:
    assert parse_optional_task_id("a\N{REPLACEMENT CHARACTER}") is None


def test_status_is_lower_case_and_short() -> None:
    assert status_word(" In_Progress\n") == "in_progress"
    assert len(status_word("x" * 5000)) == 64


@pytest.mark.parametrize("value", ["", "  ", None, 3, ["pending"]])
def test_invalid_status_raises(value: object) -> None:
    with pytest.raises(ValueError, match="a status is a word"):
        status_word(value)


# Images


@each_row(
    ("value", "expected"),
    [
        ("https://a.example/1.png?sig=x", "https://a.example/1.png?sig=x"),
        ("http://127.0.0.1:8080/1.png", "http://127.0.0.1:8080/1.png"),
        (" https://a.example/one two.png ", "https://a.example/one%20two.png"),
        ("data:image/png;base64,iVBO\r\nRw0K\t Gg==\n", "data:image/png;base64,iVBORw0KGg=="),
        ("data:image/png;base64,-_-_", "data:image/png;base64,+/+/"),
        ("data:image/png;base64,%2B%2f%3D%3D", "data:image/png;base64,+/=="),
        ("data:image/png;base64,iVB", "data:image/png;base64,iVB"),
        ("data:image/png;base64,iVBO", "data:image/png;base64,iVBO"),
        ("DATA:image/svg+xml;charset=utf-8;base64,PHN2", "DATA:image/svg+xml;charset=utf-8;base64,PHN2"),
        ("", None),
        (None, None),
    ],
)
def test_image_is_a_url_or_a_data_uri(value: object, expected: str | None) -> None:
    assert parse_image_url(value) == expected


@each_row(
    "value",
    [
        "/generated/1.png",
        "//a.example/1.png",
        "ftp://a.example/1.png",
        "javascript:alert(1)",
        "https://",
        "https://[::1/1.png",
        "https://a.example/\x00.png",
        "https://a.example/\ud800.png",
        "data:text/html;base64,PGI+",
        "data:image/png,raw",
        "data:image/png;base64,iVBO\x1b]0;owned\x07",
        "data:image/png;base64,iVBO\x9b2J",
        "data:image/png;base64,iVBO\u202e",
        "data:image/png;base64,iVBO,iVBO",
        "data:image/png;base64,iVBOR",
        "data:image/png;base64,iV=BO",
        "data:image/png;base64,iVBO%00",
        "data:image/png\x1b;base64,iVBO",
        "data:image/png;charset=\x07;base64,iVBO",
        "data:image/png,iVBO",
        "data:image/png;base64,",
        "iVBORw0KGgo",
        5,
        ["https://a.example/1.png"],
    ],
)
def test_other_values_are_no_image(value: object) -> None:
    with pytest.raises(ValueError, match="an image"):
        parse_image_url(value)
    assert parse_first_image([value, "https://a.example/1.png"], b"").images == ("https://a.example/1.png",)
    nothing = parse_first_image([None, value, value], b"")
    assert nothing.images == ()
    assert [why for _, why in nothing.missing if "an image" in why] == [why for _, why in nothing.missing]


def test_raw_keeps_everything_except_inline_images() -> None:
    inline = "data:image/png;base64," + "A" * 5000
    folded = json.dumps([{"image": inline}])
    assert without_inline_images({"a": [inline, 1, None], "b": folded, "c": "data:,x", "d": "text" * 1000}) == {
        "a": ["<image/png, 5022 characters>", 1, None],
        "b": f"<{folded[5:40].partition(';')[0]}, {len(folded)} characters>",
        "c": "<,x, 7 characters>",
        "d": "text" * 1000,
    }


@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_raw_is_cut_at_a_depth_limit(opening: str) -> None:
    depth = 300
    nested = json.loads(opening * depth + "1" + {"[": "]"}.get(opening, "}") * depth)
    assert str(without_inline_images(nested)).count(opening[0]) == 24
    assert "<nested>" in str(without_inline_images(nested))


def test_parse_running_reads_only_the_status_of_running_tasks() -> None:
    statuses = {"processing": TaskStatus(), "completed": TaskStatus(JobState.SUCCEEDED)}
    running = parse_running({"status": "processing", "task_id": "t-1", "credits_used": "x"}, statuses)
    assert running is not None
    assert (running.task_id, running.state, running.credits_used) == ("t-1", JobState.RUNNING, None)
    for fields in (
        None,
        {"status": "completed", "task_id": "t-1"},
        {"status": "Processing ", "task_id": "t-1"},
        {"status": 7, "task_id": "t-1"},
        {"status": "processing"},
        {"status": "processing", "task_id": "t\n1"},
        {"status": "processing", "task_id": "t" * 513},
    ):
        assert parse_running(fields, statuses) is None


def test_task_id_with_the_masked_api_key_is_refused() -> None:
    with pytest.raises(ValueError, match="contains the API key"):
        parse_task_id("img_***_1")
