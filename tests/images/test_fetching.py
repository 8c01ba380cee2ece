"""Fetching over real sockets: what a server may do wrong, and what is made of it."""

import asyncio
import base64
import functools
import gc
import gzip
import logging
import tracemalloc
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import pytest

from nanobanana_async.errors import DownloadError, SessionClosed
from nanobanana_async.images import fetch as getting
from nanobanana_async.images.downloader import ImageDownloader
from tests.images.scenes import FORMATS, failure, opened, picture, png_claiming, reply, saying
from tests.http.peers import Line, Peer, Script, answering, silent, unused_port

WHOLE = picture("png", (60, 40))


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged, neither by us nor by an event loop that found an exception nobody took."""
    caplog.set_level(logging.INFO)
    yield
    gc.collect(1)  # what the test left is young
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_picture_arrives_as_it_is_whatever_the_server_calls_it(kind: str) -> None:
    async with opened() as downloads, Peer(saying(reply(picture(kind), "Content-Type: text/html"))) as peer:
        assert await downloads.fetch(peer.url + "a.svg") == picture(kind)


async def test_nothing_that_identifies_us_goes_along() -> None:
    script = saying(reply(WHOLE, "Set-Cookie: id=1; Path=/"))
    async with opened() as downloads, Peer(script) as peer:
        for _ in range(2):
            await downloads.fetch(f"{peer.url}a.png#fragment")
        heads = [heard.lower() for heard in peer.heard]
    for head in heads:
        names = {line.split(b":")[0] for line in head.splitlines()[1:] if line}
        assert names == {b"host", b"user-agent", b"accept", b"accept-encoding"}
        assert b"accept-encoding: identity" in head
        assert b"fragment" not in head


async def test_a_signed_link_goes_out_as_it_is_spelled() -> None:
    target = "a%7Eb%2fc.png?X-Sig=%2F%2b+=%7e&x=a%20b"
    async with opened() as downloads, Peer(saying(reply(WHOLE))) as peer:
        await downloads.fetch(peer.url + target)
        assert peer.heard[0].split(b" ")[1] == b"/" + target.encode()


async def test_a_link_with_letters_that_no_url_may_have_is_spelled_out() -> None:
    async with opened() as downloads, Peer(saying(reply(WHOLE))) as peer:
        await downloads.fetch(peer.url + "ein Bär.png")
        assert peer.heard[0].split(b" ")[1] == b"/ein%20B%C3%A4r.png"


# Cut, endless, lying


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("length", [-1, None], ids=["length stated", "length not stated"])
async def test_a_picture_cut_at_any_byte_is_not_taken(kind: str, length: int | None) -> None:
    whole = picture(kind, (5, 4))
    head = reply(whole, length=length)[: -len(whole)]
    cuts = [head + whole[:cut] for cut in range(0, len(whole), 3)]
    async with opened(attempts=1) as downloads, Peer(saying(*cuts)) as peer:
        for _ in cuts:
            error = await failure(downloads, peer.url)
            assert "cut short" in error.message
            assert error.link_expired is False


@pytest.mark.parametrize("then", ["hang up", "reset"])
async def test_a_chunked_picture_that_breaks_off_is_not_taken(then: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with opened(attempts=1) as downloads:
        for words in (head, head + b"5\r\n" + WHOLE[:3], head + b"%x\r\n" % len(WHOLE) + WHOLE + b"\r\n"):
            async with Peer(answering(words, then=then)) as peer:
                assert (await failure(downloads, peer.url)).message.startswith(peer.url)


async def test_a_picture_that_comes_whole_at_the_next_attempt_is_taken() -> None:
    replies = [reply(WHOLE)[:-9], reply(WHOLE[:-9], length=None), reply(b"", status="503 Busy"), reply(WHOLE)]
    async with opened() as downloads, Peer(saying(*replies)) as peer:
        assert await downloads.fetch(peer.url) == WHOLE
        assert peer.accepted == 4


@pytest.mark.parametrize("rest", ["comes along", "comes late", "stays away"])
async def test_a_length_below_the_truth_cuts_the_picture_and_it_is_not_taken(rest: str) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        lie = reply(WHOLE, length=len(WHOLE) - 5)
        await line.say(lie if rest == "comes along" else lie[:-5])
        await asyncio.sleep(0.02)
        await line.say(b"" if rest == "stays away" else lie[-5:])
        await line.ended()

    async with opened(attempts=1) as downloads, Peer(script) as peer:
        message = (await failure(downloads, peer.url)).message
    assert ("not proper HTTP" if rest == "comes along" else "the picture is cut short") in message


async def test_a_length_above_the_truth_is_waited_for_in_vain() -> None:
    script = answering(reply(WHOLE, length=len(WHOLE) + 5), then="wait")
    async with opened(attempts=1, idle_s=0.05) as downloads, Peer(script) as peer:
        assert "fell silent for 0.05 s" in (await failure(downloads, peer.url)).message


async def test_a_length_above_the_cap_is_refused_before_a_byte_is_read() -> None:
    async with opened(max_bytes=1000) as downloads, Peer(saying(reply(b"", length=1001))) as peer:
        assert "larger than 1000 bytes" in (await failure(downloads, peer.url)).message
        assert peer.accepted == 1


@pytest.mark.parametrize("coding", ["", "Transfer-Encoding: chunked\r\n"])
async def test_an_endless_picture_is_refused_at_the_cap(coding: str) -> None:
    said = 0

    async def endless(line: Line) -> None:
        nonlocal said
        await line.hear()
        await line.say(f"HTTP/1.1 200 OK\r\n{coding}\r\n".encode())
        block = WHOLE + bytes(100_000)
        while True:
            await line.say(b"%x\r\n" % len(block) + block + b"\r\n" if coding else block)
            said += len(block)

    async with opened(max_bytes=3_000_000) as downloads, Peer(endless) as peer:
        assert "larger than 3000000 bytes" in (await failure(downloads, peer.url)).message
        await peer.all_ended(1)
        assert peer.accepted == 1
    assert said < 30_000_000  # what the kernel's buffers swallow comes on top


@functools.cache
def bomb() -> bytes:
    return gzip.compress(bytes(100_000_000), 9)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
async def test_a_compression_bomb_is_never_unpacked(encoding: str) -> None:
    async with opened() as downloads, Peer(saying(reply(bomb(), f"Content-Encoding: {encoding}"))) as peer:
        bomb()
        tracemalloc.start()
        error = await failure(downloads, peer.url)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "no picture" in error.message
    assert peak < 4_000_000


async def test_a_plain_picture_that_is_said_to_be_compressed_is_a_picture() -> None:
    # Some stores repeat what the uploader said of his upload.
    async with opened() as downloads, Peer(saying(reply(WHOLE, "Content-Encoding: aws-chunked"))) as peer:
        assert await downloads.fetch(peer.url) == WHOLE


async def test_a_web_page_that_calls_itself_a_picture_is_refused_once() -> None:
    async with opened() as downloads, Peer(saying(reply(b"<html>Sorry", "Content-Type: image/png"))) as peer:
        assert "no picture" in (await failure(downloads, peer.url + "a.png")).message
        assert peer.accepted == 1


async def test_an_image_bomb_is_refused_once() -> None:
    async with opened() as downloads, Peer(saying(reply(png_claiming(30_000, 30_000)))) as peer:
        assert "30000 x 30000 pixels" in (await failure(downloads, peer.url)).message
        assert peer.accepted == 1


# Statuses, silence, repetition


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_a_link_that_is_gone_is_told_so_at_once(status: int) -> None:
    async with opened() as downloads, Peer(saying(reply(b"", status=f"{status} Gone"))) as peer:
        error = await failure(downloads, f"{peer.url}a.png?X-Signature=secret")
        assert peer.accepted == 1
    assert error.link_expired is True
    assert error.message == (
        f"{peer.url}a.png: the link opens nothing any more (HTTP {status}): ask the gateway for a new one"
    )


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_passing_trouble_is_tried_again(status: int) -> None:
    async with opened(attempts=3) as downloads, Peer(saying(reply(b"", status=f"{status} Busy"))) as peer:
        error = await failure(downloads, peer.url)
        assert peer.accepted == 3
    assert error.message == f"{peer.url}: 127.0.0.1 answered {status} (tried 3 times)"
    assert error.link_expired is False


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 402, 418, 451])
async def test_another_status_is_final(status: int) -> None:
    async with opened() as downloads, Peer(saying(reply(b"", status=f"{status} Odd"))) as peer:
        assert f"answered {status}" in (await failure(downloads, peer.url)).message
        assert peer.accepted == 1


async def test_the_server_may_ask_for_patience() -> None:
    replies = reply(b"", "Retry-After: 0.2", status="503 Busy"), reply(WHOLE)
    async with opened() as downloads, Peer(saying(*replies)) as peer:
        started = asyncio.get_running_loop().time()
        assert await downloads.fetch(peer.url) == WHOLE
        assert 0.2 <= asyncio.get_running_loop().time() - started < 1


async def test_the_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getting, "_MAX_WAIT_S", 0.05)
    replies = reply(b"", "Retry-After: 3600", status="429 Slow"), reply(WHOLE)
    async with opened() as downloads, Peer(saying(*replies)) as peer:
        async with asyncio.timeout(1):
            assert await downloads.fetch(peer.url) == WHOLE


async def hangs_up(line: Line) -> None:
    await line.hear()
    line.hang_up()


async def resets(line: Line) -> None:
    await line.hear()
    line.reset()


async def drips(line: Line) -> None:
    await line.hear()
    await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
    while True:
        await line.say(b"x")
        await asyncio.sleep(0.01)


BROKEN: dict[str, tuple[Script, str]] = {
    "hangs up": (hangs_up, "closed the connection without an answer"),
    "resets": (resets, "broke"),
    "silent": (silent, "fell silent for 0.1 s"),
    "silent amid the picture": (answering(reply(WHOLE)[:-50], then="wait"), "fell silent for 0.1 s"),
    "drips": (drips, "did not arrive within 0.25 s"),
    "speaks something else": (answering(b"220 ftp.example ready\r\n"), "not proper HTTP"),
}


@pytest.mark.parametrize("manner", BROKEN)
async def test_a_broken_answer_is_tried_again_then_told_in_our_words(manner: str) -> None:
    script, words = BROKEN[manner]
    async with opened(attempts=2, idle_s=0.1, total_s=0.25) as downloads, Peer(script) as peer:
        error = await failure(downloads, peer.url)
        assert peer.accepted >= 2  # a dead connection aiohttp tries once more by itself
    assert words in error.message
    assert error.message.endswith("(tried 2 times)")


async def test_a_server_that_is_not_there_is_tried_again() -> None:
    async with opened(attempts=2) as downloads:
        error = await failure(downloads, f"http://127.0.0.1:{unused_port()}/a.png")
    assert "127.0.0.1 can't be reached" in error.message


# Links


@pytest.mark.parametrize(
    "link",
    [
        "ftp://pictures.example/a.png",
        "file:///etc/passwd",
        "//pictures.example/a",
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
async def test_what_is_no_link_is_refused(link: str) -> None:
    async with opened() as downloads:
        assert (await failure(downloads, link)).link_expired is False


async def test_a_password_in_a_link_is_neither_sent_nor_shown() -> None:
    async with opened() as downloads, Peer(saying(reply(WHOLE))) as peer:
        error = await failure(downloads, peer.url.replace("//", "//me:hidden@") + "a.png?k=secret#secret")
        assert peer.accepted == 0
    assert "hidden" not in str(error)
    assert "secret" not in str(error)
    assert "me:" not in str(error)


async def test_a_break_in_the_line_reaches_no_server_as_one() -> None:
    async with opened(attempts=1) as downloads, Peer(saying(reply(WHOLE))) as peer:
        await downloads.fetch(peer.url + "a\r\nX-Evil: 1")
        assert not [line for line in peer.heard[0].lower().split(b"\r\n") if line.startswith(b"x-evil")]


# Data URIs


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64," + base64.b64encode(WHOLE).decode(),
        "DATA:image/jpeg;charset=x;BASE64," + base64.b64encode(WHOLE).decode().rstrip("="),
        "data:;base64," + base64.encodebytes(WHOLE).decode(),
        "data:image/png;base64," + base64.b64encode(WHOLE).decode().replace("+", "%2B").replace("=", "%3D"),
        "data:text/html," + quote_from_bytes(WHOLE),
    ],
)
async def test_a_picture_may_come_inside_its_link(uri: str) -> None:
    async with opened() as downloads:
        assert await downloads.fetch(uri) == WHOLE


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data:image/png;base64", "holds no data"),
        ("data:image/png;base64,", "cut short"),
        ("data:image/png;base64,####", "not proper base64"),
        ("data:image/png;base64,A", "not proper base64"),
        ("data:image/png;base64,PGh0bWw+", "no picture"),
        ("data:image/png;base64," + base64.b64encode(WHOLE[:-20]).decode(), "cut short"),
        ("data:image/png;base64," + base64.b64encode(png_claiming(9000, 9000)).decode(), "9000 x 9000 pixels"),
        ("data:image/png;base64," + "A" * 41_000, "larger than 10000 bytes"),
        ("data:image/png;base64," + "A" * 14_000, "larger than 10000 bytes"),
        ("data:image/png," + "a" * 10_001, "larger than 10000 bytes"),
    ],
)
async def test_a_picture_inside_its_link_passes_the_same_checks(uri: str, words: str) -> None:
    async with opened(max_bytes=10_000) as downloads:
        error = await failure(downloads, uri)
    assert words in error.message
    assert error.message.startswith(f"the inline picture ({len(uri)} characters): ")
    assert "tried" not in error.message


# Opening, closing, bounding


async def test_no_more_than_so_many_are_fetched_at_once() -> None:
    now = most = 0

    async def slow(line: Line) -> None:
        nonlocal now, most
        await line.hear()
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        await line.say(reply(WHOLE))
        line.hang_up()

    async with opened(max_at_once=3) as downloads, Peer(slow) as peer, asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(downloads.fetch(peer.url))
    assert most == 3


async def test_nothing_is_fetched_before_opening_or_after_closing() -> None:
    downloads = ImageDownloader()
    assert repr(downloads) == "<Downloads not open>"
    with pytest.raises(SessionClosed, match="not open"):
        await downloads.fetch("https://pictures.example/")
    await downloads.open()
    await downloads.open()
    await downloads.aclose()
    await downloads.aclose()
    assert repr(downloads) == "<Downloads closed>"
    with pytest.raises(SessionClosed, match="is closed"):
        await downloads.fetch("data:,")
    with pytest.raises(SessionClosed, match="was closed"):
        await downloads.open()


async def test_nothing_can_be_got_without_a_session() -> None:
    async def take(piece: bytes) -> None: ...

    with pytest.raises(SessionClosed):
        await ImageDownloader()._getter.get("https://pictures.example/", take)


async def test_a_door_that_was_never_opened_can_be_closed() -> None:
    await ImageDownloader().aclose()


WAITING: dict[str, Script] = {
    "for an answer": silent,
    "for the rest": answering(reply(WHOLE)[:-9], then="wait"),
    "for another attempt": answering(reply(b"", "Retry-After: 9", status="503 Busy")),
}


@pytest.mark.parametrize("script", WAITING.values(), ids=WAITING)
async def test_closing_ends_what_is_being_fetched(script: Script) -> None:
    downloads = ImageDownloader(allow_loopback=True, pause_s=0.05)
    await downloads.open()
    async with Peer(script) as peer:
        fetching = asyncio.get_running_loop().create_task(downloads.fetch(peer.url))
        await peer.all_met(1)
        await asyncio.sleep(0.02)
        await downloads.aclose()
        assert fetching.done()
        with pytest.raises(SessionClosed, match="was closed"):
            await fetching
    assert downloads._getter._public.open() == []


async def test_a_cancelled_fetch_leaves_no_connection_behind() -> None:
    async with opened() as downloads, Peer(answering(reply(WHOLE)[:-9], then="wait")) as peer:
        fetching = asyncio.get_running_loop().create_task(downloads.fetch(peer.url))
        await peer.all_met(1)
        await asyncio.sleep(0.02)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await peer.all_ended(1)


async def test_the_loop_goes_on_while_a_large_picture_is_looked_at() -> None:
    large = picture("png", (1500, 1000))
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            longest = max(longest, loop.time() - before)

    async with opened() as downloads, Peer(saying(reply(large))) as peer:
        watching = asyncio.get_running_loop().create_task(watch())
        await asyncio.sleep(0.01)
        for _ in range(3):
            await downloads.fetch(peer.url)
        watching.cancel()
    assert longest < 0.25


def test_a_download_error_is_not_gone_unless_said() -> None:
    assert DownloadError("m").link_expired is False
