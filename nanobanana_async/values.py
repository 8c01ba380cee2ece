"""Read the values of requests as tables, data frames and people write them: NaN for nothing, "2" for 2, "2k" for "2K".

Only what is unambiguous is accepted. Anything else is refused with the value that was probably meant.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import time
from decimal import Decimal
from numbers import Integral, Rational, Real
from typing import Any
from uuid import UUID

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.escaping import as_plain_str

_MAX_KEY = 255
_MISSING_TYPES = frozenset({"NAType", "NaTType"})  # of pandas, which is no dependency

# A spreadsheet takes 16:9 for a time of day, and shows it as 16:09 or 16:09:00.
_RATIO = re.compile(r"0*([1-9]\d*(?:\.\d+)?)\s*[:\uff1a\u2236]\s*0*([1-9]\d*(?:\.\d+)?)(?:\s*:\s*00?)?", re.ASCII)
_OTHER_RATIO = re.compile(r"\s*([1-9]\d?)\s*(?:[x\u00d7*/;,-]|to|by)\s*([1-9]\d?)\s*", re.ASCII | re.IGNORECASE)


def is_absent(value: object) -> bool:
    """Return whether a value means that there is none: None, empty text, NaN, and NA and NaT of pandas."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, int):  # asked first: the abstract types below are slow to ask for
        return False
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, Real) and not isinstance(value, Integral):
        return math.isnan(value)
    return type(value).__name__ in _MISSING_TYPES


def as_text(name: str, value: object) -> str:
    """Return printable text without surrounding spaces."""
    if not isinstance(value, str) or not (text := value.strip()).isprintable():
        raise InvalidRequest(f"{name} must be printable text, not {_shown(value)}")
    return text


def as_small_count(name: str, value: object, most: int) -> int:
    """Return a whole number from 1 on; 2.0, "2" and numpy's integers are whole numbers too."""
    number = whole_number(value)
    if number is None or not 1 <= number <= most:
        raise InvalidRequest(f"{name} must be a whole number from 1 to {most}, not {_shown(value)}")
    return number


def whole_number(value: object) -> int | None:
    """Return a whole number that is given as an integer, as text or as a float; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, Integral)):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}(?:\.0*)?\s*", value, re.ASCII):
        return int(float(value))
    if isinstance(value, Decimal) or (isinstance(value, Real) and not isinstance(value, Rational)):
        whole = math.isfinite(value) and value % 1 == 0
        return int(f"{value:.0f}") if whole else None
    return None


def as_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return one of some words, which may be written in any case."""
    allowed = {choice.casefold(): choice for choice in choices}
    if isinstance(value, str) and (choice := allowed.get(value.strip().casefold())) is not None:
        return choice
    hint = did_you_mean(value, allowed.values())
    raise InvalidRequest(f"{name} must be one of {', '.join(allowed.values())}, not {_shown(value)}{hint}")


def as_ratio(name: str, value: object) -> str:
    """Return an aspect ratio as "16:9"; also the time of day into which a spreadsheet turns it."""
    if isinstance(value, time):
        value = f"{value.hour}:{value.minute}" if value.second == 0 else value.isoformat()
    text = value.strip() if isinstance(value, str) else ""
    if ratio := _RATIO.fullmatch(text):
        return f"{ratio[1]}:{ratio[2]}"
    meant = _OTHER_RATIO.fullmatch(text)
    hint = f": did you mean {meant[1]}:{meant[2]}?" if meant else ""
    raise InvalidRequest(f"{name} must be two numbers such as 16:9, not {_shown(value)}{hint}")


def as_key_text(key: object) -> object:
    """Return a key as text if it is a whole number or a UUID; any other value as it is."""
    if isinstance(key, UUID):
        return str(key)
    if isinstance(key, str):
        return as_plain_str(key)
    number = whole_number(key)
    return key if number is None else str(number)


def validate_row_key(key: object) -> str:
    """Return the key of a row of a named batch, from which its job's key is derived; raise `InvalidRequest`."""
    text = as_key_text(key)
    if not isinstance(text, str) or not text.strip() or len(text) > _MAX_KEY or not text.isprintable():
        raise InvalidRequest(f"key must be printable text of 1 to {_MAX_KEY} characters")
    return text


def did_you_mean(given: object, names: Iterable[str]) -> str:
    """Return ": did you mean NAME?" if the text is nearly one of the names, else nothing."""
    folded = {name.casefold(): name for name in names}
    text = given.strip().casefold() if isinstance(given, str) else ""
    near = difflib.get_close_matches(text, folded, n=1, cutoff=0.7)
    return f": did you mean {folded[near[0]]}?" if near else ""


def to_mapping(item: object) -> Mapping[Any, Any] | None:
    """Return a mapping, or a row of a pandas DataFrame, as a mapping; None for anything else."""
    if isinstance(item, Mapping):
        return item
    index = getattr(item, "index", None)
    if index is not None and not callable(index) and callable(getattr(item, "to_dict", None)) and "prompt" in index:
        return dict(item.to_dict())  # type: ignore[attr-defined]
    return None


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # such as for an int with more digits than Python prints
        text = f"this {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
