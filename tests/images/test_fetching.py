"""Downloads over real sockets: what a server may do wrong, and how the downloader reacts."""

import asyncio
import base64
import functools
import gc
import gzip
import logging
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_from_bytes

import pytest

from nanobanana_async import ApiMall, Session
from nanobanana_async.errors import ConfigurationError, DownloadError, SessionClosed
from nanobanana_async.images import fetch as fetch_module
from nanobanana_async.images.downloader import ImageDownloader
from tests.support.clocks import leap
from tests.support.images import FORMATS, failure, make_image, opened, png_claiming, reply, saying
from tests.support.peers import PATIENCE_S, Connection, Peer, Script, answering, silent, unused_port

IMAGE = make_image("png", (60, 40))


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that the event loop logs no unretrieved exception."""
    caplog.set_level(logging.INFO)
    yield
    gc.collect(1)  # the test's objects are young
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("kind", FORMATS)
async def test_image_with_any_content_type_is_returned(kind: str) -> None:
    async with opened() as downloader, Peer(saying(reply(make_image(kind), "Content-Type: text/html"))) as peer:
        assert await downloader.fetch(peer.url + "a.svg") == make_image(kind)


async def test_request_carries_no_identifying_header() -> None:
    script = saying(reply(IMAGE, "Set-Cookie: id=1; Path=/"))
    async with opened() as downloader, Peer(script) as peer:
        for _ in range(2):
            await downloader.fetch(f"{peer.url}a.png#fragment")
        heads = [received.lower() for received in peer.requests]
    for head in heads:
        names = {line.split(b":")[0] for line in head.splitlines()[1:] if line}
        assert names == {b"host", b"user-agent", b"accept", b"accept-encoding"}
        assert b"accept-encoding: identity" in head
        assert b"fragment" not in head


async def test_signed_link_is_sent_verbatim() -> None:
    target = "a%7Eb%2fc.png?X-Sig=%2F%2b+=%7e&x=a%20b"
    async with opened() as downloader, Peer(saying(reply(IMAGE))) as peer:
        await downloader.fetch(peer.url + target)
        assert peer.requests[0].split(b" ")[1] == b"/" + target.encode()


async def test_link_with_invalid_characters_is_escaped() -> None:
    async with opened() as downloader, Peer(saying(reply(IMAGE))) as peer:
        await downloader.fetch(peer.url + "ein Bär.png")
        assert peer.requests[0].split(b" ")[1] == b"/ein%20B%C3%A4r.png"


# Cut, endless, lying


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("length", [-1, None], ids=["length stated", "length not stated"])
async def test_image_cut_at_any_byte_is_refused(kind: str, length: int | None) -> None:
    whole = make_image(kind, (5, 4))
    head = reply(whole, length=length)[: -len(whole)]
    cuts = [head + whole[:cut] for cut in range(0, len(whole), 3)]
    async with opened(attempts=1) as downloader, Peer(saying(*cuts)) as peer:
        for _ in cuts:
            error = await failure(downloader, peer.url)
            assert ("truncated" if length is None else "cut short") in error.message
            assert error.link_expired is False


@pytest.mark.parametrize("then", ["hang up", "reset"])
async def test_interrupted_chunked_image_is_refused(then: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with opened(attempts=1) as downloader:
        for words in (head, head + b"5\r\n" + IMAGE[:3], head + b"%x\r\n" % len(IMAGE) + IMAGE + b"\r\n"):
            async with Peer(answering(words, then=then)) as peer:
                assert (await failure(downloader, peer.url)).message.startswith(peer.url)


async def test_image_complete_at_a_later_attempt_is_returned() -> None:
    replies = [reply(IMAGE)[:-9], reply(IMAGE[:-9], length=None), reply(b"", status="503 Busy"), reply(IMAGE)]
    async with opened() as downloader, Peer(saying(*replies)) as peer:
        assert await downloader.fetch(peer.url) == IMAGE
        assert peer.accepted == 4


@pytest.mark.parametrize("rest", ["comes along", "comes late", "stays away"])
async def test_content_length_too_small_is_refused(rest: str) -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        lie = reply(IMAGE, length=len(IMAGE) - 5)
        await connection.write(lie if rest == "comes along" else lie[:-5])
        await asyncio.sleep(0.02)
        await connection.write(b"" if rest == "stays away" else lie[-5:])
        await connection.ended()

    async with opened(attempts=1) as downloader, Peer(script) as peer:
        message = (await failure(downloader, peer.url)).message
    assert ("not valid HTTP" if rest == "comes along" else "the image is truncated") in message


async def test_content_length_too_large_times_out() -> None:
    script = answering(reply(IMAGE, length=len(IMAGE) + 5), then="wait")
    async with opened(attempts=1, idle_s=0.05) as downloader, Peer(script) as peer:
        assert "sent nothing for 0.05 s" in (await failure(downloader, peer.url)).message


@pytest.mark.parametrize("end", [b"\r\n0\r\n\r\n", b"0\r\n\r\n", b"\r\n"])
async def test_garbage_in_place_of_the_last_chunks_end_ends_the_wait_for_more(end: bytes) -> None:
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)
    garbage = b"\x00\xff this is no HTTP \xc3\x28\r\n"

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + whole.removesuffix(end))
        await asyncio.sleep(0.02)
        await connection.write(garbage)
        connection.close()

    async with opened(attempts=1, idle_s=0.2, total_s=30.0) as downloader, Peer(script) as peer:
        before = asyncio.get_running_loop().time()
        message = (await failure(downloader, peer.url)).message
        assert asyncio.get_running_loop().time() - before < 10.0
    assert "sent nothing for 0.2 s" in message or "not valid HTTP" in message


async def test_content_length_above_the_limit_is_refused_at_once() -> None:
    async with opened(max_bytes=1000) as downloader, Peer(saying(reply(b"", length=1001))) as peer:
        assert "larger than 1000 bytes" in (await failure(downloader, peer.url)).message
        assert peer.accepted == 1


@pytest.mark.parametrize("coding", ["", "Transfer-Encoding: chunked\r\n"])
async def test_endless_image_is_refused_at_the_limit(coding: str) -> None:
    sent = 0

    async def endless(connection: Connection) -> None:
        nonlocal sent
        await connection.read_request()
        await connection.write(f"HTTP/1.1 200 OK\r\n{coding}\r\n".encode())
        block = IMAGE + bytes(100_000)
        while True:
            await connection.write(b"%x\r\n" % len(block) + block + b"\r\n" if coding else block)
            sent += len(block)

    async with opened(max_bytes=3_000_000) as downloader, Peer(endless) as peer:
        assert "larger than 3000000 bytes" in (await failure(downloader, peer.url)).message
        await peer.all_ended(1)
        assert peer.accepted == 1
    assert sent < 30_000_000  # more than the limit, since the kernel buffers data


@functools.cache
def bomb() -> bytes:
    return gzip.compress(bytes(100_000_000), 9)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_compression_bomb_is_not_unpacked(encoding: str) -> None:
    async with opened() as downloader, Peer(saying(reply(bomb(), f"Content-Encoding: {encoding}"))) as peer:
        bomb()
        tracemalloc.start()
        error = await failure(downloader, peer.url)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "grows more than 10 times" in error.message
    assert peak < 8_000_000


@pytest.mark.parametrize("header", ["Content-Encoding: gzip", "X-Nothing: 1"])
async def test_gzipped_image_is_unpacked(header: str) -> None:
    large = make_image("png", (900, 700))
    async with opened() as downloader, Peer(saying(reply(gzip.compress(large), header))) as peer:
        assert await downloader.fetch(peer.url) == large


async def test_damaged_or_truncated_compression_is_an_error() -> None:
    packed = gzip.compress(make_image("png", (900, 700)))
    async with opened(attempts=2) as downloader, Peer(saying(reply(packed[:-40]))) as peer:
        assert "the compressed image is truncated (after 2 attempts)" in (await failure(downloader, peer.url)).message
    async with opened() as downloader, Peer(saying(reply(packed[:20] + b"\xff" * 999))) as peer:
        assert "the compressed image is corrupt" in (await failure(downloader, peer.url)).message


async def test_unverified_bytes_are_returned_as_they_are() -> None:
    async with opened() as downloader, Peer(saying(reply(b"BM" + bytes(60)))) as peer:
        assert await downloader.fetch(peer.url, verified=False) == b"BM" + bytes(60)


@pytest.mark.parametrize("early", [reply(b"", status="404 Not Found"), reply(b"", status="403 No"), reply(b"<html>")])
async def test_link_of_a_job_that_has_just_ended_is_repeated(early: bytes) -> None:
    async with opened() as downloader, Peer(saying(early, early, reply(IMAGE))) as peer:
        assert await downloader.fetch(peer.url, fresh_s=30.0) == IMAGE
        assert peer.accepted == 3


async def test_link_is_repeated_only_while_it_is_fresh() -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        if len(peer.requests) == 3:
            leap(60.0)
        await connection.write(reply(b"", status="404 Not Found"))
        connection.close()

    async with opened(pause_s=0.02) as downloader, Peer(script) as peer:
        with pytest.raises(DownloadError, match=r"HTTP 404.*after 3 attempts") as caught:
            await downloader.fetch(peer.url, fresh_s=60.0)
    assert (caught.value.link_expired, caught.value.status) == (True, 404)


async def test_refused_link_names_the_header_setting() -> None:
    async with opened() as downloader, Peer(saying(reply(b"error code: 1010", status="403 Forbidden"))) as peer:
        error = await failure(downloader, peer.url)
        assert peer.accepted == 1
    assert (error.link_expired, error.status) == (False, 403)
    assert "refused the link (HTTP 403)" in error.message
    assert "download_headers" in error.message


async def test_downloads_send_neutral_and_given_headers() -> None:
    given = {"user-agent": "mine", "Referer": "https://a.example/"}
    async with opened(headers=given) as downloader, Peer(saying(reply(IMAGE))) as peer:
        await downloader.fetch(peer.url)
    async with opened() as downloader, Peer(saying(reply(IMAGE))) as other:
        await downloader.fetch(other.url)
    assert b"user-agent: mine\r\n" in peer.requests[0].lower()
    assert b"referer: https://a.example/\r\n" in peer.requests[0].lower()
    assert b"user-agent: mozilla/5.0 (compatible; nanobanana-async/" in other.requests[0].lower()


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"Authorization": "Bearer x"}, "any host may serve an image"),
        ({"cookie": "a=b"}, "any host may serve an image"),
        ({"Host": "a"}, "set by the library"),
        ({"Accept-Encoding": "gzip"}, "set by the library"),
        ({"A b": "c"}, "not the name of a header"),
        ({"A": "b\r\nC: d"}, "printable ASCII"),
        ({"A": 1}, "printable ASCII"),
        ("A: b", "must map names to values"),
    ],
)
def test_unsafe_download_headers_are_refused(headers: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Session(ApiMall(api_key="k" * 20), download_headers=headers)


async def test_plain_image_with_a_content_encoding_is_returned() -> None:
    # Some stores return the Content-Encoding of the upload.
    async with opened() as downloader, Peer(saying(reply(IMAGE, "Content-Encoding: aws-chunked"))) as peer:
        assert await downloader.fetch(peer.url) == IMAGE


async def test_html_with_an_image_content_type_is_not_retried() -> None:
    async with opened() as downloader, Peer(saying(reply(b"<html>Sorry", "Content-Type: image/png"))) as peer:
        assert (
            "not a PNG, JPEG, WebP, GIF, AVIF or HEIC image" in (await failure(downloader, peer.url + "a.png")).message
        )
        assert peer.accepted == 1


async def test_image_bomb_is_not_retried() -> None:
    async with opened() as downloader, Peer(saying(reply(png_claiming(30_000, 30_000)))) as peer:
        assert "30000 x 30000 pixels" in (await failure(downloader, peer.url)).message
        assert peer.accepted == 1


# Statuses, silence, repetition


@pytest.mark.parametrize("status", [400, 401, 404, 410])
async def test_expired_link_is_reported_without_retry(status: int) -> None:
    async with opened() as downloader, Peer(saying(reply(b"", status=f"{status} Gone"))) as peer:
        error = await failure(downloader, f"{peer.url}a.png?X-Signature=secret")
        assert peer.accepted == 1
    assert error.link_expired is True
    assert error.message == (f"{peer.url}a.png: the link has expired (HTTP {status})")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_temporary_status_is_retried(status: int) -> None:
    async with opened(attempts=3) as downloader, Peer(saying(reply(b"", status=f"{status} Busy"))) as peer:
        error = await failure(downloader, peer.url)
        assert peer.accepted == 3
    assert error.message == f"{peer.url}: 127.0.0.1 answered {status} (after 3 attempts)"
    assert error.link_expired is False


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 402, 418, 451])
async def test_other_status_is_not_retried(status: int) -> None:
    async with opened() as downloader, Peer(saying(reply(b"", status=f"{status} Odd"))) as peer:
        assert f"answered {status}" in (await failure(downloader, peer.url)).message
        assert peer.accepted == 1


async def test_retry_after_is_respected() -> None:
    replies = reply(b"", "Retry-After: 20", status="503 Busy"), reply(IMAGE)
    async with opened() as downloader, Peer(saying(*replies)) as peer:
        fetching = asyncio.Task(downloader.fetch(peer.url))
        await peer.all_ended(1)
        await asyncio.sleep(0.1)
        assert peer.accepted == 1
        leap(20.0)
        assert await fetching == IMAGE


async def test_retry_after_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_MAX_WAIT_S", 0.05)
    replies = reply(b"", "Retry-After: 3600", status="429 Slow"), reply(IMAGE)
    async with opened() as downloader, Peer(saying(*replies)) as peer:
        async with asyncio.timeout(PATIENCE_S):
            assert await downloader.fetch(peer.url) == IMAGE


async def hangs_up(connection: Connection) -> None:
    await connection.read_request()
    connection.close()


async def resets(connection: Connection) -> None:
    await connection.read_request()
    connection.reset()


async def drips(connection: Connection) -> None:
    await connection.read_request()
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
    while True:
        await connection.write(b"x")
        await asyncio.sleep(0.01)


BROKEN: dict[str, tuple[Script, str]] = {
    "hangs up": (hangs_up, "closed the connection without an answer"),
    "resets": (resets, "broke"),
    "silent": (silent, "sent nothing for 0.1 s"),
    "silent amid the image": (answering(reply(IMAGE)[:-50], then="wait"), "sent nothing for 0.1 s"),
    "drips": (drips, "did not arrive within 0.25 s"),
    "speaks something else": (answering(b"220 ftp.example ready\r\n"), "not valid HTTP"),
}


@pytest.mark.slow
@pytest.mark.parametrize("manner", BROKEN)
async def test_broken_answer_is_retried_then_reported(manner: str) -> None:
    script, words = BROKEN[manner]
    limits: dict[str, Any] = (
        {"idle_s": 0.1} if manner.startswith("silent") else {"total_s": 0.25} if manner == "drips" else {}
    )
    async with opened(attempts=2, **limits) as downloader, Peer(script) as peer:
        error = await failure(downloader, peer.url)
        assert peer.accepted >= 2  # aiohttp itself retries once on a closed connection
    assert words in error.message
    assert error.message.endswith("(after 2 attempts)")


async def test_unreachable_server_is_retried() -> None:
    async with opened(attempts=2) as downloader:
        error = await failure(downloader, f"http://127.0.0.1:{unused_port()}/a.png")
    assert "can't reach 127.0.0.1" in error.message


# Links


@pytest.mark.parametrize(
    "link",
    [
        "ftp://images.example/a.png",
        "file:///etc/passwd",
        "//images.example/a",
        "a.png",
        "",
        "http://",
        "http://[broken",
        "javascript:alert(1)",
        "https:///a",
        "http://h:99999/",
        "http://good\\@evil/",
        "unix:/run/docker.sock",
    ],
)
async def test_invalid_link_is_refused(link: str) -> None:
    async with opened() as downloader:
        assert (await failure(downloader, link)).link_expired is False


async def test_password_in_a_link_is_not_sent_or_shown() -> None:
    async with opened() as downloader, Peer(saying(reply(IMAGE))) as peer:
        error = await failure(downloader, peer.url.replace("//", "//me:hidden@") + "a.png?k=secret#secret")
        assert peer.accepted == 0
    assert "hidden" not in str(error)
    assert "secret" not in str(error)
    assert "me:" not in str(error)


async def test_line_break_in_a_link_is_not_sent() -> None:
    async with opened(attempts=1) as downloader, Peer(saying(reply(IMAGE))) as peer:
        await downloader.fetch(peer.url + "a\r\nX-Evil: 1")
        assert not [line for line in peer.requests[0].lower().split(b"\r\n") if line.startswith(b"x-evil")]


# Data URIs


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64," + base64.b64encode(IMAGE).decode(),
        "DATA:image/jpeg;charset=x;BASE64," + base64.b64encode(IMAGE).decode().rstrip("="),
        "data:;base64," + base64.encodebytes(IMAGE).decode(),
        "data:image/png;base64," + base64.b64encode(IMAGE).decode().replace("+", "%2B").replace("=", "%3D"),
        "data:text/html," + quote_from_bytes(IMAGE),
    ],
)
async def test_data_uri_is_decoded(uri: str) -> None:
    async with opened() as downloader:
        assert await downloader.fetch(uri) == IMAGE


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data:image/png;base64", "holds no data"),
        ("data:image/png;base64,", "truncated"),
        ("data:image/png;base64,####", "not valid base64"),
        ("data:image/png;base64,A", "not valid base64"),
        ("data:image/png;base64,PGh0bWw+", "not a PNG, JPEG, WebP, GIF, AVIF or HEIC image"),
        ("data:image/png;base64," + base64.b64encode(IMAGE[:-20]).decode(), "truncated"),
        ("data:image/png;base64," + base64.b64encode(png_claiming(9000, 9000)).decode(), "9000 x 9000 pixels"),
        ("data:image/png;base64," + "A" * 41_000, "larger than 10000 bytes"),
        ("data:image/png;base64," + "A" * 14_000, "larger than 10000 bytes"),
        ("data:image/png," + "a" * 10_001, "larger than 10000 bytes"),
    ],
)
async def test_data_uri_passes_the_same_checks(uri: str, words: str) -> None:
    async with opened(max_bytes=10_000) as downloader:
        error = await failure(downloader, uri)
    assert words in error.message
    assert error.message.startswith(f"the inline image ({len(uri)} characters): ")
    assert "attempts" not in error.message


# Opening, closing, bounding


async def test_concurrent_downloads_are_limited() -> None:
    now = most = 0

    async def slow(connection: Connection) -> None:
        nonlocal now, most
        await connection.read_request()
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        await connection.write(reply(IMAGE))
        connection.close()

    async with opened(max_at_once=3) as downloader, Peer(slow) as peer, asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(downloader.fetch(peer.url))
    assert most == 3


async def test_fetch_is_refused_before_open_and_after_close() -> None:
    downloader = ImageDownloader()
    assert repr(downloader) == "<ImageDownloader not open>"
    with pytest.raises(SessionClosed, match="not open"):
        await downloader.fetch("https://images.example/")
    await downloader.open()
    await downloader.open()
    await downloader.aclose()
    await downloader.aclose()
    assert repr(downloader) == "<ImageDownloader closed>"
    with pytest.raises(SessionClosed, match="is closed"):
        await downloader.fetch("data:,")
    with pytest.raises(SessionClosed, match="the session is closed"):
        await downloader.open()


async def test_fetcher_that_is_not_open_refuses() -> None:
    async def take(piece: bytes) -> None: ...

    with pytest.raises(SessionClosed):
        await ImageDownloader()._fetcher.get("https://images.example/", take)


async def test_downloader_that_was_never_opened_can_be_closed() -> None:
    await ImageDownloader().aclose()


WAITING: dict[str, Script] = {
    "for an answer": silent,
    "for the rest": answering(reply(IMAGE)[:-9], then="wait"),
    "for another attempt": answering(reply(b"", "Retry-After: 9", status="503 Busy")),
}


@pytest.mark.parametrize("script", WAITING.values(), ids=WAITING)
async def test_close_ends_running_downloads(script: Script) -> None:
    downloader = ImageDownloader(allow_loopback=True, pause_s=0.05)
    await downloader.open()
    async with Peer(script) as peer:
        fetching = asyncio.get_running_loop().create_task(downloader.fetch(peer.url))
        await peer.all_accepted(1)
        await asyncio.sleep(0.02)
        await downloader.aclose()
        assert fetching.done()
        with pytest.raises(SessionClosed, match="the session is closed"):
            await fetching
    assert downloader._fetcher._direct_sockets.open_sockets() == []


async def test_cancelled_fetch_leaves_no_connection() -> None:
    async with opened() as downloader, Peer(answering(reply(IMAGE)[:-9], then="wait")) as peer:
        fetching = asyncio.get_running_loop().create_task(downloader.fetch(peer.url))
        await peer.all_accepted(1)
        await asyncio.sleep(0.02)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await peer.all_ended(1)


@pytest.mark.slow
async def test_loop_runs_while_a_large_image_is_verified() -> None:
    large = make_image("png", (1500, 1000))
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            wall, processor = loop.time(), time.process_time()
            await asyncio.sleep(0.001)
            longest = max(longest, min(loop.time() - wall, time.process_time() - processor))  # other work is not ours

    async with opened() as downloader, Peer(saying(reply(large))) as peer:
        watching = asyncio.get_running_loop().create_task(watch())
        await asyncio.sleep(0.01)
        for _ in range(3):
            await downloader.fetch(peer.url)
        watching.cancel()
    assert longest < 0.25


def test_link_expired_is_false_by_default() -> None:
    assert DownloadError("m").link_expired is False
