"""Track the sockets of a connector, so that closing can wait until each one is closed."""

import asyncio
import contextlib
import socket
import weakref
from collections.abc import Callable
from typing import Any

import aiohttp

_POLITE_TURNS = 10  # turns of the event loop; a released connection needs two or three to close
_TURNS = 110
_PAUSE_S = 0.01
_MAX_READ = 16 * 1024


class _SmallReads(socket.socket):
    """A socket that returns at most `_MAX_READ` bytes for one read.

    asyncio reads a quarter of a megabyte at once. That may hold forty thousand HTTP chunks of one byte, which would
    block the event loop for too long.
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return super().recv(min(size, _MAX_READ), flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return super().recv_into(buffer, min(nbytes or len(buffer), _MAX_READ), flags)


class SocketTracker:
    """Makes sockets for a connector and keeps track of the open ones.

    A connector that closes waits for the connections in its pool, not for those that it released just before.
    """

    def __init__(self, factory: Callable[[aiohttp.AddrInfoType], socket.socket] | None = None) -> None:
        self._factory = factory
        self._made: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def make_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a new socket: a connector's `socket_factory`."""
        family, kind, protocol, *_ = address
        made = _SmallReads(family, kind, protocol) if self._factory is None else self._factory(address)
        self._made.add(made)
        return made

    def open_sockets(self) -> list[socket.socket]:
        """Return the sockets that are not closed."""
        return [made for made in self._made if made.fileno() != -1]

    async def wait_closed(self) -> None:
        """Wait at most about a second until all sockets are closed."""
        for turn in range(_TURNS):
            still_open = self.open_sockets()
            if not still_open:
                return
            if turn == _POLITE_TURNS:
                _shutdown(still_open)
            await asyncio.sleep(0 if turn < _POLITE_TURNS else _PAUSE_S)


def _shutdown(sockets: list[socket.socket]) -> None:
    # Otherwise TLS waits half a minute for the peer's close_notify, and a full send buffer for the peer to read.
    for each in sockets:
        with contextlib.suppress(OSError):  # no longer connected
            each.shutdown(socket.SHUT_RDWR)
