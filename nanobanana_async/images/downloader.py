"""Download images without credentials, with retries. An image is returned complete and verified, or not at all."""

import asyncio
import io
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import anyio
from aiohttp.abc import AbstractResolver
from yarl import URL

from nanobanana_async.errors import DownloadError, SaveError, SessionClosed
from nanobanana_async.formatting import shorten
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.http.tls_and_proxies import Proxies, Tls
from nanobanana_async.http.urls import parse_url
from nanobanana_async.images.addresses import Networks
from nanobanana_async.images.destination import Destination, FolderDestination, Saved
from nanobanana_async.images.fetch import ImageFetcher, Write
from nanobanana_async.images.formats import verify_image
from nanobanana_async.images.headers import download_headers
from nanobanana_async.images.inline import FetchError, decode_inline, is_inline
from nanobanana_async.images.put import put_image
from nanobanana_async.images.saved import PurchasedImage
from nanobanana_async.images.store_destination import StoreDestination
from nanobanana_async.images.target import Target

T = TypeVar("T")

_MAX_DECODES = 2  # an image with the maximum of pixels takes 256 MB while it is decoded
_MAX_PAUSE_S = 8.0
_CLOSING_S = 10.0


class ImageDownloader:
    """Fetches images by http, https and `data:` links.

    Links are followed to public addresses and to `networks` only, to loopback addresses if `allow_loopback` (for a
    gateway on this machine), and to `own_origin` (that of a gateway in a private network which the user allowed),
    through at most five redirects and never from https to http. No cookie, key or referrer is sent, and no credential
    is read from the environment. A proxy resolves host names itself: behind one, only the name shows whether a host may
    be public.

    A failure that may be temporary is retried, up to `attempts` attempts in all. At most `max_at_once` images are
    downloaded at once; `idle_s` and `total_s` limit one attempt. Images are verified with Pillow if it is installed.
    """

    def __init__(
        self,
        *,
        allow_loopback: bool = False,
        networks: Networks = (),
        lent: aiohttp.ClientSession | None = None,
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
        headers: Mapping[str, str] | None = None,
        own_origin: URL | None = None,
    ) -> None:
        self._fetcher = ImageFetcher(
            loopback=allow_loopback,
            networks=networks,
            lent=lent,
            proxies=Proxies() if proxies is None else proxies,
            tls=tls,
            resolver=resolver,
            connect_s=connect_s,
            idle_s=idle_s,
            total_s=total_s,
            max_bytes=max_bytes,
            headers=download_headers(headers),
            own_origin=own_origin,
        )
        self._attempts = attempts
        self._pause_s = pause_s
        self._max_bytes = max_bytes
        self._download_slots = asyncio.Semaphore(max_at_once)
        self._decode_slots = asyncio.Semaphore(_MAX_DECODES)
        self._threads = ThreadLimiter(max_at_once)  # each download does one thing at a time
        self._folders: dict[Path, Destination] = {}
        self._ongoing: set[anyio.CancelScope] = set()
        self._idle = asyncio.Event()
        self._state = "not open"

    def __repr__(self) -> str:
        return f"<ImageDownloader {self._state}>"

    async def open(self) -> None:
        """Make the connection pool; no connection is opened yet. Raises `SessionClosed` after `aclose`."""
        if self._state == "closed":
            raise SessionClosed("the session is closed")
        if self._state == "not open":
            self._fetcher.open_sessions()
            self._state = "open"

    async def aclose(self) -> None:
        """Close every connection; running downloads raise `SessionClosed`. Idempotent."""
        self._state = "closed"
        # Closing the aiohttp session is not enough: a task that reads from a closed connection would wait forever.
        for scope in self._ongoing:
            scope.cancel()
        try:
            if self._ongoing:
                with anyio.move_on_after(_CLOSING_S):
                    await self._idle.wait()
        finally:
            await self._fetcher.aclose()

    def leave_to_parent(self) -> None:
        """Leave the sockets to the parent process; called in a forked child."""
        self._state = "closed"
        self._fetcher.leave_to_parent()

    async def fetch(self, url: str, *, fresh_s: float = 0.0, verified: bool = True) -> bytes:
        """Return the bytes of an image, verified unless `verified` is False.

        For `fresh_s` seconds, an answer without the image is taken for a host that does not have the image yet.
        Raises `DownloadError`; its `link_expired` says whether the link has expired.
        """

        async def once() -> bytes:
            content = io.BytesIO()  # returns its bytes without a copy

            async def write(chunk: bytes) -> None:
                content.write(chunk)

            await self._receive(url, write)
            image = content.getvalue()
            if verified:
                async with self._decode_slots:
                    await self._threads.run(verify_image, image)
            return image

        return await self._with_retries(url, once, fresh_s)

    async def save(
        self, url: str, target: Target, name: str, purchased: PurchasedImage | None = None, *, fresh_s: float = 0.0
    ) -> Saved:
        """Save an image in a folder or store. Its file name is a safe form of `name` plus extension.

        With `purchased`, which says where the image comes from, it is found again by `find_saved`.

        Saving the same image again changes nothing. A different file of that name is never overwritten: the image then
        gets a number, as in `name-2.png`. In a folder it is listed in `SHA256SUMS`, and only a damaged file that is
        listed there as this image is replaced. Raises `DownloadError`; its `link_expired` says whether the link has
        expired. Raises `SaveError` when the folder or store can't be written. `fresh_s`: see `fetch`.
        """
        destination = self._destination(target)

        async def once() -> Saved:
            part = destination.begin()
            try:
                await part.open()
                await self._receive(url, part.write)
                return await part.finish(name, purchased)
            finally:
                await part.discard()

        return await self._with_retries(url, once, fresh_s)

    async def put_presigned(
        self, url: str, content: bytes, *, content_type: str, timeout_s: float, allow_http: bool = False
    ) -> None:
        """Send an image to a pre-signed URL, once; see `put_image`."""
        self._check_open()
        await put_image(
            self._fetcher, url, content, content_type=content_type, timeout_s=timeout_s, allow_http=allow_http
        )

    async def find_saved(self, target: Target, purchased: PurchasedImage) -> Saved | None:
        """Return an image that was saved at the target before and is intact; None if there is none."""
        return await self._while_open(partial(self._destination(target).find, purchased))

    def reserved_stem(
        self, target: Target, name: str, images: Sequence[PurchasedImage]
    ) -> AbstractAsyncContextManager[str]:
        """Return, for the block, the stem that all these images of one job share: the name, or a similar free one."""
        return self._destination(target).reserved_stem(name, images)

    async def add_sidecar(self, target: Target, name: str, facts: dict[str, Any]) -> None:
        """Write facts about a saved image beside it, unless they are there. Raises `SaveError`."""
        try:
            return await self._while_open(partial(self._destination(target).add_sidecar, name, facts))
        except FetchError as error:
            reason = error.reason
        raise SaveError(reason)

    async def check_target(self, target: Target) -> None:
        """Raise `SaveError` if no image can be saved at the target. A folder is created if it is missing."""
        await self._while_open(self._destination(target).check_writable)

    def _destination(self, target: Target) -> Destination:
        if not isinstance(target, Path):
            return StoreDestination(target, self._threads, self._decode_slots)
        if (known := self._folders.get(target)) is None:
            known = self._folders[target] = FolderDestination(target, self._threads, self._decode_slots)
        return known

    async def _receive(self, url: str, write: Write) -> None:
        if is_inline(url):
            chunks = decode_inline(url, self._max_bytes)
            while (chunk := await self._threads.run(next, chunks, None)) is not None:
                await write(chunk)
        else:
            await self._fetcher.get(url, write)

    async def _with_retries(self, url: str, once: Callable[[], Awaitable[T]], fresh_s: float) -> T:
        """Return the result of the first successful attempt; raise the last error, or `SessionClosed` when closed."""
        return await self._while_open(partial(self._retry_loop, url, once, fresh_s))

    async def _while_open(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of work that ends with `SessionClosed` when this is closed."""
        self._check_open()
        with anyio.CancelScope() as scope:
            self._ongoing.add(scope)
            self._idle.clear()
            try:
                return await work()
            finally:
                self._ongoing.discard(scope)
                if not self._ongoing:
                    self._idle.set()
        raise SessionClosed("the session is closed")

    async def _retry_loop(self, url: str, once: Callable[[], Awaitable[T]], fresh_s: float) -> T:
        clock = asyncio.get_running_loop().time
        fresh_until = clock() + fresh_s
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._download_slots:
                    return await once()
            except FetchError as error:
                reason, retryable, wait_s = error.reason, error.retryable, error.wait_s
                link_expired, unwritable, status = error.link_expired, error.unwritable, error.status
                not_yet = error.not_yet
            fresh_for_s = fresh_until - clock()
            again = not_yet and fresh_for_s > 0
            if not again and (not retryable or attempt >= self._attempts or (is_inline(url) and not unwritable)):
                break
            pause_s = min(self._pause_s * 2 ** (attempt - 1), _MAX_PAUSE_S) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(min(pause_s, fresh_for_s) if again else pause_s, wait_s or 0.0))
        # Raised here and not in the `except`, which would chain the cause.
        if unwritable:
            raise SaveError(reason)
        attempts = f" (after {attempt} attempts)" if attempt > 1 else ""
        raise DownloadError(f"{_loggable_url(url)}: {reason}{attempts}", link_expired=link_expired, status=status)

    def _check_open(self) -> None:
        if self._state != "open":
            raise SessionClosed(f"the session is {self._state}")


def _loggable_url(url: str) -> str:
    """Return a link for messages, without its query, which may hold a signature."""
    if is_inline(url):
        return f"the inline image ({len(url)} characters)"
    try:
        parsed = parse_url(url)
        return shorten(f"{parsed.origin()}{parsed.raw_path}")
    except ValueError:
        return "the link"
