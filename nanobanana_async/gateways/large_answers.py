"""Bound the cost of parsing large answers: only inline base64 images may be large.

Everything else is bounded before it is parsed, because parsing `[],[],[],` takes twenty times its size in memory and
holds the interpreter's lock in one long call. The inline images of a large answer are replaced by tokens, the rest is
parsed, and an image is put back where it is used.
"""

import json
import re
from collections.abc import Iterator

from nanobanana_async.gateways.contract import MIB

LARGE = 64 * 1024
"""Bytes. A smaller answer is parsed directly: that takes no time worth saving."""
MAX_TEXT = MIB
"""The bytes that an answer may have outside its inline images."""
MAX_VALUES = 50_000
"""The number of values that an answer may have. A legitimate answer has about a hundred."""

_MARK = b";base64,"
_OPENERS = (b"[", b"{", b",", b":")
_MAX_MARKS = 1000
_LONGEST_ESCAPE = 16
_MAX_ESCAPE_LEVELS = 3
_PIECE = 1 << 20
_SLASH = ord("/")
_TOKEN = re.compile(r"lifted-(\d{1,9})-(\d{1,9})")


class AnswerTooLarge(ValueError):
    """The answer exceeds the bounds of a legitimate one."""


class AnswerBounds:
    """Checks an answer chunk by chunk as it arrives. The text from `;base64,` to the next quote is an image."""

    def __init__(self, max_text: int = MAX_TEXT) -> None:
        self._max_text = max_text
        self._text = 0
        self._parts = 0
        self.in_image = False
        self._tail = b""  # a mark may be split between two chunks
        self._at = 0
        self.images: list[tuple[int, int]] = []
        """The start and end of each image in the answer."""

    def feed(self, piece: bytes) -> None:
        """Check the next chunk; raise `AnswerTooLarge` once there is too much outside images."""
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
            raise AnswerTooLarge(f"the answer has more than {self._max_text} bytes outside its images")
        if self._parts > MAX_VALUES or len(self.images) > _MAX_MARKS:
            raise AnswerTooLarge(f"the answer has more than {MAX_VALUES} values")


def lift_images(body: bytes) -> bytes:
    """Return the JSON with a token in place of each inline image's base64; raise `AnswerTooLarge`."""
    bounds = AnswerBounds()
    for start in range(0, len(body), _PIECE):
        bounds.feed(body[start : start + _PIECE])
    if bounds.in_image:
        raise ValueError("the answer ends inside an image")
    kept: list[bytes] = []
    done = 0
    for start, quote in bounds.images:
        # In JSON inside a string the quote is escaped: the backslashes before it do not belong to the image.
        last = body[max(start, quote - _LONGEST_ESCAPE) : quote]
        end = quote - len(last) + len(last.rstrip(b"\\"))
        if end > start:
            kept += (body[done:start], b"lifted-%d-%d" % (start, end))
            done = end
    return b"".join((*kept, body[done:]))


def lifted_length(text: str) -> int:
    """Return how many characters were replaced by the tokens in a text."""
    return sum(int(token[2]) - int(token[1]) - len(token[0]) for token in _TOKEN.finditer(text))


def restore_inline_image(url: str, body: bytes) -> str:
    """Return a data URI with its token replaced by the base64 text from the body; raise ValueError if that fails.

    A token that the gateway wrote itself can only refer to bytes of its own answer.
    """
    head, _, token = url.rpartition(",")
    place = _TOKEN.fullmatch(token)
    if place is None:
        return url
    start, end = int(place[1]), int(place[2])
    text = head + ","
    for piece in _pieces(body, start, end):
        text += piece  # grows in place: joining all pieces would hold the interpreter's lock too long
    return text


def _pieces(body: bytes, start: int, end: int) -> Iterator[str]:
    while start < end:
        stop = min(start + _PIECE, end)
        # Do not split an escape. The only one that base64 needs is \/, which ends with a slash.
        while stop < end and body[stop - 1] != _SLASH and b"\\" in body[stop - _LONGEST_ESCAPE : stop]:
            stop += 1
        piece = str(body[start:stop], "ascii")
        for _ in range(_MAX_ESCAPE_LEVELS):
            if "\\" not in piece:
                break
            piece = json.loads(f'"{piece}"', strict=False)
        yield piece
        start = stop
