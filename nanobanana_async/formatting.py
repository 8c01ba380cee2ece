"""Numbers as people read them."""

from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def seconds(value: float) -> str:
    """Return a duration in its two largest units: "0.4 s", "12 s", "3 min 5 s", "2 d 4 h"."""
    if value < 9.95:
        return f"{value:.1f} s"
    left = round(value)
    for (size, unit), (part, smaller) in pairwise(_UNITS):
        rounded = round(left / part) * part
        if rounded >= size:
            rest = rounded % size // part
            return f"{rounded // size} {unit} {rest} {smaller}" if rest else f"{rounded // size} {unit}"
    return f"{left} s"


def number(value: Decimal | int | float) -> str:
    """Return a number with its thousands set apart and without idle zeros."""
    exact = value if isinstance(value, Decimal) else Decimal(str(value))
    text = f"{exact:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int, one: str, many: str | None = None) -> str:
    """Return "1 picture" or "2 pictures"."""
    return f"{value:,} {one if value == 1 else many or f'{one}s'}"


def period(first: datetime, last: datetime) -> str:
    """Return from when to when, naming a day once."""
    start, end = moment(first), moment(last)
    if start == end:
        return start
    day, _, time = end.partition(", ")
    return f"{start.removesuffix(' UTC')} to {time if start.startswith(f'{day}, ') else end}"


def moment(value: datetime) -> str:
    """Return a date and time of day, in UTC."""
    utc = value.astimezone(UTC)
    return f"{utc.day} {utc:%b %Y, %H:%M} UTC"
