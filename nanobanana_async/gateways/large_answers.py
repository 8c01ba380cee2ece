"""Large answers: the only bulk that an answer may have is base64 text, the images that a gateway sends inline.

All else is bounded before it is parsed: parsing makes twenty times as much memory of `[],[],[],` as it has bytes, and
holds the interpreter's lock in one long call. The inline images of a large answer are lifted out, the rest is parsed,
and an image is put back where it is asked for.
"""

import json
import re
from collections.abc import Iterator

from nanobanana_async.gateways.contract import MIB

LARGE = 64 * 1024
"""A smaller answer is parsed as it is, in no time to speak of."""
MAX_TEXT = MIB
"""How many bytes an answer may have beside its inline images."""
MAX_PARTS = 50_000
"""How many values an answer may have; a legitimate one has about a hundred."""

_MARK = b";base64,"
_OPENERS = (b"[", b"{", b",", b":")
_MAX_MARKS = 1000
_LONGEST_ESCAPE = 16
_FOLDED_AT_MOST = 3
_PIECE = 1 << 20
_SLASH = ord("/")
_TOKEN = re.compile(r"lifted-(\d{1,9})-(\d{1,9})")


class AnswerTooLarge(ValueError):
    """The answer would be costly to parse, and no legitimate one is."""


class AnswerBounds:
    """Looks at an answer piece by piece, as it arrives: what lies between `;base64,` and the next quote is an image."""

    def __init__(self, max_text: int = MAX_TEXT) -> None:
        self._max_text = max_text
        self._text = 0
        self._parts = 0
        self.in_image = False
        self._tail = b""  # a mark may be cut in two
        self._at = 0
        self.images: list[tuple[int, int]] = []
        """Where they begin and end."""

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes; raise `AnswerTooLarge` as soon as there are too many that belong to no image."""
        data = self._tail + piece
        start = self._at - len(self._tail)
        at = 0
        while True:
            if self.in_image:
                quote = data.find(b'"', at)
                if quote < 0:
                    at = len(data)
                    break
                self.images[-1] = (self.images[-1][0], start + quote)
                self.in_image = False
                at = quote
            mark = data.find(_MARK, at)
            if mark < 0:
                text_end = max(at, len(data) - len(_MARK) + 1)
                self._count(data, at, text_end)
                at = text_end
                break
            self._count(data, at, mark + len(_MARK))
            at = mark + len(_MARK)
            self.images.append((start + at, start + at))
            self.in_image = True
        self._tail = data[at:]
        self._at = start + len(data)

    def _count(self, data: bytes, start: int, end: int) -> None:
        self._text += end - start
        self._parts += sum(data.count(opener, start, end) for opener in _OPENERS)
        if self._text > self._max_text:
            raise AnswerTooLarge(f"the answer has more than {self._max_text} bytes beside its images")
        if self._parts > MAX_PARTS or len(self.images) > _MAX_MARKS:
            raise AnswerTooLarge(f"the answer has more than {MAX_PARTS} values")


def lift_inline_images(body: bytes) -> bytes:
    """Return an answer's JSON with a token in place of each inline image's base64; raise `AnswerTooLarge`."""
    bounds = AnswerBounds()
    for start in range(0, len(body), _PIECE):
        bounds.feed(body[start : start + _PIECE])
    if bounds.in_image:
        raise ValueError("the answer ends within an image")
    kept: list[bytes] = []
    done = 0
    for start, quote in bounds.images:
        # In JSON that is itself a string the quote is escaped: the backslashes before it are not the image's.
        last = body[max(start, quote - _LONGEST_ESCAPE) : quote]
        end = quote - len(last) + len(last.rstrip(b"\\"))
        if end > start:
            kept += (body[done:start], b"lifted-%d-%d" % (start, end))
            done = end
    return b"".join((*kept, body[done:]))


def lifted_length(text: str) -> int:
    """Return how many characters a text lacks since they were lifted out."""
    return sum(int(token[2]) - int(token[1]) - len(token[0]) for token in _TOKEN.finditer(text))


def restore_inline_image(url: str, body: bytes) -> str:
    """Return a data URI with its base64 text, of the body that it was lifted out of; raise ValueError if it can't be.

    A token that the gateway wrote itself leads to bytes of its own answer, and to nothing else.
    """
    head, _, token = url.rpartition(",")
    place = _TOKEN.fullmatch(token)
    if place is None:
        return url
    start, end = int(place[1]), int(place[2])
    text = head + ","
    for piece in _pieces(body, start, end):
        text += piece  # grows in place: a copy of all would hold the interpreter's lock too long
    return text


def _pieces(body: bytes, start: int, end: int) -> Iterator[str]:
    while start < end:
        stop = min(start + _PIECE, end)
        # No escape is cut in two: a slash ends the only one that base64 has need of.
        while stop < end and body[stop - 1] != _SLASH and b"\\" in body[stop - _LONGEST_ESCAPE : stop]:
            stop += 1
        piece = str(body[start:stop], "ascii")
        for _ in range(_FOLDED_AT_MOST):
            if "\\" not in piece:
                break
            piece = json.loads(f'"{piece}"', strict=False)
        yield piece
        start = stop
