"""Callbacks received: an ASGI application, and routes for `aiohttp.web`."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from nanobanana_async.engine.callback_urls import PATH
from nanobanana_async.errors import ConfigurationError, NanoBananaError
from nanobanana_async.events import log
from nanobanana_async.session import Session

MAX_BODY = 64 * 1024
BODY_S = 5.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_CALLBACK_PATH = re.compile(rf"{PATH}/([A-Za-z0-9_-]{{1,400}})/([A-Za-z0-9_-]{{1,100}})/?\Z")


class CallbackReceiver:
    """Receives a gateway's callbacks for the jobs of a session, and of every session on the same ledger.

    Make it before the first job. From then on the session sends each job's own URL, `public_url` + `/callbacks/...`,
    as `callback_url` where the gateway takes one, unless a request brings its own. `public_url` is where the gateway
    reaches this application, with the path under which it is mounted.

    It is an ASGI application: `app.mount("/hooks", receiver)`. In aiohttp: `app.add_routes(receiver.aiohttp_routes())`.
    `secret` (16 bytes at least) signs the URLs; without it one is made and kept in the ledger.

    A call is a hint that causes one query; what it says is not believed. Repeats within a second cause no further one,
    a lost call costs time and not the job: it is looked at all the same, later. Any other path, method or token gets
    one and the same 404, and a call 503 while the session is not open.
    """

    def __init__(self, session: Session, *, public_url: str, secret: bytes | str | None = None) -> None:
        self._callbacks = session._callback_urls
        self._path = _path_of(public_url)
        session._callback_urls.enable(public_url, secret.encode() if isinstance(secret, str) else secret)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        match scope["type"]:
            case "lifespan":
                await _lifespan(receive, send)
            case "http":
                await self._serve(scope, receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1000})
            case unknown:
                raise ValueError(f"no ASGI connection that is known here: {unknown!r}")

    def aiohttp_routes(self) -> list[web.RouteDef]:
        """Return the routes for an `aiohttp.web` application, with the path of `public_url`."""
        return [web.route("*", f"{self._path}{PATH}/{{call:.*}}", self._serve_aiohttp)]

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        more = True

        async def piece() -> bytes | None:
            nonlocal more
            while more:  # after the last message `receive` waits until the connection ends
                message = await receive()
                # Who called may have hung up; or a piece may be empty, though more of them come.
                more = message["type"] == "http.request" and message.get("more_body", False)
                if body := message.get("body"):
                    return bytes(body)
            return None

        status = await self._status(scope["method"], scope["path"], piece)
        with suppress(OSError):  # who called does not wait for the answer
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    async def _serve_aiohttp(self, request: web.Request) -> web.Response:
        async def piece() -> bytes | None:
            return await request.content.readany() or None

        return web.Response(status=await self._status(request.method, request.path, piece))

    async def _status(self, method: str, path: str, piece: Callable[[], Awaitable[bytes | None]]) -> int:
        """Take a call, and return the status of the answer."""
        call = _CALLBACK_PATH.search(path) if method == "POST" else None
        try:
            key = None if call is None else await self._callbacks.verify(call[1], call[2])
            if key is None:
                return 404
            taken = await self._callbacks.handle(key, await _body(piece))
        except NanoBananaError as error:  # the session is not open, or its ledger fails
            log.warning("callback.failed error=%s", error.message)
            taken = False
        return 200 if taken else 503


async def _body(piece: Callable[[], Awaitable[bytes | None]]) -> bytes:
    """Return what was sent, or nothing of what is too long. What is cut off or too slow wakes as well: it is a hint."""
    body = bytearray()
    with suppress(Exception):  # each server has errors of its own for a body that does not come
        async with asyncio.timeout(BODY_S):
            while len(body) <= MAX_BODY and (part := await piece()) is not None:
                body += part
    return bytes(body) if len(body) <= MAX_BODY else b""


def _path_of(public_url: str) -> str:
    """Return the path of a URL to which callbacks may be sent, without a slash at the end."""
    try:
        parts = urlsplit(public_url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        if fits and public_url.isprintable() and not set(public_url) & set(" ?#{}"):
            return parts.path.rstrip("/")
    except ValueError:  # of a port that is none, or of a broken IPv6 literal
        pass
    raise ConfigurationError("public_url must be an http or https URL without query, such as https://app.example")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
