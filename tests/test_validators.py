"""Numbers that users pass: a wrong one is refused with the name of the setting and the range."""

import math
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

import pytest
from attrs import field, frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.validators import (
    DAY_S,
    as_count,
    as_number,
    as_timeout,
    at_least_one,
    shown,
    validate_switch,
    within,
)
from tests.support.rows import each_row


@Real.register
class Float32:
    """A number of another library: a `numbers.Real`, and no float, as numpy's are."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value


class Unprintable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


UNPRINTABLE_INT = pytest.param(10**5000, id="5001 digits")
HUGE = (10**400, -(10**400), Fraction(10**400), Decimal("1E+1000000"), Decimal("1E+999999999999999999"))
NO_NUMBERS = (
    None,
    True,
    False,
    "1",
    b"1",
    [1],
    1j,
    math.nan,
    Decimal("NaN"),
    Decimal("sNaN"),
    UNPRINTABLE_INT,
    Unprintable(),
)


@frozen(kw_only=True)
class Settings:
    above: Any = field(default=1, validator=within(above=0))
    from_zero: Any = field(default=0, validator=within())
    gap: Any = field(default=1, validator=within(above=0, most=DAY_S))
    endless: Any = field(default=1, validator=within(above=0, endless=True))
    count: Any = field(default=1, validator=at_least_one)
    on: Any = field(default=False, validator=validate_switch)


def test_negative_zero_becomes_zero() -> None:
    assert str(as_number("delay_s", -0.0)) == "0.0"


@each_row("value", [0.25, Decimal("0.25"), Fraction(1, 4), Float32(0.25)])
@each_row("name", ["above", "from_zero", "gap", "endless"])
def test_any_real_number_is_stored_as_a_float(name: str, value: object) -> None:
    stored = getattr(Settings(**{name: value}), name)
    assert type(stored) is float
    assert stored == 0.25


@pytest.mark.parametrize("value", [0.001, 1, 10**9])
def test_numbers_above_zero_are_positive(value: float) -> None:
    assert Settings(above=value).above == value


@each_row("value", [0, -1, -0.5, math.inf, -math.inf, Decimal("1E-1000000"), *HUGE, *NO_NUMBERS])
def test_value_not_above_zero_is_refused_by_name_and_range(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^above must be a number above 0 and at most 1e\+09, not ") as caught:
        Settings(above=value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [0, 0.0, 5])
def test_zero_is_not_negative(value: float) -> None:
    assert Settings(from_zero=value).from_zero == value


@each_row("value", [-1, -0.001, math.inf, *HUGE, *NO_NUMBERS])
def test_negative_value_is_refused_by_name_and_range(value: object) -> None:
    with pytest.raises(ConfigurationError, match="from_zero must be a number of at least 0 and at most"):
        Settings(from_zero=value)


@pytest.mark.parametrize("value", [math.inf, Decimal("Infinity")])
def test_infinity_is_accepted_where_it_means_no_limit(value: object) -> None:
    assert Settings(endless=value).endless == math.inf


@each_row("value", [0, -math.inf, *HUGE, *NO_NUMBERS])
def test_number_too_large_for_a_float_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"endless must be a number above 0 .*, or infinite for no limit, not"):
        Settings(endless=value)


def test_upper_bound_is_enforced() -> None:
    assert Settings(gap=DAY_S).gap == DAY_S
    with pytest.raises(ConfigurationError, match="gap must be a number above 0 and at most 86400, not 86401"):
        Settings(gap=86401)


@pytest.mark.parametrize("value", [1, 2, 10**6])
def test_positive_integers_are_counts(value: int) -> None:
    assert Settings(count=value).count == value


@each_row("value", [0, -1, 1.0, math.inf, Decimal(1), *HUGE, *NO_NUMBERS])
def test_invalid_count_is_refused_by_name_and_range(value: object) -> None:
    with pytest.raises(ConfigurationError, match="count must be a whole number of at least 1 and at most 1000000000"):
        Settings(count=value)


def test_count_may_start_at_zero() -> None:
    assert as_count("limit", 0, least=0) == 0
    with pytest.raises(ConfigurationError, match="limit must be a whole number of at least 0"):
        as_count("limit", -1, least=0)


@pytest.mark.parametrize(("value", "seconds"), [(None, None), (math.inf, None), (0, 0.0), (Decimal("1.5"), 1.5)])
def test_none_or_infinite_timeout_is_no_limit(value: object, seconds: float | None) -> None:
    assert as_timeout("timeout", value) == seconds


@each_row("value", [-1, -math.inf, *HUGE, *(value for value in NO_NUMBERS if value is not None)])
def test_timeout_out_of_range_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigurationError, match="timeout must be a number of at least 0"):
        as_timeout("timeout", value)


@pytest.mark.parametrize("value", [0, 1, "no", "False", None])
def test_switch_accepts_only_true_and_false(value: object) -> None:
    assert Settings(on=True).on is True
    with pytest.raises(ConfigurationError, match="on must be True or False"):
        Settings(on=value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (Unprintable(), "this Unprintable"), pytest.param(10**5000, "this int", id="5001 digits")],
)
def test_any_value_is_shown_short(value: object, text: str) -> None:
    assert shown(value) == text
    assert len(shown("x" * 1000)) < 80


def test_custom_bound_is_in_the_message() -> None:
    assert as_number("share", 1, most=1) == 1.0
    with pytest.raises(ConfigurationError, match=r"share must be a number of at least 0 and at most 1, not 1\.5"):
        as_number("share", 1.5, most=1)
