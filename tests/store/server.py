"""An S3-compatible server in a process of its own, and a proxy before it that counts requests and spoils some."""

import asyncio
import os
import random
import secrets
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Literal

import aiohttp
from aiohttp import web
from attrs import Factory, define
from yarl import URL

from nanobanana_async.emulator import Emulator, Fixed
from tests.support.peers import unused_port

Fault = Literal["unavailable", "slow", "reset", "no permission", "full"]
FAULTS: tuple[Fault, ...] = ("unavailable", "slow", "reset", "no permission", "full")

ACCESS_KEY, SECRET_KEY = "AKIACANARY7Q2ZXW9VBN4", "canary/secret+9K2mV7Hq2ZxW9vBn4LmQ8rT1yU"
_STARTING_S = 30.0
_SLOW_S = 0.3
_STATUS: dict[str, tuple[int, str]] = {
    "unavailable": (503, "ServiceUnavailable"),
    "no permission": (403, "AccessDenied"),
    "full": (507, "InsufficientStorage"),
}


@contextmanager
def s3_process() -> Iterator[str]:
    """Run moto's server, and yield its URL; every credential is good there."""
    port = unused_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.perf_counter() + _STARTING_S
        while True:
            try:
                with urllib.request.urlopen(f"{url}/moto-api/data.json"):
                    break
            except OSError:
                if process.poll() is not None or time.perf_counter() > until:
                    raise
                time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def variables(url: str) -> dict[str, str]:
    """Return the environment of a client of this server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@define
class S3:
    """A bucket behind a proxy. `faults` returns what goes wrong with a request to an object, by method and name."""

    upstream: str
    bucket: str = Factory(lambda: f"bucket-{secrets.token_hex(6)}")
    faults: Callable[[str, str], Fault | None] = lambda *_: None
    drop_header: str = ""
    """A header of the client that the server does not get."""
    requests: list[tuple[str, str, int]] = Factory(list)
    """Method, name of the object and status of each request; 0 where the connection was reset."""
    url: str = ""
    _http: aiohttp.ClientSession | None = None

    def counts(self) -> Counter[str]:
        """Return how many requests of each method were sent."""
        return Counter(method for method, *_ in self.requests)

    def puts(self, ending: str = ".png") -> list[str]:
        """Return the names of the objects that were put."""
        done = [(name, status) for method, name, status in self.requests if method == "PUT" and status == 200]
        return [name for name, _ in done if name.endswith(ending)]

    async def objects(self) -> dict[str, tuple[bytes, dict[str, str]]]:
        """Return content and headers of every object, read past the proxy."""
        import obstore
        from obstore.store import S3Store

        def read() -> dict[str, tuple[bytes, dict[str, str]]]:
            options = {"endpoint": self.upstream, "access_key_id": "x", "secret_access_key": "x", "region": "us-east-1"}
            store = S3Store(self.bucket, client_options={"allow_http": True}, **options)  # type: ignore[arg-type]
            found: dict[str, tuple[bytes, dict[str, str]]] = {}
            for page in obstore.list(store):
                for each in page:
                    whole = obstore.get(store, each["path"])
                    facts = {str(name): value for name, value in whole.attributes.items()}
                    found[each["path"]] = (whole.bytes().to_bytes(), facts)
            return found

        return await asyncio.to_thread(read)

    async def images(self) -> dict[str, tuple[bytes, dict[str, str]]]:
        """Return the objects that are no lists."""
        return {name: found for name, found in (await self.objects()).items() if ".nanobanana/" not in name}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on, or spoil it."""
        name = request.path.removeprefix(f"/{self.bucket}").lstrip("/")
        fault = self.faults(request.method, name) if name else None
        if fault == "reset" and request.method == "GET":
            return await self._pass_on(request, name, cut=True)  # in the middle of the object
        if fault == "reset":
            if request.method == "PUT":
                await request.content.readany()  # in the middle of the body
            self.requests.append((request.method, name, 0))
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if fault == "slow":
            await asyncio.sleep(_SLOW_S)
        elif fault is not None:
            status, code = _STATUS[fault]
            await request.read()
            self.requests.append((request.method, name, status))
            # Some servers answer with the credentials of the request.
            text = f"<Error><Code>{code}</Code><AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId></Error>"
            return web.Response(status=status, text=text, content_type="application/xml")
        return await self._pass_on(request, name)

    async def _pass_on(self, request: web.Request, name: str, *, cut: bool = False) -> web.StreamResponse:
        assert self._http is not None
        skipped = {"host", "connection", self.drop_header.lower()}
        headers = {key: value for key, value in request.headers.items() if key.lower() not in skipped}
        body = await request.read()
        target = URL(self.upstream + request.raw_path, encoded=True)
        async with self._http.request(request.method, target, headers=headers, data=body or None) as answer:
            content = await answer.read()
            self.requests.append((request.method, name, 0 if cut else answer.status))
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            if "Content-Length" not in kept:
                response.content_length = len(content)
            with suppress(ConnectionResetError):  # the client was killed
                await response.prepare(request)
                if cut and request.transport is not None:
                    await response.write(content[: len(content) // 2])
                    request.transport.close()
                    return response
                if request.method != "HEAD":
                    await response.write(content)
                await response.write_eof()
            return response


_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "server", "date"})


@asynccontextmanager
async def bucket(upstream: str, **settings: Any) -> AsyncIterator[S3]:
    """Make a bucket, and run a proxy before it in this event loop."""
    s3 = S3(upstream, **settings)
    application = web.Application(client_max_size=1 << 28)
    application.router.add_route("*", "/{path:.*}", s3.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        s3._http = http
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            s3.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with http.put(f"{upstream}/{s3.bucket}") as made:
                assert made.status == 200
            yield s3
        finally:
            await runner.cleanup()


def emulated() -> Emulator:
    """Return an emulator whose jobs take a moment."""
    return Emulator(duration=Fixed(0.01), image_scale=0.05)


def at_random(share: float, seed: int, kinds: tuple[Fault, ...] = FAULTS) -> Callable[[str, str], Fault | None]:
    """Return faults that spoil this share of the requests, each kind as often."""
    rng = random.Random(seed)
    return lambda *_: rng.choice(kinds) if rng.random() < share else None


def environment_of(s3: S3) -> dict[str, str]:
    """Return the environment of a client of this bucket; a proxy of the machine is not used."""
    return {**variables(s3.url), "NO_PROXY": "127.0.0.1", "no_proxy": os.environ.get("no_proxy", "127.0.0.1")}
