"""Validate what users pass: numbers, switches, folders, objects. Errors state the name of the setting and what fits."""

import math
import os
import re
from collections.abc import Callable
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from attrs import Attribute

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import as_plain_str

DAY_S = 86_400.0

LONGEST_S = 1e9
"""The longest finite duration, about 32 years. Timers, databases and calendars overflow beyond it."""

LARGEST_COUNT = 10**9

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|file:")  # with `pathlib` only one slash is left; a drive has one letter

Validator = Callable[[Any, "Attribute[Any]", Any], None]


def as_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float = 0.0,
    most: float = LONGEST_S,
    endless: bool = False,
) -> float:
    """Return a real number as a float: Decimal, Fraction and numpy numbers are accepted, text and bool are not.

    With `endless` infinity is accepted too and means "no limit". Raises `ConfigurationError`, which states the range.
    """
    number = _as_float(value)
    bounded = (number > above if above is not None else number >= least) and number <= most
    if bounded or (endless and number == math.inf):
        return number + 0.0  # -0.0 becomes 0.0
    bound = f"above {above:g}" if above is not None else f"of at least {least:g}"
    also = ", or infinite for no limit" if endless else ""
    raise ConfigurationError(f"{name} must be a number {bound} and at most {most:g}{also}, not {shown(value)}")


def as_count(name: str, value: object, *, least: int = 1) -> int:
    """Return a whole number as an int; raise `ConfigurationError`, which states the range."""
    if isinstance(value, Integral) and not isinstance(value, bool) and least <= (count := int(value)) <= LARGEST_COUNT:
        return count
    limits = f"at least {least} and at most {LARGEST_COUNT}"
    raise ConfigurationError(f"{name} must be a whole number of {limits}, not {shown(value)}")


def as_timeout(name: str, value: object) -> float | None:
    """Return a timeout in seconds; None, for no limit, if the value is None or infinity."""
    if value is None:
        return None
    seconds = as_number(name, value, endless=True)
    return None if math.isinf(seconds) else seconds


def within(
    *, above: float | None = None, least: float = 0.0, most: float = LONGEST_S, endless: bool = False
) -> Validator:
    """Return a field validator that also stores the number as a float; see `as_number`."""

    def validate(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
        number = as_number(attribute.name, value, above=above, least=least, most=most, endless=endless)
        _store(settings, attribute, value, number)

    return validate


def at_least_one(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Validate a whole number of at least one, and store it as an int."""
    _store(settings, attribute, value, as_count(attribute.name, value))


def at_least_zero(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Validate a whole number of at least zero, and store it as an int."""
    _store(settings, attribute, value, as_count(attribute.name, value, least=0))


def validate_switch(_: Any, attribute: "Attribute[Any]", value: object) -> None:
    """Validate True or False; see `check_switch`."""
    check_switch(attribute.name, value)


def check_switch(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless the value is True or False. "no" is refused: it would count as True."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {shown(value)}")


def check_kind(name: str, value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raise `ConfigurationError`, which says what is wanted, unless the value is an instance of one of the kinds.

    A class is refused too: it has the attributes of a protocol, as its instances do. The value is not shown, since it
    may be an API key.
    """
    if isinstance(value, type):
        raise ConfigurationError(f"{name} must be {wanted}, not the class {value.__name__}")
    if not isinstance(value, kinds):
        raise ConfigurationError(f"{name} must be {wanted}, not {kind_of(value)}")


def kind_of(value: object) -> str:
    """Return the type of a value in words, for an error message that must not show the value."""
    return "None" if value is None else f"an object of type {type(value).__name__}"


def as_folder(name: str, value: object) -> Path:
    """Return the path of a folder with `~` expanded; raise `ConfigurationError` for an empty one or a URL.

    An empty path would be the current folder, a URL a local folder of that name.
    """
    return _as_local_path(name, value, "the path of a folder", "'.' is the current folder")


def as_file(name: str, value: object) -> Path:
    """Return the path of a file with `~` expanded; raise `ConfigurationError` for an empty one or a URL."""
    return _as_local_path(name, value, "the path of a file", "such as 'jobs.sqlite'")


def _as_local_path(name: str, value: object, wanted: str, hint: str) -> Path:
    path = as_plain_str(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise ConfigurationError(f"{name} must be {wanted}, not {shown(value)}; {hint}")
    if _URL.match(path):
        url = re.sub("//.*@", "//***@", path)  # it may hold a password
        raise ConfigurationError(f"{name} must be {wanted} on this machine, not the URL {shown(url)}; {hint}")
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # `~name` of no user, or no name; a process without a home
        raise ConfigurationError(f"{name} is {shown(path)}, and that home folder is not known: write it out") from None


def shown(value: object) -> str:
    """Return a short form of any value for an error message."""
    try:
        text = str(value) if isinstance(value, Decimal) else repr(value)
    except Exception:  # for example for an int with more digits than Python prints
        text = f"this {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _as_float(value: object) -> float:
    """Return a number as a float; NaN for anything else, and for a finite number that exceeds the floats."""
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        return math.nan
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an int beyond all floats; a signalling NaN
        return math.nan
    overflown = math.isinf(number) and isinstance(value, Decimal) and value.is_finite()
    return math.nan if overflown else number


def _store(settings: Any, attribute: "Attribute[Any]", given: object, number: float) -> None:
    if type(given) is not type(number):
        object.__setattr__(settings, attribute.name, number)  # the settings are frozen, and still being created
