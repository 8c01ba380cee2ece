"""Send one request through the session's transport, once requests may leave."""

import asyncio
from collections.abc import Callable

import anyio

from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.errors import TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse, Transport
from nanobanana_async.loop_guard import cancel_requested
from nanobanana_async.policy.session_budget import SessionBudget


async def wait_for_cap_and_pause(budget: SessionBudget, clock: Callable[[], float]) -> None:
    """Wait until the user's cap of requests and a pause of the account let a request leave that takes no slot."""
    while (wait_s := budget.cap_and_pause_end_at - clock()) > 0:  # noqa: ASYNC110 - others may take the turn
        await anyio.sleep(max(wait_s, TICK_S))


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
