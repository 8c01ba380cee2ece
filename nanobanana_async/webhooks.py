"""Receive callbacks, and serve reference images: ASGI applications, and routes for `aiohttp.web`."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from aiohttp import web

from nanobanana_async.asgi import Message, Receive, Send, lifespan, path_of
from nanobanana_async.engine.callback_router import ACCOUNT_PATH, CALLBACK_PATH, secret_from_input
from nanobanana_async.errors import ConfigurationError, NanoBananaError
from nanobanana_async.events import log
from nanobanana_async.reference_host import ReferenceHost
from nanobanana_async.session import Session
from nanobanana_async.validators import check_kind

__all__ = ["CallbackReceiver", "ReferenceHost"]

MAX_BODY = 64 * 1024
BODY_S = 5.0

ReadChunk = Callable[[], Awaitable[bytes | None]]

_NAME_AND_TOKEN = r"/([A-Za-z0-9_-]{1,400})/([A-Za-z0-9_-]{1,100})/?\Z"
_CALLBACK_PATH = re.compile(CALLBACK_PATH + _NAME_AND_TOKEN)
_DELIVERY_PATH = re.compile(ACCOUNT_PATH + _NAME_AND_TOKEN)


class CallbackReceiver:
    """Receives a gateway's callbacks for the jobs of a session, and of every session on the same ledger.

    Create it before the first job. `public_url` is the public URL of this application, with the path under which it is
    mounted; the gateway calls URLs below `public_url` + `/callbacks/`. With defapi the session sends a URL per job as
    `callback_url`, if the request has none of its own. With API Mall it registers one webhook for the account while it
    is open, in the background, and a later session on the ledger finds it again. If that fails, a WARNING is logged,
    jobs are polled as without callbacks, and it is tried again. `unregister` or `nanobanana webhooks` removes it.

    It is an ASGI application: `app.mount("/hooks", receiver)`. In aiohttp: `app.add_routes(receiver.aiohttp_routes())`.
    `secret` (at least 16 bytes) signs the URLs; by default one is generated and stored in the ledger.

    A callback only triggers one poll; its body is never trusted. Repeats within a second trigger no further poll. A
    lost callback delays a job but does not lose it, since it is polled later anyway. Any other path, method or token
    gets the same 404. While the session is not open, callbacks get 503.
    """

    def __init__(self, session: Session, *, public_url: str, secret: bytes | str | None = None) -> None:
        checked = secret_from_input(secret)
        del secret  # some tools show the locals of a traceback
        if isinstance(checked, ConfigurationError):
            raise checked
        check_kind("session", session, Session, "a Session")
        self._callbacks = session._callback_router
        self._path = path_of(public_url)
        session._callback_router.enable(public_url, checked)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        match scope["type"]:
            case "lifespan":
                await lifespan(receive, send)
            case "http":
                await self._serve(scope, receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1000})
            case unknown:
                raise ValueError(f"unsupported ASGI connection type: {unknown!r}")

    def aiohttp_routes(self) -> list[web.RouteDef]:
        """Return the routes for an `aiohttp.web` application, with the path of `public_url`."""
        return [web.route("*", f"{self._path}{CALLBACK_PATH}/{{call:.*}}", self._handle_aiohttp)]

    async def unregister(self) -> int:
        """Remove the webhooks that sessions on this ledger registered for the accounts; return how many.

        This session, which must be open, registers none again. A gateway with a URL per job has none to remove.
        """
        return await self._callbacks.unregister_webhooks()

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        more = True

        async def read_chunk() -> bytes | None:
            nonlocal more
            while more:  # after the last message `receive` waits until the connection ends
                message = await receive()
                # The gateway may have disconnected; a chunk may be empty though more follow.
                more = message["type"] == "http.request" and message.get("more_body", False)
                if body := message.get("body"):
                    return bytes(body)
            return None

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status = await self._handle_callback(scope["method"], scope["path"], headers, read_chunk)
        with suppress(OSError):  # the gateway has disconnected
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    async def _handle_aiohttp(self, request: web.Request) -> web.Response:
        async def read_chunk() -> bytes | None:
            return await request.content.readany() or None

        headers = {name.lower(): value for name, value in request.headers.items()}
        return web.Response(status=await self._handle_callback(request.method, request.path, headers, read_chunk))

    async def _handle_callback(self, method: str, path: str, headers: Mapping[str, str], read_chunk: ReadChunk) -> int:
        """Handle a callback or a delivery and return the status of the response."""
        job = _CALLBACK_PATH.search(path) if method == "POST" else None
        delivery = _DELIVERY_PATH.search(path) if method == "POST" else None
        try:
            if job is not None and (key := await self._callbacks.verify_job(job[1], job[2])) is not None:
                handled = await self._callbacks.handle_callback(key, await _read_body(read_chunk))
            elif delivery is not None and (
                (account := await self._callbacks.verify_account(delivery[1], delivery[2])) is not None
            ):
                handled = await self._callbacks.handle_delivery(account, headers, await _read_body(read_chunk))
            else:
                return 404
        except NanoBananaError as error:  # the session is not open, or its ledger failed
            log.warning("callback.failed error=%s", error.message)
            handled = False
        return 200 if handled else 503


async def _read_body(read_chunk: ReadChunk) -> bytes:
    """Return the body: empty if too long, partial if cut off or slow. A partial body still triggers a poll."""
    body = bytearray()
    with suppress(Exception):  # each server raises its own errors for an incomplete body
        async with asyncio.timeout(BODY_S):
            while len(body) <= MAX_BODY and (chunk := await read_chunk()) is not None:
                body += chunk
    return bytes(body) if len(body) <= MAX_BODY else b""
