"""The world on a loopback socket: one aiohttp server, one clock, one poster of callbacks."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from aiohttp import web

from nanobanana_async.emulator import delivery
from nanobanana_async.emulator.posting import CallbackPoster
from nanobanana_async.emulator.values import Answer, Call, Manner
from nanobanana_async.emulator.world import World

_LARGEST_REQUEST = 16 * 2**20
_LAST_ANSWERS_S = 0.5
_PAINTERS = 2


class WorldServer:
    """Serve a world until closed; `now` is the running loop's time since the start."""

    def __init__(self, world: World, *, host: str, port: int) -> None:
        self._world = world
        self._host = host
        self._port = port
        self._started_at = 0.0
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._painters = ThreadPoolExecutor(_PAINTERS, "emulator-painter")
        self._poster = CallbackPoster(world, self.now)

    @classmethod
    async def started(cls, world: World, *, host: str, port: int) -> Self:
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
        self._poster.look_again()
        if answer.delivery.delay_s:
            await self._wait(answer.delivery.delay_s)
        if answer.delivery.manner is Manner.LATE:
            answer = self._world.process(self.now(), call)
            self._poster.look_again()
        return await self._send(request, answer)

    async def _send(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        manner = answer.delivery.manner
        transport = request.transport
        if transport is None:  # the caller has gone away; nothing can be sent
            return web.Response()
        if manner is Manner.RESET:
            delivery.reset(transport)
            return web.Response()
        body = await self._content(answer)
        if manner is Manner.WHOLE:
            return delivery.whole(answer, body)
        delivery.spoil(transport, answer, body)
        return web.Response()

    async def _content(self, answer: Answer) -> bytes:
        if answer.paint is None:
            return answer.body
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._painters, answer.paint)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()


async def _read_call(request: web.Request) -> Call:
    body = await request.read()
    return Call(request.method, request.path, dict(request.query), dict(request.headers), body)
