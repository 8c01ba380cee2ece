"""Run blocking work in threads that the host application can't use up.

anyio's shared pool has 40 threads, asyncio's default executor about as many. If the application blocks all of them on
calls into a session (forty plain `def` endpoints do), work of the session in the same pool would be a deadlock.
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

_MAX_READS = 2
_MAX_LOOKUPS = 8
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class ThreadLimiter:
    """Runs blocking work in at most `max_threads` threads at once, with a limiter of its own."""

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of the work. A cancelled caller still waits until the work ends."""
        return await anyio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._get_limiter())

    async def run_or_abandon(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of the work. A cancelled caller returns at once, and the thread ends later."""
        bound = partial(work, *args, **kwargs)
        return await anyio.to_thread.run_sync(bound, limiter=self._get_limiter(), abandon_on_cancel=True)

    def _get_limiter(self) -> anyio.CapacityLimiter:
        if self._limiter is None:  # made here: it needs the event loop, and a session may be constructed outside one
            self._limiter = anyio.CapacityLimiter(self._max_threads)
        return self._limiter


class AnswerReader:
    """Parses a gateway's answers: small ones in the event loop, large ones in a thread."""

    def __init__(self) -> None:
        self._threads = ThreadLimiter(_MAX_READS)

    async def read(self, parse: Callable[[HttpResponse], T], response: HttpResponse) -> T:
        """Return the result of `parse` for the answer; raise what it raises."""
        if len(response.body) <= LARGE:
            return parse(response)
        return await self._threads.run(parse, response)


class ThreadedResolver(AbstractResolver):
    """Resolves host names with the operating system, in threads of its own; `on_resolved` gets names and addresses."""

    def __init__(self, on_resolved: Callable[[str, list[str]], None] = lambda *_: None) -> None:
        self._threads = ThreadLimiter(_MAX_LOOKUPS)
        self._on_resolved = on_resolved

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host name; raise `OSError` if it has none."""
        try:
            found = await self._threads.run_or_abandon(
                socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
        except UnicodeError:  # an empty or too long label
            raise OSError(None, "it is not a host name") from None
        self._on_resolved(host, [str(address[0]) for kind, *_, address in found if kind in _INTERNET])
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=_NUMERIC)
            for kind, _, protocol, _, address in found
            if kind in _INTERNET
        ]

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""
