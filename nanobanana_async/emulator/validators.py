"""Validators of the emulator's settings: each number must be real, finite and in its range."""

import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from attrs import Attribute

Validator = Callable[[Any, "Attribute[Any]", Any], None]


def number(
    *, above: float | None = None, least: float = 0.0, most: float = 1e9, whole: bool = False, endless: bool = False
) -> Validator:
    """Return a validator; with `endless` infinity is taken too, for what never comes or never ends."""
    kind = "a whole number" if whole else "a number"
    bound = f"above {above:g}" if above is not None else f"of at least {least:g}"
    also = ", or infinite" if endless else ""

    def validate(_: Any, attribute: "Attribute[Any]", value: object) -> None:
        if isinstance(value, int if whole else (int, float, Fraction)) and not isinstance(value, bool):
            bounded = (value > above if above is not None else value >= least) and value <= most
            if bounded or (endless and value == math.inf):
                return
        raise ValueError(f"{attribute.name} must be {kind} {bound} and at most {most:g}{also}")

    return validate


PROBABILITY = number(most=1)


def credits_or_none(value: Decimal | int | str | None) -> Decimal | None:
    """Return an amount of credits as it was written; None is endless."""
    return None if value is None else price(value)


def price(value: Decimal | int | str) -> Decimal:
    """Return an amount of credits as it was written."""
    try:
        amount = Decimal("NaN") if isinstance(value, bool) else Decimal(value)
    except (InvalidOperation, TypeError, ValueError):
        amount = Decimal("NaN")
    if not amount.is_finite() or (amount and not -12 <= amount.adjusted() < 12):
        raise ValueError("an amount of credits must be a finite number below 1e12, or 0, of at most 12 decimal places")
    return amount
