"""Requests on the wire: a semaphore over POSTs and GETs, and the workers that carry them."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.entry import Entry

Errand = Callable[[Entry], Awaitable[None]]


class Wire:
    """Runs errands in the session's task group, those for the gateway under the semaphore.

    Workers are kept: handing one its next errand costs a tenth of starting a task.
    """

    def __init__(self, max_requests: int, *, freed: Callable[[], None], crashed: Callable[[Entry, Exception], None]):
        self._permits = anyio.Semaphore(max_requests, max_value=max_requests)
        self._max_requests = max_requests
        self.free = max_requests
        """How many more requests may leave."""
        self._freed = freed
        self._crashed = crashed
        self._group: TaskGroup | None = None
        self._idle: list[asyncio.Future[tuple[Errand, Entry, bool]]] = []

    def start(self, group: TaskGroup) -> None:
        """Give it the task group in which workers live."""
        self._group = group
        self._context = contextvars.copy_context()

    @property
    def busy(self) -> int:
        """How many requests are out."""
        return self._max_requests - self.free

    @property
    def full(self) -> bool:
        """Whether no further request may leave."""
        return not self.free

    def send(self, errand: Errand, entry: Entry) -> None:
        """Run an errand that makes a request; the wire must not be full."""
        self._permits.acquire_nowait()
        self.free -= 1
        self._run(errand, entry, True)

    def spawn(self, errand: Errand, entry: Entry) -> None:
        """Run an errand that makes no request: it only writes to the ledger."""
        self._run(errand, entry, False)

    def _run(self, errand: Errand, entry: Entry, permitted: bool) -> None:
        while self._idle:
            seat = self._idle.pop()
            if not seat.done():  # else its worker was cancelled: the event loop ends
                seat.set_result((errand, entry, permitted))
                return
        if self._group is not None:  # in the session's context: a worker outlives the caller who needs it first
            self._context.copy().run(self._group.start_soon, self._work, errand, entry, permitted)

    async def _work(self, errand: Errand, entry: Entry, permitted: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await errand(entry)
            except Exception as bug:
                self._crashed(entry, bug)
            finally:
                if permitted:
                    self._permits.release()
                    self.free += 1
            self._freed()
            if len(self._idle) >= self._max_requests:
                return
            seat: asyncio.Future[tuple[Errand, Entry, bool]] = loop.create_future()
            self._idle.append(seat)
            errand, entry, permitted = await seat
