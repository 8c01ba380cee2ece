"""The signature in a link of an image is in no message, log or span: who has it can fetch the image.

The link itself is a result, which the caller gets, keeps and passes on: it is in the ledger, in `results.jsonl`, in the
repr of an image, and in the locals of frames that work on it.
"""

import json
import logging
from collections.abc import Iterator

import pytest

from nanobanana_async import ApiMall, DefApi, GatewayError, NanoBananaError
from nanobanana_async.errors import UnexpectedResponse
from nanobanana_async.gateways import HttpResponse
from nanobanana_async.images.downloader import ImageDownloader
from tests.secrecy.canary import KEY, Listener, seen_in, shown_of
from tests.support.images import make_image, opened, png_claiming, redirect, reply, saying
from tests.support.peers import Peer, Script, silent
from tests.support.rows import each_row

SIGNATURE = "sigcanary7Q2zXw9VbN42"
QUERY = f"X-Amz-Credential=a%2Fb&X-Amz-Signature={SIGNATURE}"
PNG = make_image()
GATEWAYS = (ApiMall(api_key=KEY), DefApi(api_key=KEY))

ANSWERS: dict[str, Script] = {
    **{
        f"{status}": saying(reply(b"no", status=f"{status} No"))
        for status in (204, 400, 401, 403, 404, 408, 410, 429, 500, 503)
    },
    "echo": saying(reply(f"<Error>{SIGNATURE}</Error>".encode(), status="403 No")),
    "page": saying(reply(b"<html></html>")),
    "empty": saying(reply(b"")),
    "truncated": saying(reply(PNG[:-20])),
    "corrupt": saying(reply(PNG[:40] + b"x" + PNG[41:])),
    "huge": saying(reply(png_claiming(9000, 9000))),
    "too large": saying(reply(PNG, length=1 << 40)),
    "cut": saying(reply(PNG, length=len(PNG) + 9)),
    "gzip": saying(reply(b"\x1f\x8b\x08" + b"x" * 20)),
    "no http": saying(b"hello\r\n\r\n"),
    "bad header": saying(f"HTTP/1.1 200 OK\r\n{SIGNATURE}\x00\r\n\r\n".encode()),
    "redirect without a place": saying(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    "redirect to a private host": saying(redirect(f"http://10.0.0.1/a.png?{QUERY}")),
    "redirect to a name": saying(redirect(f"http://intranet/a.png?{QUERY}")),
    "redirect to nothing": saying(redirect(f"http://[::1/a.png?{QUERY}")),
    "redirect with a password": saying(redirect(f"http://fox:{SIGNATURE}@a.example/")),
    "redirect to a file": saying(redirect(f"file:///a.png?{QUERY}")),
    "silent": silent,
}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    listener = Listener()
    caplog.set_level(logging.DEBUG)
    logging.getLogger().addHandler(listener)
    yield listener.said
    logging.getLogger().removeHandler(listener)


async def failure(downloader: ImageDownloader, link: str) -> NanoBananaError:
    with pytest.raises(NanoBananaError) as caught:
        await downloader.fetch(link)
    return caught.value


async def test_a_failed_download_shows_no_signature(logged: list[str]) -> None:
    shown: list[str] = []
    async with opened(attempts=1, idle_s=0.1, total_s=0.5) as downloader:
        for name, script in ANSWERS.items():
            async with Peer(script) as peer:
                error = await failure(downloader, f"{peer.url}a.png?{QUERY}")
            shown += [f"{name}: {said}" for said in seen_in(_without_locals(error), SIGNATURE)]
    assert shown == []
    assert seen_in(logged, SIGNATURE) == []


async def test_a_link_that_is_refused_shows_no_signature(logged: list[str]) -> None:
    links = ("http://10.0.0.1/a.png?{}", "http://intranet/?{}", "http://[::1/?{}", "ftp://a/?{}", "http://a:99999/?{}")
    async with opened(attempts=1, allow_loopback=False) as downloader:
        for link in (*links, "http://fox:{}@a.example/", "http://127.0.0.1/a?{}", "//a?{}", "http://a b/?{}"):
            error = await failure(downloader, link.format(QUERY if "?" in link else SIGNATURE))
            assert seen_in(_without_locals(error), SIGNATURE) == [], link
    assert seen_in(logged, SIGNATURE) == []


async def test_a_failed_upload_shows_no_signature(logged: list[str]) -> None:
    async with opened(attempts=1) as downloader:
        for name in (
            "400",
            "403",
            "echo",
            "404",
            "500",
            "503",
            "redirect to a name",
            "no http",
            "bad header",
            "silent",
        ):
            async with Peer(ANSWERS[name]) as peer:
                link = f"{peer.url}a.png?{QUERY}"
                with pytest.raises(NanoBananaError) as caught:
                    await downloader.put_presigned(link, PNG, content_type="image/png", timeout_s=0.3, allow_http=True)
            assert seen_in(_without_locals(caught.value), SIGNATURE) == [], name
    assert seen_in(logged, SIGNATURE) == []


STATUSES = (200, 302, 400, 401, 402, 403, 404, 409, 413, 422, 429, 451, 500, 502, 503, 504)


@each_row("status", STATUSES)
def test_a_refusal_that_quotes_a_link_shows_no_signature(status: int) -> None:
    link = f"https://bucket.example/a.png?{QUERY}"
    messages = (f"can't fetch {link}", link, json.dumps({"url": link}), f"'{link}' is gone", link.replace("/", "\\/"))
    for gateway in GATEWAYS:
        for message in messages:
            error = {"code": "no_image", "message": message}
            body = json.dumps({"success": False, "code": 5, "error": error, "message": message}).encode()
            for said in (body, message.encode(), body[:-3]):
                answer = HttpResponse(status=status, headers={"location": link}, body=said)
                for read in (gateway.read_create, gateway.read_query):
                    with pytest.raises((GatewayError, UnexpectedResponse)) as caught:
                        read(answer)
                    assert seen_in(_without_locals(caught.value), SIGNATURE) == [], (gateway.name, message)


def _without_locals(error: BaseException) -> list[str]:
    return list(shown_of(error))
