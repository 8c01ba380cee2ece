"""A TCP proxy in threads that can lose answers, fall silent or break, as a network does at the wrong moment."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support.postgres import free_port


class CutProxy:
    """Forwards to a port, or to the path of a socket.

    It loses the answer to a request with certain words, moves nothing more from such a request on, or breaks all
    connections.
    """

    def __init__(self, target: int | str) -> None:
        self.port = free_port()
        self.cuts = 0
        self.is_open = threading.Event()
        """While it is clear nothing is forwarded, and the connections stay: a network that is silent."""
        self.is_open.set()
        self._target = target
        self._words: bytes | None = None
        self._silent_at: tuple[bytes, bool] | None = None
        self._pairs: set[_Pair] = set()
        self._closed = threading.Event()
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def lose_answer_to(self, words: bytes) -> None:
        """Break the connection after the next request that contains the words, once the server has answered it."""
        self._words = words

    def fall_silent_at(self, words: bytes, *, forwards: bool = False) -> None:
        """Move nothing more over the connection of the next request with the words, which stays open.

        `forwards`: requests still reach the server, and only its answers are withheld.
        """
        self._silent_at = words, forwards

    def cut(self) -> None:
        """Break all connections; new ones are forwarded."""
        for pair in self._pairs.copy():
            pair.cut()

    def close(self) -> None:
        self.is_open.set()
        self._closed.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                try:
                    server = self._connect()
                except OSError:  # the server is down
                    client.close()
                    continue
                pair = _Pair(self, client, server)
                self._pairs.add(pair)
                threading.Thread(target=pair.copy_requests, daemon=True).start()
                threading.Thread(target=pair.copy_answers, daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            server.close()
            raise
        return server

    def forget(self, pair: "_Pair") -> None:
        """Forget a connection that was closed."""
        self._pairs.discard(pair)

    def takes(self, request: bytes) -> bool:
        """Return whether the answer to this request is to be lost."""
        if self._words is None or self._words not in request:
            return False
        self._words = None
        self.cuts += 1
        return True

    def silences(self, request: bytes) -> bool | None:
        """Return None if the connection goes on after this request, else whether requests are still forwarded."""
        if self._silent_at is None or self._silent_at[0] not in request:
            return None
        forwards, self._silent_at = self._silent_at[1], None
        self.cuts += 1
        return forwards

    def stand_still(self) -> None:
        """Wait for the end of the proxy."""
        self._closed.wait()


class _Pair:
    def __init__(self, proxy: CutProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._losing = False
        self._silent = False

    def cut(self) -> None:
        for each in (self._client, self._server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def copy_requests(self) -> None:
        with suppress(OSError), self._server:
            while data := self._client.recv(1 << 16):
                self._proxy.is_open.wait()
                self._losing = self._losing or self._proxy.takes(data)
                if (forwards := self._proxy.silences(data)) is not None:
                    self._silent = True
                    if not forwards:
                        self._proxy.stand_still()
                self._server.sendall(data)

    def copy_answers(self) -> None:
        with suppress(OSError), self._client:
            while data := self._server.recv(1 << 16):
                self._proxy.is_open.wait()
                if self._silent:
                    self._proxy.stand_still()
                if self._losing:  # the server has done it, and the client will never know
                    self._client.shutdown(socket.SHUT_RDWR)
                    break
                self._client.sendall(data)
        self._proxy.forget(self)


@contextmanager
def cut_proxy(target: int | str) -> Iterator[CutProxy]:
    """Run a proxy to a port, or to the path of a socket, until the end of the block."""
    proxy = CutProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
