"""Parse how much of a running task is done, where a gateway says so."""

import re
from decimal import Decimal

_SHARE = re.compile(r"\s*(\d{1,3}(?:\.\d{1,18})?)\s*(%?)\s*", re.ASCII)


def parse_progress(value: object) -> float | None:
    """Return the share of a task that is done, from 0 to 1; None if it is not stated, or not from 0 to 100.

    "45%" and numbers above 1 are percent, numbers below 1 are shares. A 1 could be either, so it says nothing.
    """
    percent = False
    if isinstance(value, str):
        if (found := _SHARE.fullmatch(value)) is None:
            return None
        value, percent = Decimal(found[1]), bool(found[2])
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    if not 0.0 <= number <= 100.0:  # False for NaN
        return None
    if percent or number > 1.0:
        return number / 100.0
    return number if number < 1.0 else None
