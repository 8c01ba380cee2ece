"""Send one request through the session's transport."""

import asyncio

from nanobanana_async.errors import TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse, Transport
from nanobanana_async.loop_guard import cancel_requested


async def send_contained(
    transport: Transport, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False
) -> HttpResponse:
    """Send once. A cancellation that comes from inside the transport counts as a lost answer."""
    try:
        return await transport.send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)
    except asyncio.CancelledError:
        if cancel_requested():
            raise
    raise TransportError("the request was cancelled inside the transport", possibly_sent=True)
