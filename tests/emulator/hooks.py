"""A receiver of callbacks on loopback."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web


class Hook:
    """Keeps the bodies and headers that it receives; answers with each status in turn, with the last again."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses) or [200]
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []

    async def take(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(request.headers)
        return web.Response(status=self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0])


@asynccontextmanager
async def serving(hook: Hook) -> AsyncIterator[str]:
    """Serve a hook, and give its URL."""
    app = web.Application()
    app.router.add_post("/hook", hook.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()
