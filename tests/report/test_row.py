"""Rows as lines of JSON."""

import json
from datetime import timedelta
from decimal import Decimal

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.report import ReportRow
from tests.support.reports import START, row, without_image
from tests.support.rows import each_row


def test_a_row_survives_the_round_trip() -> None:
    whole = row(3, metadata={"shelf": ["a", 1, None]}, error="one of two", slots=2, credits=Decimal("0.1"))
    whole = evolve(whole, missing=("image 2: not a URL",))
    assert ReportRow.from_json(whole.to_json()) == whole
    assert ReportRow.from_json(ReportRow(index=0, job_key="", status="invalid").to_json()).credits is None


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_is_one_line_of_utf_8(text: str) -> None:
    line = row(prompt=text, error=text, metadata={text: text}).to_json()
    assert len(line.splitlines()) == 1
    assert ReportRow.from_json(line.encode()).prompt == text


def test_non_ascii_text_is_not_escaped() -> None:
    assert "灯台" in row(prompt="灯台").to_json()


def test_values_without_a_json_type_become_strings() -> None:
    odd = {"nan": float("nan"), "when": START, "price": Decimal("1.50"), "set": {1}, 5: (1, 2)}
    facts = json.loads(row(metadata=odd).to_json(), parse_constant=pytest.fail)
    assert facts["metadata"] == {
        "nan": "nan",
        "when": START.isoformat(),
        "price": "1.50",
        "set": "{1}",
        "5": [1, 2],
    }


def test_unknown_fields_are_ignored() -> None:
    line = json.dumps(json.loads(row().to_json()) | {"mood": "fog"})
    assert ReportRow.from_json(line) == row()


@each_row(
    "line",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"index": 0, "job_key": "a", "status": "lost"}',
        '{"index": 0, "job_key": "a", "status": "failed", "credits": "many"}',
        '{"index": 0, "job_key": "a", "status": "failed", "credits": "NaN"}',
        '{"index": 0, "job_key": "a", "status": "failed", "sent_at": "2026-03-14T09:26:53"}',
        '{"index": 0, "job_key": "a", "status": "failed", "sent_at": "yesterday"}',
        '{"index": 0, "job_key": "a", "status": "failed", "images": 7}',
        "[" * 100_000,
    ],
)
def test_other_content_raises_value_error(line: str) -> None:
    with pytest.raises(ValueError, match="not a row of results"):
        ReportRow.from_json(line)


def test_seconds_are_not_negative_and_need_both_times() -> None:
    assert row().seconds == 8.0
    assert row(sent_at=START, ended_at=START - timedelta(seconds=5)).seconds == 0.0
    assert without_image(0, "unfinished", ended_at=None).seconds is None


def test_deep_nesting_and_self_reference_raise() -> None:
    deep: object = None
    for _ in range(101):
        deep = (deep,)
    itself: list[object] = []
    itself.append({"again": itself})
    for odd in (deep, itself):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            row(metadata=odd).to_json()


def test_a_very_long_integer_becomes_hexadecimal() -> None:
    facts = json.loads(row(metadata=[10**5000, -(10**5000), 10**3999]).to_json())
    assert facts["metadata"] == [hex(10**5000), hex(-(10**5000)), 10**3999]
