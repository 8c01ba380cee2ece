"""A request's way out: what tells "surely nothing left us" from "perhaps it arrived"."""

from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

# For the case that aiohttp did not even begin: then only the kind of error speaks.
_BEFORE_SENDING = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError)


class RequestBody(Payload):
    """A request's body that remembers whether anybody ever asked for its bytes.

    aiohttp keeps the headers back until then, so nobody asked means that no byte left us. `aiohttp.UploadTracker`
    can't tell that from an upload cut short: both end as aborted, and bytes given to a connection that broke are not
    in its count.
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
        """Write the body, unless an answer is here already: it can't be the answer to this request."""
        protocol: Any = getattr(writer, "protocol", None)
        if protocol is not None and protocol.should_close:
            raise ConnectionError("the connection spoke before it was asked")
        self.started = True
        await writer.write(self._value)


def possibly_sent(error: Exception, body: RequestBody | None, tracker: aiohttp.UploadTracker | None) -> bool:
    """Tell False only if surely no byte of the request left us."""
    if body is None or tracker is None or tracker.attempts == 0:
        return not isinstance(error, _BEFORE_SENDING)
    return body.started


def is_stale_response(body: RequestBody | None, tracker: aiohttp.UploadTracker | None) -> bool:
    """Tell whether the answer arrived before the request left: it lay in the pooled connection, and is another's.

    aiohttp hands out a pooled connection without looking whether the server spoke meanwhile (its issue 13656).
    """
    return body is not None and tracker is not None and not body.started and tracker.attempts > 0
