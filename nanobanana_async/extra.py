"""Fields of a request that this library has no name for: JSON values, passed on to the gateway as they are."""

import json
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from numbers import Integral
from typing import Any, NoReturn

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.values import is_absent

MAX_DEPTH = 16
"""Levels of lists and objects in a value."""


class ExtraFields(Mapping[str, Any]):
    """Names and JSON values; frozen and hashable. Equal ones have the same JSON text with sorted names.

    So 1, 1.0 and True are different values, as they are for the gateway. Lists and objects are returned as copies.
    """

    __slots__ = ("_text", "_values")

    def __init__(self, fields: Mapping[Any, Any] | None = None) -> None:
        self._values: dict[str, Any] = _object(fields or {}, "extra", 0)
        self._text = json.dumps(self._values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        return deepcopy(value) if isinstance(value, (list, dict)) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ExtraFields):
            return self._text == other._text
        if not isinstance(other, Mapping):
            return NotImplemented
        try:
            return self == ExtraFields(other)
        except InvalidRequest:
            return False

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> "ExtraFields":
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> "ExtraFields":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ExtraFields, (self._values,)


def to_extra(value: Mapping[str, Any] | str | None) -> ExtraFields:
    """Return the fields of a mapping, or of the JSON text of an object; raise `InvalidRequest` for anything else."""
    if isinstance(value, ExtraFields):
        return value
    if is_absent(value):
        return NO_EXTRA
    given: object = value
    if isinstance(value, str):
        try:
            given = json.loads(value, object_pairs_hook=_unique)
        except InvalidRequest:
            raise
        except (ValueError, RecursionError):
            raise InvalidRequest(f'extra must be a JSON object such as {{"seed": 7}}, not {value[:60]!r}') from None
    if not isinstance(given, Mapping):
        raise InvalidRequest(f'extra must be an object of JSON values such as {{"seed": 7}}, not {_kind(given)}')
    return ExtraFields(given) if given else NO_EXTRA


def value_of_text(text: str) -> Any:
    """Return the JSON value that a text is, such as 7 or true; the text itself if it is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"extra has the name {repeated[:60]!r} more than once: keep one")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(fields: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
    for name in fields:
        if not isinstance(name, str) or not name.strip():
            raise InvalidRequest(f"{path}: a name must be text and not empty, not {name!r}")
    return {_text(name, path): _value(fields[name], f"{path}[{name[:60]!r}]", depth + 1) for name in sorted(fields)}


def _value(value: object, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{path[:200]}... is nested deeper than {MAX_DEPTH} levels")
    match value:
        case None | bool():
            return value
        case str():
            return _text(value, path)
        case Integral():
            return _checked_integer(int(value), path)
        case float():
            if not math.isfinite(value):
                raise InvalidRequest(f"{path} is {float(value)}: JSON has no such number")
            return float(value)
        case Mapping():
            return _object(value, path, depth)
        case list() | tuple():
            return [_value(inner, f"{path}[{index}]", depth + 1) for index, inner in enumerate(value)]
        case _:
            raise InvalidRequest(f"{path} must be a JSON value, not {_kind(value)}")


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{path} contains a lone surrogate at index {error.start}") from None
    return str.__str__(text)  # `str` of a str Enum is the name of the member


def _checked_integer(number: int, path: str) -> int:
    try:
        str(number)
    except ValueError:
        raise InvalidRequest(f"{path} has more digits than a number may have") from None
    return number


def _kind(value: object) -> str:
    return type(value).__name__


NO_EXTRA = ExtraFields()
