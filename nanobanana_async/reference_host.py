"""Serve local reference images to gateways: an ASGI application, and routes for `aiohttp.web`."""

import math
import os
import re
import secrets
from contextlib import suppress

from aiohttp import web

from nanobanana_async.asgi import Message, Receive, Send, lifespan, path_of
from nanobanana_async.errors import SaveError
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.images.files import why_unwritable
from nanobanana_async.images.formats import FORMATS, detect
from nanobanana_async.validators import DAY_S, as_folder, as_number

REFERENCES = "/references"
_NAME = "[0-9a-f]{64}(?:" + "|".join(re.escape(each.extension) for each in FORMATS) + ")"
_REFERENCE_NAME = re.compile(_NAME)
_REFERENCE_PATH = re.compile(rf"{REFERENCES}/({_NAME})\Z")
_FILE_THREADS = 4
_SENT_AT_ONCE = 1 << 18
_REMOVE_EVERY_S = 3600.0


class ReferenceHost:
    """Serves local reference images to gateways that fetch them: `Session(references=ReferenceHost(...))`.

    `public_url` is the public URL of this application, with the path under which it is mounted. `folder` holds the
    images, each under the digest of its content; all workers of an application share it. An image that was not needed
    for `keep_s` seconds is removed: by then no job that names it can be waiting. A URL can't be guessed without the
    image itself.

    It is an ASGI application: `app.mount("/hooks", host)`. In aiohttp: `app.add_routes(host.aiohttp_routes())`.
    """

    def __init__(self, *, public_url: str, folder: str | os.PathLike[str], keep_s: float = 7 * DAY_S) -> None:
        self._path = path_of(public_url)
        self._public_url = public_url.rstrip("/")
        self._folder = as_folder("folder", folder)
        self._keep_s = as_number("keep_s", keep_s, above=0, endless=True)
        self._threads = ThreadLimiter(_FILE_THREADS)
        self._removed_old_at = -math.inf

    async def publish(self, content: bytes, digest: str) -> str:
        """Store an image, and return the URL under which it is served. Raises `SaveError` if it can't be stored."""
        try:
            name = await self._threads.run(self._store, content, digest)
        except OSError as error:
            raise SaveError(why_unwritable(self._folder, error)) from None
        return f"{self._public_url}{REFERENCES}/{name}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        match scope["type"]:
            case "lifespan":
                await lifespan(receive, send)
            case "http":
                await self._serve(scope, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1000})
            case unknown:
                raise ValueError(f"unsupported ASGI connection type: {unknown!r}")

    def aiohttp_routes(self) -> list[web.RouteDef]:
        """Return the routes for an `aiohttp.web` application, with the path of `public_url`."""
        return [web.route("*", f"{self._path}{REFERENCES}/{{name:.*}}", self._handle_aiohttp)]

    async def _serve(self, scope: Message, send: Send) -> None:
        content = await self._read(scope["method"], scope["path"])
        headers = {"content-length": "0"} if content is None else _image_headers(scope["path"], content)
        start = {
            "type": "http.response.start",
            "status": 404 if content is None else 200,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        shown = b"" if content is None or scope["method"] == "HEAD" else content
        with suppress(OSError):  # the gateway has disconnected
            await send(start)
            for begin in range(0, max(1, len(shown)), _SENT_AT_ONCE):
                more = begin + _SENT_AT_ONCE < len(shown)
                piece = shown[begin : begin + _SENT_AT_ONCE]
                await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _handle_aiohttp(self, request: web.Request) -> web.Response:
        content = await self._read(request.method, request.path)
        if content is None:
            return web.Response(status=404)
        return web.Response(body=content, headers=_image_headers(request.path, content))

    async def _read(self, method: str, path: str) -> bytes | None:
        """Return the image at a path; None if there is none."""
        match = _REFERENCE_PATH.search(path)
        if method not in ("GET", "HEAD") or match is None:
            return None
        try:
            return await self._threads.run((self._folder / match[1]).read_bytes)
        except OSError:
            return None

    def _store(self, content: bytes, digest: str) -> str:
        """Write an image unless it is there, and remove old ones; return its name. Runs in a thread."""
        file = self._folder / f"{digest}{detect(content).extension}"
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            os.utime(file)  # it is needed now
        except FileNotFoundError:
            part = self._folder / f".{file.name}.{secrets.token_hex(8)}"
            part.write_bytes(content)
            part.replace(file)
        now = file.stat().st_mtime
        if now > self._removed_old_at + _REMOVE_EVERY_S:
            self._removed_old_at = now
            for old in self._folder.iterdir():
                with suppress(FileNotFoundError):  # another worker has just removed it
                    if _REFERENCE_NAME.fullmatch(old.name) and old.stat().st_mtime < now - self._keep_s:
                        old.unlink()
        return file.name


def _image_headers(path: str, content: bytes) -> dict[str, str]:
    kind = next(each.content_type for each in FORMATS if path.endswith(each.extension))
    return {
        "content-type": kind,
        "content-length": str(len(content)),
        "cache-control": "public, max-age=31536000, immutable",  # the name is the digest of the content
        "x-content-type-options": "nosniff",
    }
