"""The other door: pictures come in through it, and no credential goes out.

A picture is whole, looked at and hashed, or it is not there and `DownloadError` says why.
"""

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from aiohttp.abc import AbstractResolver
from yarl import URL

from nanobanana_async.errors import DownloadError, SessionClosed
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.files import Part, SavedImage
from nanobanana_async.http.getting import Getter, Take
from nanobanana_async.http.inline import inline_content, is_inline
from nanobanana_async.http.missed import Missed
from nanobanana_async.http.pictures import verified
from nanobanana_async.models import shorten

P = ParamSpec("P")
T = TypeVar("T")

_LOOKED_AT_ONCE = 2  # a picture at the pixel cap takes 256 MB while it is decoded
_LONGEST_PAUSE_S = 8.0
_CLOSING_S = 10.0


class Downloads:
    """Fetches pictures by http, https and `data:` links.

    Links are followed to public addresses only, and to this machine if `allow_loopback` (for a gateway that runs on
    it), through at most five redirects and never from https to http. No cookie, key or referrer goes along, and
    neither proxies nor credentials are taken from the environment.

    What may pass is tried `attempts` times, up to `max_at_once` pictures at the same time; `idle_s` and `total_s` limit
    one attempt. Pictures are verified with Pillow where it is installed.
    """

    def __init__(
        self,
        *,
        allow_loopback: bool = False,
        proxy: str | Secret | None = None,
        tls: ssl.SSLContext | bool = True,
        resolver: AbstractResolver | None = None,
        connect_s: float = 10.0,
        idle_s: float = 20.0,
        total_s: float = 120.0,
        attempts: int = 4,
        pause_s: float = 0.5,
        max_bytes: int = 64 * 1024 * 1024,
        max_at_once: int = 8,
    ) -> None:
        self._getter = Getter(
            loopback=allow_loopback,
            proxy=proxy,
            tls=tls,
            resolver=resolver,
            connect_s=connect_s,
            idle_s=idle_s,
            total_s=total_s,
            max_bytes=max_bytes,
        )
        self._attempts = attempts
        self._pause_s = pause_s
        self._max_bytes = max_bytes
        self._places = asyncio.Semaphore(max_at_once)
        self._eyes = asyncio.Semaphore(_LOOKED_AT_ONCE)
        self._swept: set[Path] = set()
        self._ongoing: set[anyio.CancelScope] = set()
        self._idle = asyncio.Event()
        self._state = "not open"

    def __repr__(self) -> str:
        return f"<Downloads {self._state}>"

    async def open(self) -> None:
        """Make the connection pool; no connection is opened yet. Raises `SessionClosed` after `aclose`."""
        if self._state == "closed":
            raise SessionClosed("the door to the pictures was closed")
        if self._state == "not open":
            self._getter.open()
            self._state = "open"

    async def aclose(self) -> None:
        """Close every connection; what is being fetched ends with `SessionClosed`. Idempotent."""
        self._state = "closed"
        # Closing aiohttp's session is not enough: who reads from a connection it closes is not told, and waits on.
        for scope in self._ongoing:
            scope.cancel()
        try:
            if self._ongoing:
                with anyio.move_on_after(_CLOSING_S):
                    await self._idle.wait()
        finally:
            await self._getter.aclose()

    async def fetch(self, url: str) -> bytes:
        """Return the bytes of a picture, verified.

        Raises `DownloadError`; its `gone` says that the link has expired.
        """

        async def once() -> bytes:
            content = bytearray()

            async def take(piece: bytes) -> None:
                content.extend(piece)

            await self._receive(url, take)
            picture = bytes(content)
            async with self._eyes:
                await anyio.to_thread.run_sync(verified, picture)
            return picture

        return await self._patiently(url, once)

    async def save(self, url: str, folder: Path, name: str) -> SavedImage:
        """Save a picture in a folder, under a name made safe and the ending of its type; list it in `SHA256SUMS`.

        Saving the same picture again changes nothing. Another file of that name is never overwritten: the picture then
        gets a number, as in `name-2.png`. Raises `DownloadError`; its `gone` says that the link has expired.
        """

        async def once() -> SavedImage:
            part = Part(folder)

            async def take(piece: bytes) -> None:
                await _filed(folder, part.write, piece)

            try:
                await _filed(folder, part.open)
                if folder not in self._swept:
                    self._swept.add(folder)
                    await _filed(folder, part.sweep)
                await self._receive(url, take)
                async with self._eyes:
                    return await _filed(folder, part.publish, name)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(part.discard)

        return await self._patiently(url, once)

    async def _receive(self, url: str, take: Take) -> None:
        if is_inline(url):
            await take(await anyio.to_thread.run_sync(inline_content, url, self._max_bytes))
        else:
            await self._getter.get(url, take)

    async def _patiently(self, url: str, once: Callable[[], Awaitable[T]]) -> T:
        """Return what an attempt brings, the first that does; raise the error of the last, or `SessionClosed`."""
        self._check_open()
        with anyio.CancelScope() as scope:
            self._ongoing.add(scope)
            self._idle.clear()
            try:
                return await self._attempts_of(url, once)
            finally:
                self._ongoing.discard(scope)
                if not self._ongoing:
                    self._idle.set()
        raise SessionClosed("the door to the pictures was closed")

    async def _attempts_of(self, url: str, once: Callable[[], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._places:
                    return await once()
            except Missed as missed:
                why, again, gone, wait_s = missed.why, missed.again, missed.gone, missed.wait_s
            if not again or attempt >= self._attempts or is_inline(url):
                break
            pause_s = min(self._pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
            await asyncio.sleep(max(pause_s * random.uniform(0.5, 1.0), wait_s or 0.0))
        tried = f" (tried {attempt} times)" if attempt > 1 else ""
        raise DownloadError(f"{_shown(url)}: {why}{tried}", gone=gone)

    def _check_open(self) -> None:
        if self._state != "open":
            raise SessionClosed(f"the door to the pictures is {self._state}")


async def _filed(folder: Path, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do file work in a thread."""
    try:
        return await anyio.to_thread.run_sync(partial(work, *args, **kwargs))
    except OSError as error:
        raise Missed(
            f"the picture can't be written to {folder}: {error.strerror or type(error).__name__}: check that there is"
            " room, and that this user may write there"
        ) from None


def _shown(url: str) -> str:
    """Return a link for people's eyes, without the query that may be its key."""
    if is_inline(url):
        return f"the inline picture ({len(url)} characters)"
    try:
        parsed = URL(url)
        return shorten(f"{parsed.origin()}{parsed.raw_path}")
    except ValueError:
        return "the link"
