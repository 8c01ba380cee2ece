"""Names of image files: for people, and safe on every file system."""

import hashlib
import re
import string
import unicodedata
from typing import Any

from attrs import field, frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.values import is_absent

FIELDS = ("row", "slug", "key", "metadata")

_MAX_SLUG = 60
_MAX_LENGTH = 120  # with number and extension far below the file systems' limit of 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_EXTENSION = re.compile(r"\.(?:png|jpe?g|webp|gif|avif|heic)$", re.IGNORECASE)
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # devices on Windows
_WIDTH = re.compile(r"0?[1-9]?d?")
_LITERAL = re.compile(r"[A-Za-z0-9._ -]*")
_DERIVED_KEY = re.compile(r"(?:[0-9a-f]{12}-)?[0-9a-f]{32}|task-.*")

# Letters that decomposition leaves as they are.
_ASCII_FOLDING = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "þ": "th"}
)


@frozen(kw_only=True)
class NameFacts:
    """What the name of a job's images may be made of."""

    row: int = 0
    key: str | None = None
    prompt: str | None = None
    metadata: Any = None


@frozen
class NameTemplate:
    """A template of names, checked when it is made: a bad one raises `ConfigurationError`, which names the option.

    A template for many jobs, one that may name a row, needs a field: else all images would have one name.
    """

    option: str
    text: str
    fields: tuple[str, ...] = FIELDS
    _parts: tuple[tuple[str, str | None, str], ...] = field(init=False, repr=False)
    """Literal text, field and format, as `string.Formatter` returns them."""

    def __attrs_post_init__(self) -> None:
        given = self.text
        if not isinstance(given, str) or not (text := _EXTENSION.sub("", given.strip())):
            raise ConfigurationError(f"{self.option} must be a template such as {{row:04}}-{{slug}}, not {given!r}")
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{self.option}: {given!r} is no template: {error}") from None
        parts = tuple(
            (literal, self._checked(name, spec, conversion), spec or "") for literal, name, spec, conversion in parsed
        )
        for literal, _, _ in parts:
            if not _LITERAL.fullmatch(_ascii(literal)):
                why = "only letters, digits, spaces and . _ - can stand in a file name, and folders can't be made"
                raise ConfigurationError(f"{self.option}: {given!r} has {literal!r}: {why}")
        if "row" in self.fields and all(name is None for _, name, _ in parts):
            why = f"has no field, so that all images would have the same name: it takes {self._listed}"
            raise ConfigurationError(f"{self.option}: {given!r} {why}, as in {{row:04}}-{{slug}}")
        object.__setattr__(self, "_parts", parts)

    def _checked(self, name: str | None, spec: str | None, conversion: str | None) -> str | None:
        if name is None:
            return None
        base = name.partition("[")[0]
        metadata = re.fullmatch(r"metadata\[[^\[\]]+\]", name)
        if base not in self.fields or conversion or not (metadata or name in ("row", "slug", "key")):
            raise ConfigurationError(f"{self.option} has {{{name}}}: it takes {self._listed}")
        if spec and (name != "row" or not _WIDTH.fullmatch(spec)):
            why = "only row takes a format, such as {row:04}"
            raise ConfigurationError(f"{self.option} has {{{name}:{spec}}}: {why}")
        return name

    @property
    def _listed(self) -> str:
        return ", ".join("{metadata[NAME]}" if each == "metadata" else f"{{{each}}}" for each in self.fields)

    def stem(self, facts: NameFacts) -> str:
        """Return the name without an extension; raise `InvalidRequest` if the row lacks something that it names."""
        return safe_name("".join(part for part in self._texts(facts)))

    def _texts(self, facts: NameFacts) -> list[str]:
        texts: list[str] = []
        for literal, name, spec in self._parts:
            texts.append(_ascii(literal).replace(" ", "_"))
            match name:
                case None:
                    pass
                case "row":
                    texts.append(format(facts.row, spec))
                case "slug":
                    texts.append(slug(facts.prompt or ""))
                case "key":
                    if facts.key is None:
                        raise InvalidRequest(f"{self.option} has {{key}}, and this row has no key")
                    texts.append(_cleaned(facts.key))
                case _:
                    inner = name.removeprefix("metadata[").removesuffix("]")
                    if is_absent(value := _metadata_value(facts.metadata, inner)):
                        raise InvalidRequest(f"{self.option} has {{{name}}}, and this row's metadata has no {inner!r}")
                    texts.append(_cleaned(str(as_plain_str(value))))
        return texts


def _metadata_value(metadata: Any, name: str) -> Any:
    """Return the metadata of this name; in any case, if only one has it."""
    values = metadata if isinstance(metadata, dict) else {}
    if name in values:
        return values[name]
    found = [
        value for key, value in values.items() if str(as_plain_str(key)).strip().casefold() == name.strip().casefold()
    ]
    return found[0] if len(found) == 1 else None


def row_name(template: NameTemplate | None, facts: NameFacts) -> str:
    """Return the name of the images of a row: by the template, else by its key, else by its number and prompt."""
    if template is not None:
        return template.stem(facts)
    return f"{facts.row:04}-{slug(facts.prompt or '')}" if facts.key is None else safe_name(facts.key)


def default_name(key: str, facts: NameFacts) -> str:
    """Return the name of the images of a single job: its key if a person chose it, else the slug of its prompt."""
    if facts.prompt is not None and _DERIVED_KEY.fullmatch(key):
        return safe_name(slug(facts.prompt))
    return safe_name(key)


def slug(text: str) -> str:
    """Return text in lower case as words of ASCII letters and digits with dashes, of bounded length."""
    words = re.sub(r"[^a-z0-9]+", "-", _ascii(text[:500]).lower()).strip("-")
    if len(words) > _MAX_SLUG:
        cut = words[: _MAX_SLUG + 1].rpartition("-")[0]
        words = cut if len(cut) > _MAX_SLUG // 2 else words[:_MAX_SLUG]
    return words or "image"


def safe_name(key: str) -> str:
    """Return a file name without extension for a key: the key if it is safe, else a similar safe name.

    A leading dot hides a file, a leading dash is read as an option, Windows drops trailing dots.
    """
    name = _cleaned(key)
    if len(name) > _MAX_LENGTH:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{name[: _MAX_LENGTH - 9].rstrip('.-')}-{digest}"
    name = name.lstrip(".-").rstrip(".")
    return f"_{name}" if not name or _RESERVED.fullmatch(name) else name


def _cleaned(text: str) -> str:
    return _UNSAFE.sub("_", _ascii(text))


def _ascii(text: str) -> str:
    """Return text with letters for accented letters: "Gewächshaus" becomes "Gewachshaus"."""
    if text.isascii():
        return text.translate(_ASCII_FOLDING)
    folded = unicodedata.normalize("NFKD", text.translate(_ASCII_FOLDING))
    return "".join(letter for letter in folded if not unicodedata.combining(letter))
