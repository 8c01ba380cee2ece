"""A proxy on loopback that breaks connections as a network does: cut, reset, silent, slow, or with garbage."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import Attribute, define, field, frozen
from attrs.validators import in_

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.validators import DAY_S, at_least_one, at_least_zero, within

FaultKind = Literal["cut", "reset", "stall", "garbage", "drip", "delay"]
Side = Literal["request", "answer"]

_CHUNK = 1 << 16
_GARBAGE = b"\x00\xff\x16\x03 this is no HTTP \xc3\x28\r\n"
_UNREAD_S = 0.02  # a RST may discard what the peer has not read yet


def _answer_only(fault: "ConnectionFault", _: "Attribute[Any]", kind: FaultKind) -> None:
    if kind == "garbage" and fault.side != "answer":
        raise ConfigurationError("a fault of kind 'garbage' stands in place of an answer: leave side out")


@frozen
class ConnectionFault:
    """What goes wrong with one request or its answer, from a byte of it on.

    "cut" closes both connections, "reset" does so with a RST. After "stall" nothing more is passed on, and the
    connections stay: of a request in either direction, of an answer only towards the client. "garbage" is sent in place
    of the rest of the answer, then the connections are closed. "drip" passes the rest on in pieces, "delay" passes it
    on later.

    An answer's fault at byte 0 comes when the server begins to answer: it has done what it was asked to do.
    """

    kind: FaultKind = field(validator=[in_(get_args(FaultKind)), _answer_only])  # what goes wrong
    side: Side = field(default="answer", validator=in_(get_args(Side)), kw_only=True)  # with what
    at: int = field(default=0, validator=at_least_zero, kw_only=True)  # how many bytes pass before it
    words: bytes = field(default=b"", kw_only=True)  # only a request that contains them is hit
    content: bytes = field(default=_GARBAGE, kw_only=True)  # the garbage
    piece_bytes: int = field(default=1, validator=at_least_one, kw_only=True)  # of a drip
    wait_s: float = field(default=0.05, validator=within(most=DAY_S), kw_only=True)  # after each piece; of a delay


@define
class Exchange:
    """One request and its answer, as far as they have passed the proxy."""

    number: int  # over all connections, from 0
    request_bytes: int = 0  # that reached the server
    answer_bytes: int = 0  # that reached the client
    fault: ConnectionFault | None = None  # what was to go wrong
    struck: bool = False  # whether it did: the bytes before it came


Schedule = Callable[[int], ConnectionFault | None]
"""Called with the number of each request; returns what goes wrong with it, or None."""


class FaultProxy:
    """A proxy that breaks connections: `with FaultProxy(target) as proxy`.

    The target is a port on this machine, the URL of a server, or the path of a UNIX socket. Clients connect to
    `proxy.url`, or to `proxy.port` on 127.0.0.1. Faults come from `queue`, on command, or from a schedule. The proxy
    runs in a thread of its own, so clients may be of any kind: in this event loop, in threads or in other processes.
    Its methods may be called from any thread.

    It passes bytes and reads no protocol. A request begins with the first bytes that a client sends on a connection, or
    sends after the server has answered, as in HTTP/1.1. With TLS the handshake counts as requests too.
    """

    def __init__(self, target: int | str, *, schedule: Schedule | None = None) -> None:
        self._target = target
        url = target if isinstance(target, str) and "://" in target else f"http://127.0.0.1:{target}"
        self._server = urlsplit(url)
        self._schedule = schedule
        self._queued: list[ConnectionFault] = []
        self._connections: set[_Connection] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self.port = 0
        """The port on 127.0.0.1 that clients connect to."""
        self.exchanges: list[Exchange] = []
        """All requests since the beginning, in order."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self._listening()))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The address for HTTP clients."""
        return f"{self._server.scheme}://127.0.0.1:{self.port}"

    @property
    def struck(self) -> int:
        """How many faults have come so far."""
        return sum(exchange.struck for exchange in self.exchanges)

    def queue(self, *faults: ConnectionFault) -> None:
        """Let each fault come once, with the next request that contains its words."""
        self._queued.extend(faults)

    def pause(self) -> None:
        """Pass nothing on until `resume`; the connections stay."""
        self._call(self._open.clear)

    def resume(self) -> None:
        """Pass everything on again, with what has waited."""
        self._call(self._open.set)

    def cut_all(self) -> None:
        """Close all connections; new ones are accepted."""

        def close() -> None:
            for connection in self._connections:
                connection.close()

        self._call(close)

    def _call(self, action: Callable[[], object]) -> None:
        if self._portal is None:
            raise ConfigurationError("the proxy is not running: enter it first, `with FaultProxy(port) as proxy`")
        self._portal.call(action)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                tasks.start_soon(self._serve, reader, writer)

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            try:
                yield
            finally:
                server.close()
                tasks.cancel_scope.cancel()
        for _ in range(3):  # the event loop closes the sockets in its next turns
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._target, str) and "://" not in self._target:
                server = await asyncio.open_unix_connection(self._target)
            else:
                server = await asyncio.open_connection(self._server.hostname, self._server.port)
        except OSError:  # the server is down
            writer.transport.abort()
            return
        connection = _Connection(self, (reader, writer), server)
        self._connections.add(connection)
        try:
            await connection.run()
            connection.close()
        except BaseException:  # the proxy ends
            connection.abort()
            raise
        finally:
            self._connections.discard(connection)

    def _begin(self) -> tuple[Exchange, ConnectionFault | None]:
        """Count a request; return what the schedule has for it."""
        exchange = Exchange(len(self.exchanges))
        self.exchanges.append(exchange)
        return exchange, None if self._schedule is None else self._schedule(exchange.number)

    def _take(self, request: bytes) -> ConnectionFault | None:
        """Take the first queued fault whose words are in this part of a request."""
        for fault in self._queued:
            if fault.words in request:
                self._queued.remove(fault)
                return fault
        return None


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    def __init__(self, proxy: FaultProxy, client: Streams, server: Streams) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._exchange: Exchange | None = None
        self._scheduled: ConnectionFault | None = None
        self._seen = b""  # the end of the request so far, in which words may begin
        self._answered = True
        self._silent = False
        self._ended = asyncio.Event()
        for writer in (self._to_client, self._to_server):
            writer.transport.set_write_buffer_limits(high=0)  # `drain` waits until the system has all bytes

    def close(self) -> None:
        self._ended.set()
        for writer in (self._to_client, self._to_server):
            writer.close()

    def abort(self) -> None:
        for writer in (self._to_client, self._to_server):
            writer.transport.abort()

    async def run(self) -> None:
        """Pass on what both sides send, until one of them ends or a fault ends both."""
        async with anyio.create_task_group() as tasks:

            async def pass_until_end(copy: Callable[[], Any]) -> None:
                with suppress(OSError):
                    await copy()
                tasks.cancel_scope.cancel()

            tasks.start_soon(pass_until_end, self._pass_requests)
            tasks.start_soon(pass_until_end, self._pass_answers)

    async def _pass_requests(self) -> None:
        while data := await self._from_client.read(_CHUNK):
            await self._proxy._open.wait()
            if self._answered:
                self._exchange, self._scheduled = self._proxy._begin()
                self._answered, self._seen = False, b""
            assert self._exchange is not None
            if self._exchange.fault is None:
                self._seen += data
                self._exchange.fault = self._next_fault()
                self._seen = self._seen[-_CHUNK:]
            if not await self._pass(data, "request", self._exchange):
                return

    def _next_fault(self) -> ConnectionFault | None:
        if self._scheduled is not None and self._scheduled.words in self._seen:
            return self._scheduled
        return self._proxy._take(self._seen)

    async def _pass_answers(self) -> None:
        while data := await self._from_server.read(_CHUNK):
            await self._proxy._open.wait()
            if self._silent:
                await self._ended.wait()
            if self._exchange is None:  # a server that speaks first
                self._exchange, self._scheduled = self._proxy._begin()
            self._answered = True
            if not await self._pass(data, "answer", self._exchange):
                return

    async def _pass(self, data: bytes, side: Side, exchange: Exchange) -> bool:
        """Pass data on, as far as the fault allows; return whether the connection goes on."""
        fault, passed = exchange.fault, exchange.request_bytes if side == "request" else exchange.answer_bytes
        if fault is None or fault.side != side or passed + len(data) < fault.at:
            await self._write(data, side, exchange)
            return True
        begins, exchange.struck = not exchange.struck, True
        before = max(0, fault.at - passed)
        if before:
            await self._write(data[:before], side, exchange)
        rest = data[before:]
        match fault.kind:
            case "cut":
                return False
            case "reset":
                await self._reset()
                return False
            case "stall":
                self._silent = side == "request"
                await self._ended.wait()
                return False
            case "garbage":
                await self._write(fault.content, side, exchange)
                return False
            case "drip":
                for start in range(0, len(rest), fault.piece_bytes):
                    await self._write(rest[start : start + fault.piece_bytes], side, exchange)
                    await anyio.sleep(fault.wait_s)
            case "delay":
                await anyio.sleep(fault.wait_s if begins else 0)
                await self._write(rest, side, exchange)
        return True

    async def _write(self, data: bytes, side: Side, exchange: Exchange) -> None:
        writer = self._to_server if side == "request" else self._to_client
        if side == "request":
            exchange.request_bytes += len(data)
        else:
            exchange.answer_bytes += len(data)
        writer.write(data)
        await writer.drain()

    async def _reset(self) -> None:
        await anyio.sleep(_UNREAD_S)
        for writer in (self._to_client, self._to_server):
            made = writer.get_extra_info("socket")
            if made.family != getattr(socket, "AF_UNIX", None):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()
