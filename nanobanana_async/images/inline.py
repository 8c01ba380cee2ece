"""Decode images in `data:` URIs; and `FetchError`, the error of one failed attempt to get an image."""

import binascii
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes


class FetchError(Exception):
    """One failed attempt to get an image; raised to callers as `DownloadError` or `SaveError`.

    `retryable`: another attempt may succeed. `not_yet`: another attempt may succeed if the job has ended moments ago,
    when the host may not have its image yet. `link_expired`: the gateway may have a new link. `wait_s`: the delay that
    the server asked for. `unwritable`: the folder is at fault, so no other image can be saved there either. `status`:
    the HTTP status of an answer that is no image.
    """

    def __init__(
        self,
        reason: str,
        *,
        retryable: bool = False,
        not_yet: bool = False,
        link_expired: bool = False,
        wait_s: float | None = None,
        unwritable: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable
        self.not_yet = not_yet
        self.link_expired = link_expired
        self.wait_s = wait_s
        self.unwritable = unwritable
        self.status = status


_CHUNK = 1 << 20  # decoding holds the GIL: done in chunks, so that other threads can run in between
_MAX_HEAD = 1000


def is_inline(url: str) -> bool:
    """Return whether a link is a data URI."""
    return url[:5].lower() == "data:"


def decode_inline(uri: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the content of a data URI in chunks. Its media type is ignored, and base64 padding may be missing."""
    comma = uri.find(",", 5, _MAX_HEAD)
    if comma < 0:
        raise FetchError("the data URI holds no data")
    # Base64 lengthens the content by a third and percent-encoding at most triples that: a longer URI is too large.
    if len(uri) - comma > 4 * (max_bytes + 3):
        raise _too_large(max_bytes)
    options = (option.strip().lower() for option in uri[5:comma].split(";")[1:])
    chunks = _unquoted(uri, comma + 1)
    size = 0
    for chunk in _base64_decoded(chunks) if "base64" in options else chunks:
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _unquoted(uri: str, start: int) -> Iterator[bytes]:
    while start < len(uri):
        end = start + _CHUNK
        escape = uri.find("%", end - 2, end)
        if escape >= 0:  # an escape must not be split
            end = escape
        try:
            yield unquote_to_bytes(uri[start:end])
        except UnicodeEncodeError:  # a lone surrogate
            raise _invalid_base64() from None
        start = end


def _base64_decoded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest, padded = b"", False
    for chunk in chunks:
        text = rest + chunk.translate(None, b" \t\r\n")
        digits = text.rstrip(b"=")
        if padded and digits:
            raise _invalid_base64()
        padded = padded or len(digits) < len(text)
        complete = len(digits) if padded else len(digits) // 4 * 4
        rest = digits[complete:]
        yield _decode_base64(digits[:complete])
    yield _decode_base64(rest)


def _decode_base64(digits: bytes) -> bytes:
    try:
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)
    except binascii.Error:
        raise _invalid_base64() from None


def _invalid_base64() -> FetchError:
    return FetchError("the data URI is not valid base64")


def _too_large(max_bytes: int) -> FetchError:
    return FetchError(f"the image is larger than {max_bytes} bytes")
