"""The receiver on real sockets: as aiohttp routes, and mounted in the ASGI frameworks that are installed."""

import asyncio
import gzip
import importlib
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, web

from nanobanana_async import Session
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import MAX_BODY, CallbackReceiver
from tests.support.callbacks import KEY, CallbackGateway, bound, callback_body, served
from tests.support.fakes import defapi
from tests.support.loopback import until

pytestmark = pytest.mark.slow

Frame = Callable[[CallbackReceiver], Any]


@asynccontextmanager
async def open_app(path: str = "/hooks") -> AsyncIterator[tuple[Session, CallbackGateway, str]]:
    """Serve the routes of a receiver, beside a page of the app's own; yield a running job's URL."""
    gateway = CallbackGateway(job_s=0.0)
    listener, address = bound()
    session = defapi(FakeTransport(gateway.answer, latency_s=0.001))
    receiver = CallbackReceiver(session, public_url=address + path)
    app = web.Application()
    app.add_routes(receiver.aiohttp_routes())
    async with session, served(app, listener):
        await (await session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
        yield session, gateway, gateway.url()


async def raw(url: str, *pieces: bytes, read: bool = True) -> bytes:
    """Send bytes, then close; return what came back."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    answer = b""
    if read:
        async with asyncio.timeout(10.0):
            answer = await reader.read(65536)
    writer.close()
    return answer


def head(url: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {urlsplit(url).path} HTTP/1.1", "Host: here", *headers, "", ""]).encode()


@pytest.mark.parametrize("path", ["", "/hooks", "/a/b/"])
async def test_aiohttp_routes_accept_a_callback(path: str) -> None:
    async with open_app(path) as (session, gateway, url), ClientSession() as http:
        async with http.post(url, data=callback_body("t1")) as response:
            assert response.status == 200
        await until(lambda: session.stats().succeeded == 1)
    assert gateway.polled == ["t1"]


async def test_aiohttp_routes_answer_404_to_other_methods_and_paths() -> None:
    answers = set()
    async with open_app() as (_, gateway, url), ClientSession() as http:
        base = url.rpartition("/")[0]
        wrong = [(method, url) for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH")]
        wrong += [("POST", other) for other in (f"{url}x", f"{url}/more", f"{base}/token")]
        wrong += [("POST", f"{base.rpartition('/')[0]}/{other}") for other in ("", "x", "x/", "a/b/c/d")]
        for method, other in wrong:
            async with http.request(method, other) as got:
                headers = tuple(item for item in got.headers.items() if item[0] != "Date")
                answers.add((got.status, await got.text(), headers))
        async with http.head(url) as got:
            assert got.status == 404
        assert gateway.polled == []
    assert len(answers) == 1
    assert answers.pop()[:2] == (404, "")


@pytest.mark.parametrize("size", [MAX_BODY, MAX_BODY + 1, 5_000_000])
async def test_body_of_any_length_causes_a_poll(size: int) -> None:
    async with open_app() as (session, _, url), ClientSession() as http:
        async with http.post(url, data=io.BytesIO(b" " * size)) as response:
            assert response.status == 200
        await until(lambda: session.stats().succeeded == 1)


SENT: dict[str, list[bytes]] = {
    "a length that is too long": [b"Content-Length: 1000\r\n\r\n{", b""],
    "chunks that end early": [b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}", b""],
    "chunks that are none": [b"Transfer-Encoding: chunked\r\n\r\nzz\r\nnonsense"],
    "gzip that is none": [b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"],
}


@pytest.mark.parametrize("how", SENT)
async def test_broken_body_causes_a_poll(how: str) -> None:
    async with open_app() as (session, _, url):
        first, *rest = SENT[how]
        start = head(url)[:-2] + first
        answer = await raw(url, start, *rest, read="none" in how)
        if b" 400 " in answer.split(b"\r\n")[0]:  # the server itself refused it
            async with ClientSession() as http, http.post(url, data=b"") as response:
                assert response.status == 200
        await until(lambda: session.stats().succeeded == 1)


async def test_compressed_huge_body_causes_a_poll() -> None:
    async with open_app() as (session, _, url), ClientSession() as http:
        async with http.post(url, data=gzip.compress(bytes(50_000_000)), headers={"Content-Encoding": "gzip"}) as got:
            assert got.status in (200, 400)
        if got.status == 200:
            await until(lambda: session.stats().succeeded == 1)


def starlette(receiver: CallbackReceiver) -> Any:
    routing = importlib.import_module("starlette.routing")
    return importlib.import_module("starlette.applications").Starlette(routes=[routing.Mount("/hooks", app=receiver)])


def fastapi(receiver: CallbackReceiver) -> Any:
    app = importlib.import_module("fastapi").FastAPI()
    app.mount("/hooks", receiver)
    return app


def litestar(receiver: CallbackReceiver) -> Any:
    module = importlib.import_module("litestar")
    handler = module.asgi("/hooks", is_mount=True, copy_scope=True)(_plain(receiver))
    return module.Litestar([handler], logging_config=None)  # else it sets up everybody's logging


def _plain(receiver: CallbackReceiver) -> Any:
    async def hooks(scope: Any, receive: Any, send: Any) -> None:
        await receiver(scope, receive, send)

    litestar_types: Any = importlib.import_module("litestar.types")
    hooks.__annotations__ = {
        "scope": litestar_types.Scope,
        "receive": litestar_types.Receive,
        "send": litestar_types.Send,
        "return": None,
    }
    return hooks


def itself(receiver: CallbackReceiver) -> Any:
    return receiver


@pytest.mark.parametrize("frame", [itself, starlette, fastapi, litestar])
async def test_uvicorn_callback_is_answered_at_once(frame: Frame) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    if frame is not itself:
        pytest.importorskip(frame.__name__)
    gateway, answered = CallbackGateway(job_s=0.0), asyncio.Event()

    async def answer(request: HttpRequest) -> Reply:
        if request.method == "GET":  # the callback does not wait for the poll
            await answered.wait()
        return gateway.answer(request)

    listener, address = bound()
    session = defapi(FakeTransport(answer, latency_s=0.001))
    receiver = CallbackReceiver(session, public_url=address + ("" if frame is itself else "/hooks"))
    server = uvicorn.Server(uvicorn.Config(frame(receiver), log_config=None, ws="none", timeout_graceful_shutdown=1))
    async with session, asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listener]))
        await until(lambda: bool(server.started))
        try:
            await (await session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
            async with ClientSession() as http, asyncio.timeout(30.0):
                async with http.post(f"{gateway.url()}x", data=callback_body("t1")) as response:
                    assert (response.status, await response.read()) == (404, b"")
                async with http.post(gateway.url(), data=callback_body("t1")) as response:
                    assert response.status == 200
                answered.set()
                await until(lambda: session.stats().succeeded == 1)
                async with http.post(gateway.url(), data=b"x" * 1_000_000) as response:
                    assert response.status == 200
        finally:
            server.should_exit = True
    assert gateway.polled == ["t1"]
