"""A secret key, and everything that an application, a log or a crash report can show of an object."""

import base64
import functools
import html
import logging
import pickle
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

import attrs

KEY = "sk-canary/7Q9zX+4bT2&mN8vK"
PASSWORD = "proxy-password-5fG7hJ"


@functools.cache
def fragments_of(word: str) -> tuple[str, ...]:
    """Return what base64 has of a word, wherever it stands in the encoded text."""
    return tuple(_in_base64(word))


def _in_base64(word: str) -> Iterator[str]:
    for before in range(3):
        encoded = base64.b64encode(b"-" * before + word.encode() + b"-" * 3).decode()
        fragment = encoded[4:-8]  # none of these depends on what stands beside it
        yield from {fragment, fragment.translate(str.maketrans("+/", "-_"))}


_ESCAPE = re.compile(r"\\+(?:u00|x)([0-9a-fA-F]{2})")

# How a gateway may echo the key.
ECHOES: Mapping[str, Callable[[str], str]] = {
    "plain": lambda key: key,
    "bearer": lambda key: f"Bearer {key}",
    "inside": lambda key: f"the key {key}, given",
    "lower": str.lower,
    "url": quote,
    "query": lambda key: quote(key, safe=""),
    "url in url": lambda key: quote(quote(key, safe=""), safe=""),
    "html": html.escape,
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "basic": lambda key: base64.b64encode(f"u:{key}".encode()).decode(),
    "json": lambda key: "".join(f"\\u{ord(letter):04x}" for letter in key),
    "slashes": lambda key: key.replace("/", "\\/"),
}


@functools.lru_cache(maxsize=512)  # an object says the same as repr, as str and in its attributes
def seen(text: str, word: str = KEY) -> bool:
    """Return True if a text contains the secret in any of these encodings."""
    unescaped = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    spellings = {text, unquote(text), unquote(unquote(text)), html.unescape(text), unescaped, text.replace("\\/", "/")}
    if any(word.lower() in spelling.lower() for spelling in spellings):
        return True
    return any(fragment in text for fragment in fragments_of(word))


def chain(error: BaseException | None, known: set[int] | None = None) -> Iterator[BaseException]:
    known = set() if known is None else known
    if error is not None and id(error) not in known:
        known.add(id(error))
        yield error
        yield from chain(error.__cause__, known)
        yield from chain(error.__context__, known)
        for inner in getattr(error, "exceptions", ()):
            yield from chain(inner, known)


def pockets(thing: object) -> Iterator[str]:
    """Yield what an object shows: printed, its attributes, pickled; of an error also the locals of its frames."""
    yield from shown_of(thing)
    try:
        yield pickle.dumps(thing).decode("latin-1")
    except Exception as error:  # pickling may be refused
        yield repr(error)
    if isinstance(thing, BaseException):
        for link in chain(thing):
            trace = traceback.TracebackException.from_exception(link, capture_locals=True, lookup_lines=False)
            for frame in trace.stack:
                yield repr(frame.locals)


def shown_of(thing: object) -> Iterator[str]:
    """Yield what people and programs see of an object: its texts, its page in a notebook, its attributes."""
    yield repr(thing)
    yield str(thing)
    yield f"{thing}"
    if attrs.has(type(thing)):
        yield repr(attrs.asdict(thing))  # type: ignore[arg-type]
        yield repr(attrs.astuple(thing))  # type: ignore[arg-type]
    if callable(page := getattr(thing, "_repr_html_", None)):
        yield str(page())
    for link in chain(thing if isinstance(thing, BaseException) else None):
        yield str(link)
        yield repr(vars(link))
        yield repr(link.args)
        yield "".join(traceback.format_exception(link))


def sightings(thing: object, *words: str) -> list[str]:
    return [said for said in pockets(thing) for word in words or (KEY, PASSWORD) if seen(said, word)]


def seen_in(said: Iterable[str], *words: str) -> list[str]:
    """Return the texts that contain one of the secrets."""
    return [text[:300] for text in said for word in words if seen(text, word)]


class Listener(logging.Handler):
    """Collects all log records."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{self.format(record)} {vars(record)!r}")


def outcome_of(call: Callable[[], Any]) -> object:
    """Return the result or error of a call; this frame, which is in the traceback, has no other locals."""
    try:
        return call()
    except BaseException as error:
        return error
