"""Why a picture was not had this time; the caller of the library sees the `DownloadError` made of it."""

import binascii
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes


class FetchError(Exception):
    """What hinders a picture: `again` if another attempt may help, `gone` if its link opens nothing any more.

    `wait_s` is what the server asked us to wait. `unwritable` says that the folder is at fault, not the image: no other
    image could be saved there either.
    """

    def __init__(
        self,
        why: str,
        *,
        retryable: bool = False,
        link_expired: bool = False,
        wait_s: float | None = None,
        unwritable: bool = False,
    ) -> None:
        super().__init__(why)
        self.why = why
        self.retryable = retryable
        self.link_expired = link_expired
        self.wait_s = wait_s
        self.unwritable = unwritable


_PIECE = 1 << 20  # decoding holds the interpreter's lock: in pieces, so that other threads have their turn
_MAX_HEAD = 1000


def is_inline(url: str) -> bool:
    return url[:5].lower() == "data:"


def inline_pieces(uri: str, max_bytes: int) -> Iterator[bytes]:
    """Yield what a data URI holds, piece by piece; its media type is not asked, and missing padding is forgiven."""
    comma = uri.find(",", 5, _MAX_HEAD)
    if comma < 0:
        raise FetchError("the data URI holds no data")
    # Percent signs may triple what base64 has lengthened by a third: what is longer still must be too large.
    if len(uri) - comma > 4 * (max_bytes + 3):
        raise _too_large(max_bytes)
    options = (option.strip().lower() for option in uri[5:comma].split(";")[1:])
    pieces = _unquoted(uri, comma + 1)
    size = 0
    for piece in _decoded(pieces) if "base64" in options else pieces:
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield piece


def _unquoted(uri: str, start: int) -> Iterator[bytes]:
    while start < len(uri):
        end = start + _PIECE
        escape = uri.find("%", end - 2, end)
        if escape >= 0:  # it must not be cut in two
            end = escape
        try:
            yield unquote_to_bytes(uri[start:end])
        except UnicodeEncodeError:  # half a character
            raise _improper() from None
        start = end


def _decoded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    left, padded = b"", False
    for piece in pieces:
        text = left + piece.translate(None, b" \t\r\n")
        digits = text.rstrip(b"=")
        if padded and digits:
            raise _improper()
        padded = padded or len(digits) < len(text)
        whole = len(digits) if padded else len(digits) // 4 * 4
        left = digits[whole:]
        yield _base64(digits[:whole])
    yield _base64(left)


def _base64(digits: bytes) -> bytes:
    try:
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)
    except binascii.Error:
        raise _improper() from None


def _improper() -> FetchError:
    return FetchError("the data URI is not proper base64")


def _too_large(max_bytes: int) -> FetchError:
    return FetchError(f"the picture is larger than {max_bytes} bytes")
