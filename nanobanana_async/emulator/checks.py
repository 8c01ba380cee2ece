"""Check request fields and settings.

A check of a request field returns what is wrong, or None. A validator of a setting raises `ValueError`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, cast

from attrs import Attribute

Check = Callable[[object], str | None]

_RATIO = re.compile(r"[1-9]\d{0,3}:[1-9]\d{0,3}")
_URL = re.compile(r"https?://[^\s/]+\S*", re.IGNORECASE)
_URL_OR_DATA = re.compile(r"https?://[^\s/]+\S*|data:.*", re.IGNORECASE | re.DOTALL)
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def one_of(*choices: str) -> Check:
    """Require one of these strings."""

    def check(value: object) -> str | None:
        if not isinstance(value, str):
            return "must be a string"
        return None if value in choices else f"must be one of {', '.join(choices)}"

    return check


def matching(pattern: re.Pattern[str], wrong: str) -> Check:
    """Require a string of this pattern."""

    def check(value: object) -> str | None:
        if not isinstance(value, str):
            return "must be a string"
        return None if pattern.fullmatch(value) else wrong

    return check


def text(value: object) -> str | None:
    """Require a non-empty string."""
    if not isinstance(value, str):
        return "must be a string"
    return None if value.strip() else "must not be empty"


def whole_number(least: int, most: int) -> Check:
    """Require an integer in this range; a boolean is not one."""

    def check(value: object) -> str | None:
        if not isinstance(value, int) or isinstance(value, bool):
            return "must be an integer"
        return None if least <= value <= most else f"must be between {least} and {most}"

    return check


ratio = matching(_RATIO, "must look like 16:9")
url = matching(_URL, "must be an http or https URL")
url_or_data = matching(_URL_OR_DATA, "must be an http or https URL or a data URI")


def urls(most: int | None = None, item_check: Check = url) -> Check:
    """Require an array of at most `most` URLs."""

    def check(value: object) -> str | None:
        if not isinstance(value, list):
            return "must be an array"
        items = cast("list[object]", value)
        if most is not None and len(items) > most:
            return f"must not have more than {most} items"
        return next((f"items {wrong}" for item in items if (wrong := item_check(item))), None)

    return check


def first_error(fields: Mapping[str, Check], required: tuple[str, ...], body: Mapping[str, object]) -> str | None:
    """Return the first error of a body, naming the field, or None."""
    for name in required:
        if body.get(name) is None:
            return f"{name} is required"
    for name, value in body.items():
        if name not in fields:
            return f"{name} is not a parameter of this endpoint"
        if wrong := fields[name](value):
            return f"{name} {wrong}"
    return None


def read_object(headers: Mapping[str, str], body: bytes) -> dict[str, Any] | str:
    """Return the JSON object of a request, or an error message."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        return "Content-Type must be application/json"
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError):
        return "malformed JSON"
    if not isinstance(parsed, dict):
        return "the body must be a JSON object"
    return cast("dict[str, Any]", parsed)


def canonical(body: Mapping[str, object]) -> str:
    """Return a text that is equal for equal JSON objects."""
    return _canonical(body)


Validator = Callable[[Any, "Attribute[Any]", Any], None]


def number_validator(
    *, above: float | None = None, least: float = 0.0, most: float = 1e9, whole: bool = False, endless: bool = False
) -> Validator:
    """Return a validator of a number in a range. `endless` also allows infinity."""
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


PROBABILITY = number_validator(most=1)


def credits_or_none(value: Decimal | int | str | None) -> Decimal | None:
    """Return an amount of credits as an exact decimal; None means unlimited."""
    return None if value is None else price(value)


def price(value: Decimal | int | str) -> Decimal:
    """Return an amount of credits as an exact decimal."""
    try:
        amount = Decimal("NaN") if isinstance(value, bool) else Decimal(value)
    except (InvalidOperation, TypeError, ValueError):
        amount = Decimal("NaN")
    if not amount.is_finite() or (amount and not -12 <= amount.adjusted() < 12):
        raise ValueError("an amount of credits must be a finite number below 1e12, or 0, of at most 12 decimal places")
    return amount or Decimal(0)  # -0 would be shown
