"""Test your own code without paying or waiting: virtual time, and gateways that need no socket.

With `run` an event loop's time jumps ahead whenever every task waits: an hour of polling passes in
milliseconds. `FakeTransport` answers a session's requests by a function; `EmulatorTransport` lets a whole emulated
gateway answer them. Both are handed in as `Session(..., http=transport)`.
"""

import asyncio
import inspect
import selectors
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from nanobanana_async.emulator.messages import Delivery, DeliveryMode, EmulatedRequest
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.errors import TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.validators import as_number, as_timeout

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

# When nothing is scheduled only another thread can wake the loop; a test that waits longer than this hangs.
PATIENCE_S = 20.0

# A world answers a million requests; keeping them all would be the largest part of a simulation's memory.
KEPT_SETTINGS = 1000


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while anything runs, and jumps to the next timer when nothing does.

    Threads are not waited for: do not use it where real sockets or executors answer.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.wall_clock_offset = timedelta()
        """Moves the wall clock alone, as an administrator does."""
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._now

    def utcnow(self) -> datetime:
        """Return the virtual wall clock; sessions on this loop date their records by it."""
        return EPOCH + timedelta(seconds=self._now) + self.wall_clock_offset

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for threads as long as it takes: on virtual time any timeout would be over at once."""
        await super().shutdown_default_executor()

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self._loop.jump(timeout)
            return []
        if not (ready := super().select(PATIENCE_S)):
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        return ready


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a fresh loop of virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


Reply = HttpResponse | Exception
Answering = Callable[[HttpRequest], Reply | Awaitable[Reply]]


class FakeTransport:
    """Answers each request by calling `answer`; an exception that it returns is raised.

    Keeps what was asked: the last `keep` requests, or all.
    """

    def __init__(self, answer: Answering, *, latency_s: float = 0.05, keep: int | None = None) -> None:
        self._answer = answer
        self._latency_s = as_number("latency_s", latency_s)
        self.requests: deque[HttpRequest] = deque(maxlen=keep)
        self.in_flight = 0

    @property
    def creates(self) -> list[HttpRequest]:
        """The POSTs among the requests, in order."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def polls(self) -> list[HttpRequest]:
        """The GETs among the requests, in order."""
        return [request for request in self.requests if request.method == "GET"]

    async def open(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Answer after the latency; a reply that takes longer than `timeout_s` is lost."""
        self.requests.append(request)
        self.in_flight += 1
        try:
            async with asyncio.timeout(as_timeout("timeout_s", timeout_s)):
                await asyncio.sleep(self._latency_s / 2)
                reply = self._answer(request)
                if inspect.isawaitable(reply):
                    reply = await reply
                await asyncio.sleep(self._latency_s / 2)
        except TimeoutError:
            raise TransportError("no answer in time", possibly_sent=True) from None
        finally:
            self.in_flight -= 1
        if isinstance(reply, Exception):
            raise reply
        return reply


class EmulatorTransport(FakeTransport):
    """Lets an emulated gateway answer, without sockets: for virtual time, and for a million jobs a minute."""

    def __init__(self, world: GatewaySimulator, *, api_key: str, latency_s: float = 0.05) -> None:
        super().__init__(self._ask, latency_s=latency_s, keep=KEPT_SETTINGS)
        self.simulator = world
        self._headers = {"authorization": f"Bearer {api_key}"}

    async def _ask(self, request: HttpRequest) -> Reply:
        parts = urlsplit(request.url)
        headers = {**self._headers, "host": parts.netloc, **{k.lower(): v for k, v in request.headers.items()}}
        call = EmulatedRequest(request.method, parts.path, dict(parse_qsl(parts.query)), headers, request.body or b"")
        loop = asyncio.get_running_loop()
        answer = self.simulator.handle(loop.time(), call)
        if answer.delivery.delay_s:
            await asyncio.sleep(answer.delivery.delay_s)
        if answer.delivery.mode is DeliveryMode.LATE:
            answer = self.simulator.process(loop.time(), call)
        return _delivered(answer.status, answer.headers, answer.content(), answer.delivery)


def _delivered(status: int, headers: Mapping[str, str], body: bytes, delivery: Delivery) -> Reply:
    match delivery.mode:
        case DeliveryMode.RESET:
            return TransportError("the connection was reset", possibly_sent=True)
        case DeliveryMode.CUT:
            return TransportError("the answer was cut off", possibly_sent=True)
        case DeliveryMode.SHORT:
            body = body[: int(len(body) * delivery.sent_share)]
    return HttpResponse(status=status, headers={name.lower(): value for name, value in headers.items()}, body=body)
