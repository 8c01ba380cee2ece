"""Formatting of numbers, durations and moments."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from nanobanana_async.formatting import (
    age,
    credit_count,
    duration,
    local_time,
    number,
    period,
    plain_number,
    plural,
)
from tests.support.rows import each_row

START = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)


@each_row(
    ("value", "grouped", "plain"),
    [
        (Decimal("4.50"), "4.5", "4.5"),
        (Decimal("0.500000"), "0.5", "0.5"),
        (Decimal("1E+3"), "1,000", "1000"),
        (Decimal("1234567.10"), "1,234,567.1", "1234567.1"),
        (Decimal("0E+3"), "0", "0"),
        (1200, "1,200", "1200"),
        (0.25, "0.25", "0.25"),
    ],
)
def test_numbers_have_no_trailing_zeros(value: Decimal | int | float, grouped: str, plain: str) -> None:
    assert (number(value), plain_number(value)) == (grouped, plain)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(Decimal("1.0"), "1 credit"), (1, "1 credit"), (Decimal("0.5"), "0.5 credits"), (0, "0 credits")],
)
def test_credits_are_singular_or_plural(amount: Decimal | int, text: str) -> None:
    assert credit_count(amount) == text


def test_count_chooses_singular_or_plural() -> None:
    assert [plural(n, "image") for n in (0, 1, 2, 1200)] == ["0 images", "1 image", "2 images", "1,200 images"]
    assert plural(2, "query", "queries") == "2 queries"


@each_row(
    ("value", "text"),
    [
        (-1, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (3599.7, "1 h"),
        (7322, "2 h 2 min"),
        (86399, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_have_at_most_two_units(value: float, text: str) -> None:
    assert duration(value) == text


def test_durations_without_tenths_are_whole_seconds() -> None:
    texts = [duration(value, tenths=False) for value in (-1, 0.4, 9.6, 125)]
    assert texts == ["0 s", "0 s", "10 s", "2 min 5 s"]


@each_row(
    ("seconds", "text"), [(-5, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (10_860, "3h"), (180_000, "2d")]
)
def test_ages_have_one_unit(seconds: int, text: str) -> None:
    assert age(START, START + timedelta(seconds=seconds)) == text


def test_a_period_names_the_same_day_once() -> None:
    assert period(START, START) == "14 Mar 2026, 09:26 UTC"
    assert period(START, START.replace(hour=10)) == "14 Mar 2026, 09:26 to 10:26 UTC"
    assert period(START, START.replace(day=15)) == "14 Mar 2026, 09:26 to 15 Mar 2026, 09:26 UTC"


def test_local_time_names_its_offset() -> None:
    assert datetime.strptime(local_time(START), "%Y-%m-%d %H:%M:%S %z") == START
