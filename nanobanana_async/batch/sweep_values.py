"""The values of a sweep: checked before anything is bought, each with its part of the key of a row."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from numbers import Integral, Real
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.models import REQUEST_FIELDS, ImageRequest, Reference
from nanobanana_async.references import LocalImage
from nanobanana_async.validators import kind_of, shown
from nanobanana_async.values import did_you_mean, is_absent, validate_row_key

FIELDS = (*(name for name in REQUEST_FIELDS if name not in ("prompt", "callback_url", "extra")), "image")
"""What can vary beside the variables of the template; `extra.NAME` can, too."""
MOST_VALUES = 100_000  # of one list: a generator without an end ends here

_LONGEST_PART, _LONGEST_KEY = 60, 200
_LARGEST = 10**100  # of whole numbers: Python makes no text of much larger ones
_FORBIDDEN = {
    "prompt": "the template is the prompt, with the variables in braces",
    "metadata": "what varies is the metadata of a row by itself",
    "extra": "its values vary by name, such as extra.seed",
    "callback_url": "it is the same for all jobs of a session",
}


@frozen
class KeyPart:
    """A part of the key of a row, and where in the key it stands.

    The place is that of the name in the template, behind it that of the field: so the order of the lists
    changes no key, and no row is bought again for it.
    """

    place: tuple[int, str]
    text: str


@frozen
class Choice:
    """One value of a list, or one of the rows whose values go together."""

    key: tuple["KeyPart", ...]
    """Its parts of the key of a row."""
    metadata: dict[str, Any]
    fields: dict[str, Any]


@frozen
class Axis:
    """A list of choices that is crossed with the other ones."""

    names: tuple[str, ...]
    choices: tuple[Choice, ...]

    @property
    def title(self) -> str:
        """What varies, and how many values it has: "style (3)"."""
        return f"{'+'.join(self.names)} ({len(self.choices)})"

    def refuse_repeats(self) -> None:
        """Raise `ConfigurationError` if two choices would be the same rows, and bought twice."""
        first: dict[str, int] = {}
        for number, choice in enumerate(self.choices, 1):
            key = join_key_parts(choice.key)
            if (earlier := first.setdefault(key, number)) == number:
                continue
            unit = "values" if len(self.names) == 1 else "rows"
            names = f"{', '.join(self.names)}: {unit} {earlier} and {number}"
            if choice.fields != self.choices[earlier - 1].fields and unit == "values":
                raise ConfigurationError(
                    f"{names} are different and both named {key!r}, as their rows would be: pass rows with a key, such"
                    f" as {{'key': 'front', '{self.names[0]}': ...}}, or a --vary-file with a column key"
                )
            raise ConfigurationError(
                f"{names} are both {key!r}, and would be bought twice:"
                f" leave one out{'' if unit == 'values' else ', or give each row a key'}"
            )


def is_field(name: str) -> bool:
    """Return whether a name sets a field of the request."""
    return name in FIELDS or (name.startswith("extra.") and len(name) > len("extra."))


def axis_of_list(name: str, values: Iterable[Any], used: tuple[str, ...]) -> Axis:
    """Return the axis of one name; `used` are the names in the template."""
    check_name(name)
    if name == "key":
        raise ConfigurationError("key can't vary alone: rows whose values go together may have a key")
    choices = [_choice(f"{name}, value {number}", {name: value}, used) for number, value in _numbered(name, values)]
    return _axis(name, (name,), choices)


def axis_of_rows(rows: Iterable[Mapping[str, Any]], used: tuple[str, ...]) -> Axis:
    """Return the axis of rows whose values go together. What is neither in the template nor a field is metadata."""
    for method, call in (("itertuples", ".to_dict('records')"), ("iter_rows", ".to_dicts()")):
        if callable(getattr(rows, method, None)):
            raise ConfigurationError(f"rows must be a list of mappings: call {call} on the DataFrame")
    names: dict[str, None] = {}
    choices: list[Choice] = []
    for number, row in _numbered("rows", rows):
        if not isinstance(row, Mapping):
            raise ConfigurationError(f"row {number} must be a mapping such as {{'product': 'mug'}}, not {kind_of(row)}")
        names |= dict.fromkeys(map(check_name, row))
        choices.append(_choice(f"row {number}", row, used))
    names.pop("key", None)
    for name in used:
        if name in names and (bad := [at for at, each in enumerate(choices, 1) if name not in each.metadata]):
            raise ConfigurationError(f"row {bad[0]} has no {name}, which is in the template")
    return _axis("rows", tuple(names), choices)


def check_name(name: object) -> str:
    """Return the name of what varies; raise `ConfigurationError` for one that can't."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"the name of a variable must be text, not {shown(name)}")
    if name in _FORBIDDEN:
        raise ConfigurationError(f"{name} can't vary: {_FORBIDDEN[name]}")
    return name


def unused(names: tuple[str, ...]) -> str:
    """Return what to do about names that would multiply the rows without changing them."""
    hint = next(filter(None, (did_you_mean(name, FIELDS) for name in names)), "")
    return (
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not in the template, so that equal prompts would"
        f" be bought again and again: write {{{names[0]}}} into it, or leave it out{hint}"
        f"{'' if hint else ' (num_images makes several images of a prompt)'}"
    )


def join_key_parts(parts: Iterable[KeyPart]) -> str:
    """Return the key of a row: the parts in their order with - between them; no other parts have the same key."""
    ordered = sorted(parts, key=lambda part: part.place)
    key = "-".join(part.text.replace("-", "--") for part in ordered)
    return key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY].rstrip('-')}~{_digest(key)}"


def _axis(what: str, names: tuple[str, ...], choices: list[Choice]) -> Axis:
    if not choices:
        raise ConfigurationError(f"{what} is an empty list: pass the values, or leave it out")
    return Axis(names, tuple(choices))


def _numbered(name: str, values: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    match values:
        case str() | bytes():
            raise ConfigurationError(f"{name} must be a list, not one text: pass [{shown(values)}]")
        case Mapping():
            raise ConfigurationError(f"{name} must be a list, not {kind_of(values)}")
        case Set():
            raise ConfigurationError(f"{name} must be a list: a set has no order, and rows would move from run to run")
    if not isinstance(values, Iterable):
        raise ConfigurationError(f"{name} must be a list, not {shown(values)}: pass [{shown(values)}] for one value")
    for number, value in enumerate(itertools.islice(values, MOST_VALUES + 1), 1):
        if number > MOST_VALUES:
            raise ConfigurationError(f"{name} has more than {MOST_VALUES:,} values")
        yield number, value


def _choice(where: str, row: Mapping[str, Any], used: tuple[str, ...]) -> Choice:
    """Return a choice. Its key is the row's own, or made of what is in the template, or else of the fields.

    A row with a name in the template keeps its key when its fields are edited: the batch then reports the change.
    """
    metadata: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    parts: list[KeyPart] = []
    settings: list[KeyPart] = []
    images = unnamed = ""
    for name, value in row.items():
        if name in ("image", "images"):
            fields["images"] = _field(where, name, value)
            images = "+".join(map(_image_name, fields["images"]))
            unnamed = "" if fields["images"] else "none"
            metadata |= {name: images} if images else {}
            if name in used and not images:
                raise ConfigurationError(f"{where}: {name} is in the template, and has no name here")
        elif is_field(name):
            found = _field(where, name, value)
            text = "default" if found is None else str(found)
            (parts if name in used else settings).append(_part(name, text, used))
            if found is not None:
                fields[name] = metadata[name] = found
            elif name in used:
                raise ConfigurationError(f"{where}: {name} is in the template, and has no value here")
        elif name != "key" and not is_absent(value):
            metadata[name] = _text(where, value) if name in used else value
            parts += [_part(name, str(metadata[name]), used)] if name in used else []
        elif name != "key" and len(row) == 1:
            raise ConfigurationError(f"{where}: it is empty")
    if not is_absent(own := row.get("key")):
        try:
            named = min((*parts, *settings), key=lambda part: part.place, default=None)
            parts = [_part("key" if named is None else named.place[1], validate_row_key(own), used)]
        except InvalidRequest as error:
            raise ConfigurationError(f"{where}: {error.message}") from None
    return Choice(tuple(parts or settings or [_part("images", images or unnamed, used)]), metadata, fields)


def _field(where: str, name: str, value: Any) -> Any:
    """Return the value of a field as a request has it; raise `ConfigurationError` if no request takes it."""
    if name.startswith("extra."):
        if not isinstance(value, (str, bool, Integral, Real)) or is_absent(value):
            raise ConfigurationError(f"{where}: must be text or a number, not {shown(value)}")
        return value if isinstance(value, (str, bool)) else _text(where, value)
    if name == "images" and isinstance(value, str) and value:
        raise ConfigurationError(f"{where}: must be a list, the images of one row; image takes one reference image")
    given: dict[str, Any] = {"images": () if is_absent(value) else [value]} if name == "image" else {name: value}
    try:
        return getattr(ImageRequest("a prompt", **given), "images" if name == "image" else name)
    except (InvalidRequest, ConfigurationError) as error:
        raise ConfigurationError(f"{where}: {error.message}") from None


def _text(where: str, value: Any) -> str | int | float:
    """Return what can stand in a prompt: text, or a number, also numpy's."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        if -_LARGEST < (number := int(value)) < _LARGEST:
            return number
        raise ConfigurationError(f"{where}: the number has more than 100 digits: pass it as text")
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ConfigurationError(f"{where}: must be text or a number, not {shown(value)}")


def _image_name(image: Reference) -> str:
    """Return the name of a reference image without its ending; empty for bytes, which need a key."""
    path = image.name if isinstance(image, LocalImage) else unquote(urlsplit(image).path)
    return PurePosixPath(path).stem


def _part(name: str, text: str, used: tuple[str, ...]) -> KeyPart:
    """Return a text as a part of a key: printable, not long, no - at its ends, and other texts are other parts."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text)[:_LONGEST_PART].strip(" -")
    order = (*used, *FIELDS)
    place = order.index(name) if name in order else len(order)
    return KeyPart((place, name), clean if clean == text and clean else f"{clean}~{_digest(text)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
