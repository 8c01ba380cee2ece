"""`sweep`: the rows of a batch from a template and lists of values, each value with each other one."""

import itertools
import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nanobanana_async.batch.rows import SweepRow
from nanobanana_async.batch.sweep_values import axis_of_list, axis_of_rows, is_field, join_key_parts, unused
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.validators import shown
from nanobanana_async.values import did_you_mean

MOST_ROWS = 1_000_000_000  # so many are a mistake
_NAME = re.compile(r"[^\W\d][\w -]*")


class Sweep:
    """The rows of a sweep: sized, and made one by one as they are iterated, any number of times."""

    def __init__(
        self, template: str, rows: Iterable[Iterable[Mapping[str, Any]]], values: Mapping[str, Iterable[Any]]
    ) -> None:
        self._parts = _parsed(template)
        self.variables = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))
        """The names in the template."""
        self._axes = [axis_of_rows(each, self.variables) for each in rows]
        self._axes += [axis_of_list(name, values[name], self.variables) for name in values]
        self._check_names()

    def __repr__(self) -> str:
        return f"<Sweep {self.shape}>"

    @property
    def shape(self) -> str:
        """What is crossed with what: "product (4) x style (3)"."""
        return " x ".join(axis.title for axis in self._axes)

    def __len__(self) -> int:
        return math.prod(len(axis.choices) for axis in self._axes)

    def __iter__(self) -> Iterator[SweepRow]:
        for chosen in itertools.product(*(axis.choices for axis in self._axes)):
            metadata: dict[str, Any] = {}
            fields: dict[str, Any] = {}
            for choice in chosen:
                metadata |= choice.metadata
                fields |= choice.fields
            extra = {name.removeprefix("extra."): fields.pop(name) for name in [*fields] if name.startswith("extra.")}
            if extra:
                fields["extra"] = extra
            prompt = "".join(f"{text}{'' if name is None else metadata[name]}" for text, name in self._parts)
            yield SweepRow(
                prompt=prompt,
                **fields,
                key=join_key_parts(part for choice in chosen for part in choice.key),
                metadata=metadata,
            )

    def _check_names(self) -> None:
        given = [name for axis in self._axes for name in axis.names]
        if not given:
            raise ConfigurationError("nothing varies: pass lists, as in sweep('a {pet}', pet=['fox', 'owl'])")
        if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
            raise ConfigurationError(f"{twice[0]} is given twice: give all its values in one list")
        if {"image", "images"} <= set(given):
            raise ConfigurationError("pass image, one reference image a row, or images, several a row, not both")
        if missing := [name for name in self.variables if name not in given]:
            listed = ", ".join(f"{{{name}}}" for name in missing)
            hint = (
                did_you_mean(missing[0], given) or ": pass a list of them, or write {{ and }} for braces in the prompt"
            )
            raise ConfigurationError(f"the template has {listed}, which has no values{hint}")
        for axis in self._axes:
            if not any(name in self.variables or is_field(name) for name in axis.names):
                raise ConfigurationError(unused(axis.names))
            axis.refuse_repeats()
        if (rows := math.prod(len(axis.choices) for axis in self._axes)) > MOST_ROWS:
            raise ConfigurationError(f"{self.shape}: {rows:,} rows are more than {MOST_ROWS:,}: pass fewer values")


def sweep(template: str, /, *rows: Iterable[Mapping[str, Any]], **values: Iterable[Any]) -> Sweep:
    """Return the rows of a template for `generate_many`: one for each combination of the values.

    `sweep("a {product} in {style}", product=["mug", "lamp"], style=["oil", "ink"])` has four rows; the last list varies
    fastest. A list named like a field of `ImageRequest` sets that field: `aspect_ratio`, `resolution`, `num_images`,
    `image` (one reference image a row), `**{"extra.seed": [1, 2]}`. Values that belong together are mappings:
    `sweep(template, [{"product": "mug", "image": "https://..."}, ...], style=[...])`. What varies is the metadata of a
    row; its key is made of the values (`mug-oil`), so that values can be added anywhere to a batch with a name. In a
    batch without a name the key names the files only.

    Raises `ConfigurationError` for a name in the template without values, for a list that would only repeat purchases,
    and for values that are empty, given twice, or of no use for their field.
    """
    return Sweep(template, rows, values)


def _parsed(template: object) -> list[tuple[str, str | None]]:
    """Return the literal texts of a template, each with the name that follows it."""
    if not isinstance(template, str) or not template.strip():
        raise ConfigurationError(
            f"the template must be text such as 'a {{product}} in {{style}}', not {shown(template)}"
        )
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(f"the template {shown(template)}: {error}; write {{{{ or }}}} for a brace") from None
    for _, name, spec, conversion in parsed:
        if name is not None and (spec or conversion or not _NAME.fullmatch(name)):
            written = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
            why = "it takes plain names such as {style}; write {{ and }} for braces in the prompt"
            raise ConfigurationError(f"the template has {written}: {why}")
    return [(text, name) for text, name, _, _ in parsed]
