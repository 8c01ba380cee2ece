"""The HTTP transport to a gateway: it adds the API key, and returns a complete answer or raises a package error."""

import asyncio
import functools
import io
import math
import platform

import aiohttp
from aiohttp.abc import AbstractResolver
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
from nanobanana_async.http.lent import UnpooledLentConnector, lent_connector
from nanobanana_async.http.sockets import SocketTracker
from nanobanana_async.http.threads import ThreadedResolver
from nanobanana_async.http.tls_and_proxies import Proxies, Tls, allowed_http_origin, proxy_url
from nanobanana_async.http.urls import parse_url
from nanobanana_async.loop_guard import cancel_requested

_is_loopback = functools.lru_cache(maxsize=64)(is_loopback)

USER_AGENT = f"nanobanana_async/{__version__} aiohttp/{aiohttp.__version__} python/{platform.python_version()}"


class AiohttpTransport:
    """Sends requests to a gateway and returns complete answers.

    Polls, and creates with an idempotency key, share one connection pool. A create without a key uses a fresh TCP
    connection once: a pooled connection that the server has just closed looks like a lost answer.

    Only the connector of a borrowed `aiohttp.ClientSession` is used, which is never closed; fresh connections are made
    by it, too, outside of its pool. `http/lent.py` says what of the session is refused.

    Redirects are refused, cookies are not stored.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        timeouts: Timeouts,
        http: aiohttp.ClientSession | None = None,
        tls: Tls = True,
        proxies: Proxies | None = None,
        resolver: AbstractResolver | None = None,
        max_connections: int = 64,
    ) -> None:
        # Set first: the repr, which needs them, may appear in the traceback of an error below.
        self._pool: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        self._closed = False
        if not isinstance(gateway.api_key, Secret):
            raise ConfigurationError(f"the api_key of {gateway.name} must be a nanobanana_async.gateways.Secret")
        self._gateway = gateway
        self._plain_origin = allowed_http_origin(gateway)
        self._connect_s = timeouts.connect_s
        self._borrowed = http
        self._tls = tls
        self._proxies = Proxies() if proxies is None else proxies
        self._resolver = ThreadedResolver() if resolver is None else resolver
        self._max_connections = max_connections
        self._sockets = SocketTracker()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not open" if self._pool is None else "open"
        return f"<AiohttpTransport {state}>"

    async def open(self) -> None:
        """Make the connection pools; no connection is opened yet.

        Raises `ConfigurationError` for a borrowed session that can't be used, `SessionClosed` after `aclose`.
        """
        if self._closed:
            raise SessionClosed("the session is closed")
        if self._pool is not None:
            return
        if self._borrowed is None:
            self._fresh = _new_client_session(self._connector(force_close=True))
            self._pool = _new_client_session(self._connector())
        else:
            borrowed = lent_connector(self._borrowed)
            self._fresh = _new_client_session(UnpooledLentConnector(borrowed, force_close=True))
            self._pool = _new_client_session(borrowed, owns=False)

    async def aclose(self) -> None:
        """Close every connection that is not borrowed, and wait for its socket; idempotent."""
        self._closed = True
        for session in (self._pool, self._fresh):
            if session is not None:
                await session.close()
        await self._sockets.wait_closed()

    def leave_to_parent(self) -> None:
        """Leave the sockets to the parent process; called in a forked child, which has copies of them.

        A connector that is closed or collected as garbage would remove the sockets from the event loop's selector,
        which parent and child share.
        """
        self._closed = True
        for session in (self._pool, self._fresh):
            leave_connector_to_parent(session, self._borrowed)
        self._sockets = SocketTracker()

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Send a request once, and return the answer of any status.

        Raises `TransportError` when no complete answer came within `timeout_s`, `UnexpectedResponse` for a redirect or
        an answer larger than the request allows, `ConfigurationError` when the request must not or can't be sent,
        `SessionClosed` when the transport is not open.
        """
        session = self._require_open_session(fresh_connection)
        url = _validated_url(request.url, self._plain_origin)
        _check_proxy(url, self._proxies)
        try:
            answer = await self._exchange(session, request, url, timeout_s)
        except BaseException as interrupt:
            # Cancelled or Ctrl-C: the frames of its traceback hold the headers and the proxy's password.
            interrupt.__context__ = None
            raise interrupt.with_traceback(None) from None
        if isinstance(answer, HttpResponse):
            return answer
        try:
            # Raised here, not in `_exchange`: its frame holds the headers, and its `except` would chain the cause.
            raise answer from None
        finally:
            del answer  # breaks the reference cycle with this frame

    async def _exchange(
        self, session: aiohttp.ClientSession, request: HttpRequest, url: URL, timeout_s: float
    ) -> HttpResponse | NanoBananaError:
        """Return the answer or the error, which must not be raised in a frame that holds the headers."""
        headers = {**request.headers, "Authorization": f"Bearer {self._gateway.api_key.reveal()}"}
        body = None if request.body is None else RequestBody(request.body)
        # Only for a create it matters whether the request was sent; a poll is repeated in any case.
        tracker = None if body is None else aiohttp.UploadTracker()
        try:
            response = await session.request(
                request.method,
                url,
                data=body,
                headers=headers,
                timeout=_client_timeout(self._connect_s, timeout_s),
                allow_redirects=False,
                proxy=proxy_url(self._proxies.proxy_for(url)),
                upload_tracker=tracker,
            )
            try:
                if is_stale_response(body, tracker):
                    return TransportError(f"{url.raw_host} answered before the request was sent", possibly_sent=False)
                return await _read_answer(response, request, self._gateway.api_key)
            finally:
                response.close()  # no effect after a complete body: the connection is back in the pool
        except asyncio.CancelledError:
            if cancel_requested():
                raise
            # aiohttp cancels tasks that wait for a connection of a closed session.
            sent = body is None or body.started
            return TransportError(
                f"the request to {url.host} was cancelled within the aiohttp session", possibly_sent=sent
            )
        except Exception as error:
            return map_exception(
                error,
                host=url.raw_host or "",
                port=None if url.is_default_port() else url.port,
                sent=possibly_sent(error, body, tracker),
                connect_s=self._connect_s,
                timeout_s=timeout_s,
            )

    def _require_open_session(self, fresh: bool) -> aiohttp.ClientSession:
        session = self._fresh if fresh else self._pool
        if session is None or self._pool is None or self._closed:
            raise SessionClosed("the session is not open")
        if self._pool.closed:
            raise ConfigurationError("the aiohttp session you lent is closed: close it after the session that uses it")
        return session

    def _connector(self, *, force_close: bool = False) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(
            ssl=self._tls,
            limit=self._max_connections,
            force_close=force_close,
            resolver=self._resolver,
            socket_factory=self._sockets.make_socket,
        )


def leave_connector_to_parent(
    session: aiohttp.ClientSession | None, borrowed: aiohttp.ClientSession | None = None
) -> None:
    """Make a forked child's copy of a session inert, also when collected as garbage; skip a borrowed connector."""
    connector = None if session is None else session.connector
    if connector is not None and (borrowed is None or connector is not borrowed.connector):
        connector._closed = True


@functools.lru_cache(maxsize=4096)  # a job is polled at one URL many times
def _validated_url(text: str, plain: URL | None) -> URL:
    """Return the URL if the API key may be sent there, for http to `plain`; raise `ConfigurationError` otherwise."""
    try:
        url = parse_url(text)
    except ValueError:
        raise ConfigurationError("the request's URL is invalid: check base_url") from None
    host = url.raw_host or ""
    if "@" in url.raw_authority:
        raise ConfigurationError(f"the URL of the request to {host} must not hold credentials")
    if url.scheme == "https" and host:
        return url
    if url.scheme != "http" or not (_is_loopback(host) or (host and url.origin() == plain)):
        raise ConfigurationError(f"the request to {host or 'no host'} must use https: it carries the API key")
    return url


def _check_proxy(url: URL, proxies: Proxies) -> None:
    if url.scheme == "https":
        return
    proxy = proxies.proxy_for(url)
    if proxy is not None and not _is_loopback(URL(proxy.reveal()).raw_host or ""):
        raise ConfigurationError(
            "a request without TLS must not go through a proxy, since it carries the API key: list its host in NO_PROXY"
        )


async def _read_answer(
    response: aiohttp.ClientResponse, request: HttpRequest, key: Secret
) -> HttpResponse | UnexpectedResponse:
    """Return the answer with its complete body, or an error for a redirect or a too large answer."""
    status, limit = response.status, request.max_answer_bytes
    if 300 <= status < 400:
        host = key.hide(_host_of(response.headers.get("Location")))
        return UnexpectedResponse("redirects are refused: check base_url", status=status, body=host)
    content = response.content
    if content.is_eof():  # the common case: the body arrived with the headers
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
    body, size = io.BytesIO(), 0  # it grows in place, and returns its bytes without a copy
    while size <= limit and not content.at_eof():
        chunk = await content.readany()
        if bounds is not None:
            bounds.feed(chunk)
        size += body.write(chunk)
    return body.getvalue()


def _too_large(status: int, limit: int) -> UnexpectedResponse:
    return UnexpectedResponse(f"the answer is larger than {limit} bytes", status=status)


def _host_of(location: str | None) -> str:
    try:
        return (parse_url(location or "").raw_host or "")[:255]
    except ValueError:
        return ""


@functools.lru_cache(maxsize=64)
def _client_timeout(connect_s: float, timeout_s: float) -> aiohttp.ClientTimeout:
    # aiohttp takes None, and also 0 or less, as no limit.
    connect, total = (None if math.isinf(limit) else max(limit, 0.001) for limit in (connect_s, timeout_s))
    return aiohttp.ClientTimeout(total=total, connect=connect)


def _new_client_session(connector: aiohttp.BaseConnector, *, owns: bool = True) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        connector_owner=owns,
        cookie_jar=aiohttp.DummyCookieJar(),
        # No compression: answers are small, or images, which do not shrink.
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        raise_for_status=False,
        trust_env=False,
    )
