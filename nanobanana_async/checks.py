"""Validators of settings: a wrong number is refused at birth, by name."""

import math
from typing import Any

from attrs import Attribute

from nanobanana_async.errors import ConfigurationError


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def positive(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Refuse what is not a number above zero."""
    if not _is_number(value) or not value > 0:
        raise ConfigurationError(f"{attribute.name} must be a number above 0, not {value!r}")


def not_negative(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Refuse what is not a number of at least zero."""
    if not _is_number(value) or not value >= 0:
        raise ConfigurationError(f"{attribute.name} must be a number of at least 0, not {value!r}")


def at_least_one(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Refuse what is not a whole number of at least one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{attribute.name} must be a whole number of at least 1, not {value!r}")
