"""Threads of our own: blocking work never waits for a thread that the host application holds.

anyio's shared pool has 40 places, asyncio's default executor about as few. An application that blocks all of them on a
call into a session (forty plain `def` endpoints do) would wait for work that itself waits for a place.
"""

import socket
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from aiohttp.abc import AbstractResolver, ResolveResult

from nanobanana_async.gateways.contract import HttpResponse
from nanobanana_async.gateways.large_answers import LARGE

P = ParamSpec("P")
T = TypeVar("T")

_READ_AT_ONCE = 2
_RESOLVED_AT_ONCE = 8
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class ThreadLimiter:
    """Runs blocking work in at most `most` threads at once, whatever the host does with its own."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the work returns. A cancelled caller waits for the end of the work."""
        return await anyio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._places())

    async def run_or_abandon(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the work returns. A cancelled caller leaves at once; the thread ends by itself."""
        bound = partial(work, *args, **kwargs)
        return await anyio.to_thread.run_sync(bound, limiter=self._places(), abandon_on_cancel=True)

    def _places(self) -> anyio.CapacityLimiter:
        if self._limiter is None:  # it belongs to the event loop, which a session's constructor need not have
            self._limiter = anyio.CapacityLimiter(self._most)
        return self._limiter


class AnswerReader:
    """Reads a gateway's answers: small ones at once, large ones in a thread beside the event loop."""

    def __init__(self) -> None:
        self._threads = ThreadLimiter(_READ_AT_ONCE)

    async def read(self, read: Callable[[HttpResponse], T], response: HttpResponse) -> T:
        """Return what `read` makes of the answer; raise what it raises."""
        if len(response.body) <= LARGE:
            return read(response)
        return await self._threads.run(read, response)


class ThreadedResolver(AbstractResolver):
    """Resolves names by the operating system, in threads of our own."""

    def __init__(self) -> None:
        self._threads = ThreadLimiter(_RESOLVED_AT_ONCE)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name; raise `OSError` if it has none."""
        try:
            found = await self._threads.run_or_abandon(
                socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
        except UnicodeError:  # a label that is empty or too long
            raise OSError(None, "it is no host name") from None
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=_NUMERIC)
            for kind, _, protocol, _, address in found
            if kind in _INTERNET
        ]

    async def close(self) -> None:
        """Do nothing: no thread is kept."""
