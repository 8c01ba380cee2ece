"""Say which field or argument is meant by a name that is none: a misspelt one, or a word of another API."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, Never, TypeVar

from nanobanana_async.errors import ConfigurationError

T = TypeVar("T")

_OTHER_WORDS = {
    **dict.fromkeys(("size", "width", "height"), "aspect_ratio (such as 16:9) and resolution (1K, 2K or 4K)"),
    **dict.fromkeys(("quality", "image_size"), "resolution (1K, 2K or 4K)"),
    **dict.fromkeys(("n", "count", "number", "num", "num_outputs", "batch_size"), "num_images"),
    **dict.fromkeys(("image", "image_url", "image_urls", "input_image", "init_image", "reference"), "images (a list)"),
    **dict.fromkeys(("format", "output", "response_format", "mime_type"), "output_format (jpeg or png)"),
    **dict.fromkeys(("text", "description", "input"), "prompt"),
    **dict.fromkeys(("ratio", "aspect"), "aspect_ratio (such as 16:9)"),
    "webhook": "callback_url",
    **dict.fromkeys(("seed", "background", "negative_prompt"), "extra (as in extra={'seed': 7})"),
}


def unknown_fields(names: Iterable[object], known: Collection[str], noun: str = "field") -> str:
    """Return what is wrong with names that are no fields, and which field each of them means."""
    given = [str(name) for name in names]
    hints = [f"{name} is {meant} here" for name in given if (meant := _meant(name, known)) is not None]
    listed = f"unknown {noun} {', '.join(given)}"
    return f"{listed}: {'; '.join(hints)}" if hints else f"{listed}: the {noun}s are {', '.join(known)}"


def by_name(kind: type[T]) -> type[T]:
    """Let the constructor of a class of settings say what to pass in place of wrong arguments."""
    init, known = kind.__init__, keywords_of(kind)
    needed = [name for name, each in inspect.signature(kind).parameters.items() if each.default is each.empty]

    @functools.wraps(init)
    def checked(self: T, *args: Any, **settings: Any) -> None:
        if args:
            example = f"{kind.__name__}({known[0]}=...)"
            raise ConfigurationError(f"pass the settings of {kind.__name__} by name, as in {example}")
        if unknown := [name for name in settings if name not in known]:
            raise ConfigurationError(f"{kind.__name__}: {unknown_fields(unknown, known, 'setting')}")
        if missing := [name for name in needed if name not in settings]:
            call = f"{kind.__name__}({', '.join(f'{name}=...' for name in needed)})"
            raise ConfigurationError(f"{kind.__name__} needs {', '.join(missing)}: {call}")
        init(self, **settings)

    kind.__init__ = checked  # type: ignore[method-assign, assignment]
    return kind


def has_result(result: type) -> Callable[[type[T]], type[T]]:
    """Let an attribute of the result that is read from a handle say to await it. Type checkers know of none."""

    def missing(self: object, name: str) -> Never:
        hint = f": its result has, `(await job).{name}`" if hasattr(result, name) else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)

    def decorate(kind: type[T]) -> type[T]:
        kind.__getattr__ = missing  # type: ignore[attr-defined]
        return kind

    return decorate


def keywords_of(call: Callable[..., object]) -> list[str]:
    """Return the names of the arguments that may be passed by name."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(call).parameters.values()
    return [each.name for each in parameters if each.kind in kinds and each.name != "self"]


def _meant(name: str, known: Collection[str]) -> str | None:
    word = name.strip().casefold().replace("-", "_").replace(" ", "_")
    if word == "key" and "idempotency_key" in known:
        return "idempotency_key"
    if (other := _OTHER_WORDS.get(word)) is not None and other.split()[0] in known:
        return other
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.7)), None)
