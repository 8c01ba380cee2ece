"""The only door to a gateway: a request goes out with the API key, a whole answer or an error of ours comes back."""

import asyncio
import functools
import io
import math
import platform
import ssl

import aiohttp
from yarl import URL

from nanobanana_async._version import __version__
from nanobanana_async.config import Timeouts
from nanobanana_async.errors import (
    ConfigurationError,
    NanoBananaError,
    SessionClosed,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.gateways.base import is_loopback
from nanobanana_async.gateways.contract import Gateway, HttpRequest, HttpResponse
from nanobanana_async.gateways.large_answers import AnswerBounds, AnswerTooLarge
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.body import RequestBody, is_stale_response, possibly_sent
from nanobanana_async.http.exceptions import map_exception
from nanobanana_async.http.sockets import SocketTracker
from nanobanana_async.http.threads import ThreadedResolver
from nanobanana_async.http.tls_and_proxies import Proxies, Tls, proxy_url, verifies
from nanobanana_async.loop_guard import cancel_requested

_is_loopback = functools.lru_cache(maxsize=64)(is_loopback)

USER_AGENT = f"nanobanana_async/{__version__} aiohttp/{aiohttp.__version__} python/{platform.python_version()}"


class AiohttpTransport:
    """Sends requests to a gateway and returns whole answers.

    Queries and creates that carry an idempotency key share one pool of connections. A create without one goes over a
    fresh TCP connection, used once: a pooled one that the server has just closed looks like a lost answer.

    Of a borrowed `aiohttp.ClientSession` the connector is used (its pool, limits, resolver and TLS settings) and
    nothing else: no default header, cookie, auth, proxy, timeout, redirect, middleware, trace or `raise_for_status` of
    it applies, and it is never closed. Fresh connections are our own also then, with the TLS settings of its
    connector; one that does not verify certificates is refused, and so is a session with a proxy of its own.

    Redirects are refused, cookies are not kept.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        timeouts: Timeouts,
        http: aiohttp.ClientSession | None = None,
        tls: Tls = True,
        proxies: Proxies | None = None,
        max_connections: int = 64,
    ) -> None:
        # First of all, since its repr stands in the traceback of what is refused.
        self._pool: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        self._closed = False
        if not isinstance(gateway.api_key, Secret):
            raise ConfigurationError(f"the api_key of {gateway.name} must be a nanobanana_async.gateways.Secret")
        self._gateway = gateway
        self._connect_s = timeouts.connect_s
        self._borrowed = http
        self._tls = tls
        self._proxies = Proxies() if proxies is None else proxies
        self._max_connections = max_connections
        self._sockets = SocketTracker()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not open" if self._pool is None else "open"
        return f"<Api {state}>"

    async def open(self) -> None:
        """Make the connection pools; no connection is opened yet.

        Raises `ConfigurationError` for a borrowed session that can't be used, `SessionClosed` after `aclose`.
        """
        if self._closed:
            raise SessionClosed("the door to the gateway was closed")
        if self._pool is not None:
            return
        lent = None if self._borrowed is None else _connector_of(self._borrowed)
        tls = lent._ssl if isinstance(lent, aiohttp.TCPConnector) else self._tls
        self._fresh = _session(self._connector(tls, force_close=True))
        self._pool = _session(self._connector(tls), owns=True) if lent is None else _session(lent, owns=False)

    async def aclose(self) -> None:
        """Close what is ours, down to the last socket; idempotent."""
        self._closed = True
        for session in (self._pool, self._fresh):
            if session is not None:
                await session.close()
        await self._sockets.wait_closed()

    def disown(self) -> None:
        """Leave every socket to the parent process; called in a forked child, which has copies of them.

        A connector that is closed, or garbage, would take the sockets out of the event loop's selector, and that is
        one for both processes.
        """
        self._closed = True
        for session in (self._pool, self._fresh):
            disown_connector(session, self._borrowed)
        self._sockets = SocketTracker()

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Send once, and return the answer whatever its status.

        Raises `TransportError` when no whole answer came within `timeout_s`, `UnexpectedResponse` when it is a redirect or
        larger than the request allows, `ConfigurationError` when it must not or can't be sent, `SessionClosed` when
        the door is not open.
        """
        session = self._open_session(fresh_connection)
        url = _validated_url(request.url)
        _check_proxy(url, self._proxies)
        try:
            answer = await self._exchange(session, request, url, timeout_s)
        except BaseException as ended:
            # Cancelled, or interrupted by Ctrl-C: the frames it came through hold the headers and the proxy's password.
            ended.__context__ = None
            raise ended.with_traceback(None) from None
        if isinstance(answer, HttpResponse):
            return answer
        try:
            # Here and not where it was found: that frame holds the headers, and an `except` would chain the cause.
            raise answer from None
        finally:
            del answer  # it holds this frame

    async def _exchange(
        self, session: aiohttp.ClientSession, request: HttpRequest, url: URL, timeout_s: float
    ) -> HttpResponse | NanoBananaError:
        """Return the answer, or the error: it must not be raised where the headers are."""
        headers = {**request.headers, "Authorization": f"Bearer {self._gateway.api_key.reveal()}"}
        body = None if request.body is None else RequestBody(request.body)
        # Only what is bought needs to be known as sent or not; a query is asked again in any case.
        tracker = None if body is None else aiohttp.UploadTracker()
        try:
            response = await session.request(
                request.method,
                url,
                data=body,
                headers=headers,
                timeout=_client_timeout(self._connect_s, timeout_s),
                allow_redirects=False,
                proxy=proxy_url(self._proxies.of(url)),
                upload_tracker=tracker,
            )
            try:
                if is_stale_response(body, tracker):
                    return TransportError(f"{url.raw_host} answered before it was asked", possibly_sent=False)
                return await _read(response, request, self._gateway.api_key)
            finally:
                response.close()  # after the whole body it has gone back to the pool, and this does nothing
        except asyncio.CancelledError:
            if cancel_requested():
                raise
            # aiohttp cancels who waits for a connection of a session that is closed.
            sent = body is None or body.started
            return TransportError(
                f"the request to {url.host} was cancelled within the aiohttp session", possibly_sent=sent
            )
        except Exception as error:
            return map_exception(
                error,
                host=url.raw_host or "",
                sent=possibly_sent(error, body, tracker),
                connect_s=self._connect_s,
                timeout_s=timeout_s,
            )

    def _open_session(self, fresh: bool) -> aiohttp.ClientSession:
        session = self._fresh if fresh else self._pool
        if session is None or self._closed:
            raise SessionClosed("the door to the gateway is not open")
        if session.closed:
            raise ConfigurationError("the aiohttp session you lent is closed: close it after the session that uses it")
        return session

    def _connector(
        self, tls: ssl.SSLContext | aiohttp.Fingerprint | bool, *, force_close: bool = False
    ) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(
            ssl=tls,
            limit=self._max_connections,
            force_close=force_close,
            resolver=ThreadedResolver(),
            socket_factory=self._sockets.make,
        )


def disown_connector(session: aiohttp.ClientSession | None, lent: aiohttp.ClientSession | None = None) -> None:
    """Let a forked child's copy of a session do nothing, not even when it is garbage; a lent connector is not ours."""
    connector = None if session is None else session.connector
    if connector is not None and (lent is None or connector is not lent.connector):
        connector._closed = True


@functools.lru_cache(maxsize=4096)  # a task is asked for at one URL again and again
def _validated_url(text: str) -> URL:
    """Return the URL if the key may travel there."""
    try:
        url = URL(text)
    except ValueError:
        raise ConfigurationError("the request's URL can't be read: check base_url") from None
    host = url.raw_host or ""
    if "@" in url.raw_authority:
        raise ConfigurationError(f"the URL of the request to {host} must not hold credentials")
    if url.scheme == "https" and host:
        return url
    if url.scheme != "http" or not _is_loopback(host):
        raise ConfigurationError(f"the request to {host or 'no host'} must use https: the API key travels with it")
    return url


def _check_proxy(url: URL, proxies: Proxies) -> None:
    if url.scheme == "https":
        return
    proxy = proxies.of(url)
    if proxy is not None and not _is_loopback(URL(proxy.reveal()).raw_host or ""):
        raise ConfigurationError("a request without TLS must not go through a proxy: the API key travels with it")


async def _read(
    response: aiohttp.ClientResponse, request: HttpRequest, key: Secret
) -> HttpResponse | UnexpectedResponse:
    """Return the answer with its whole body, decoded, or why it is not taken."""
    status, limit = response.status, request.max_answer_bytes
    if 300 <= status < 400:
        host = key.hide(_host_of(response.headers.get("Location")))
        return UnexpectedResponse("redirects are refused", status=status, body=host)
    content = response.content
    if content.is_eof():  # the common case: the body came along with the headers
        body = await content.readany()
    elif (response.content_length or 0) > limit:
        return _too_large(status, limit)
    else:
        try:
            body = await _read_body(content, limit, request.max_text_bytes)
        except AnswerTooLarge as error:
            return UnexpectedResponse(str(error), status=status)
    if len(body) > limit:
        return _too_large(status, limit)
    return HttpResponse(status=status, headers=response.headers, body=body)


async def _read_body(content: aiohttp.StreamReader, limit: int, max_text: int | None) -> bytes:
    bounds = None if max_text is None else AnswerBounds(max_text)
    body = io.BytesIO()  # it grows in place, and hands over its bytes without a copy
    while body.tell() <= limit and not content.at_eof():
        piece = await content.readany()
        if bounds is not None:
            bounds.feed(piece)
        body.write(piece)
    return body.getvalue()


def _too_large(status: int, limit: int) -> UnexpectedResponse:
    return UnexpectedResponse(f"the answer is larger than {limit} bytes", status=status)


def _host_of(location: str | None) -> str:
    try:
        return (URL(location or "").raw_host or "")[:255]
    except ValueError:
        return ""


@functools.lru_cache(maxsize=64)
def _client_timeout(connect_s: float, timeout_s: float) -> aiohttp.ClientTimeout:
    # To aiohttp no limit is None, and 0 or less is no limit.
    connect, total = (None if math.isinf(limit) else max(limit, 0.001) for limit in (connect_s, timeout_s))
    return aiohttp.ClientTimeout(total=total, connect=connect)


def _session(connector: aiohttp.BaseConnector, *, owns: bool = True) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        connector_owner=owns,
        cookie_jar=aiohttp.DummyCookieJar(),
        # Answers are not asked for compressed: they are small, or pictures, which do not shrink.
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        raise_for_status=False,
        trust_env=False,
    )


def _connector_of(lent: aiohttp.ClientSession) -> aiohttp.BaseConnector:
    """Return what we use of a borrowed session, if it is safe."""
    connector = lent.connector
    if connector is None or connector.closed:
        raise ConfigurationError("the aiohttp session you lend is closed")
    if connector._loop is not asyncio.get_running_loop():
        raise ConfigurationError("the aiohttp session you lend belongs to another event loop: make it in this one")
    if lent._default_proxy is not None:
        raise ConfigurationError(
            "the aiohttp session you lend has a proxy of its own, which images would not come through: lend none, and"
            " pass Session(proxy=...) instead"
        )
    if isinstance(connector, aiohttp.TCPConnector) and not _verifies(connector._ssl):
        raise ConfigurationError(
            "the aiohttp session you lend does not verify TLS certificates: give its connector an ssl.SSLContext that"
            " trusts yours instead"
        )
    return connector


def _verifies(tls: ssl.SSLContext | aiohttp.Fingerprint | bool) -> bool:
    return verifies(tls) if isinstance(tls, ssl.SSLContext) else tls is not False
