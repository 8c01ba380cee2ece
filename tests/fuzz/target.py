"""What is fuzzed: a function that parses input from outside, and the errors that it may raise.

An input is always the bytes of a file, so that what fails can be kept in `corpus/` and played again as it is.
"""

import hashlib
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from attrs import define, field, frozen
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"
MOST_WORK_S = 5.0
"""Processor time of one input: more is a hang. Inputs are small, and take less than a millisecond."""
LONGEST_INPUT = 8192

Shapes = st.SearchStrategy[bytes]


@frozen(kw_only=True)
class Target:
    """A parser under test."""

    name: str
    run: Callable[[bytes], object]
    """Parses the input, and checks what comes of it with `assert`."""
    errors: tuple[type[Exception], ...] = ()
    """What it may raise; anything else is a fault."""
    seeds: tuple[bytes, ...] = (b"",)
    words: tuple[bytes, ...] = ()
    """What inputs are likely to be made of."""
    shapes: Shapes | None = None
    """Inputs of the right form with any values, where bytes alone would seldom get past the form."""
    cost: int = 1
    """How long an execution takes, compared with others: a long one gets a smaller part of the executions."""

    def play(self, data: bytes) -> bool:
        """Parse an input; return whether it was accepted. Raises what is not allowed, and `TooMuchWork`."""
        try:
            with _bounded():
                self.run(data)
        except self.errors:
            return False
        return True

    @property
    def inputs(self) -> Shapes:
        """Inputs for hypothesis: of the right form, changed seeds, any bytes."""
        return st.one_of(*([] if self.shapes is None else [self.shapes]), self.changed_seeds, st.binary(max_size=400))

    @property
    def changed_seeds(self) -> Shapes:
        """Seeds with some parts replaced, removed, repeated or put in."""
        parts = st.binary(max_size=8) | (st.sampled_from(self.words) if self.words else st.nothing())
        edit = st.tuples(st.integers(0, 1 << 12), st.integers(0, 12), parts, st.integers(1, 3))
        return st.builds(_edited, st.sampled_from(self.seeds), st.lists(edit, max_size=5))

    def corpus(self) -> Iterator[Path]:
        """Yield the files of inputs that once failed."""
        yield from sorted((CORPUS / self.name).glob("*"))


class TooMuchWork(BaseException):
    """An input took more than `MOST_WORK_S` of processor time."""


@define
class Findings:
    """The inputs that failed, one for each place in the code."""

    target: Target
    executions: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    found: dict[str, tuple[bytes, str]] = field(factory=dict)
    """By place: the shortest input, and the traceback."""

    def play(self, data: bytes) -> None:
        """Parse an input, and keep it if it fails."""
        self.executions += 1
        began = time.process_time()
        try:
            self.accepted += self.target.play(data)
        except (Exception, TooMuchWork) as error:
            where, known = place_of(error), self.found.get(place_of(error))
            if known is None or len(data) < len(known[0]):
                self.found[where] = data, "".join(traceback.format_exception(error))[-4000:]
        self.slowest_s = max(self.slowest_s, time.process_time() - began)

    def to_json(self) -> dict[str, Any]:
        """Return the figures, and the places with their inputs in hex."""
        found = {where: [data.hex(), trace] for where, (data, trace) in self.found.items()}
        return {
            "target": self.target.name,
            "executions": self.executions,
            "accepted": self.accepted,
            "slowest_s": self.slowest_s,
            "found": found,
        }


def place_of(error: BaseException) -> str:
    """Return the kind of an error, and the last line of the package that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "nanobanana_async" in Path(frame.filename).parts] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def reduced(target: Target, data: bytes, *, tries: int = 2000) -> bytes:
    """Return a shorter input that fails at the same place."""

    def place(candidate: bytes) -> str | None:
        try:
            target.play(candidate)
        except (Exception, TooMuchWork) as error:
            return place_of(error)
        return None

    wanted, size = place(data), max(1, len(data) // 2)
    while wanted is not None and size and tries > 0:
        for start in range(0, len(data), size):
            tries -= 1
            shorter = data[:start] + data[start + size :]
            if place(shorter) == wanted:
                data = shorter
                break
        else:
            size //= 2
    return data


def kept(target: Target, data: bytes) -> Path:
    """Write an input that failed into the corpus."""
    folder = CORPUS / target.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return path


@contextmanager
def _bounded() -> Iterator[None]:
    def end(_: int, frame: FrameType | None) -> None:
        raise TooMuchWork(f"more than {MOST_WORK_S:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    if signal.getsignal(signal.SIGVTALRM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_WORK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _edited(seed: bytes, edits: list[tuple[int, int, bytes, int]]) -> bytes:
    for position, removed, part, times in edits:
        at = position % (len(seed) + 1)
        seed = seed[:at] + part * times + seed[at + removed :]
    return seed[:LONGEST_INPUT]


# Inputs with several parts are written like an HTTP message: a line, headers, an empty line, a body.


@frozen
class Parts:
    """An input in parts."""

    first: str
    headers: Mapping[str, str]
    body: bytes


def parts_of(data: bytes) -> Parts:
    """Return the parts of an input; one without an empty line is a body."""
    head, mark, body = data.partition(b"\n\n")
    if not mark:
        return Parts("", {}, data)
    first, *lines = head.decode("latin-1").split("\n")
    pairs = (line.partition(":") for line in lines)
    return Parts(first, {name.strip().lower(): value.strip() for name, _, value in pairs}, body)


def joined(first: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the input with these parts."""
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    return "\n".join(line.replace("\n", " ") for line in lines).encode("latin-1", "replace") + b"\n\n" + body


def json_of(data: bytes) -> Any:
    """Return the JSON value of an input; any other input as text, so that it is used too."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "surrogateescape")


def texts_of(data: bytes) -> str:
    """Return any bytes as text, with lone surrogates too."""
    return data.decode("utf-8", "surrogatepass") if _is_text(data) else data.decode("utf-8", "surrogateescape")


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def json_shapes(values: st.SearchStrategy[Any]) -> Shapes:
    """Return a strategy for the JSON of values."""
    return st.builds(lambda value: json.dumps(value).encode(), values)


# What people, tables and other programs write where a number, a text or a time is wanted.
LEAVES: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        [
            *("", " ", "0", "-1", "1e999", "NaN", "2026-01-01T00:00:00Z", "0001-01-01", "9999-12-31T23:59:59+14:00"),
            *(10**400, -(10**20), 1e308, "\0", "\ud800", "\u202e", "[1]", "{}", "[" * 50, "data:image/png;base64,AA"),
        ]
    )
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


def objects_with(names: list[str], values: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for objects with some of these names and any values, also in objects inside."""
    return st.recursive(
        st.dictionaries(st.sampled_from(names), values, max_size=6),
        lambda inner: st.dictionaries(st.sampled_from(names), inner | values, max_size=6),
        max_leaves=6,
    )
