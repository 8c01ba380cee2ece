"""How the engine brings local images to a gateway: the newest URL is sent, waiting costs nothing, bytes are let go."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ApiMall, JobState, MemoryLedger, NanoBananaError, Session
from nanobanana_async.engine.byte_budget import ByteBudget
from nanobanana_async.engine.phases import Phase
from nanobanana_async.errors import SessionClosed
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.handle import Job
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import API_KEY, RecordingLedger, apimall, apimall_now, defapi_now, virtually, wire_key
from tests.support.images import make_image
from tests.support.loopback import until
from tests.support.references import sha256
from tests.support.replies import completed, created, defapi_created, defapi_done, json_reply, refused

PNG = make_image()
UPLOADED = "https://files.example/a.png"


class Gateway:
    """API Mall with uploads, each of which waits for `go_on`."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.uploads = 0
        self.bodies: list[dict[str, Any]] = []

    async def answer(self, request: HttpRequest) -> Reply:
        if request.method == "GET":
            return completed(request.url.rpartition("/")[2])
        if "/files/" in request.url:
            self.uploads += 1
            await self.go_on.wait()
            return json_reply(200, {"success": True, "data": {"url": UPLOADED, "file_size": len(PNG)}})
        self.bodies.append(json.loads(request.body or b""))
        return created(f"img_{len(self.bodies)}")


def signed(signature: str) -> str:
    scheme = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K"
    return f"https://bucket.example/cat.png?{scheme}&X-Amz-Signature={signature.encode().hex():0>64}"


async def ended(job: Job) -> object:
    try:
        return await job
    except NanoBananaError as error:
        return error


def tracked(job: Job) -> Any:
    return job._tracked


@virtually
async def test_newest_signature_of_a_waiting_job_is_sent() -> None:
    gateway = Gateway()
    bodies: list[bytes] = []

    async def answer(request: HttpRequest) -> Reply:
        if request.method == "GET":
            return completed()
        bodies.append(request.body or b"")
        return refused(429, "too_many_requests", "wait") if len(bodies) == 1 else created()

    async with apimall(FakeTransport(answer)) as session:
        job = await session.submit("a fox", images=[signed("old")], idempotency_key="order-1")
        while job.state is not JobState.PENDING or not bodies:  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)
        again = await session.submit("a fox", images=[signed("new")], idempotency_key="order-1")
        await again
    assert [signed("old").encode() in body for body in bodies] == [True, False]
    assert signed("new").encode() in bodies[1]
    assert gateway.uploads == 0


@virtually
async def test_newest_signature_of_a_job_of_an_earlier_session_is_sent() -> None:
    ledger = MemoryLedger()
    bodies: list[bytes] = []

    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST":
            bodies.append(request.body or b"")
            return created() if len(bodies) > 1 else refused(429, "too_many_requests", "wait")
        return completed()

    async with apimall(FakeTransport(answer), ledger=ledger) as session:
        await session.submit("a fox", images=[signed("old")], idempotency_key="order-1")
        while not bodies:  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)
    async with apimall(FakeTransport(answer), ledger=ledger) as session:
        result = await session.generate("a fox", images=[signed("new")], idempotency_key="order-1")
    assert signed("new").encode() in bodies[1]
    assert result.request is not None
    assert result.request.images == (signed("new"),)


class ThrottlingGateway:
    """API Mall that throttles the first creates, whose every upload has another URL, and that holds a key to a body."""

    def __init__(self, throttled: int = 1) -> None:
        self._throttled = throttled
        self.uploads = 0
        self.sent: dict[str, bytes] = {}

    def answer(self, request: HttpRequest) -> Reply:
        if request.method == "GET":
            return completed()
        if "/files/" in request.url:
            self.uploads += 1
            stored = {"url": f"https://files.example/{self.uploads}.png", "file_size": len(PNG)}
            return json_reply(200, {"success": True, "data": stored})
        body = request.body or b""
        if self.sent.setdefault(str(wire_key(request)), body) != body:
            return refused(422, "idempotency_mismatch", "the key belongs to another body")
        self._throttled -= 1
        return refused(429, "too_many_requests", "wait", **{"retry-after": "30"}) if self._throttled >= 0 else created()


@pytest.mark.parametrize(("lifetime_s", "uploads"), [(10.0, 2), (3600.0, 1)])
@virtually
async def test_throttled_job_whose_upload_expired_is_sent_under_another_key(lifetime_s: float, uploads: int) -> None:
    gateway = ThrottlingGateway()
    mall = ApiMall(api_key=API_KEY, upload_lifetime_s=lifetime_s)
    async with Session(mall, http=FakeTransport(gateway.answer)) as session:
        await session.generate("a fox", images=[PNG], idempotency_key="order-1")
    assert gateway.uploads == uploads
    assert [key[:3] for key in gateway.sent] == ["ord", "g2-"][:uploads]


@pytest.mark.parametrize("in_another_session", [False, True])
@virtually
async def test_throttled_job_with_a_newer_signature_is_sent_under_another_key(in_another_session: bool) -> None:
    gateway, ledger = ThrottlingGateway(), RecordingLedger()
    session = apimall(FakeTransport(gateway.answer), ledger=ledger)
    await session.open()
    await session.submit("a fox", images=[signed("old")], idempotency_key="order-1")
    while not gateway.sent or ledger.record("order-1").state is not JobState.PENDING:  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.01)
    if in_another_session:
        await session.aclose()
        session = apimall(FakeTransport(gateway.answer), ledger=ledger)
        await session.open()
    await session.generate("a fox", images=[signed("new")], idempotency_key="order-1")
    await session.aclose()
    assert [signed("new").encode() in body for body in gateway.sent.values()] == [False, True]
    assert [key[:3] for key in gateway.sent] == ["ord", "g2-"]


async def test_newest_signature_beside_an_upload_is_sent() -> None:
    gateway = Gateway()
    async with apimall_now(FakeTransport(gateway.answer, latency_s=0.0)) as session:
        job = await session.submit("a fox", images=[PNG, signed("old")], idempotency_key="order-1")
        await until(lambda: gateway.uploads == 1)
        assert tracked(job).phase is Phase.PREPARING
        await session.submit("a fox", images=[PNG, signed("new")], idempotency_key="order-1")
        gateway.go_on.set()
        await job
    assert [body["image_urls"] for body in gateway.bodies] == [[UPLOADED, signed("new")]]
    assert gateway.uploads == 1


async def test_job_that_waits_for_an_upload_can_be_withdrawn_at_once() -> None:
    gateway = Gateway()
    async with apimall_now(FakeTransport(gateway.answer, latency_s=0.0)) as session:
        job = await session.submit("a fox", images=[PNG])
        other = await session.submit("an owl", images=[PNG])
        await until(lambda: gateway.uploads == 1)
        assert await job.cancel()
        assert job.state is JobState.WITHDRAWN
        gateway.go_on.set()
        await other
    assert [body["prompt"] for body in gateway.bodies] == ["an owl"]
    assert gateway.uploads == 1


async def test_closing_while_an_upload_hangs_ends_its_waiters() -> None:
    gateway = Gateway()
    ledger = MemoryLedger()
    transport = FakeTransport(gateway.answer, latency_s=0.0)
    async with asyncio.TaskGroup() as group, apimall_now(transport, ledger=ledger) as session:
        job = await session.submit("a fox", images=[PNG], idempotency_key="order-1")
        waiting = group.create_task(ended(job))
        await until(lambda: gateway.uploads == 1)
    assert isinstance(waiting.result(), SessionClosed)
    assert [record.key async for record in ledger.adoptable_jobs(session.gateway.account)] == ["order-1"]


async def test_bytes_are_let_go_once_they_are_uploaded_or_accepted(tmp_path: Path) -> None:
    gateway = Gateway()
    gateway.go_on.set()
    async with apimall_now(FakeTransport(gateway.answer, latency_s=0.0), ledger=tmp_path / "jobs.sqlite") as session:
        job = await session.submit("a fox", images=[bytes(PNG)])
        await job
        assert tracked(job).rare.sources == {}
        assert job.request is not None
        assert job.request.images == (f"sha256:{sha256(PNG)}",)

    def answer(request: HttpRequest) -> Reply:
        return defapi_created() if request.method == "POST" else defapi_done()

    transport = FakeTransport(answer, latency_s=0.0, keep=0)
    async with defapi_now(transport) as session:
        job = await session.submit("a fox", images=[bytes(PNG)])
        await job
        assert tracked(job).rare.sources == {}


async def test_bug_in_a_ledger_ends_the_waiting_and_not_the_session() -> None:
    class Broken(MemoryLedger):
        async def find_upload(self, account: str, digest: str) -> Any:
            raise RuntimeError("no such table")

    gateway = Gateway()
    async with apimall_now(FakeTransport(gateway.answer, latency_s=0.0), ledger=Broken()) as session:
        with pytest.raises(NanoBananaError, match="no such table") as caught:
            await session.generate("a fox", images=[PNG])
        assert caught.value.safe_to_repeat
        await session.generate("an owl")
    assert len(gateway.bodies) == 1


async def test_job_without_its_image_gets_it_from_a_later_request() -> None:
    gateway = Gateway()
    stored = f"sha256:{sha256(PNG)}"
    async with apimall_now(FakeTransport(gateway.answer, latency_s=0.0)) as session:
        with pytest.raises(NanoBananaError, match=f"{stored[:19]}.* is not at hand"):
            await session.generate("a fox", images=[stored], idempotency_key="order-1")
        gateway.go_on.set()
        await session.generate("a fox", images=[PNG], idempotency_key="order-1")
        await session.generate("an owl", images=[stored])
    assert gateway.uploads == 1
    assert len(gateway.bodies) == 2


async def test_uploads_are_made_again_for_the_next_generation() -> None:
    gateway = Gateway()
    gateway.go_on.set()

    async def answer(request: HttpRequest) -> Reply:
        if request.method == "POST" and "/files/" not in request.url and not gateway.bodies:
            gateway.bodies.append({})
            return refused(400, "invalid_request", "no")
        return await gateway.answer(request)

    async with apimall_now(FakeTransport(answer, latency_s=0.0)) as session:
        with pytest.raises(NanoBananaError):
            await session.generate("a fox", images=[PNG], idempotency_key="order-1")
        await session.generate("a fox", images=[PNG], idempotency_key="order-1")
    assert gateway.bodies[1]["image_urls"] == [UPLOADED]
    assert gateway.uploads == 1


async def test_budget_of_bytes_lets_work_wait_in_order() -> None:
    budget = ByteBudget(10)
    await budget.acquire(25)  # larger than the budget: alone
    order: list[str] = []

    async def work(name: str, size: int) -> None:
        await budget.acquire(size)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(name, size)) for name, size in (("a", 6), ("b", 6), ("c", 1))]
        await asyncio.sleep(0)
        assert order == []
        budget.release(25)
        await asyncio.sleep(0)
        assert order == ["a"]
        tasks[1].cancel()
        await asyncio.sleep(0)
        budget.release(6)
    assert order == ["a", "c"]
    await budget.acquire(9)


async def test_cancelled_turn_gives_its_bytes_back() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(budget.acquire(10))
        await asyncio.sleep(0)
        budget.release(10)
        waiting.cancel()
    assert waiting.cancelled()
    await asyncio.wait_for(budget.acquire(10), 1.0)
