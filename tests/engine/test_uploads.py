"""Uploads that go wrong: what is tried again, for how long, and what the waiting jobs get."""

import asyncio

import pytest

from nanobanana_async import ConcurrencyPolicy, InvalidRequest, NanoBananaError, RetryPolicy, UnexpectedResponse
from nanobanana_async.errors import GatewayUnavailable, RateLimited, TransportError
from nanobanana_async.events import Event, GatewayUnreachable
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import apimall_now
from tests.support.images import make_image
from tests.support.references import large_png
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
