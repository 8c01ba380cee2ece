"""The poster of defapi's callbacks: each once, when it is due."""

import asyncio
import contextlib
from collections.abc import Callable

import aiohttp

from nanobanana_async.emulator.values import Callback
from nanobanana_async.emulator.world import World

_PATIENCE = aiohttp.ClientTimeout(total=10)


class CallbackPoster:
    """Post what the world owes; call `look_again` after each call that may have changed it."""

    def __init__(self, world: World, now: Callable[[], float]) -> None:
        self._world = world
        self._now = now
        self._changed = asyncio.Event()
        self._next_due: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to post."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="emulator-callbacks")

    def look_again(self) -> None:
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
