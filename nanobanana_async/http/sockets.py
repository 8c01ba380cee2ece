"""The sockets of our own connectors, counted, so that closing can wait until each of them is gone."""

import asyncio
import contextlib
import socket
import weakref
from typing import Any

import aiohttp

_POLITE_TURNS = 10  # of the event loop; a connection that is let go of needs two or three
_TURNS = 110
_PAUSE_S = 0.01
_SIP = 16 * 1024


class _Sipping(socket.socket):
    """A socket that is read in small pieces.

    A quarter of a megabyte, which asyncio takes at once, may hold forty thousand chunks of one byte: too many for one
    turn of the event loop.
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return super().recv(min(size, _SIP), flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return super().recv_into(buffer, min(nbytes or len(buffer), _SIP), flags)


class SocketTracker:
    """Makes sockets for a connector and remembers those that live.

    A connector waits for the connections in its pool, not for those it let go of just before.
    """

    def __init__(self) -> None:
        self._made: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def make(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a new socket: a connector's `socket_factory`."""
        family, kind, protocol, *_ = address
        made = _Sipping(family, kind, protocol)
        self._made.add(made)
        return made

    def open(self) -> list[socket.socket]:
        """Return those that are not closed."""
        return [made for made in self._made if made.fileno() != -1]

    async def wait_closed(self) -> None:
        """Wait, about a second at most, until all are closed."""
        for turn in range(_TURNS):
            left = self.open()
            if not left:
                return
            if turn == _POLITE_TURNS:
                _shutdown(left)
            await asyncio.sleep(0 if turn < _POLITE_TURNS else _PAUSE_S)


def _shutdown(sockets: list[socket.socket]) -> None:
    # TLS waits half a minute for a goodbye that the peer may never say, a full buffer waits for it to read on.
    for left in sockets:
        with contextlib.suppress(OSError):  # not connected any more
            left.shutdown(socket.SHUT_RDWR)
