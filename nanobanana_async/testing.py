"""Test your own code without paying or waiting: virtual time, and gateways that need no socket.

With `run_virtual` the event loop's clock jumps to the next timer whenever every task waits: an hour of polling takes
milliseconds. `FakeTransport` answers a session's requests with a function, `EmulatorTransport` with an emulated
gateway. Pass either as `Session(..., http=transport)`.
"""

import asyncio
import inspect
import selectors
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from nanobanana_async.emulator.messages import DeliveryMode, EmulatedRequest, ResponseDelivery
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.errors import TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.validators import as_number, as_timeout

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

# Without a timer only another thread can wake the loop. A loop that waits longer than this is deadlocked.
DEADLOCK_S = 20.0

# A simulation makes up to a million requests; keeping them all would take most of its memory.
KEPT_REQUESTS = 1000


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while tasks run, and jumps to the next timer when all wait.

    It does not wait for threads: do not use it with real sockets or executors.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.wall_clock_offset = timedelta()
        """Shifts the wall clock but not the loop's time, as setting the system clock does."""
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual seconds since the loop was created."""
        return self._now

    def utcnow(self) -> datetime:
        """Return the virtual wall clock, which dates the records of sessions on this loop."""
        return EPOCH + timedelta(seconds=self._now) + self.wall_clock_offset

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for threads without a timeout: virtual time would end any timeout at once."""
        await super().shutdown_default_executor()

    def jump(self, seconds: float) -> None:
        """Advance the clock."""
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0 and len(self.get_map()) == 1:
            return []  # no socket but the one by which threads wake a loop that waits, and this one does not
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self._loop.jump(timeout)
            return []
        if not (ready := super().select(DEADLOCK_S)):
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        return ready


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a new `VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


Reply = HttpResponse | Exception
"""A response, or an exception to raise."""
AnswerRequest = Callable[[HttpRequest], Reply | Awaitable[Reply]]
"""Answers a request; it may await."""


class FakeTransport:
    """Answers each request by calling `answer`; raises an exception that `answer` returns.

    `requests` holds the last `keep` requests, or all.
    """

    def __init__(self, answer: AnswerRequest, *, latency_s: float = 0.05, keep: int | None = None) -> None:
        self._answer = answer
        self._latency_s = as_number("latency_s", latency_s)
        self.requests: deque[HttpRequest] = deque(maxlen=keep)  # the last ones, in order
        self.in_flight = 0  # requests without an answer yet

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
        """Answer after the latency. Raises `TransportError` if that takes longer than `timeout_s`."""
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
    """Answers with an emulated gateway, without sockets: works with virtual time and with very many jobs."""

    def __init__(self, simulator: GatewaySimulator, *, api_key: str, latency_s: float = 0.05) -> None:
        super().__init__(self._simulate, latency_s=latency_s, keep=KEPT_REQUESTS)
        self.simulator = simulator  # with the counts and the jobs
        self._headers = {"authorization": f"Bearer {api_key}"}

    async def _simulate(self, request: HttpRequest) -> Reply:
        parts = urlsplit(request.url)
        headers = {**self._headers, "host": parts.netloc, **{k.lower(): v for k, v in request.headers.items()}}
        emulated = EmulatedRequest(
            request.method, parts.path, dict(parse_qsl(parts.query)), headers, request.body or b""
        )
        loop = asyncio.get_running_loop()
        answer = self.simulator.handle(loop.time(), emulated)
        if answer.delivery.delay_s:
            await asyncio.sleep(answer.delivery.delay_s)
        if answer.delivery.mode is DeliveryMode.LATE:
            answer = self.simulator.process(loop.time(), emulated)
        return _to_reply(answer.status, answer.headers, answer.content(), answer.delivery)


def _to_reply(status: int, headers: Mapping[str, str], body: bytes, delivery: ResponseDelivery) -> Reply:
    match delivery.mode:
        case DeliveryMode.RESET:
            return TransportError("the connection was reset", possibly_sent=True)
        case DeliveryMode.CUT:
            return TransportError("the answer was cut off", possibly_sent=True)
        case DeliveryMode.SHORT:
            body = body[: int(len(body) * delivery.sent_share)]
    return HttpResponse(status=status, headers={name.lower(): value for name, value in headers.items()}, body=body)
