"""Callbacks and deliveries in a session of several accounts: each leads to the job of its account."""

import asyncio

from nanobanana_async import ApiMall, DefApi, MemoryLedger, Session
from nanobanana_async.events import CallbackReceived, Event
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.callbacks import PUBLIC, CallbackGateway, call, callback_body
from tests.support.fakes import virtually
from tests.support.replies import json_reply
from tests.support.webhooks import WebhookGateway

C, D = (DefApi(api_key=f"sk-{name}-0123456789abcdef", account=name) for name in "cd")
A, B = (ApiMall(api_key=f"sk-{name}-0123456789abcdef", account=name) for name in "ab")


class Refusing(CallbackGateway):
    """A gateway that refuses to buy anything."""

    def answer(self, request: HttpRequest) -> Reply:
        if request.method == "POST":
            return json_reply(402, {"code": 402, "message": "no credits"})
        return super().answer(request)


@virtually
async def test_callback_wakes_the_job_of_the_account_that_bought_it() -> None:
    one, two = CallbackGateway(job_s=30.0, limit=1), CallbackGateway(job_s=30.0, limit=1)
    session = Session([C, D], http=[FakeTransport(one.answer), FakeTransport(two.answer)])
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        jobs = [await session.submit(f"fox {n}") for n in range(2)]
        for job in jobs:
            await job.wait_for_task_id()
        assert (len(one.urls), len(two.urls)) == (1, 1)
        await asyncio.sleep(31.0)
        one.polled.clear()
        two.polled.clear()
        assert await call(receiver, two.url(), callback_body("t1")) == 200
        await asyncio.sleep(0.5)
        assert (one.polled, two.polled) == ([], ["t1"])
        assert await call(receiver, one.url(), callback_body("t1")) == 200
        for job in jobs:
            await job.result(timeout=1.0)


@virtually
async def test_job_that_moved_has_the_same_callback_url() -> None:
    one, two = Refusing(), CallbackGateway(job_s=30.0)
    session = Session([C, D], http=[FakeTransport(one.answer), FakeTransport(two.answer)])
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        job = await session.submit("a fox", idempotency_key="order-1")
        await job.wait_for_task_id()
        await asyncio.sleep(31.0)
        assert await call(receiver, two.url(), callback_body("t1")) == 200
        await job.result(timeout=1.0)
    assert one.sold == 0


@virtually
async def test_callback_about_a_job_that_no_session_follows_reaches_its_account() -> None:
    one, two, ledger = CallbackGateway(job_s=30.0), CallbackGateway(job_s=30.0), MemoryLedger()
    transports = [FakeTransport(one.answer), FakeTransport(two.answer)]
    session = Session([C, D], http=transports, ledger=ledger, prefer=["d"])
    CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        await (await session.submit("a fox", idempotency_key="order-1")).wait_for_task_id()
    session = Session([C, D], http=transports, ledger=ledger, adopt=None)
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        await asyncio.sleep(31.0)
        assert await call(receiver, two.url(), callback_body("t1")) == 200
        await asyncio.sleep(1.0)
        job = await session.job("order-1")
        assert job is not None
        await job.result(timeout=1.0)
    assert one.polled == []


@virtually
async def test_delivery_finds_its_job_by_account_and_task() -> None:
    one, two = WebhookGateway(job_s=30.0, limit=1), WebhookGateway(job_s=30.0, limit=1)
    seen: list[Event] = []
    transports = [FakeTransport(each.answer, latency_s=0.05) for each in (one, two)]
    session = Session([A, B], http=transports, observers=[seen.append])
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    one.receivers.append(receiver)
    two.receivers.append(receiver)
    async with session:
        await asyncio.sleep(1.0)
        assert len({*one.urls, *two.urls}) == 2  # each account has a webhook of its own
        jobs = [await session.submit(f"fox {n}") for n in range(2)]
        for job in jobs:
            await job.wait_for_task_id()
        assert (one.sold, two.sold) == (1, 1)
        for gateway in (two, one):
            assert await gateway.deliver("t1") == 200
        assert [each.record.account for each in seen if isinstance(each, CallbackReceived)] == [B.account, A.account]
        for job in jobs:
            await job
        assert await receiver.unregister() == 2
    assert len(one.webhooks) + len(two.webhooks) == 0


@virtually
async def test_job_that_moves_to_a_gateway_with_callback_urls_gets_one() -> None:
    one, two = WebhookGateway(job_s=30.0), CallbackGateway(job_s=30.0)

    def refuses(request: HttpRequest) -> Reply:
        creates = request.method == "POST" and "webhook" not in request.url
        failed = {"success": False, "error": {"code": "no", "message": "no credits"}}
        return json_reply(402, failed) if creates else one.answer(request)

    session = Session([A, D], http=[FakeTransport(refuses), FakeTransport(two.answer)])
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        job = await session.submit("a fox", idempotency_key="order-1")
        await job.wait_for_task_id()
        await asyncio.sleep(31.0)
        assert await call(receiver, two.url(), callback_body("t1")) == 200
        await job.result(timeout=1.0)
