"""One attempt to get a picture: hop by hop, without a credential, from public addresses, under a cap."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from nanobanana_async.errors import SessionClosed
from nanobanana_async.gateways.rate_limits import retry_after_s
from nanobanana_async.http.exceptions import map_exception
from nanobanana_async.http.sockets import SocketTracker
from nanobanana_async.http.threads import ThreadedResolver
from nanobanana_async.http.tls_and_proxies import Proxies, Tls, proxy_url
from nanobanana_async.http.transport import USER_AGENT, disown_connector
from nanobanana_async.images.addresses import AddressRefused, PublicSockets, is_allowed_host
from nanobanana_async.images.inline import FetchError

Write = Callable[[bytes], Awaitable[None]]

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What stores answer to a link that is expired or was taken back; 400 is Google's, 401 some proxies'.
_GONE = frozenset({400, 401, 403, 404, 410})
_PASSING = frozenset({408, 425, 429})
_PIECE = 1 << 20  # a thread writes each to the disk
_MAX_WAIT_S = 30.0  # links expire: a longer wait than this would not be worth it


class ImageFetcher:
    """Gets a picture in one attempt; what hinders it is `Missed`.

    `loopback` lets this machine count as public. What goes through a proxy is resolved and connected to by the proxy,
    so there only the URL's host can be looked at; what goes without one is connected to public addresses only.
    """

    def __init__(
        self,
        *,
        loopback: bool,
        proxies: Proxies,
        tls: Tls,
        resolver: AbstractResolver | None,
        connect_s: float,
        idle_s: float,
        total_s: float,
        max_bytes: int,
    ) -> None:
        self._loopback = loopback
        self._proxies = proxies
        self._tls = tls
        self._resolver = resolver
        self._connect_s = connect_s
        self._idle_s = idle_s
        self._total_s = total_s
        self._max_bytes = max_bytes
        self._public = PublicSockets(loopback=loopback)
        self._to_proxies = SocketTracker()
        self._direct: aiohttp.ClientSession | None = None
        self._proxied: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make the sessions; no connection is opened yet."""
        self._direct = self._session(self._public)
        self._proxied = self._session(self._to_proxies) if self._proxies else None

    def _session(self, sockets: SocketTracker) -> aiohttp.ClientSession:
        resolver = self._resolver or ThreadedResolver()
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0, resolver=resolver, socket_factory=sockets.make),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s, sock_read=self._idle_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            # Never unpacked: what came compressed all the same does not begin like a picture, and is none.
            auto_decompress=False,
            raise_for_status=False,
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close the sessions down to the last socket."""
        for session in (self._direct, self._proxied):
            if session is not None:
                await session.close()
        await self._public.wait_closed()
        await self._to_proxies.wait_closed()

    def disown(self) -> None:
        """Leave every socket to the parent process; called in a forked child. See `Api.disown`."""
        for session in (self._direct, self._proxied):
            disown_connector(session)
        self._public = PublicSockets(loopback=self._loopback)
        self._to_proxies = SocketTracker()

    async def get(self, link: str, take: Write) -> None:
        """Hand the bytes behind a link to `take`, piece by piece."""
        url = read_url(link)
        try:
            async with asyncio.timeout(self._total_s):
                for _ in range(1 + MAX_REDIRECTS):
                    self._check(url)
                    target = await self._follow(url, take)
                    if target is None:
                        return
                    url = target
        except TimeoutError:
            raise FetchError(f"the picture did not arrive within {self._total_s:g} s", retryable=True) from None
        raise FetchError(f"the link leads on and on: more than {MAX_REDIRECTS} redirects")

    def _check(self, url: URL) -> None:
        if not is_allowed_host(url.raw_host or "", loopback=self._loopback):
            raise _not_public(url)

    async def _follow(self, url: URL, take: Write) -> URL | None:
        """Take the picture and return None, or return where it is said to be."""
        proxy = self._proxies.of(url)
        session = self._direct if proxy is None else self._proxied
        if session is None:
            raise SessionClosed("the door to the pictures is not open")
        try:
            answer = await session.get(url, allow_redirects=False, proxy=proxy_url(proxy))
            try:
                if answer.status in _REDIRECTS:
                    return _target(url, answer)
                _check_answer(answer, self._max_bytes)
                await self._stream(answer.content, take)
                return None
            finally:
                answer.close()  # after the whole picture the connection has gone back to the pool
        except FetchError:
            raise
        except Exception as error:
            raise self._fetch_error(error, url) from None
        except BaseException as ended:
            # aiohttp's frames, through which a cancellation came, hold the proxy's password.
            ended.__context__ = None
            raise ended.with_traceback(None) from None

    async def _stream(self, content: aiohttp.StreamReader, take: Write) -> None:
        size = 0
        piece = bytearray()
        async for chunk in content.iter_any():
            size += len(chunk)
            if size > self._max_bytes:
                raise _too_large(self._max_bytes)
            piece += chunk
            if len(piece) >= _PIECE:
                await take(bytes(piece))
                piece.clear()
        if piece:
            await take(bytes(piece))

    def _fetch_error(self, error: Exception, url: URL) -> FetchError:
        """Say a foreign error in our words; those of `Api` where they fit."""
        host = url.raw_host or ""
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressRefused):
            return _not_public(url)
        if isinstance(error, aiohttp.SocketTimeoutError):
            return FetchError(f"{host} fell silent for {self._idle_s:g} s", retryable=True)
        told = map_exception(error, host=host, sent=True, connect_s=self._connect_s, timeout_s=self._total_s)
        # A bad certificate or an impossible URL (both are ValueErrors) stays what it is.
        return FetchError(told.message, retryable=not isinstance(error, ValueError))


def read_url(link: str) -> URL:
    """Return the URL of a link, as it is spelled: what a signature was made of must not be spelled otherwise."""
    try:
        return _validated(_parse_verbatim(link))
    except ValueError:
        raise FetchError("the link can't be read") from None


def _parse_verbatim(text: str) -> URL:
    return URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


def _validated(url: URL) -> URL:
    # yarl looks at host and port when they are asked for, and raises ValueError then.
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise FetchError("the link is neither http, https nor data")
    if url.raw_user is not None or url.raw_password is not None:
        raise FetchError("the link holds a user name or a password, which is not given to strangers")
    return url


def _target(url: URL, answer: aiohttp.ClientResponse) -> URL:
    """Return where a redirect leads, if it may."""
    location = answer.headers.get("Location", "")
    if not location:
        raise FetchError(f"{url.raw_host} redirects to nowhere")
    try:
        target = _validated(url.join(_parse_verbatim(location)))
    except ValueError:
        raise FetchError(f"{url.raw_host} redirects to what is no URL") from None
    except FetchError as missed:
        raise FetchError(f"{url.raw_host} redirects elsewhere: {missed.why}") from None
    if url.scheme == "https" and target.scheme != "https":
        raise FetchError(f"{url.raw_host} redirects from https to http")
    return target


def _check_answer(answer: aiohttp.ClientResponse, max_bytes: int) -> None:
    status = answer.status
    if status in _GONE:
        raise FetchError(
            f"the link opens nothing any more (HTTP {status}): ask the gateway for a new one", link_expired=True
        )
    if status != 200:
        wait_s = retry_after_s(answer.headers)
        raise FetchError(
            f"{answer.url.raw_host} answered {status}",
            retryable=status in _PASSING or status >= 500,
            wait_s=None if wait_s is None else min(wait_s, _MAX_WAIT_S),
        )
    if (answer.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> FetchError:
    return FetchError(f"the picture is larger than {max_bytes} bytes")


def _not_public(url: URL) -> FetchError:
    return FetchError(f"{url.raw_host} is not at a public address: pictures are not fetched from private networks")
