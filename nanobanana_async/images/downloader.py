"""The other door: pictures come in through it, and no credential goes out.

A picture is whole, looked at and hashed, or it is not there and `DownloadError` says why.
"""

import asyncio
import io
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
from aiohttp.abc import AbstractResolver
from yarl import URL

from nanobanana_async.errors import DownloadError, SaveError, SessionClosed
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.http.tls_and_proxies import Proxies, Tls
from nanobanana_async.images.fetch import ImageFetcher, Write
from nanobanana_async.images.files import PartialFile, SavedImage, check_folder, missed, why_unwritable
from nanobanana_async.images.formats import verify
from nanobanana_async.images.inline import FetchError, inline_pieces, is_inline
from nanobanana_async.models import shorten

P = ParamSpec("P")
T = TypeVar("T")

_MAX_DECODES = 2  # a picture at the pixel cap takes 256 MB while it is decoded
_LONGEST_PAUSE_S = 8.0
_CLOSING_S = 10.0


class ImageDownloader:
    """Fetches pictures by http, https and `data:` links.

    Links are followed to public addresses only, and to this machine if `allow_loopback` (for a gateway that runs on
    it), through at most five redirects and never from https to http. No cookie, key or referrer goes along, and no
    credential is taken from the environment. A proxy resolves the names that it is asked for: through one, this can
    tell by the name alone whether a host may be public.

    What may pass is tried `attempts` times, up to `max_at_once` pictures at the same time; `idle_s` and `total_s` limit
    one attempt. Pictures are verified with Pillow where it is installed.
    """

    def __init__(
        self,
        *,
        allow_loopback: bool = False,
        proxies: Proxies | None = None,
        tls: Tls = True,
        resolver: AbstractResolver | None = None,
        connect_s: float = 10.0,
        idle_s: float = 20.0,
        total_s: float = 120.0,
        attempts: int = 4,
        pause_s: float = 0.5,
        max_bytes: int = 64 * 1024 * 1024,
        max_at_once: int = 8,
    ) -> None:
        self._getter = ImageFetcher(
            loopback=allow_loopback,
            proxies=Proxies() if proxies is None else proxies,
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
        self._download_slots = asyncio.Semaphore(max_at_once)
        self._decode_slots = asyncio.Semaphore(_MAX_DECODES)
        self._threads = ThreadLimiter(max_at_once)  # each download does one thing at a time
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

    def disown(self) -> None:
        """Leave every socket to the parent process; called in a forked child."""
        self._state = "closed"
        self._getter.disown()

    async def fetch(self, url: str) -> bytes:
        """Return the bytes of a picture, verified.

        Raises `DownloadError`; its `gone` says that the link has expired.
        """

        async def once() -> bytes:
            content = io.BytesIO()  # hands over its bytes without a copy

            async def take(piece: bytes) -> None:
                content.write(piece)

            await self._receive(url, take)
            picture = content.getvalue()
            async with self._decode_slots:
                await self._threads.run(verify, picture)
            return picture

        return await self._with_retries(url, once)

    async def save(self, url: str, folder: Path, name: str) -> SavedImage:
        """Save a picture in a folder, under a name made safe and the ending of its type; list it in `SHA256SUMS`.

        Saving the same picture again changes nothing. Another file of that name is never overwritten: the picture then
        gets a number, as in `name-2.png`. Raises `DownloadError`; its `gone` says that the link has expired. Raises
        `SaveError` when the folder can't be written.
        """

        async def once() -> SavedImage:
            part = PartialFile(folder)

            async def take(piece: bytes) -> None:
                await self._filed(folder, part.write, piece)

            try:
                await self._filed(folder, part.open)
                if folder not in self._swept:
                    self._swept.add(folder)
                    await self._filed(folder, part.sweep)
                await self._receive(url, take)
                async with self._decode_slots:
                    return await self._filed(folder, part.finish, name)
            finally:
                with anyio.CancelScope(shield=True):
                    await self._threads.run(part.discard)

        return await self._with_retries(url, once)

    async def check(self, folder: Path) -> None:
        """Make a folder if it is missing; raise `SaveError` if no image can be written into it."""
        try:
            await self._threads.run(check_folder, folder)
        except OSError as error:
            raise SaveError(why_unwritable(folder, error)) from None

    async def _receive(self, url: str, take: Write) -> None:
        if is_inline(url):
            pieces = inline_pieces(url, self._max_bytes)
            while (piece := await self._threads.run(next, pieces, None)) is not None:
                await take(piece)
        else:
            await self._getter.get(url, take)

    async def _with_retries(self, url: str, once: Callable[[], Awaitable[T]]) -> T:
        """Return what an attempt brings, the first that does; raise the error of the last, or `SessionClosed`."""
        self._check_open()
        with anyio.CancelScope() as scope:
            self._ongoing.add(scope)
            self._idle.clear()
            try:
                return await self._retry_loop(url, once)
            finally:
                self._ongoing.discard(scope)
                if not self._ongoing:
                    self._idle.set()
        raise SessionClosed("the door to the pictures was closed")

    async def _retry_loop(self, url: str, once: Callable[[], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._download_slots:
                    return await once()
            except FetchError as reason:
                why, again, gone, wait_s = reason.why, reason.retryable, reason.link_expired, reason.wait_s
                unwritable = reason.unwritable
            if not again or attempt >= self._attempts or (is_inline(url) and not unwritable):
                break
            pause_s = min(self._pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
            await asyncio.sleep(max(pause_s * random.uniform(0.5, 1.0), wait_s or 0.0))
        if unwritable:
            raise SaveError(why)
        tried = f" (tried {attempt} times)" if attempt > 1 else ""
        raise DownloadError(f"{_loggable_url(url)}: {why}{tried}", link_expired=gone)

    async def _filed(self, folder: Path, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do file work in a thread."""
        try:
            return await self._threads.run(work, *args, **kwargs)
        except OSError as error:
            raise missed(folder, error) from None

    def _check_open(self) -> None:
        if self._state != "open":
            raise SessionClosed(f"the door to the pictures is {self._state}")


def _loggable_url(url: str) -> str:
    """Return a link for people's eyes, without the query that may be its key."""
    if is_inline(url):
        return f"the inline picture ({len(url)} characters)"
    try:
        parsed = URL(url)
        return shorten(f"{parsed.origin()}{parsed.raw_path}")
    except ValueError:
        return "the link"
