"""The body of a request, which records whether any of it may have been sent."""

from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

# If aiohttp did not start the request, only the type of the error shows whether anything was sent.
_RAISED_BEFORE_SENDING = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError)


class RequestBody(Payload):
    """A request's body that records whether aiohttp has read it.

    aiohttp holds the headers back until it reads the body, so a body that was not read means that no byte was sent.
    `aiohttp.UploadTracker` can't distinguish that from an upload cut short: it reports both as aborted, and does not
    count bytes given to a connection that broke.
    """

    _autoclose = True

    def __init__(self, value: bytes) -> None:
        super().__init__(value, content_type="application/json")
        self._size = len(value)
        self.started = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        self.started = True
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body, unless the connection already holds an answer, which can't belong to this request."""
        protocol: Any = getattr(writer, "protocol", None)
        if protocol is not None and protocol.should_close:
            raise ConnectionError("the connection holds an answer before the request was sent")
        self.started = True
        await writer.write(self._value)


def possibly_sent(error: Exception, body: RequestBody | None, tracker: aiohttp.UploadTracker | None) -> bool:
    """Return False only if certainly no byte of the request was sent."""
    if body is None or tracker is None or tracker.attempts == 0:
        return not isinstance(error, _RAISED_BEFORE_SENDING)
    return body.started


def is_stale_response(body: RequestBody | None, tracker: aiohttp.UploadTracker | None) -> bool:
    """Return whether an answer arrived before the request was sent, and so belongs to an earlier request.

    aiohttp reuses a pooled connection without checking for unread data (aiohttp issue 13656).
    """
    return body is not None and tracker is not None and not body.started and tracker.attempts > 0
