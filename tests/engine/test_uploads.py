"""Uploads that go wrong: what is tried again, for how long, and what the waiting jobs get."""

import asyncio
import re
from pathlib import Path

import pytest
from aiohttp import web

from nanobanana_async import (
    ApiMall,
    ConcurrencyPolicy,
    ConfigurationError,
    InvalidRequest,
    JobState,
    MemoryLedger,
    NanoBananaError,
    RetryPolicy,
    Session,
    UnexpectedResponse,
)
from nanobanana_async.engine.uploads import UPLOADS_AT_ONCE
from nanobanana_async.errors import GatewayUnavailable, RateLimited, TransportError
from nanobanana_async.events import Event, GatewayUnreachable
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.callbacks import bound, served
from tests.support.fakes import apimall_now, virtually
from tests.support.images import make_image
from tests.support.references import large_png, sha256, written
from tests.support.replies import completed, created, json_reply, refused

PNG = make_image()
QUICK = RetryPolicy(max_attempts=6, max_wait_s=5.0, first_backoff_s=0.001, max_backoff_s=0.002)
STORED = json_reply(200, {"success": True, "data": {"url": "https://files.example/a.png", "file_size": len(PNG)}})


class Gateway:
    """Answers uploads in turn; the last answer repeats."""

    def __init__(self, *answers: Reply) -> None:
        self._answers = list(answers)
        self.uploads = self.creates = 0

    def answer(self, request: HttpRequest) -> Reply:
        if request.method == "GET":
            return completed()
        if "/files/" in request.url:
            self.uploads += 1
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self.creates += 1
        return created()


async def failure(gateway: Gateway, content: bytes = PNG, **settings: object) -> NanoBananaError:
    """Generate with a local image, and return the error."""
    options = {"retry": QUICK, **settings}
    async with apimall_now(FakeTransport(gateway.answer, latency_s=0.0), **options) as session:
        with pytest.raises(NanoBananaError) as caught:
            await session.generate("a fox", images=[content])
    assert caught.value.safe_to_repeat
    assert gateway.creates == 0
    return caught.value


async def test_upload_of_another_size_is_repeated_and_then_refused() -> None:
    short = json_reply(200, {"success": True, "data": {"url": "https://files.example/a.png", "file_size": 7}})
    gateway = Gateway(short)
    error = await failure(gateway)
    assert isinstance(error, UnexpectedResponse)
    assert f"stored 7 of {len(PNG)} bytes" in str(error)
    assert gateway.uploads == 4


async def test_image_larger_than_the_presigned_url_takes_is_refused_at_once() -> None:
    ahead = {"upload_url": "https://bucket.example/a", "public_url": "https://files.example/a", "max_file_size": 1024}
    gateway = Gateway(json_reply(200, {"success": True, "data": ahead}))
    error = await failure(gateway, large_png(5 << 20))
    assert isinstance(error, InvalidRequest)
    assert "has 5 MiB, more than the gateway's 1 KiB" in str(error)
    assert gateway.uploads == 1


def presigned(url: str, **facts: object) -> Reply:
    ahead = {"upload_url": url, "public_url": "https://files.example/a", **facts}
    return json_reply(200, {"success": True, "data": ahead})


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://10.0.0.5/a", "10.0.0.5 is not at a public address"),
        ("http://bucket.example/a", "bucket.example takes it by plain http only, and the gateway is https"),
        ("ftp://bucket.example/a", "the link is neither http, https nor data"),
        ("https://me:secret@bucket.example/a", "the link holds a user name or password"),
    ],
)
async def test_unusable_upload_address_is_named_and_no_outage(
    url: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(presigned(url))
    error = await failure(gateway, large_png(5 << 20))
    assert isinstance(error, ConfigurationError)
    assert f"to the address that the gateway gave: {named}" in str(error)
    assert gateway.uploads == 1
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert vars(warning)["event"] == "reference.not_stored"
    assert named in warning.message
    assert "secret" not in caplog.text


async def test_redirected_upload_is_tried_once() -> None:
    paths: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", redirect)
    listener, address = bound()
    async with served(app, listener):
        gateway = Gateway(presigned(f"{address}/a"))
        transport = FakeTransport(gateway.answer, latency_s=0.0)
        local = ApiMall(api_key="sk-1", base_url="http://127.0.0.1:9")
        async with Session(local, http=transport, retry=QUICK) as session:
            with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1 redirects it \(HTTP 307\)"):
                await session.generate("a fox", images=[large_png(5 << 20)])
    assert (paths, gateway.uploads, gateway.creates) == (["/a"], 1, 0)


@pytest.mark.parametrize("limit", [0, -1, True, "much", 7.5, 10**30])
async def test_senseless_limit_of_the_gateway_blames_no_image(limit: object) -> None:
    gateway = Gateway(presigned("https://10.0.0.5/a", max_file_size=limit))
    assert isinstance(await failure(gateway, large_png(5 << 20)), ConfigurationError)  # for the address alone


@pytest.mark.parametrize(
    ("answer", "kind", "attempts"),
    [
        (refused(503, "unavailable", "later"), GatewayUnavailable, 6),
        (TransportError("broken", possibly_sent=True), TransportError, 6),
        (refused(400, "invalid_request", "no image"), InvalidRequest, 1),
        (refused(413, "too_large", "too large"), InvalidRequest, 1),
    ],
)
async def test_failure_is_repeated_only_if_it_may_pass(answer: Reply, kind: type[Exception], attempts: int) -> None:
    gateway = Gateway(answer)
    assert isinstance(await failure(gateway), kind)
    assert gateway.uploads == attempts


async def test_throttled_upload_waits_as_long_as_a_create() -> None:
    gateway = Gateway(refused(429, "rate_limited", "slow down"))
    policy = RetryPolicy(max_attempts=2, max_wait_s=0.1, first_backoff_s=0.01, max_backoff_s=0.01)
    assert isinstance(await failure(gateway, retry=policy), RateLimited)
    assert gateway.uploads > 2


async def test_outage_during_an_upload_is_reported_once() -> None:
    events: list[Event] = []
    gateway = Gateway(*[TransportError("broken", possibly_sent=True)] * 3, STORED)
    transport = FakeTransport(gateway.answer, latency_s=0.0)
    async with apimall_now(transport, retry=QUICK, observers=[events.append]) as session:
        await session.generate("a fox", images=[PNG])
    assert [event.error.args for event in events if isinstance(event, GatewayUnreachable)] == [("broken",)]


async def test_uploads_count_in_the_cap_of_requests() -> None:
    gateway = Gateway(json_reply(200, {"success": True, "data": {"url": "https://files.example/a.png"}}))
    policy = ConcurrencyPolicy(max_requests_per_minute=20)
    async with apimall_now(FakeTransport(gateway.answer, latency_s=0.0), concurrency=policy) as session:
        for number in range(30):
            await session.submit(f"fox {number}", images=[large_png(number)])
        await asyncio.sleep(0.3)
        assert 0 < gateway.uploads + gateway.creates <= 20


class Store(Gateway):
    """Keeps the files that were uploaded since `drop`; creates that name others are refused.

    It holds each idempotency key for one body, also after a refusal.
    """

    def __init__(self) -> None:
        super().__init__(STORED)
        self.bodies: list[bytes] = []
        self.body_of_key: dict[str, bytes] = {}
        self.kept: set[bytes] = set()
        self.refuses_all = False

    def answer(self, request: HttpRequest) -> Reply:
        body = request.body or b""
        if "/files/" in request.url:
            self.uploads += 1
            url = f"https://files.example/{self.uploads}.png"
            self.kept.add(url.encode())
            return json_reply(200, {"success": True, "data": {"url": url}})
        if request.method == "POST":
            self.bodies.append(body)
            if self.body_of_key.setdefault(request.headers["Idempotency-Key"], body) != body:
                return refused(409, "idempotency_conflict", "the key was used with another body")
            if self.refuses_all or not any(url in body for url in self.kept):
                return refused(400, "invalid_request", "can't fetch the image")
            return created(f"img_{len(self.bodies)}")
        return completed(request.url.rpartition("/")[2])

    def drop(self) -> None:
        """Lose all files."""
        self.kept.clear()


async def test_upload_that_the_store_has_dropped_is_made_again() -> None:
    store, ledger = Store(), MemoryLedger()
    transport = FakeTransport(store.answer, latency_s=0.0)
    async with apimall_now(transport, ledger=ledger) as session:
        await session.generate("a fox", images=[PNG])
    store.drop()
    async with apimall_now(transport, ledger=ledger) as session:
        await session.generate("an owl", images=[PNG])
        store.drop()  # the second job uses the upload that was made for the first
        await session.generate("a cat", images=[PNG])
    assert store.uploads == 3
    assert len(store.body_of_key) == 5
    named = [re.search(rb"/(\d)\.png", body) for body in store.bodies]
    assert [found and found[1] for found in named] == [b"1", b"1", b"2", b"2", b"3"]
    upload = await ledger.find_upload(session.gateway.account, sha256(PNG))
    assert upload is not None
    assert upload.url.endswith("/3.png")


async def test_renewed_upload_counts_once_under_the_cap_of_its_batch(tmp_path: Path) -> None:
    store = Store()
    transport = FakeTransport(store.answer, latency_s=0.0)
    async with apimall_now(transport, ledger=tmp_path / "jobs.sqlite") as session:
        await session.generate("a fox", images=[PNG])
        store.drop()
        rows = [{"prompt": "an owl", "key": "owl", "images": [PNG]}]
        (outcome,) = [each async for each in session.generate_many(rows, batch="birds", max_credits=8)]
        assert outcome.ok
        job = await session.job("owl", batch="birds")
        assert job is not None
        assert job.state is JobState.SUCCEEDED
    async with apimall_now(transport, ledger=tmp_path / "jobs.sqlite") as session:
        (again,) = [each async for each in session.generate_many(rows, batch="birds", max_credits=8)]
        assert again.ok
        more = [*rows, {"prompt": "a jay", "key": "jay", "images": [PNG]}]
        with pytest.raises(NanoBananaError, match="8 are spent"):
            [each async for each in session.generate_many(more, batch="birds", max_credits=8)]
    assert (len(store.bodies), len(store.body_of_key)) == (3, 3)


async def test_request_that_is_refused_with_a_new_upload_is_not_sent_again() -> None:
    store, ledger = Store(), MemoryLedger()
    transport = FakeTransport(store.answer, latency_s=0.0)
    async with apimall_now(transport, ledger=ledger) as session:
        await session.generate("a fox", images=[PNG])
        store.refuses_all = True
        with pytest.raises(InvalidRequest):
            await session.generate("an owl", images=[PNG])
        assert store.uploads == 2
        with pytest.raises(InvalidRequest):
            await session.generate("a cat", images=[large_png(8)])
    assert len(store.bodies) == 1 + 2 + 1
    assert store.uploads == 3


async def test_dropped_upload_is_forgotten_even_if_it_can_not_be_made_again() -> None:
    store, ledger = Store(), MemoryLedger()
    transport = FakeTransport(store.answer, latency_s=0.0)
    async with apimall_now(transport, ledger=ledger) as session:
        await session.generate("a fox", images=[PNG])
    store.drop()
    stored = f"sha256:{sha256(PNG)}"
    async with apimall_now(transport, ledger=ledger) as session:
        with pytest.raises(NanoBananaError, match="not at hand") as caught:
            await session.generate("an owl", images=[stored], idempotency_key="order-1")
        assert caught.value.safe_to_repeat
        await session.generate("an owl", images=[PNG], idempotency_key="order-1")
    assert store.uploads == 2
    assert len(store.bodies) == 3


def held_back(store: Store, go_on: asyncio.Event) -> FakeTransport:
    """Return a transport to the store that answers no upload before the event."""

    async def answer(request: HttpRequest) -> Reply:
        if "/files/" in request.url:
            await go_on.wait()
        return store.answer(request)

    return FakeTransport(answer, latency_s=0.0)


async def test_job_with_several_images_is_sent_once_all_are_uploaded() -> None:
    go_on = asyncio.Event()
    store = Store()
    async with apimall_now(held_back(store, go_on)) as session:
        job = await session.submit("a fox", images=[large_png(1), large_png(2), large_png(3)])
        go_on.set()
        await job
    assert (store.uploads, len(store.bodies)) == (3, 1)


async def test_removed_file_ends_only_the_jobs_without_another_source(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    store = Store()
    async with apimall_now(held_back(store, go_on)) as session:
        for number in range(UPLOADS_AT_ONCE):
            await session.submit(f"blocker {number}", images=[large_png(number)])
        files = [written(tmp_path / name, PNG) for name in ("one.png", "two.png")]
        jobs = [await session.submit(f"a fox in {file.name}", images=[file]) for file in files]
        other = large_png(100)
        lone = [written(tmp_path / name, other) for name in ("three.png", "four.png")]
        failing = [await session.submit(f"a fox in {file.name}", images=[file]) for file in lone]
        for file in (files[0], *lone):
            file.unlink()
        go_on.set()
        for job in jobs:
            await job
        for job, file in zip(failing, lone, strict=True):
            with pytest.raises(InvalidRequest, match=file.name):
                await job
    assert store.uploads == UPLOADS_AT_ONCE + 1


async def test_upload_without_waiting_jobs_never_starts() -> None:
    go_on = asyncio.Event()
    store = Store()
    async with apimall_now(held_back(store, go_on)) as session:
        blockers = [await session.submit(f"fox {n}", images=[large_png(n)]) for n in range(UPLOADS_AT_ONCE)]
        for number in range(20):
            job = await session.submit(f"owl {number}", images=[large_png(100 + number)])
            assert await job.cancel()
        go_on.set()
        for job in blockers:
            await job
        await session.generate("a cat", images=[PNG])
    assert store.uploads == UPLOADS_AT_ONCE + 1


@virtually
async def test_url_past_its_lifetime_is_replaced_before_the_create() -> None:
    store = Store()
    running = 0

    def answer(request: HttpRequest) -> Reply:
        nonlocal running
        if request.method == "POST" and "/files/" not in request.url:
            running += 1
            if running <= 10:  # the job waits for its slot longer than its upload lives
                return refused(429, "too_many_requests", "wait")
        return store.answer(request)

    gateway = ApiMall(api_key="sk-1", upload_lifetime_s=2.0)
    async with Session(gateway, http=FakeTransport(answer)) as session:
        await session.generate("a fox", images=[PNG])
    assert store.uploads > 1
    assert all(b"/1.png" not in body for body in store.bodies)
