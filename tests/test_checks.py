"""Validators of settings: a wrong number is refused at birth, by name."""

import math
from typing import Any

import pytest
from attrs import field, frozen

from nanobanana_async.checks import at_least_one, not_negative, positive
from nanobanana_async.errors import ConfigurationError


@frozen(kw_only=True)
class Settings:
    above: Any = field(default=1, validator=positive)
    from_zero: Any = field(default=0, validator=not_negative)
    count: Any = field(default=1, validator=at_least_one)


@pytest.mark.parametrize("value", [0.001, 1, 10**9, math.inf])
def test_numbers_above_zero_are_positive(value: float) -> None:
    assert Settings(above=value).above == value


@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, -math.inf, "1", None, True])
def test_what_is_not_a_number_above_zero_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigurationError, match="above must be a number above 0"):
        Settings(above=value)


@pytest.mark.parametrize("value", [0, 0.0, 5, math.inf])
def test_zero_is_not_negative(value: float) -> None:
    assert Settings(from_zero=value).from_zero == value


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, "0", None, False])
def test_what_is_negative_or_no_number_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigurationError, match="from_zero must be a number of at least 0"):
        Settings(from_zero=value)


@pytest.mark.parametrize("value", [1, 2, 10**6])
def test_whole_numbers_of_at_least_one_are_counts(value: int) -> None:
    assert Settings(count=value).count == value


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True])
def test_what_is_no_whole_number_of_at_least_one_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigurationError, match="count must be a whole number of at least 1"):
        Settings(count=value)
