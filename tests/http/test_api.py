"""The transport to a gateway: requests sent, answers returned, and what is refused."""

import asyncio
import gzip
import math
import zlib
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aioresponses import aioresponses

from nanobanana_async._version import __version__
from nanobanana_async.config import Timeouts
from nanobanana_async.errors import ConfigurationError, SessionClosed, TransportError, UnexpectedResponse
from nanobanana_async.gateways.apimall import ApiMall
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.http.transport import AiohttpTransport
from tests.support.clocks import leap
from tests.support.peers import (
    BODY,
    FINE,
    KEY,
    PATIENCE_S,
    Connection,
    Peer,
    answering,
    create,
    deaf,
    fine,
    opened,
    query,
    silent,
)

CAP = 1000
GATEWAY = ApiMall(api_key=KEY, base_url="https://gateway.invalid")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_create_sends_key_body_and_user_agent() -> None:
    async with opened() as api, Peer(fine) as peer:
        answer = await api.send(create(peer.url + "jobs"), timeout_s=PATIENCE_S)
    head, _, body = peer.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /jobs HTTP/1.1"
    assert body == BODY
    assert f"Authorization: Bearer {KEY}" in lines
    assert "Idempotency-Key: nb-1" in lines
    assert "Accept-Encoding: identity" in lines
    assert lines.count("Content-Type: application/json") == 1
    assert any(line.startswith(f"User-Agent: nanobanana_async/{__version__} aiohttp/") for line in lines)
    assert (answer.status, answer.body) == (200, b"{}")


async def test_poll_sends_no_body() -> None:
    async with opened() as api, Peer(fine) as peer:
        await api.send(query(peer.url + "jobs?task_id=a%2Bb"), timeout_s=PATIENCE_S)
    assert peer.requests[0].startswith(b"GET /jobs?task_id=a%2Bb HTTP/1.1\r\n")
    assert b"content-length" not in peer.requests[0].lower()


async def test_request_headers_never_replace_the_api_key() -> None:
    async with opened() as api, Peer(fine) as peer:
        request = HttpRequest(
            method="GET", url=peer.url, headers={"user-agent": "mine", "authorization": "other", "accept": "text/plain"}
        )
        await api.send(request, timeout_s=PATIENCE_S)
    lines = peer.requests[0].decode().lower().split("\r\n")
    assert [line for line in lines if line.startswith(("user-agent", "authorization"))] == [
        "user-agent: mine",
        f"authorization: bearer {KEY}".lower(),
    ]


@pytest.mark.parametrize("status", [200, 201, 204, 400, 401, 402, 403, 404, 409, 429, 451, 500, 502, 503, 504])
async def test_every_status_except_a_redirect_is_returned(status: int) -> None:
    body = b"" if status == 204 else b"<html>no</html>"
    words = b"HTTP/1.1 %d Word\r\nRetry-After: 7\r\nX-Twice: a\r\nX-Twice: b\r\nContent-Length: %d\r\n\r\n"
    async with opened() as api, Peer(answering(words % (status, len(body)), body)) as peer:
        answer = await api.send(create(peer.url), timeout_s=PATIENCE_S)
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["x-twice"] == "a"


async def test_chunked_body_is_joined() -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b'{"a":', b"1", b"}"):
            await connection.write(chunk(piece))
            await asyncio.sleep(0.005)
        await connection.write(b"0\r\n\r\n")
        await connection.ended()

    async with opened() as api, Peer(script) as peer:
        answer = await api.send(query(peer.url), timeout_s=PATIENCE_S)
    assert answer.body == b'{"a":1}'


async def test_compressed_answer_is_decompressed() -> None:
    packed = gzip.compress(b'{"a":1}')
    words = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with opened() as api, Peer(answering(words, packed)) as peer:
        answer = await api.send(query(peer.url), timeout_s=PATIENCE_S)
    assert answer.body == b'{"a":1}'


# Size


@pytest.mark.parametrize("size", [0, 1, CAP - 1, CAP])
@pytest.mark.parametrize("chunked", [False, True])
async def test_answer_up_to_the_limit_is_returned(size: int, chunked: bool) -> None:
    body = b"x" * size
    framed = b"Transfer-Encoding: chunked\r\n\r\n" + (chunk(body) if body else b"") + b"0\r\n\r\n"
    sized = b"Content-Length: %d\r\n\r\n" % size + body
    async with opened() as api, Peer(answering(b"HTTP/1.1 200 OK\r\n", framed if chunked else sized)) as peer:
        answer = await api.send(query(peer.url, max_answer_bytes=CAP), timeout_s=PATIENCE_S)
    assert answer.body == body


async def endless(connection: Connection) -> None:
    await connection.read_request()
    await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await connection.write(chunk(b"x" * 300))
        await asyncio.sleep(0)


BOMB = zlib.compress(b"\0" * 50_000_000, wbits=31)

TOO_LARGE = {
    "declared": answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", then="wait"),
    "declared, refused": answering(b"HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n", then="wait"),
    "in one chunk": answering(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"x" * 1001), then="wait"
    ),
    "without end": endless,
    "until closed": answering(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 5000),
    "a gzip bomb": answering(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        chunk(BOMB),
        then="wait",
    ),
}


@pytest.mark.parametrize("manner", TOO_LARGE)
async def test_answer_above_the_limit_is_refused(manner: str) -> None:
    async with opened() as api, Peer(TOO_LARGE[manner]) as peer:
        with pytest.raises(UnexpectedResponse, match="larger than 1000 bytes") as caught:
            await api.send(create(peer.url, max_answer_bytes=CAP), timeout_s=PATIENCE_S)
        await peer.all_ended(1)  # closed early, not read to the end
    assert caught.value.status == (500 if "refused" in manner else 200)
    assert caught.value.safe_to_repeat is False


async def test_small_gzip_bomb_is_refused_after_decompression() -> None:
    packed = zlib.compress(b"\0" * 100_000, wbits=31)
    assert len(packed) < CAP
    words = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with opened() as api, Peer(answering(words, packed)) as peer:
        with pytest.raises(UnexpectedResponse, match="larger than 1000 bytes"):
            await api.send(query(peer.url, max_answer_bytes=CAP), timeout_s=PATIENCE_S)


# Redirects and cookies


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("ask", [create, query])
async def test_redirect_is_refused_and_not_followed(status: int, ask: Callable[[str], HttpRequest]) -> None:
    async with opened() as api, Peer(fine) as target:
        location = f"{target.url}stolen?secret=1".encode()
        words = b"HTTP/1.1 %d Elsewhere\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, location)
        async with Peer(answering(words)) as peer:
            with pytest.raises(UnexpectedResponse, match="redirects are refused") as caught:
                await api.send(ask(peer.url), timeout_s=PATIENCE_S)
    assert (caught.value.status, caught.value.body) == (status, "127.0.0.1")
    assert (len(peer.requests), target.accepted) == (1, 0)


@pytest.mark.parametrize("location", [b"", b"Location: /here\r\n", b"Location: http://[bad\r\n"])
async def test_redirect_without_a_valid_host_names_none(location: bytes) -> None:
    words = b"HTTP/1.1 302 Found\r\n" + location + b"Content-Length: 0\r\n\r\n"
    async with opened() as api, Peer(answering(words)) as peer:
        with pytest.raises(UnexpectedResponse) as caught:
            await api.send(query(peer.url), timeout_s=PATIENCE_S)
    assert caught.value.body == ""


async def test_cookies_are_not_stored() -> None:
    async def script(connection: Connection) -> None:
        while True:
            await connection.read_request()
            await connection.write(FINE.replace(b"Content-Type", b"Set-Cookie: id=7; Path=/\r\nContent-Type"))

    async with opened() as api, Peer(script) as peer:
        for _ in range(2):
            await api.send(query(peer.url.replace("127.0.0.1", "localhost")), timeout_s=PATIENCE_S)
    assert len(peer.requests) == 2
    assert b"cookie" not in peer.requests[1].lower()


# Connections


async def test_polls_and_keyed_creates_share_the_pool() -> None:
    async with opened() as api, Peer(fine) as peer:
        for ask in (query, create, query, create):
            await api.send(ask(peer.url), timeout_s=PATIENCE_S)
        assert (peer.accepted, len(peer.requests)) == (1, 4)


async def test_fresh_connection_serves_one_create() -> None:
    async with opened() as api, Peer(fine) as peer:
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        for _ in range(3):
            await api.send(create(peer.url), timeout_s=PATIENCE_S, fresh_connection=True)
        await peer.all_ended(3)  # each is closed once it is answered
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        assert (peer.accepted, len(peer.requests)) == (4, 5)
    assert all(b"Connection: close" in received for received in peer.requests[1:4])


async def test_connections_are_limited() -> None:
    async def slow(connection: Connection) -> None:
        while True:
            await connection.read_request()
            await asyncio.sleep(0.01)
            await connection.write(FINE)

    async with opened(max_connections=2) as api, Peer(slow) as peer, asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(api.send(query(peer.url), timeout_s=PATIENCE_S))
    assert (peer.accepted, len(peer.requests)) == (2, 6)


@pytest.mark.parametrize("ask", [create, query])
async def test_closed_pooled_connection_is_replaced(ask: Callable[[str], HttpRequest]) -> None:
    async with opened() as api, Peer(answering(FINE)) as peer:
        for _ in range(2):
            await api.send(ask(peer.url), timeout_s=PATIENCE_S)
            await peer.all_ended(1)
            await asyncio.sleep(0.02)
        assert (peer.accepted, len(peer.requests)) == (2, 2)


async def dropping_the_second(connection: Connection) -> None:
    await connection.read_request()
    await connection.write(FINE)
    await connection.read_request()
    connection.close()


async def test_create_is_not_resent_when_its_connection_drops() -> None:
    async with opened() as api, Peer(dropping_the_second) as peer:
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        with pytest.raises(TransportError, match="closed the connection without an answer") as caught:
            await api.send(create(peer.url), timeout_s=PATIENCE_S)
        await asyncio.sleep(0.02)
    assert caught.value.possibly_sent is True
    assert (peer.accepted, len(peer.requests)) == (1, 2)


async def test_poll_is_resent_by_aiohttp_when_its_connection_drops() -> None:
    async with opened() as api, Peer(dropping_the_second) as peer:
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        answer = await api.send(query(peer.url), timeout_s=PATIENCE_S)
    assert answer.status == 200
    assert (peer.accepted, len(peer.requests)) == (2, 3)


async def test_stale_answer_is_not_used_for_a_create() -> None:
    read, written = asyncio.Event(), asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(FINE)
        await read.wait()
        await connection.write(FINE.replace(b"{}", b"[]"))  # without a request
        written.set()
        await connection.ended()

    async with opened() as api, Peer(script) as peer:
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        read.set()
        await written.wait()
        await asyncio.sleep(0.02)  # the loop reads what has arrived before any timer ends
        with pytest.raises(TransportError, match="before the request was sent") as caught:
            await api.send(create(peer.url), timeout_s=PATIENCE_S)
    assert caught.value.possibly_sent is False
    assert len(peer.requests) == 1


async def test_extra_answer_is_not_used_for_the_next_request() -> None:
    async with opened() as api, Peer(answering(FINE, FINE.replace(b"{}", b"[]"), then="wait")) as peer:
        for _ in range(3):
            assert (await api.send(create(peer.url), timeout_s=PATIENCE_S)).body == b"{}"
        assert peer.accepted == 3


async def test_answer_before_the_upload_ends_is_returned() -> None:
    async def script(connection: Connection) -> None:
        await connection.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await connection.ended()

    async def answered(connection: Connection) -> None:
        await asyncio.sleep(0.02)
        await script(connection)

    async with opened() as api, Peer(answered) as peer:
        answer = await api.send(HttpRequest(method="POST", url=peer.url, body=b"x" * 20_000_000), timeout_s=PATIENCE_S)
    assert answer.status == 413


# What must not be sent


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://gateway.invalid/x", "must use https"),
        ("http://192.0.2.1/x", "must use https"),
        ("http://0.0.0.0/x", "must use https"),
        ("http://127.0.0.1.gateway.invalid/x", "must use https"),
        ("http://[::ffff:192.0.2.1]/x", "must use https"),
        ("ftp://127.0.0.1/x", "must use https"),
        ("https:///x", "must use https"),
        ("/x", "must use https"),
        ("", "must use https"),
        ("http://127.0.0.1:99999/x", "URL is invalid"),
        ("http://[bad/x", "URL is invalid"),
        ("https://user:hidden@gateway.invalid/x", "must not hold credentials"),
        ("http://127.0.0.1@gateway.invalid/x", "must not hold credentials"),
    ],
)
async def test_api_key_is_sent_over_tls_or_loopback_only(url: str, complaint: str) -> None:
    async with opened() as api:
        with pytest.raises(ConfigurationError, match=complaint) as caught:
            await api.send(create(url), timeout_s=PATIENCE_S)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("header", ["a\r\nX-Evil: 1", "a\0b", "a\nb"])
async def test_header_with_a_line_break_is_not_sent(header: str) -> None:
    async with opened() as api, Peer(fine) as peer:
        request = HttpRequest(method="POST", url=peer.url, headers={"Idempotency-Key": header}, body=BODY)
        with pytest.raises(ConfigurationError, match="can't be sent"):
            await api.send(request, timeout_s=PATIENCE_S)
        await asyncio.sleep(0.02)
        assert peer.requests == []


# Opening and closing


def test_transport_is_constructed_without_a_running_loop() -> None:
    assert repr(AiohttpTransport(GATEWAY, timeouts=Timeouts())) == "<AiohttpTransport not open>"


async def test_transport_that_is_not_open_refuses_to_send() -> None:
    api = AiohttpTransport(GATEWAY, timeouts=Timeouts())
    with pytest.raises(SessionClosed, match="not open"):
        await api.send(query("https://gateway.invalid/"), timeout_s=1)
    await api.aclose()
    with pytest.raises(SessionClosed, match="the session is closed"):
        await api.open()


async def test_open_and_close_are_idempotent() -> None:
    async with opened() as api, Peer(fine) as peer:
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        assert repr(api) == "<AiohttpTransport open>"
        await api.open()
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        assert peer.accepted == 1
        await api.aclose()
        await api.aclose()
        assert repr(api) == "<AiohttpTransport closed>"
        with pytest.raises(SessionClosed):
            await api.send(query(peer.url), timeout_s=PATIENCE_S)


async def test_close_leaves_no_open_socket() -> None:
    async with opened() as api, Peer(fine) as peer:
        for fresh in (False, True, True):
            await api.send(create(peer.url), timeout_s=PATIENCE_S, fresh_connection=fresh)
        await api.aclose()
        assert api._sockets.open_sockets() == []
        await peer.all_ended(3)


async def test_close_ends_requests_in_flight() -> None:
    async with opened() as api, Peer(answering(then="wait")) as peer, asyncio.TaskGroup() as group:
        sending = [
            group.create_task(_caught(api.send(create(peer.url), timeout_s=PATIENCE_S, fresh_connection=fresh)))
            for fresh in (False, True)
        ]
        await peer.all_read(2)
        await api.aclose()
        assert api._sockets.open_sockets() == []
        for error in [await task for task in sending]:
            assert isinstance(error, TransportError)
            assert error.possibly_sent is True


async def _caught(sending: Awaitable[object]) -> BaseException | None:
    try:
        await sending
    except Exception as error:
        return error
    return None


async def test_close_does_not_wait_for_a_peer_that_stops_reading() -> None:
    async with opened() as api, Peer(deaf) as peer:
        upload = HttpRequest(method="POST", url=peer.url, body=b"x" * 20_000_000)
        sending = asyncio.get_running_loop().create_task(_caught(api.send(upload, timeout_s=60.0)))
        await peer.all_read(1)
        leap(61.0)
        error = await sending
        assert isinstance(error, TransportError)
        assert error.possibly_sent is True
        async with asyncio.timeout(1.5):
            await api.aclose()
        assert api._sockets.open_sockets() == []


@pytest.mark.parametrize("timeout_s", [math.inf, 5])
async def test_timeouts_may_be_infinite(timeout_s: float) -> None:
    async with opened(connect_s=math.inf) as api, Peer(fine) as peer:
        assert (await api.send(query(peer.url), timeout_s=timeout_s)).status == 200


@pytest.mark.parametrize("timeout_s", [0, -1])
async def test_timeout_of_zero_times_out(timeout_s: float) -> None:
    async with opened() as api, Peer(silent) as peer:
        with pytest.raises(TransportError, match="within"):
            await api.send(query(peer.url), timeout_s=timeout_s)


async def test_aioresponses_answers_pass_through_the_transport(answers: aioresponses) -> None:
    answers.post("https://gateway.invalid/x", payload={"a": 1}, status=201)
    answers.post("https://gateway.invalid/x", exception=aiohttp.ServerDisconnectedError())
    answers.post("https://gateway.invalid/x", exception=aiohttp.ConnectionTimeoutError())
    async with opened() as api:
        answer = await api.send(create("https://gateway.invalid/x"), timeout_s=1)
        assert (answer.status, answer.body) == (201, b'{"a": 1}')
        for sent in (True, False):
            with pytest.raises(TransportError) as caught:
                await api.send(create("https://gateway.invalid/x"), timeout_s=1)
            assert caught.value.possibly_sent is sent
