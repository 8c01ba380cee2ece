"""Run the served API in uvicorn until a signal, and follow the jobs of servers that have died."""

import asyncio
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nanobanana_async import Gateway, NanoBananaError, Session, SessionClosed
from nanobanana_async.cli.signals import handle_signals
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import plural
from nanobanana_async.serve import Token
from nanobanana_async.serve.orders import Orders

try:
    import uvicorn
    from starlette.applications import Starlette
except ModuleNotFoundError:
    raise ImportError("serve needs uvicorn: pip install 'nanobanana-async[serve]'") from None

OK = 0
RESUME_EVERY_S = 30.0
STOP_S = 10


class _Server(uvicorn.Server):
    """A server that leaves signals to the command."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Set no handler."""
        yield


async def run(session: Session, app: Starlette, listening: socket.socket, tokens: Sequence[Token] | None) -> int:
    """Serve until a signal, then end waiting requests with 503: their jobs stay in the ledger."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=STOP_S
    )
    server, stop = _Server(config), asyncio.Event()
    with handle_signals(stop.set), listening:
        async with session:
            await app.state.orders.store_budgets()
            async with asyncio.TaskGroup() as group:
                resuming = group.create_task(_resume_regularly(app.state.orders))
                serving = group.create_task(server.serve(sockets=[listening]))
                serving.add_done_callback(lambda _: stop.set())
                _print_start(session.gateways, listening, tokens)
                await stop.wait()
                server.should_exit = True
                resuming.cancel()
                await session.aclose()  # ends the waiting of requests
    return OK


async def _resume_regularly(orders: Orders) -> None:
    while True:
        try:
            await orders.resume()
        except SessionClosed:
            return
        except NanoBananaError as error:
            print(f"nanobanana: {one_line(str(error))}; tried again soon", file=sys.stderr)
        await asyncio.sleep(RESUME_EVERY_S)


def _print_start(gateways: Sequence[Gateway], listening: socket.socket, tokens: Sequence[Token] | None) -> None:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    who = "programs on this machine need no token" if tokens is None else plural(len(tokens), "token")
    accounts = f" with {', '.join(each.account for each in gateways)}" if len(gateways) > 1 else ""
    place = f"http://{shown}:{port}/v1"
    print(f"serving {gateways[0].name}{accounts} at {place} ({who}); Ctrl-C stops", file=sys.stderr, flush=True)
