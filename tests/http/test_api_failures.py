"""Errors of the transport when no complete answer came: `possibly_sent` is right, and the key is never shown."""

import asyncio
import base64
import gc
import logging
import math
import pickle
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, AbstractStreamWriter, ResolveResult

from nanobanana_async.errors import ConfigurationError, NanoBananaError, TransportError, UnexpectedResponse
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.body import RequestBody, possibly_sent
from nanobanana_async.http.exceptions import map_exception
from nanobanana_async.http.transport import AiohttpTransport
from tests.support.clocks import leap, turns
from tests.support.peers import (
    BODY,
    FINE,
    KEY,
    PATIENCE_S,
    Connection,
    Peer,
    Script,
    answering,
    create,
    deaf,
    fine,
    opened,
    query,
    silent,
    unused_port,
)

Ask = Callable[[str], HttpRequest]
BOTH = pytest.mark.parametrize("ask", [create, query])
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n"


def secrets() -> list[str]:
    encoded = base64.b64encode(KEY.encode()).decode()
    return [KEY, f"Bearer {KEY}", encoded, KEY.encode().hex()]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from chain(error.__cause__)
        error = error.__context__


def frames(trace: TracebackType | None) -> Iterator[Any]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def everything_shown(error: BaseException) -> Iterator[str]:
    """Yield everything that an error report could show of an error."""
    for link in chain(error):
        yield str(link)
        yield repr(link)
        yield repr(vars(link))
        yield repr(link.args)
        for frame in frames(link.__traceback__):
            if frame.f_code.co_filename != __file__:
                yield from (repr(value) for value in frame.f_locals.values())
    yield "".join(traceback.format_exception(error))
    if isinstance(error, NanoBananaError):
        yield pickle.dumps(error).decode("latin-1")


async def failure(
    api: AiohttpTransport, request: HttpRequest, *, timeout_s: float = PATIENCE_S, fresh: bool = False
) -> NanoBananaError:
    """Return the error of a request that can't succeed; check that the error holds no secret."""
    with pytest.raises(NanoBananaError) as caught:
        await api.send(request, timeout_s=timeout_s, fresh_connection=fresh)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    places = [frame.f_code.co_filename for frame in frames(error.__traceback__)]
    assert not [place for place in places if "aiohttp" in place]
    for shown in everything_shown(error):
        assert not [secret for secret in secrets() if secret in shown]
    return error


@pytest.fixture(scope="module", autouse=True)
def _earlier_tests_apart() -> None:
    """Keep what earlier tests of the worker left alive out of the collection after each test here."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that nothing is logged, neither by the package nor by the event loop about unretrieved exceptions."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


# Certainly not sent


@BOTH
@pytest.mark.parametrize("fresh", [False, True])
async def test_refused_connection_is_certainly_not_sent(ask: Ask, fresh: bool) -> None:
    async with opened() as api:
        error = await failure(api, ask(f"http://127.0.0.1:{(port := unused_port())}/"), fresh=fresh)
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False
    assert error.safe_to_repeat is True
    assert error.message.startswith(f"can't reach 127.0.0.1:{port}: ")
    assert error.lasting is False


def place(peer: Peer) -> str:
    """Return host and port of a peer."""
    return peer.url.split("/")[2]


class Unresolving(AbstractResolver):
    """A resolver that fails for every name."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        raise OSError(None, "no such name")

    async def close(self) -> None: ...


@BOTH
async def test_unknown_host_is_certainly_not_sent(ask: Ask) -> None:
    connector = aiohttp.TCPConnector(resolver=Unresolving())
    async with aiohttp.ClientSession(connector=connector) as lent, opened(http=lent) as api:
        error = await failure(api, ask("https://gateway.invalid/"))
    assert isinstance(error, TransportError)
    assert (error.possibly_sent, error.message) == (
        False,
        "can't reach gateway.invalid: its name can't be resolved: no such name",
    )
    assert (error.lasting, error.advice) == (True, "check base_url and the network")


@BOTH
async def test_peer_without_tls_is_certainly_not_sent(ask: Ask) -> None:
    async def plain(connection: Connection) -> None:
        await connection.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await connection.ended()

    async with opened() as api, Peer(plain) as peer:
        error = await failure(api, ask(peer.url.replace("http:", "https:")))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False
    assert (error.message, error.lasting) == (f"can't reach {place(peer)}: it does not speak TLS", True)


@BOTH
async def test_untrusted_certificate_is_certainly_not_sent(ask: Ask) -> None:
    async with opened() as api, Peer(fine, tls=True) as peer:
        error = await failure(api, ask(peer.url))
        assert peer.requests == []
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False
    assert error.message == f"can't reach {place(peer)}: its TLS certificate is not trusted: self-signed certificate"
    assert error.lasting is True
    assert "SSL_CERT_FILE" in str(error)


@pytest.mark.parametrize(("connect_s", "timeout_s"), [(0.03, PATIENCE_S), (PATIENCE_S, 0.03)])
async def test_connect_timeout_is_certainly_not_sent(connect_s: float, timeout_s: float) -> None:
    # The peer accepts the connection and does not answer the TLS handshake.
    async with opened(connect_s=connect_s) as api, Peer(silent) as peer:
        error = await failure(api, create(peer.url.replace("http:", "https:")), timeout_s=timeout_s)
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False
    assert "within 0.03 s" in error.message


@pytest.mark.parametrize(("connect_s", "timeout_s"), [(10.0, 60.0), (60.0, 10.0)])
async def test_full_pool_is_certainly_not_sent(connect_s: float, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    async with opened(connect_s=connect_s, max_connections=1) as api, Peer(answering(then="wait")) as peer:
        first = loop.create_task(api.send(query(peer.url), timeout_s=1000.0))
        await peer.all_read(1)
        failing = loop.create_task(failure(api, create(peer.url), timeout_s=timeout_s))
        await turns()  # it waits for the connection
        leap(11.0)
        error = await failing
        first.cancel()
        await asyncio.wait([first])
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False


# Possibly sent


async def hangs_up_at_once(connection: Connection) -> None:
    connection.close()


async def resets_at_once(connection: Connection) -> None:
    connection.reset()


async def hangs_up_after_reading(connection: Connection) -> None:
    await connection.read_request()
    connection.close()


async def resets_after_reading(connection: Connection) -> None:
    await connection.read_request()
    connection.reset()


async def hangs_up_amid_the_request(connection: Connection) -> None:
    await connection._reader.readexactly(20)
    connection.close()


BROKEN: dict[str, Script] = {
    "closed before reading": hangs_up_at_once,
    "reset before reading": resets_at_once,
    "closed amid the request": hangs_up_amid_the_request,
    "closed after reading": hangs_up_after_reading,
    "reset after reading": resets_after_reading,
    "reset amid the headers": answering(b"HTTP/1.1 200 OK\r\nConte", then="reset"),
    "reset amid the body": answering(HEAD, b"\r\n0123456789", then="reset"),
    "not HTTP": answering(b"SSH-2.0-OpenSSH_9.6\r\n", then="wait"),
    "a wrong status": answering(b"HTTP/1.1 abc OK\r\n\r\n", then="wait"),
    "a header without a colon": answering(b"HTTP/1.1 200 OK\r\nNonsense\r\n\r\n", then="wait"),
    "a header too long": answering(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 100_000, b"\r\n\r\n", then="wait"),
    "headers too many": answering(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 5000, b"\r\n", then="wait"),
    "a length that is no number": answering(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}", then="wait"),
    "two lengths": answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}!", then="wait"),
    "a length above the truth": answering(HEAD, b"\r\n0123456789"),
    "a refusal cut short": answering(HEAD.replace(b"200 OK", b"500 No"), b"\r\n0123456789"),
    "a bad chunk": answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", then="wait"),
    "a chunk cut short": answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n012"),
    "a last chunk that is missing": answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
    "not gzip": answering(HEAD, b"Content-Encoding: gzip\r\n\r\n01234567890123456789", then="wait"),
    "not brotli": answering(HEAD, b"Content-Encoding: br\r\n\r\n01234567890123456789", then="wait"),
}


@BOTH
@pytest.mark.parametrize("manner", BROKEN)
async def test_lost_or_broken_answer_is_possibly_sent(ask: Ask, manner: str) -> None:
    async with opened() as api, Peer(BROKEN[manner]) as peer:
        error = await failure(api, ask(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True
    assert error.safe_to_repeat is False


@pytest.mark.parametrize("manner", ["closed before reading", "reset after reading", "reset amid the body"])
async def test_create_lost_on_a_fresh_connection_is_not_resent(manner: str) -> None:
    async with opened() as api, Peer(BROKEN[manner]) as peer:
        error = await failure(api, create(peer.url), fresh=True)
        await asyncio.sleep(0.02)
        assert peer.accepted == 1
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


@pytest.mark.parametrize("cut", range(0, len(FINE), 3))
async def test_truncated_answer_is_possibly_sent(cut: int) -> None:
    async with opened() as api, Peer(answering(FINE[:cut])) as peer:
        error = await failure(api, create(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_extra_bytes_with_the_answer_break_it() -> None:
    async with opened() as api, Peer(answering(FINE, b"and more", then="wait")) as peer:
        error = await failure(api, create(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_late_extra_bytes_do_not_affect_the_next_request() -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(FINE)
        await asyncio.sleep(0.02)
        await connection.write(b"and more")
        await connection.ended()

    async with opened() as api, Peer(script) as peer:
        for number in (1, 2):
            assert (await api.send(create(peer.url), timeout_s=PATIENCE_S)).body == b"{}"
            await peer.all_ended(number)  # the client has read them, and closed the connection
        assert (peer.accepted, len(peer.requests)) == (2, 2)


async def failure_in_time(api: AiohttpTransport, peer: Peer, request: HttpRequest) -> NanoBananaError:
    """Return the error of a request that the peer has read when its minute is over."""
    failing = asyncio.get_running_loop().create_task(failure(api, request, timeout_s=60.0))
    await peer.all_read(1)
    await turns()  # what the peer writes arrives
    leap(61.0)
    return await failing


STALLS: dict[str, Script] = {
    "before the headers": answering(then="wait"),
    "amid the headers": answering(b"HTTP/1.1 200 OK\r\nConte", then="wait"),
    "after the headers": answering(HEAD, b"\r\n", then="wait"),
    "amid the body": answering(HEAD, b"\r\n0123456789", then="wait"),
}


@BOTH
@pytest.mark.parametrize("where", STALLS)
async def test_stalled_answer_times_out_as_possibly_sent(ask: Ask, where: str) -> None:
    async with opened() as api, Peer(STALLS[where]) as peer:
        error = await failure_in_time(api, peer, ask(peer.url))
        assert isinstance(error, TransportError)
        assert (error.possibly_sent, error.message) == (True, "no complete answer from 127.0.0.1 within 60 s")
        await peer.all_ended(1)  # the connection is closed, not reused


async def test_slow_answer_times_out() -> None:
    async def dripping(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
        while True:
            await connection.write(b"x")
            await asyncio.sleep(0.01)

    async with opened() as api, Peer(dripping) as peer:
        error = await failure_in_time(api, peer, create(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_interrupted_upload_is_possibly_sent() -> None:
    async with opened() as api, Peer(deaf) as peer:
        error = await failure_in_time(api, peer, HttpRequest(method="POST", url=peer.url, body=b"x" * 20_000_000))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_create_on_a_closing_connection_is_possibly_sent() -> None:
    # The server closes while the create is being sent: the tracker counts no byte, though some may have arrived.
    async with opened() as api, Peer(answering(FINE)) as peer:
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        error = await failure(api, create(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_poll_timeout_is_possibly_sent() -> None:
    async with opened() as api, Peer(answering(then="wait")) as peer:
        error = await failure_in_time(api, peer, query(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_post_without_a_body_reports_possibly_sent() -> None:
    def bare(url: str) -> HttpRequest:
        return HttpRequest(method="POST", url=url)

    async with opened() as api, Peer(hangs_up_after_reading) as peer:
        lost = await failure(api, bare(peer.url))
        refused = await failure(api, bare(f"http://127.0.0.1:{unused_port()}/"))
    assert isinstance(lost, TransportError)
    assert isinstance(refused, TransportError)
    assert (lost.possibly_sent, refused.possibly_sent) == (True, False)


# How `possibly_sent` is determined


class Held(RequestBody):
    """A body that waits before its first byte."""

    def __init__(self, value: bytes, released: asyncio.Event) -> None:
        super().__init__(value)
        self._released = released

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self._released.wait()
        await super().write(writer)


async def test_aiohttp_sends_headers_only_with_the_body() -> None:
    # `RequestBody.started` depends on this.
    before, released = list[int](), asyncio.Event()

    async def script(connection: Connection) -> None:
        await asyncio.sleep(0.03)
        before.append(len(connection._reader._buffer))  # type: ignore[attr-defined]
        released.set()
        await connection.read_request()
        await connection.write(FINE)
        await connection.ended()

    async with (
        Peer(script) as peer,
        aiohttp.ClientSession() as session,
        session.post(peer.url, data=Held(BODY, released)) as response,
    ):
        assert response.status == 200
    assert before == [0]
    assert peer.requests[0].endswith(BODY)


async def test_body_is_not_written_to_a_connection_with_unread_data() -> None:
    class Protocol:
        should_close = True

    class Writer:
        protocol = Protocol()

    body = RequestBody(BODY)
    with pytest.raises(ConnectionError):
        await body.write(Writer())  # type: ignore[arg-type]
    assert body.started is False


async def test_body_read_as_bytes_counts_as_started() -> None:
    body = RequestBody(BODY)
    assert (await body.as_bytes(), body.started) == (BODY, True)


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (aiohttp.ServerDisconnectedError(), True),
        (TimeoutError(), True),
        (RuntimeError("Session is closed"), True),
        (aiohttp.ConnectionTimeoutError(), False),
        (aiohttp.InvalidURL("x"), False),
    ],
)
async def test_without_an_attempt_the_error_type_decides(error: Exception, sent: bool) -> None:
    assert possibly_sent(error, RequestBody(BODY), aiohttp.UploadTracker()) is sent


@pytest.mark.parametrize("sent", [False, True])
def test_unknown_exception_is_named_by_its_type_only(sent: bool) -> None:
    error = map_exception(KeyError(KEY), host="gateway.invalid", sent=sent, connect_s=1, timeout_s=1)
    assert isinstance(error, TransportError)
    assert (error.message, error.possibly_sent) == ("the request to gateway.invalid failed (KeyError)", sent)


def test_value_error_is_a_configuration_error_only_when_unsent() -> None:
    facts = {"host": "", "connect_s": 1.0, "timeout_s": 1.0}
    assert isinstance(map_exception(ValueError(KEY), sent=False, **facts), ConfigurationError)  # type: ignore[arg-type]
    assert isinstance(map_exception(ValueError(KEY), sent=True, **facts), TransportError)  # type: ignore[arg-type]


# The key


async def test_key_with_a_line_break_is_not_shown() -> None:
    class Careless:
        api_key = Secret(f"{KEY}\r\nX-Evil: 1")

    async with opened() as api, Peer(fine) as peer:
        api._gateway = Careless()  # type: ignore[assignment]
        error = await failure(api, create(peer.url))
        assert isinstance(error, ConfigurationError)
        assert peer.requests == []


async def test_echoed_key_does_not_appear_in_errors() -> None:
    async def echo(connection: Connection) -> None:
        await connection.write(await connection.read_request())
        connection.close()

    async def redirecting_echo(connection: Connection) -> None:
        received = await connection.read_request()
        location = KEY.encode() if KEY.encode() in received else b""
        await connection.write(b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere/?k=", location, b"\r\n\r\n")
        connection.close()

    async with opened() as api:
        async with Peer(echo) as peer:
            assert isinstance(await failure(api, create(peer.url)), TransportError)
        async with Peer(redirecting_echo) as peer:
            assert isinstance(await failure(api, create(peer.url)), UnexpectedResponse)


async def test_reprs_do_not_show_the_key() -> None:
    async with opened(proxy="http://me:hidden@127.0.0.1:1") as api:
        assert repr(api) == "<AiohttpTransport open>"
        assert KEY not in repr(create("https://gateway.invalid/"))


async def test_key_in_a_frame_is_detected_by_these_tests() -> None:
    def careless() -> None:
        exec(
            compile("def f(headers):\n    raise ValueError(headers['x'])\nf({'x': key})", "elsewhere", "exec"),
            {"key": KEY},
        )

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        careless()
    assert [shown for shown in everything_shown(caught.value) if KEY in shown]


# Cancellation


@BOTH
async def test_cancelled_send_ends_at_once_without_secrets(ask: Ask) -> None:
    async with opened() as api, Peer(silent) as peer:
        sending = asyncio.get_running_loop().create_task(api.send(ask(peer.url), timeout_s=PATIENCE_S))
        await peer.all_accepted(1)
        await asyncio.sleep(0.01)
        sending.cancel("enough")
        with pytest.raises(asyncio.CancelledError) as caught:
            await sending
        await peer.all_ended(1)
    assert caught.value.args == ("enough",)
    for shown in everything_shown(caught.value):
        assert not [secret for secret in secrets() if secret in shown]


async def test_send_in_an_expired_timeout_raises_timeout_error() -> None:
    async with opened() as api, Peer(silent) as peer:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.03):
                await api.send(create(peer.url), timeout_s=PATIENCE_S)
    assert not isinstance(caught.value, NanoBananaError)
    for shown in everything_shown(caught.value):
        assert KEY not in shown


@pytest.fixture
async def _loop_in_debug_mode() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = math.inf  # on a busy machine any callback takes the tenth of a second that it logs
    yield
    loop.set_debug(False)


@pytest.mark.usefixtures("_loop_in_debug_mode")
async def test_debug_mode_of_the_loop_reveals_no_secret() -> None:
    async with opened() as api, Peer(hangs_up_after_reading) as peer:
        assert isinstance(await failure(api, create(peer.url)), TransportError)
