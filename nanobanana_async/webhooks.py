"""Callbacks received: an ASGI application, and routes for `aiohttp.web`."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from nanobanana_async.engine.callbacks import PATH
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.observe import log
from nanobanana_async.session import Session

MAX_BODY = 64 * 1024
BODY_S = 5.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_CALL = re.compile(rf"{PATH}/([A-Za-z0-9_-]{{1,400}})/([A-Za-z0-9_-]{{1,100}})/?$")


class CallbackReceiver:
    """Receives a gateway's callbacks for the jobs of a session, and of every session on the same ledger.

    Make it before the first job. From then on the session sends each job's own URL, `public_url` + `/callbacks/...`,
    as `callback_url` where the gateway takes one, unless a request brings its own. `public_url` is where the gateway
    reaches this application, with the path under which it is mounted.

    It is an ASGI application: `app.mount("/hooks", receiver)`. In aiohttp: `app.add_routes(receiver.aiohttp_routes())`.
    `secret` (16 bytes at least) signs the URLs; without it one is made and kept in the ledger.

    A call is a hint that causes one query; what it says is not believed. Repeats within a second cause no further one,
    a lost call costs time and not the job: it is looked at all the same, later. Any other path, method or token gets
    one and the same 404.
    """

    def __init__(self, session: Session, *, public_url: str, secret: bytes | str | None = None) -> None:
        parts = urlsplit(public_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(
                "public_url must be an http or https URL without query, such as https://app.example"
            )
        self._callbacks = session.callbacks
        self._path = parts.path.rstrip("/")
        session.callbacks.expect(public_url, secret.encode() if isinstance(secret, str) else secret)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        match scope["type"]:
            case "lifespan":
                await _live(receive, send)
            case "http":
                await self._serve(scope, receive, send)
            case _:
                await send({"type": "websocket.close", "code": 1000})

    def aiohttp_routes(self) -> list[web.RouteDef]:
        """Return the routes for an `aiohttp.web` application, with the path of `public_url`."""
        return [web.post(f"{self._path}{PATH}/{{name}}/{{token}}", self._serve_aiohttp)]

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        found = _CALL.search(scope["path"]) if scope["method"] == "POST" else None

        async def pieces() -> bytes | None:
            message = await receive()
            if message["type"] != "http.request":  # who called has hung up
                return None
            body: bytes = message.get("body", b"")
            return body if body or message.get("more_body") else None

        status = 404 if found is None else await self._heard(found[1], found[2], pieces)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def _serve_aiohttp(self, request: web.Request) -> web.Response:
        async def pieces() -> bytes | None:
            return await request.content.readany() or None

        return web.Response(status=await self._heard(request.match_info["name"], request.match_info["token"], pieces))

    async def _heard(self, name: str, token: str, pieces: Callable[[], Awaitable[bytes | None]]) -> int:
        key = await self._callbacks.key_of(name, token)
        if key is None:
            return 404
        body = bytearray()
        # What is too long or too slow wakes as well: it is only a hint.
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(BODY_S):
                while len(body) <= MAX_BODY and (piece := await pieces()):
                    body += piece
        log.debug("callback.received job=%s size=%d", key, len(body))
        taken = await self._callbacks.heard(key, bytes(body) if len(body) <= MAX_BODY else b"")
        return 200 if taken else 503


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
