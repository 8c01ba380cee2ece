"""What the door says when no whole answer came: in our words, with `sent` told, and never with the key."""

import asyncio
import base64
import gc
import logging
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
from tests.http.peers import (
    BODY,
    FINE,
    KEY,
    Line,
    Peer,
    Script,
    answering,
    create,
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


def everything_said(error: BaseException) -> Iterator[str]:
    """Yield all that an error report could show of an error."""
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
    api: AiohttpTransport, request: HttpRequest, *, timeout_s: float = 2.0, fresh: bool = False
) -> NanoBananaError:
    """Return the error of a request that can't succeed, after looking through its pockets."""
    with pytest.raises(NanoBananaError) as caught:
        await api.send(request, timeout_s=timeout_s, fresh_connection=fresh)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    places = [frame.f_code.co_filename for frame in frames(error.__traceback__)]
    assert not [place for place in places if "aiohttp" in place]
    for said in everything_said(error):
        assert not [secret for secret in secrets() if secret in said]
    return error


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing at all is logged, neither by us nor by an event loop that found an exception nobody took."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


# Surely not sent


@BOTH
@pytest.mark.parametrize("fresh", [False, True])
async def test_a_refused_connection_was_surely_not_sent(ask: Ask, fresh: bool) -> None:
    async with opened() as api:
        error = await failure(api, ask(f"http://127.0.0.1:{unused_port()}/"), fresh=fresh)
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False
    assert error.safe_to_repeat is True
    assert "127.0.0.1 can't be reached" in error.message


class Unresolving(AbstractResolver):
    """Knows no name."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        raise OSError(None, "no such name")

    async def close(self) -> None: ...


@BOTH
async def test_an_unknown_host_was_surely_not_sent(ask: Ask) -> None:
    connector = aiohttp.TCPConnector(resolver=Unresolving())
    async with aiohttp.ClientSession(connector=connector) as lent, opened(http=lent) as api:
        error = await failure(api, ask("https://gateway.invalid/"))
    assert isinstance(error, TransportError)
    assert (error.possibly_sent, error.message) == (False, "the name gateway.invalid can't be resolved: no such name")


@BOTH
async def test_a_peer_that_does_not_speak_tls_was_surely_not_sent_to(ask: Ask) -> None:
    async def plain(line: Line) -> None:
        await line.say(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await line.ended()

    async with opened() as api, Peer(plain) as peer:
        error = await failure(api, ask(peer.url.replace("http:", "https:")))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False
    assert error.message.startswith("TLS with 127.0.0.1 failed")


@BOTH
async def test_an_untrusted_certificate_was_surely_not_sent_to(ask: Ask) -> None:
    async with opened() as api, Peer(fine, tls=True) as peer:
        error = await failure(api, ask(peer.url))
        assert peer.heard == []
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False
    assert error.message.startswith("the TLS certificate of 127.0.0.1 is not trusted: ")


@pytest.mark.parametrize(("connect_s", "timeout_s"), [(0.03, 2.0), (2.0, 0.03)])
async def test_a_connection_that_is_not_made_in_time_was_surely_not_sent(connect_s: float, timeout_s: float) -> None:
    # The peer takes the connection and leaves the TLS handshake unanswered.
    async with opened(connect_s=connect_s) as api, Peer(silent) as peer:
        error = await failure(api, create(peer.url.replace("http:", "https:")), timeout_s=timeout_s)
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False
    assert "within 0.03 s" in error.message


@pytest.mark.parametrize(("connect_s", "timeout_s"), [(0.03, 2.0), (2.0, 0.03)])
async def test_a_request_that_got_no_connection_of_a_full_pool_was_surely_not_sent(
    connect_s: float, timeout_s: float
) -> None:
    async with opened(connect_s=connect_s, max_connections=1) as api, Peer(silent) as peer:
        first = asyncio.get_running_loop().create_task(api.send(query(peer.url), timeout_s=9))
        await peer.all_met(1)
        error = await failure(api, create(peer.url), timeout_s=timeout_s)
        first.cancel()
        await asyncio.wait([first])
    assert isinstance(error, TransportError)
    assert error.possibly_sent is False


# Perhaps sent


async def hangs_up_at_once(line: Line) -> None:
    line.hang_up()


async def resets_at_once(line: Line) -> None:
    line.reset()


async def hangs_up_after_reading(line: Line) -> None:
    await line.hear()
    line.hang_up()


async def resets_after_reading(line: Line) -> None:
    await line.hear()
    line.reset()


async def hangs_up_amid_the_request(line: Line) -> None:
    await line._reader.readexactly(20)
    line.hang_up()


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
async def test_a_lost_or_broken_answer_was_perhaps_sent(ask: Ask, manner: str) -> None:
    async with opened() as api, Peer(BROKEN[manner]) as peer:
        error = await failure(api, ask(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True
    assert error.safe_to_repeat is False


@pytest.mark.parametrize("manner", ["closed before reading", "reset after reading", "reset amid the body"])
async def test_a_create_that_is_lost_on_a_fresh_connection_was_perhaps_sent_and_is_not_repeated(manner: str) -> None:
    async with opened() as api, Peer(BROKEN[manner]) as peer:
        error = await failure(api, create(peer.url), fresh=True)
        await asyncio.sleep(0.02)
        assert peer.accepted == 1
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


@pytest.mark.parametrize("cut", range(0, len(FINE), 3))
async def test_an_answer_cut_anywhere_is_no_answer(cut: int) -> None:
    async with opened() as api, Peer(answering(FINE[:cut])) as peer:
        error = await failure(api, create(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_a_length_below_the_truth_is_a_broken_answer_when_the_rest_comes_along() -> None:
    async with opened() as api, Peer(answering(FINE, b"and more", then="wait")) as peer:
        error = await failure(api, create(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_a_length_below_the_truth_is_believed_and_a_late_rest_spoils_nothing() -> None:
    async def script(line: Line) -> None:
        await line.hear()
        await line.say(FINE)
        await asyncio.sleep(0.02)
        await line.say(b"and more")
        await line.ended()

    async with opened() as api, Peer(script) as peer:
        for _ in range(2):
            assert (await api.send(create(peer.url), timeout_s=2)).body == b"{}"
            await asyncio.sleep(0.04)
        assert (peer.accepted, len(peer.heard)) == (2, 2)


STALLS: dict[str, Script] = {
    "before the headers": silent,
    "amid the headers": answering(b"HTTP/1.1 200 OK\r\nConte", then="wait"),
    "after the headers": answering(HEAD, b"\r\n", then="wait"),
    "amid the body": answering(HEAD, b"\r\n0123456789", then="wait"),
}


@BOTH
@pytest.mark.parametrize("where", STALLS)
async def test_a_stalled_answer_ends_at_the_timeout_and_was_perhaps_sent(ask: Ask, where: str) -> None:
    async with opened() as api, Peer(STALLS[where]) as peer:
        error = await failure(api, ask(peer.url), timeout_s=0.05)
        assert isinstance(error, TransportError)
        assert (error.possibly_sent, error.message) == (True, "no whole answer from 127.0.0.1 within 0.05 s")
        await peer.all_ended(1)  # the connection is not used again


async def test_an_answer_that_drips_does_not_outlast_the_timeout() -> None:
    async def dripping(line: Line) -> None:
        await line.hear()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
        while True:
            await line.say(b"x")
            await asyncio.sleep(0.01)

    async with opened() as api, Peer(dripping) as peer:
        error = await failure(api, create(peer.url), timeout_s=0.1)
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_an_upload_that_is_cut_short_was_perhaps_sent() -> None:
    async def deaf(line: Line) -> None:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(9)

    async with opened() as api, Peer(deaf) as peer:
        request = HttpRequest(method="POST", url=peer.url, body=b"x" * 20_000_000)
        error = await failure(api, request, timeout_s=0.1)
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_a_create_that_dies_with_its_connection_is_never_called_unsent() -> None:
    # The server hangs up while the create is on its way: the tracker counts no byte, though one may have arrived.
    async with opened() as api, Peer(answering(FINE)) as peer:
        await api.send(query(peer.url), timeout_s=2)
        error = await failure(api, create(peer.url))
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_a_query_that_got_no_answer_in_time_counts_as_perhaps_sent() -> None:
    async with opened(connect_s=2.0) as api, Peer(silent) as peer:
        error = await failure(api, query(peer.url), timeout_s=0.03)
    assert isinstance(error, TransportError)
    assert error.possibly_sent is True


async def test_a_post_without_a_body_tells_what_became_of_it() -> None:
    def bare(url: str) -> HttpRequest:
        return HttpRequest(method="POST", url=url)

    async with opened() as api, Peer(hangs_up_after_reading) as peer:
        lost = await failure(api, bare(peer.url))
        refused = await failure(api, bare(f"http://127.0.0.1:{unused_port()}/"))
    assert isinstance(lost, TransportError)
    assert isinstance(refused, TransportError)
    assert (lost.possibly_sent, refused.possibly_sent) == (True, False)


# How it is told


class Held(RequestBody):
    """A body that hesitates before its first byte."""

    async def write(self, writer: AbstractStreamWriter) -> None:
        await asyncio.sleep(0.05)
        await super().write(writer)


async def test_aiohttp_keeps_the_headers_back_until_the_body_is_asked_for() -> None:
    # On this `Body.asked` rests.
    before: list[int] = []

    async def script(line: Line) -> None:
        await asyncio.sleep(0.03)
        before.append(len(line._reader._buffer))  # type: ignore[attr-defined]
        await line.hear()
        await line.say(FINE)
        await line.ended()

    async with (
        Peer(script) as peer,
        aiohttp.ClientSession() as session,
        session.post(peer.url, data=Held(BODY)) as response,
    ):
        assert response.status == 200
    assert before == [0]
    assert peer.heard[0].endswith(BODY)


async def test_a_body_is_not_written_to_a_connection_that_spoke_unasked() -> None:
    class Protocol:
        should_close = True

    class Writer:
        protocol = Protocol()

    body = RequestBody(BODY)
    with pytest.raises(ConnectionError):
        await body.write(Writer())  # type: ignore[arg-type]
    assert body.started is False


async def test_a_body_read_by_another_way_counts_as_asked() -> None:
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
async def test_without_an_attempt_the_kind_of_error_decides(error: Exception, sent: bool) -> None:
    assert possibly_sent(error, RequestBody(BODY), aiohttp.UploadTracker()) is sent


@pytest.mark.parametrize("sent", [False, True])
def test_an_error_nobody_thought_of_is_named_by_its_kind_only(sent: bool) -> None:
    error = map_exception(KeyError(KEY), host="gateway.invalid", sent=sent, connect_s=1, timeout_s=1)
    assert isinstance(error, TransportError)
    assert (error.message, error.possibly_sent) == ("the request to gateway.invalid failed (KeyError)", sent)


def test_a_value_error_is_the_users_only_before_anything_was_sent() -> None:
    facts = {"host": "", "connect_s": 1.0, "timeout_s": 1.0}
    assert isinstance(map_exception(ValueError(KEY), sent=False, **facts), ConfigurationError)  # type: ignore[arg-type]
    assert isinstance(map_exception(ValueError(KEY), sent=True, **facts), TransportError)  # type: ignore[arg-type]


# The key


async def test_a_key_that_breaks_the_header_is_not_shown() -> None:
    class Careless:
        api_key = Secret(f"{KEY}\r\nX-Evil: 1")

    async with opened() as api, Peer(fine) as peer:
        api._gateway = Careless()  # type: ignore[assignment]
        error = await failure(api, create(peer.url))
        assert isinstance(error, ConfigurationError)
        assert peer.heard == []


async def test_a_peer_that_echoes_the_request_does_not_bring_the_key_into_an_error() -> None:
    async def echo(line: Line) -> None:
        await line.say(await line.hear())
        line.hang_up()

    async def redirecting_echo(line: Line) -> None:
        heard = await line.hear()
        location = KEY.encode() if KEY.encode() in heard else b""
        await line.say(b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere/?k=", location, b"\r\n\r\n")
        line.hang_up()

    async with opened() as api:
        async with Peer(echo) as peer:
            assert isinstance(await failure(api, create(peer.url)), TransportError)
        async with Peer(redirecting_echo) as peer:
            assert isinstance(await failure(api, create(peer.url)), UnexpectedResponse)


async def test_the_reprs_of_the_door_and_its_requests_do_not_show_the_key() -> None:
    async with opened(proxy="http://me:hidden@127.0.0.1:1") as api:
        assert repr(api) == "<Api open>"
        assert KEY not in repr(create("https://gateway.invalid/"))


async def test_a_key_left_in_a_frame_would_be_found() -> None:
    def careless() -> None:
        exec(
            compile("def f(headers):\n    raise ValueError(headers['x'])\nf({'x': key})", "elsewhere", "exec"),
            {"key": KEY},
        )

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        careless()
    assert [said for said in everything_said(caught.value) if KEY in said]


# Cancellation


@BOTH
async def test_a_cancelled_send_ends_at_once_with_clean_hands(ask: Ask) -> None:
    async with opened() as api, Peer(silent) as peer:
        sending = asyncio.get_running_loop().create_task(api.send(ask(peer.url), timeout_s=9))
        await peer.all_met(1)
        await asyncio.sleep(0.01)
        sending.cancel("enough")
        with pytest.raises(asyncio.CancelledError) as caught:
            await sending
        await peer.all_ended(1)
    assert caught.value.args == ("enough",)
    for said in everything_said(caught.value):
        assert not [secret for secret in secrets() if secret in said]


async def test_a_send_cancelled_by_a_timeout_around_it_becomes_that_timeout() -> None:
    async with opened() as api, Peer(silent) as peer:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.03):
                await api.send(create(peer.url), timeout_s=9)
    assert not isinstance(caught.value, NanoBananaError)
    for said in everything_said(caught.value):
        assert KEY not in said


@pytest.fixture
async def _loop_in_debug_mode() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    yield
    loop.set_debug(False)


@pytest.mark.usefixtures("_loop_in_debug_mode")
async def test_nothing_more_is_said_when_the_loop_debugs() -> None:
    async with opened() as api, Peer(hangs_up_after_reading) as peer:
        assert isinstance(await failure(api, create(peer.url)), TransportError)
