"""The served application on loopback, in this event loop, with a client of OpenAI's before it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp

from nanobanana_async import Session
from nanobanana_async.emulator import Emulator
from nanobanana_async.serve import make_app
from tests.support.lazy import lazy
from tests.support.loopback import quick

if TYPE_CHECKING:
    import openai
else:
    openai = lazy("openai")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an application until the end of the block; yields its URL."""
    server = _Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, lifespan="off"))
    serving = asyncio.get_running_loop().create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def served(
    emulator: Emulator, *, session: Session | None = None, **settings: Any
) -> AsyncIterator[tuple[str, Session]]:
    """Serve a session on the emulator; yields the URL and the session."""
    async with session or quick(emulator) as opened, listening(make_app(opened, **settings)) as url:
        yield url, opened


def client_of(url: str, *, token: str = "any", **settings: Any) -> "openai.AsyncOpenAI":
    """Return OpenAI's client with its defaults."""
    return openai.AsyncOpenAI(api_key=token, base_url=f"{url}/v1", **settings)
