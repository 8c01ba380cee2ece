"""Fakes for callbacks: ASGI calls made by hand, a fake gateway that keeps callback URLs, an app on a port."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from attrs import frozen

from nanobanana_async import Session
from nanobanana_async.asgi import Message
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import CallbackReceiver
from tests.support import replies
from tests.support.fakes import FakeGateway, defapi

PUBLIC = "https://app.example/hooks"
KEY = "order-1"

Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


@frozen
class Answer:
    """What an ASGI application has sent."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@frozen
class Wait:
    """In the place of a piece of a body: nothing comes for so long."""

    seconds: float


DISCONNECT = Wait(-1.0)
Piece = bytes | Wait


def http_scope(
    path: str, method: str = "POST", root_path: str = "", headers: Mapping[str, str] = MappingProxyType({})
) -> Message:
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "query_string": b""}
    return {**scope, "headers": pairs}


async def ask(
    app: Application,
    path: str,
    pieces: Iterable[Piece] = (b"",),
    *,
    method: str = "POST",
    root_path: str = "",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    """Make one request as a server does: after the last piece of the body nothing comes until the answer is out."""
    left, sent, over = list(pieces), list[Message](), asyncio.Event()

    async def receive() -> Message:
        while left and isinstance(left[0], Wait):
            pause = left.pop(0)
            if pause is DISCONNECT:
                return {"type": "http.disconnect"}
            assert isinstance(pause, Wait)
            await asyncio.sleep(pause.seconds)
        if not left:
            await over.wait()
            return {"type": "http.disconnect"}
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(http_scope(path, method, root_path, headers), receive, send)
    over.set()
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert [message["type"] for message in bodies] == ["http.response.body"]
    return Answer(start["status"], tuple(start["headers"]), b"".join(message["body"] for message in bodies))


def callback_body(task_id: str | None = None, status: str = "success", **facts: Any) -> bytes:
    """Return what a callback says."""
    return json.dumps({"task_id": task_id, "status": status, **facts}).encode()


async def call(receiver: CallbackReceiver, url: str, *pieces: Piece) -> int:
    """Call a URL, and return the status of the answer."""
    return (await ask(receiver, urlsplit(url).path, pieces or (b"",))).status


def url_in(request: HttpRequest) -> str | None:
    """Return the callback URL that a create carries."""
    url: str | None = json.loads(request.body or b"{}").get("callback_url")
    return url


class CallbackGateway(FakeGateway):
    """A fake gateway that keeps the callback URL of each task that it sells."""

    def __init__(self, *, job_s: float = 2.0, limit: int | None = None) -> None:
        super().__init__(job_s=job_s, limit=limit)
        self.urls: dict[str, str] = {}
        """Task id -> URL, in the order of the sales."""
        self.polled: list[str] = []
        """The task ids that were asked about."""

    def answer(self, request: HttpRequest) -> Reply:
        before = self.sold
        if request.method == "GET" and "=" in request.url:
            self.polled.append(request.url.rpartition("=")[2])
            if self.polled[-1] not in self.tasks:
                return replies.json_reply(404, {"code": 404, "message": "task not found"})
        reply = super().answer(request)
        if self.sold > before and (url := url_in(request)) is not None:
            self.urls[f"t{self.sold}"] = url
        return reply

    def url(self, number: int = 1) -> str:
        return self.urls[f"t{number}"]


@asynccontextmanager
async def calling(
    answer: Callable[[HttpRequest], Reply], **settings: Any
) -> AsyncIterator[tuple[Session, CallbackReceiver, FakeTransport]]:
    """Open a session with a receiver on virtual time."""
    transport = FakeTransport(answer)
    session = defapi(transport, **settings)
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        yield session, receiver, transport


def bound() -> tuple[socket.socket, str]:
    """Return a socket on loopback, not yet listened on, and its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def served(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Serve an aiohttp application."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    try:
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def received(*sessions: Session) -> AsyncIterator[list[str]]:
    """Receive the callbacks of each session, not yet open, on a port of its own; yield the URLs."""
    async with AsyncExitStack() as stack:
        urls = []
        for session in sessions:
            listener, address = bound()
            urls.append(f"{address}/hooks")
            app = web.Application()
            app.add_routes(CallbackReceiver(session, public_url=urls[-1]).aiohttp_routes())
            await stack.enter_async_context(served(app, listener))
        yield urls
