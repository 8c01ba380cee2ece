"""The world on a loopback socket: one aiohttp server, one clock, one poster of callbacks."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Self

import aiohttp
from aiohttp import web

from nanobanana_async.emulator import server as delivery
from nanobanana_async.emulator.messages import Callback, DeliveryMode, EmulatedRequest, EmulatedResponse
from nanobanana_async.emulator.simulator import GatewaySimulator

_LARGEST_REQUEST = 16 * 2**20
_LAST_ANSWERS_S = 0.5
_PAINTERS = 2


class EmulatorServer:
    """Serve a world until closed; `now` is the running loop's time since the start."""

    def __init__(self, world: GatewaySimulator, *, host: str, port: int) -> None:
        self._world = world
        self._host = host
        self._port = port
        self._started_at = 0.0
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._painters = ThreadPoolExecutor(_PAINTERS, "emulator-painter")
        self._poster = CallbackSender(world, self.now)

    @classmethod
    async def started(cls, world: GatewaySimulator, *, host: str, port: int) -> Self:
        """Return a server that listens; port 0 takes a free one."""
        server = cls(world, host=host, port=port)
        await server._start()
        return server

    @property
    def url(self) -> str:
        """Return where it listens, without a slash at the end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def now(self) -> float:
        """Return the seconds since the start."""
        return asyncio.get_running_loop().time() - self._started_at

    def connections(self) -> int:
        """Return how many connections are open."""
        server = None if self._runner is None else self._runner.server
        if server is None:
            return 0
        # aiohttp keeps a connection that is gone in its list until the handler, which may stall, is done.
        return sum(connection.transport is not None for connection in server.connections)

    async def aclose(self) -> None:
        """Stop listening, end what stalls, close all connections; a second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self._closing.set()
        await self._poster.aclose()
        await runner.cleanup()
        self._painters.shutdown(wait=False, cancel_futures=True)

    async def _start(self) -> None:
        self._started_at = asyncio.get_running_loop().time()
        app = web.Application(client_max_size=_LARGEST_REQUEST)
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LAST_ANSWERS_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = int(runner.addresses[0][1])
        self._world.base_url = self.url
        self._poster.start()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        call = await _read_call(request)
        answer = self._world.handle(self.now(), call)
        self._poster.reschedule()
        if answer.delivery.delay_s:
            await self._wait(answer.delivery.delay_s)
        if answer.delivery.manner is DeliveryMode.LATE:
            answer = self._world.process(self.now(), call)
            self._poster.reschedule()
        return await self._send(request, answer)

    async def _send(self, request: web.Request, answer: EmulatedResponse) -> web.StreamResponse:
        manner = answer.delivery.manner
        transport = request.transport
        if transport is None:  # the caller has gone away; nothing can be sent
            return web.Response()
        if manner is DeliveryMode.RESET:
            delivery.reset(transport)
            return web.Response()
        body = await self._content(answer)
        if manner is DeliveryMode.WHOLE:
            return delivery.whole(answer, body)
        delivery.spoil(transport, answer, body)
        return web.Response()

    async def _content(self, answer: EmulatedResponse) -> bytes:
        if answer.make_body is None:
            return answer.body
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._painters, answer.make_body)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()


async def _read_call(request: web.Request) -> EmulatedRequest:
    body = await request.read()
    return EmulatedRequest(request.method, request.path, dict(request.query), dict(request.headers), body)


_LINGER_ZERO = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


def whole(answer: EmulatedResponse, body: bytes) -> web.Response:
    """Return an answer as aiohttp sends it."""
    return web.Response(status=answer.status, headers=answer.headers, body=body)


def reset(transport: asyncio.Transport) -> None:
    """Reset the connection, so that the caller's kernel sees a reset and not an end."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()


def spoil(transport: asyncio.Transport, answer: EmulatedResponse, body: bytes) -> None:
    """Write an answer whose length and body do not fit together, and close the connection."""
    part = int(len(body) * answer.delivery.sent_share)
    cut = answer.delivery.manner is DeliveryMode.CUT
    stated = len(body) if cut else part
    transport.write(_head(answer, stated) + (body[:part] if cut else body))
    transport.close()


def _head(answer: EmulatedResponse, length: int) -> bytes:
    try:
        reason = HTTPStatus(answer.status).phrase
    except ValueError:
        reason = "Unknown"
    headers = {**answer.headers, "Content-Length": str(length)}
    lines = [f"HTTP/1.1 {answer.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


_PATIENCE = aiohttp.ClientTimeout(total=10)


class CallbackSender:
    """Post what the world owes; call `look_again` after each call that may have changed it."""

    def __init__(self, world: GatewaySimulator, now: Callable[[], float]) -> None:
        self._world = world
        self._now = now
        self._changed = asyncio.Event()
        self._next_due: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to post."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="emulator-callbacks")

    def reschedule(self) -> None:
        """Notice that another callback may be the next."""
        if self._world.next_due() != self._next_due:
            self._changed.set()

    async def aclose(self) -> None:
        """Stop posting; what is on its way is given up."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_PATIENCE) as http,
            asyncio.TaskGroup() as posts,
        ):
            while True:
                await self._sleep()
                for callback in self._world.due(self._now()):
                    posts.create_task(self._post(http, callback))

    async def _sleep(self) -> None:
        self._changed.clear()
        self._next_due = self._world.next_due()
        wait_s = None if self._next_due is None else max(0.0, self._next_due - self._now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()

    async def _post(self, http: aiohttp.ClientSession, callback: Callback) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            async with http.post(callback.url, data=callback.body, headers=headers, allow_redirects=False) as response:
                delivered = response.status < 400
        except (aiohttp.ClientError, TimeoutError, ValueError):
            delivered = False
        self._world.callback_done(delivered=delivered)
