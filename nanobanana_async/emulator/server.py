"""Serve the simulated gateways on a loopback socket, and post their callbacks."""

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

from nanobanana_async.emulator.messages import Callback, EmulatedRequest, EmulatedResponse, SendMode
from nanobanana_async.emulator.simulator import GatewaySimulator

_MAX_REQUEST = 150 * 2**20  # an upload of 100 MiB as base64
_LARGE_BODY = 2**18
_SHUTDOWN_S = 0.5
_THREADS = 2
_LINGER_ZERO = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
_CALLBACK_TIMEOUT = aiohttp.ClientTimeout(total=10)


class EmulatorServer:
    """Serve a simulator until closed. `now()` is the seconds since the start."""

    def __init__(self, simulator: GatewaySimulator, *, host: str, port: int) -> None:
        self._simulator = simulator
        self._host = host
        self._port = port
        self._started_at = 0.0
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "emulator")
        self._callback_sender = CallbackSender(simulator, self.now)

    @classmethod
    async def started(cls, simulator: GatewaySimulator, *, host: str, port: int) -> Self:
        """Return a server that is listening. Port 0 takes a free port."""
        server = cls(simulator, host=host, port=port)
        await server._start()
        return server

    @property
    def url(self) -> str:
        """Return the base URL, without a trailing slash."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def now(self) -> float:
        """Return the seconds since the start."""
        return asyncio.get_running_loop().time() - self._started_at

    def connections(self) -> int:
        """Return how many connections are open."""
        server = None if self._runner is None else self._runner.server
        if server is None:
            return 0
        # aiohttp lists a closed connection until its handler returns, and the handler may be stalling.
        return sum(connection.transport is not None for connection in server.connections)

    async def aclose(self) -> None:
        """Stop listening, end stalled requests and close all connections. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self._closing.set()
        await self._callback_sender.aclose()
        await runner.cleanup()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _start(self) -> None:
        self._started_at = asyncio.get_running_loop().time()
        app = web.Application(client_max_size=_MAX_REQUEST)
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = int(runner.addresses[0][1])
        self._simulator.base_url = self.url
        self._callback_sender.start()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        call = await self._read_call(request)
        self._simulator.base_url = f"http://{request.host}"  # links name the host by which this client reaches it
        answer = self._simulator.handle(self.now(), call)
        self._callback_sender.reschedule()
        if answer.sending.delay_s:
            await self._wait(answer.sending.delay_s)
        if answer.sending.mode is SendMode.LATE:
            answer = self._simulator.process(self.now(), call)
            self._callback_sender.reschedule()
        return await self._send(request, answer)

    async def _read_call(self, request: web.Request) -> EmulatedRequest:
        body = await request.read()
        call = EmulatedRequest(request.method, request.path, dict(request.query), dict(request.headers), body)
        if len(body) > _LARGE_BODY:
            await asyncio.get_running_loop().run_in_executor(self._threads, call.read_body)
        return call

    async def _send(self, request: web.Request, answer: EmulatedResponse) -> web.StreamResponse:
        mode = answer.sending.mode
        transport = request.transport
        if transport is None:  # the client has disconnected
            return web.Response()
        if mode is SendMode.RESET:
            _reset(transport)
            return web.Response()
        body = await self._content(answer)
        if mode is SendMode.WHOLE:
            return web.Response(status=answer.status, headers=answer.headers, body=body)
        _send_distorted(transport, answer, body)
        return web.Response()

    async def _content(self, answer: EmulatedResponse) -> bytes:
        if answer.make_body is None:
            return answer.body
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, answer.make_body)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()


def _reset(transport: asyncio.Transport) -> None:
    """Send a TCP reset instead of an orderly close."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()


def _send_distorted(transport: asyncio.Transport, answer: EmulatedResponse, body: bytes) -> None:
    """Send a response whose Content-Length and body differ, and close the connection."""
    part = int(len(body) * answer.sending.sent_share)
    cut = answer.sending.mode is SendMode.CUT
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


class CallbackSender:
    """Post the simulator's callbacks when they are due. Call `reschedule` after each request: it may add one."""

    def __init__(self, simulator: GatewaySimulator, now: Callable[[], float]) -> None:
        self._simulator = simulator
        self._now = now
        self._changed = asyncio.Event()
        self._next_due: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that posts."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="emulator-callbacks")

    def reschedule(self) -> None:
        """Wake the task if another callback is now the next one."""
        if self._simulator.next_due() != self._next_due:
            self._changed.set()

    async def aclose(self) -> None:
        """Stop posting, and cancel requests in flight."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_CALLBACK_TIMEOUT) as http,
            asyncio.TaskGroup() as posts,
        ):
            while True:
                await self._sleep()
                for callback in self._simulator.take_due(self._now()):
                    posts.create_task(self._post(http, callback))

    async def _sleep(self) -> None:
        self._changed.clear()
        self._next_due = self._simulator.next_due()
        wait_s = None if self._next_due is None else max(0.0, self._next_due - self._now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()

    async def _post(self, http: aiohttp.ClientSession, callback: Callback) -> None:
        headers = {"Content-Type": "application/json", **callback.headers}
        try:
            async with http.post(callback.url, data=callback.body, headers=headers, allow_redirects=False) as response:
                error = None if response.status < 400 else f"HTTP {response.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as failure:
            error = str(failure) or type(failure).__name__
        self._simulator.callback_done(self._now(), callback, error)
        self.reschedule()
