"""Transports that need no socket: answers by a function, or by an emulated gateway."""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl, urlsplit

from nanobanana_async.emulator.messages import EmulatedRequest, ResponseSending, SendMode
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.errors import TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.validators import as_number, as_timeout

# A simulation makes up to a million requests; keeping them all would take most of its memory.
KEPT_REQUESTS = 1000

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
        if answer.sending.delay_s:
            await asyncio.sleep(answer.sending.delay_s)
        if answer.sending.mode is SendMode.LATE:
            answer = self.simulator.process(loop.time(), emulated)
        return _to_reply(answer.status, answer.headers, answer.content(), answer.sending)


def _to_reply(status: int, headers: Mapping[str, str], body: bytes, sending: ResponseSending) -> Reply:
    match sending.mode:
        case SendMode.RESET:
            return TransportError("the connection was reset", possibly_sent=True)
        case SendMode.CUT:
            return TransportError("the answer was cut off", possibly_sent=True)
        case SendMode.SHORT:
            body = body[: int(len(body) * sending.sent_share)]
    return HttpResponse(status=status, headers={name.lower(): value for name, value in headers.items()}, body=body)
