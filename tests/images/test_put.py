"""PUTs to pre-signed URLs: without credentials, to public addresses only, and through no redirect."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from nanobanana_async.errors import ConfigurationError, SessionClosed, TransportError, UnexpectedResponse
from nanobanana_async.images.downloader import ImageDownloader
from tests.support.callbacks import bound, served
from tests.support.images import make_image
from tests.support.references import large_png

PNG = make_image()
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def storage(answer: Answer) -> AsyncIterator[str]:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", answer)
    listener, address = bound()
    async with served(app, listener):
        yield f"{address}/a%2Fb.png?X-Amz-Signature=a%2B1"


@asynccontextmanager
async def opened(downloads: ImageDownloader) -> AsyncIterator[ImageDownloader]:
    await downloads.open()
    try:
        yield downloads
    finally:
        await downloads.aclose()


async def put(
    url: str, content: bytes = PNG, *, loopback: bool = True, timeout_s: float = 5.0, allow_http: bool = True
) -> None:
    async with opened(ImageDownloader(allow_loopback=loopback)) as downloads:
        await downloads.put_presigned(
            url, content, content_type="image/png", timeout_s=timeout_s, allow_http=allow_http
        )


async def test_content_arrives_whole_with_its_type_and_no_credentials() -> None:
    got: list[tuple[str, str, bytes, web.Request]] = []

    async def store(request: web.Request) -> web.Response:
        got.append((request.method, request.raw_path, await request.read(), request))
        return web.Response(status=201)

    content = large_png(3 << 20)
    async with storage(store) as url:
        await put(url, content)
        async with opened(ImageDownloader(allow_loopback=True, headers={"X-Token": "hidden"})) as downloads:
            await downloads.put_presigned(url, b"x", content_type="image/png", timeout_s=5.0, allow_http=True)
    (method, path, body, request), (*_, second) = got
    assert "X-Token" not in second.headers
    assert (method, path) == ("PUT", "/a%2Fb.png?X-Amz-Signature=a%2B1")
    assert body == content
    assert request.headers["Content-Type"] == "image/png"
    assert request.headers["Content-Length"] == str(len(content))
    assert not {"Authorization", "Cookie", "Referer"} & set(request.headers)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, UnexpectedResponse),
        (403, UnexpectedResponse),
        (408, TransportError),
        (429, TransportError),
        (500, TransportError),
        (503, TransportError),
    ],
)
async def test_other_status_is_an_error_and_followed_nowhere(status: int, kind: type[Exception]) -> None:
    requests = 0

    async def refuse(request: web.Request) -> web.Response:
        nonlocal requests
        requests += 1
        return web.Response(status=status, headers={"Location": str(request.url.with_path("/elsewhere"))})

    async with storage(refuse) as url:
        with pytest.raises(kind, match=f"127.0.0.1 answered {status} to the upload") as caught:
            await put(url)
    assert requests == 1
    assert "Signature" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_an_unusable_address_and_not_followed(status: int) -> None:
    paths: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        paths.append(request.raw_path)
        return web.Response(status=status, headers={"Location": str(request.url.with_path("/elsewhere"))})

    async with storage(redirect) as url:
        with pytest.raises(ConfigurationError, match=rf"127.0.0.1 redirects it \(HTTP {status}\)") as caught:
            await put(url)
    assert paths == ["/a%2Fb.png?X-Amz-Signature=a%2B1"]
    assert "Signature" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
async def test_plain_http_is_refused_unless_allowed(scheme: str) -> None:
    async def store(_: web.Request) -> web.Response:
        raise AssertionError("the image was sent")

    async with storage(store) as url:
        with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1 takes it by plain http only"):
            await put(url.replace("http", scheme, 1), allow_http=False)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:9/a.png", "not at a public address"),
        ("http://10.0.0.5/a.png", "not at a public address"),
        ("http://169.254.169.254/a.png", "not at a public address"),
        ("http://localhost:9/a.png", "not at a public address"),
        ("ftp://files.example/a.png", "neither http, https nor data"),
        ("https://me:secret@files.example/a.png", "links with credentials are refused"),
        ("http://[::1", "not a valid URL"),
    ],
)
async def test_url_that_is_not_public_is_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        await put(url, loopback=False)
    assert "secret" not in str(caught.value)


async def test_storage_that_does_not_answer_is_given_up() -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with storage(hang) as url:
        with pytest.raises(TransportError, match=r"did not take the upload within 0\.1 s"):
            await put(url, timeout_s=0.1)


async def test_storage_that_cannot_be_reached_is_a_transport_error() -> None:
    listener, address = bound()
    listener.close()
    with pytest.raises(TransportError, match="the upload failed: can't reach"):
        await put(f"{address}/a.png")


async def test_closed_downloader_sends_nothing() -> None:
    downloads = ImageDownloader(allow_loopback=True)
    with pytest.raises(SessionClosed):
        await downloads.put_presigned("http://127.0.0.1:9/a.png", PNG, content_type="image/png", timeout_s=1.0)
