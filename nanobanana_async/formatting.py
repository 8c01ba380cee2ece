"""Format numbers, credits, durations and moments for people."""

from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

_DURATION_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_AGE_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def number(value: Decimal | int | float) -> str:
    """Return a number with thousands separators and without trailing zeros: "1,234.5"."""
    return _without_trailing_zeros(f"{_exact(value):,f}")


def plain_number(value: Decimal | int | float) -> str:
    """Return a number that programs and command-line options can read back: "1234.5"."""
    return _without_trailing_zeros(f"{_exact(value):f}")


def plural(value: int, one: str, many: str | None = None) -> str:
    """Return "1 image" or "2 images"."""
    return f"{value:,} {one if value == 1 else many or f'{one}s'}"


def credit_count(amount: Decimal | int | float) -> str:
    """Return "1 credit" or "2.5 credits"."""
    return f"{number(amount)} {'credit' if amount == 1 else 'credits'}"


def byte_count(value: int) -> str:
    """Return a size in its largest unit: "800 bytes", "2.5 KiB", "32 MiB"."""
    for size, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= size:
            return f"{number(round(Decimal(value) / size, 1))} {unit}"
    return plural(value, "byte")


def duration(seconds: float, *, tenths: bool = True) -> str:
    """Return a duration in its two largest units: "0.4 s", "12 s", "3 min 5 s", "2 d 4 h".

    Below ten seconds it has a decimal, unless `tenths` is False: displays that are redrawn often would flicker.
    """
    if tenths and seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = max(0, round(seconds))
    for (size, unit), (part, smaller) in pairwise(_DURATION_UNITS):
        rounded = round(whole / part) * part
        if rounded >= size:
            rest = rounded % size // part
            return f"{rounded // size} {unit} {rest} {smaller}" if rest else f"{rounded // size} {unit}"
    return f"{whole} s"


def age(then: datetime, now: datetime) -> str:
    """Return how long ago a moment was, in one unit: "45s", "90m", "3h", "2d"."""
    seconds = max(0, int((now - then).total_seconds()))
    for size, unit in _AGE_UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def moment(value: datetime) -> str:
    """Return a date and time of day in UTC: "14 Mar 2026, 09:26 UTC"."""
    utc = value.astimezone(UTC)
    return f"{utc.day} {utc:%b %Y, %H:%M} UTC"


def period(first: datetime, last: datetime) -> str:
    """Return a start and an end in UTC; the day appears once if it is the same."""
    start, end = moment(first), moment(last)
    if start == end:
        return start
    day, _, time = end.partition(", ")
    return f"{start.removesuffix(' UTC')} to {time if start.startswith(f'{day}, ') else end}"


def local_time(value: datetime) -> str:
    """Return a date and time in the local time zone: "2026-03-14 10:26:53 +0100"."""
    return f"{value.astimezone():%Y-%m-%d %H:%M:%S %z}"


def _exact(value: Decimal | int | float) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(str(value))


def _without_trailing_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def shorten(url: str, limit: int = 96) -> str:
    """Cut a long URL for display: a data URI may have megabytes."""
    return url if len(url) <= limit else f"{url[:limit]}... ({len(url)} characters)"
