"""What callers say about turns: priorities, groups and their weights."""

from collections.abc import Mapping
from numbers import Integral

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.validators import as_number, shown

MOST_PRIORITY = 100
LONGEST_NAME = 200


def check_priority(priority: object) -> int:
    """Return a priority as an int; raise `ConfigurationError`, which states the range."""
    if isinstance(priority, Integral) and not isinstance(priority, bool):
        number = int(priority)
        if -MOST_PRIORITY <= number <= MOST_PRIORITY:
            return number
    limits = f"from {-MOST_PRIORITY} to {MOST_PRIORITY}, higher ones first"
    raise ConfigurationError(f"priority must be a whole number {limits}, not {shown(priority)}")


def check_group(group: object) -> str | None:
    """Return the name of a group, None for none; raise `ConfigurationError` for anything else."""
    if group is None:
        return None
    if not isinstance(group, str) or not (0 < len(group.strip()) <= len(group) <= LONGEST_NAME and group.isprintable()):
        limits = f"printable text of 1 to {LONGEST_NAME} characters, the name of a user or a tenant, or None"
        raise ConfigurationError(f"group must be {limits}, not {shown(group)}")
    return as_plain_str(group)


def as_weights(weights: object) -> dict[str, float]:
    """Return the weights of groups by their names; raise `ConfigurationError` for anything else."""
    if not isinstance(weights, Mapping):
        raise ConfigurationError(f"group_weights must be a mapping such as {{'alice': 2.0}}, not {shown(weights)}")
    named: dict[str, float] = {}
    for group, weight in weights.items():
        if (name := check_group(group)) is None:
            raise ConfigurationError("group_weights has a weight for None: jobs without a group have the weight 1")
        named[name] = as_number(f"the weight of group {name!r}", weight, above=0.0)
    return named
