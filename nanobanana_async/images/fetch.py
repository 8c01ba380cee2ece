"""One attempt to download an image: redirect by redirect, without credentials, from public addresses only."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from nanobanana_async.errors import SessionClosed
from nanobanana_async.gateways.rate_limits import retry_after_s
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.exceptions import map_exception
from nanobanana_async.http.lent import image_connector, overrides_connecting
from nanobanana_async.http.sockets import SocketTracker
from nanobanana_async.http.tls_and_proxies import Proxies, Tls, proxy_url
from nanobanana_async.http.transport import leave_connector_to_parent
from nanobanana_async.http.urls import parse_url
from nanobanana_async.images.addresses import AddressRefused, Networks, PublicSockets, advice_for, is_allowed_host
from nanobanana_async.images.inline import FetchError

Write = Callable[[bytes], Awaitable[None]]

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Status codes for an expired or revoked link; Google answers 400, some proxies 401.
_LINK_EXPIRED_STATUSES = frozenset({400, 401, 404, 410})
_NOT_YET_STATUSES = frozenset({403, 404})  # some hosts answer so for some seconds after the image was made
_GZIP = b"\x1f\x8b\x08"  # no image begins so
_MAX_GZIP_RATIO = 10  # images are compressed already: only a bomb grows by so much
_RETRYABLE_STATUSES = frozenset({408, 425, 429})
_CHUNK = 1 << 20  # a thread writes each chunk to the disk
_HEADERS_FOR_ANY_HOST = frozenset({"user-agent", "accept"})  # other headers of the user are for the host of the link
_MAX_WAIT_S = 30.0  # links expire, so a longer wait is not worth it


class ImageFetcher:
    """Downloads an image in one attempt; raises `FetchError`.

    `loopback` allows loopback addresses, `networks` those of private networks, `own_origin` the gateway's own host in a
    private network. Direct connections are made to no others but public ones. A proxy resolves and connects itself, and
    so may a `lent` session's connector: there only the URL's host is checked.
    """

    def __init__(
        self,
        *,
        loopback: bool,
        networks: Networks,
        lent: aiohttp.ClientSession | None,
        proxies: Proxies,
        tls: Tls,
        resolver: AbstractResolver | None,
        connect_s: float,
        idle_s: float,
        total_s: float,
        max_bytes: int,
        headers: Mapping[str, str],
        own_origin: URL | None = None,
    ) -> None:
        self._loopback = loopback
        self._networks = networks
        self._lent = lent
        self._through_lent = lent is not None and overrides_connecting(lent.connector)
        self._own_origin = own_origin
        self._proxies = proxies
        self._tls = tls
        self._resolver = resolver
        self._connect_s = connect_s
        self._idle_s = idle_s
        self._total_s = total_s
        self._max_bytes = max_bytes
        self._headers = dict(headers)
        self._direct_sockets = self._public_sockets()
        self._proxy_sockets = SocketTracker()
        self._own_sockets = SocketTracker()
        self._own: aiohttp.ClientSession | None = None
        self._direct: aiohttp.ClientSession | None = None
        self._proxied: aiohttp.ClientSession | None = None

    def open_sessions(self) -> None:
        """Make the sessions; no connection is opened yet."""
        self._direct = self._session(self._direct_sockets)
        self._proxied = self._session(self._proxy_sockets) if self._proxies else None
        self._own = self._session(self._own_sockets) if self._own_origin is not None else None

    def _public_sockets(self) -> PublicSockets:
        factory = None if self._lent is None else getattr(self._lent.connector, "_socket_factory", None)
        return PublicSockets(loopback=self._loopback, networks=self._networks, factory=factory)

    def _session(self, sockets: SocketTracker) -> aiohttp.ClientSession:
        lent = None if self._lent is None else self._lent.connector
        return aiohttp.ClientSession(
            connector=image_connector(lent, self._tls, sockets, self._resolver),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s, sock_read=self._idle_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", **self._headers_for(same_origin=False)},
            auto_decompress=False,  # aiohttp would not bound what a compressed answer grows to
            raise_for_status=False,
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close the sessions, and wait for their sockets."""
        for session in (self._direct, self._proxied, self._own):
            if session is not None:
                await session.close()
        await self._direct_sockets.wait_closed()
        await self._proxy_sockets.wait_closed()
        await self._own_sockets.wait_closed()

    def leave_to_parent(self) -> None:
        """Leave the sockets to the parent process; called in a forked child. See `AiohttpTransport.leave_to_parent`."""
        for session in (self._direct, self._proxied, self._own):
            leave_connector_to_parent(session)
        self._direct_sockets = self._public_sockets()
        self._proxy_sockets = SocketTracker()
        self._own_sockets = SocketTracker()

    async def get(self, link: str, write: Write) -> None:
        """Download a link, and pass its content to `write` in chunks."""
        url = parse_link(link)
        try:
            async with asyncio.timeout(self._total_s):
                origin = url.origin()
                for _ in range(1 + MAX_REDIRECTS):
                    headers = self._headers_for(same_origin=url.origin() == origin)
                    target = await self._fetch_or_redirect(url, write, headers)
                    if target is None:
                        return
                    url = target
        except TimeoutError:
            raise FetchError(f"the image did not arrive within {self._total_s:g} s", retryable=True) from None
        raise FetchError(f"too many redirects (limit {MAX_REDIRECTS})")

    def session_and_proxy(self, url: URL) -> tuple[aiohttp.ClientSession, Secret | None]:
        """Return the session and the proxy for a URL; raise `FetchError` if its host is not public by its name."""
        proxy = self._proxies.proxy_for(url)
        own = url.origin() == self._own_origin
        if not own:
            self._check_host(url)
        session = (self._own if own else self._direct) if proxy is None else self._proxied
        if session is None:
            raise SessionClosed("the session is not open")
        return session, proxy

    def _check_host(self, url: URL) -> None:
        host, direct = url.raw_host or "", self._proxies.proxy_for(url) is None and not self._through_lent
        if not is_allowed_host(host, loopback=self._loopback, networks=self._networks, checked=direct):
            raise _not_public(host, host)

    def _headers_for(self, *, same_origin: bool) -> dict[str, str]:
        """Return the headers of a download: another host than the link's gets none of those that the user added."""
        return {
            name: value for name, value in self._headers.items() if same_origin or name.lower() in _HEADERS_FOR_ANY_HOST
        }

    async def _fetch_or_redirect(self, url: URL, write: Write, headers: Mapping[str, str]) -> URL | None:
        """Download the image and return None, or return the target of a redirect."""
        session, proxy = self.session_and_proxy(url)
        try:
            answer = await session.get(url, headers=headers, allow_redirects=False, proxy=proxy_url(proxy))
            try:
                if answer.status in _REDIRECTS:
                    return _redirect_target(url, answer)
                _check_answer(answer, self._max_bytes)
                await self._stream(answer.content, write)
                return None
            finally:
                answer.close()  # no effect after a complete image: the connection is back in the pool
        except FetchError:
            raise
        except Exception as error:
            raise self.fetch_error(error, url) from None
        except BaseException as interrupt:
            # The traceback of a cancellation holds aiohttp's frames, which hold the proxy's password.
            interrupt.__context__ = None
            raise interrupt.with_traceback(None) from None

    async def _stream(self, content: aiohttp.StreamReader, write: Write) -> None:
        size, buffer, unpacker = 0, bytearray(), _Unpacker()
        while True:
            async with asyncio.timeout(self._idle_s):  # aiohttp's own never ends when the last chunk does not end well
                if not (received := await content.readany()):
                    break
            for piece in unpacker.unpack(received):
                size += len(piece)
                if size > self._max_bytes:
                    raise _too_large(self._max_bytes)
                buffer += piece
                if len(buffer) >= _CHUNK:
                    await write(bytes(buffer))
                    buffer.clear()
        unpacker.check_complete()
        if buffer:
            await write(bytes(buffer))

    def fetch_error(self, error: Exception, url: URL) -> FetchError:
        """Return a `FetchError` for another exception, with the transport's messages where they apply."""
        host = url.raw_host or ""
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressRefused):
            return _not_public(host, error.os_error.address)
        if isinstance(error, aiohttp.SocketTimeoutError) or (type(error) is TimeoutError and error.errno is None):
            return FetchError(f"{host} sent nothing for {self._idle_s:g} s", retryable=True)
        mapped = map_exception(
            error, host=host, sent=True, connect_s=self._connect_s, timeout_s=self._total_s, setting="the link"
        )
        # A bad certificate or an invalid URL (both are ValueErrors) fails again, and so does a proxy's refusal.
        again = not isinstance(error, (ValueError, aiohttp.ClientHttpProxyError))
        return FetchError(str(mapped), retryable=again)


def parse_link(link: str) -> URL:
    """Return the URL of a link with its escapes unchanged: a signature may cover the exact text."""
    try:
        return _validated_url(_parse_verbatim(link))
    except ValueError:
        raise FetchError("the link is not a valid URL") from None


def _parse_verbatim(text: str) -> URL:
    return parse_url(text, encoded=text.isascii() and text.isprintable() and " " not in text)


def _validated_url(url: URL) -> URL:
    # yarl parses host and port lazily, and raises ValueError then.
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise FetchError("the link is neither http, https nor data")
    if url.raw_user is not None or url.raw_password is not None:
        raise FetchError("the link holds a user name or password: links with credentials are refused")
    return url


def _redirect_target(url: URL, answer: aiohttp.ClientResponse) -> URL:
    """Return the target of a redirect; raise `FetchError` if it is not allowed."""
    location = answer.headers.get("Location", "")
    if not location:
        raise FetchError(f"{url.raw_host} sent a redirect without Location")
    try:
        target = _validated_url(url.join(_parse_verbatim(location)))
    except ValueError:
        raise FetchError(f"{url.raw_host} redirects to an invalid URL") from None
    except FetchError as error:
        raise FetchError(f"{url.raw_host} sent a redirect that is refused: {error.reason}") from None
    if url.scheme == "https" and target.scheme != "https":
        raise FetchError(f"{url.raw_host} redirects from https to http")
    return target


class _Unpacker:
    """Unpacks an answer that is gzip by its first bytes, even if its headers do not say so, in pieces of bounded size.

    Compression was not asked for. Some hosts compress all the same, and others send a header and no compression.
    """

    def __init__(self) -> None:
        self._start = b""
        self._inflater: Any = None
        self._plain = False
        self._most = _CHUNK

    def unpack(self, received: bytes) -> Iterator[bytes]:
        if self._inflater is None and not self._plain:
            received = self._start = self._start + received
            if len(received) < len(_GZIP) and _GZIP.startswith(received):
                return
            self._plain = not received.startswith(_GZIP)
            self._inflater = zlib.decompressobj(wbits=31)
        if self._plain or self._inflater is None:
            yield received
            return
        self._most += _MAX_GZIP_RATIO * len(received)
        try:
            while received:
                unpacked = self._inflater.decompress(received, _CHUNK)
                self._most -= len(unpacked)
                if self._most < 0:
                    raise FetchError(f"the compressed image grows more than {_MAX_GZIP_RATIO} times")
                yield unpacked
                received = self._inflater.unconsumed_tail
        except zlib.error:
            raise FetchError("the compressed image is corrupt") from None

    def check_complete(self) -> None:
        if self._inflater is not None and not self._plain and not self._inflater.eof:
            raise FetchError("the compressed image is truncated", retryable=True)


def _check_answer(answer: aiohttp.ClientResponse, max_bytes: int) -> None:
    status = answer.status
    not_yet = status in _NOT_YET_STATUSES
    if status in _LINK_EXPIRED_STATUSES:
        message = f"the link has expired (HTTP {status})"
        raise FetchError(message, link_expired=True, not_yet=not_yet, status=status)
    if status == 403:
        message = "refused the link (HTTP 403): it has expired, or the host asks for other headers (`download_headers`)"
        raise FetchError(f"{answer.url.raw_host} {message}", not_yet=not_yet, status=status)
    if status != 200:
        wait_s = retry_after_s(answer.headers)
        raise FetchError(
            f"{answer.url.raw_host} answered {status}",
            retryable=status in _RETRYABLE_STATUSES or status >= 500,
            wait_s=None if wait_s is None else min(wait_s, _MAX_WAIT_S),
            status=status,
        )
    if (answer.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> FetchError:
    return FetchError(f"the image is larger than {max_bytes} bytes")


def _not_public(host: str, address: str) -> FetchError:
    where = "" if host == address else f", but at {address}"
    why = f"{host} is not at a public address{where}: images are not fetched from private networks"
    return FetchError(why + advice_for(address))
