"""Scripted servers on loopback, for answers that are wrong, late, cut short or missing."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from nanobanana_async.config import Timeouts
from nanobanana_async.gateways.apimall import ApiMall
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.http.tls_and_proxies import Proxies
from nanobanana_async.http.transport import AiohttpTransport

KEY = "ak-canary-7Hq2ZxW9vBn4"
BODY = b'{"prompt":"a lighthouse"}'
FINE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CERTIFICATE = Path(__file__).with_name("loopback.pem")  # for localhost and 127.0.0.1, self-signed; valid until 2126


class Connection:
    """One accepted connection, on the server's side."""

    def __init__(self, peer: "Peer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peer = peer
        self._reader = reader
        self.writer = writer

    async def read_request(self) -> bytes:
        """Read one complete request."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        body = await self._reader.readexactly(int(length.split(b"\r\n")[0])) if length else b""
        self._peer.requests.append(head + body)
        return head + body

    async def write(self, *words: bytes) -> None:
        self.writer.write(b"".join(words))
        await self.writer.drain()

    async def ended(self) -> bytes:
        """Wait until the client closes the connection; return the bytes received until then."""
        return await self._reader.read()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close the connection with a RST instead of a FIN."""
        made = self.writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Connection], Awaitable[None]]


class Peer:
    """A server that runs the script for each connection and records requests: `async with Peer(script) as peer`."""

    def __init__(self, script: Script, *, tls: bool = False) -> None:
        self._script = script
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: list[Connection] = []
        self._changed = asyncio.Event()
        self.requests: list[bytes] = []
        self.ended = 0

    @property
    def accepted(self) -> int:
        return len(self._connections)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}/"

    async def __aenter__(self) -> Self:
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for _ in range(3):  # a connection accepted just now gets to `_accept` in the third turn of the loop
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        for connection in self._connections:
            connection.writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)

    async def all_ended(self, count: int) -> None:
        """Wait until `count` scripts have ended."""
        await self._until(lambda: self.ended >= count)

    async def all_accepted(self, count: int) -> None:
        """Wait until `count` connections were accepted."""
        await self._until(lambda: self.accepted >= count)

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):  # only a failed test waits so long
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self._connections.append(connection)
        self._changed.set()
        self._tasks.add(asyncio.get_running_loop().create_task(self._serve(connection)))

    async def _serve(self, connection: Connection) -> None:
        with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            await self._script(connection)
        self.ended += 1
        self._changed.set()


async def fine(connection: Connection) -> None:
    """Answer every request."""
    while True:
        await connection.read_request()
        await connection.write(FINE)


async def silent(connection: Connection) -> None:
    """Read every request, answer none."""
    await connection.ended()


def answering(*words: bytes, then: str = "hang up") -> Script:
    """Return a script that sends this answer to one request, then closes, resets, or waits."""

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(*words)
        if then == "hang up":
            connection.close()
        elif then == "reset":
            await asyncio.sleep(0.02)  # a RST discards data that the client has not read yet
            connection.reset()
        else:
            await connection.ended()

    return script


def trusting() -> ssl.SSLContext:
    """Return a TLS context that trusts the peers' certificate."""
    return ssl.create_default_context(cafile=str(CERTIFICATE))


@contextlib.asynccontextmanager
async def opened(
    *, connect_s: float = 5.0, key: str = KEY, proxy: str | None = None, **settings: object
) -> AsyncIterator[AiohttpTransport]:
    """Open a transport to a gateway that does not exist; close it at the end."""
    gateway = ApiMall(api_key=key, base_url="https://gateway.invalid")
    api = AiohttpTransport(gateway, timeouts=Timeouts(connect_s=connect_s), proxies=Proxies(proxy), **settings)  # type: ignore[arg-type]
    await api.open()
    try:
        yield api
    finally:
        await api.aclose()


def create(url: str, **settings: object) -> HttpRequest:
    """Return a create: a POST with a body."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": "nb-1"}
    return HttpRequest(method="POST", url=url, headers=headers, body=BODY, **settings)  # type: ignore[arg-type]


def query(url: str, **settings: object) -> HttpRequest:
    """Return a poll: a GET without a body."""
    return HttpRequest(method="GET", url=url, **settings)  # type: ignore[arg-type]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def copy_stream(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass on what a connection sends, as a proxy does, and close the other side at its end."""
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.close()
