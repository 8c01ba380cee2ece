"""A key is paid once in a session, also with a ledger in memory."""

import asyncio
from typing import Any

import pytest

from nanobanana_async import (
    ConcurrencyPolicy,
    IdempotencyConflict,
    ImageRequest,
    JobFailed,
    JobState,
    JobUncertain,
    JobWithdrawn,
    MemoryLedger,
    RetryPolicy,
    Session,
)
from nanobanana_async.errors import InsufficientCredits
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, Opening, apimall, defapi, virtually
from tests.support.replies import completed, created, defapi_created, defapi_done, in_turn, refused, task

KEY = "order-17"
EACH_GATEWAY = pytest.mark.parametrize("opening", [apimall, defapi])


async def bought(session: Session, prompt: str = "a fox") -> Any:
    return await session.generate(prompt, idempotency_key=KEY)


@EACH_GATEWAY
@virtually
async def test_finished_key_is_returned_without_a_request(opening: Opening) -> None:
    transport = FakeTransport(FakeGateway().answer)
    async with opening(transport) as session:
        first = await bought(session)
        asked = len(transport.requests)
        assert await bought(session) == first
        assert await (await session.submit("a fox", idempotency_key=KEY)) == first
        job = await session.job(KEY)
        assert job is not None
        assert (await job, job.state) == (first, JobState.SUCCEEDED)
        assert (await session.attach(first.task_id)).key == KEY
        for request in (ImageRequest("a crow"), ImageRequest("a fox", images=["https://x.example/a.png"])):
            with pytest.raises(IdempotencyConflict, match="another request") as caught:
                await session.generate(request, idempotency_key=KEY)
            assert (caught.value.key, caught.value.safe_to_repeat) == (KEY, False)
        assert len(transport.requests) == asked


@virtually
async def test_batch_row_with_its_own_key_is_bought_once() -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        rows = [{"prompt": "a fox", "key": KEY}, {"prompt": "a crow"}]
        for _ in range(3):
            outcomes = [outcome async for outcome in session.generate_many(rows, ordered=True)]
            assert all(outcome.ok for outcome in outcomes)
            assert outcomes[0].unwrap().task_id == (await bought(session)).task_id
    assert gateway.sold == 4  # the row without a key is a new one each time


@virtually
async def test_generated_key_is_forgotten() -> None:
    ledger = MemoryLedger()
    async with apimall(FakeTransport(FakeGateway().answer), ledger=ledger) as session:
        result = await session.generate("a fox")
        assert await session.job(result.key) is None
        assert [outcome.ok async for outcome in session.generate_many(["a", "b"])] == [True, True]
        attached = await session.attach(result.task_id)
        assert (await attached).url == result.url
    assert (ledger._jobs, ledger._ended) == ({}, {})


@virtually
async def test_failed_key_raises_again_until_retry_failed() -> None:
    failed = task("failed", "t1", error_message="the model fell over", credits_used=8, credits_refunded=8)
    transport = FakeTransport(in_turn([created("t1"), created("t2")], [failed, completed("t2")]))
    async with apimall(transport) as session:
        for _ in range(2):
            with pytest.raises(JobFailed, match="the model fell over"):
                await bought(session)
        assert len(transport.requests) == 2
        rows = [{"prompt": "a fox", "key": KEY}]
        (outcome,) = [outcome async for outcome in session.generate_many(rows, retry_failed=True)]
        assert outcome.unwrap().task_id == "t2"
        assert (await bought(session)).task_id == "t2"
    assert len(transport.creates) == 2


@virtually
async def test_failed_key_can_be_resolved_with_buy_again() -> None:
    transport = FakeTransport(in_turn([created("t1"), created("t2")], [task("failed", "t1"), completed("t2")]))
    async with apimall(transport) as session:
        with pytest.raises(JobFailed):
            await bought(session)
        assert (await (await session.resolve(KEY, buy_again=True))).task_id == "t2"


@virtually
async def test_refused_key_is_bought_again_with_a_new_wire_key() -> None:
    transport = FakeTransport(in_turn([refused(402), created("t1")], [completed("t1")]))
    async with apimall(transport) as session:
        with pytest.raises(InsufficientCredits):
            await bought(session)
        with pytest.raises(IdempotencyConflict):
            await bought(session, "a crow")
        assert (await bought(session)).task_id == "t1"
    assert len({create.headers["Idempotency-Key"] for create in transport.creates}) == 2


@virtually
async def test_withdrawn_key_is_bought_again() -> None:
    gateway = FakeGateway(job_s=20.0)
    one = ConcurrencyPolicy(max_jobs=1, learn=False)
    async with apimall(FakeTransport(gateway.answer), concurrency=one) as session:
        first = await session.submit("a crow")
        await first.wait_for_task_id()
        job = await session.submit("a fox", idempotency_key=KEY)
        assert await job.cancel()
        with pytest.raises(JobWithdrawn):
            await job
        assert gateway.sold == 1
        with pytest.raises(IdempotencyConflict):
            await bought(session, "a wolf")
        assert (await bought(session)).task_id == "t2"
        assert (await bought(session)).task_id == "t2"
    assert gateway.sold == 2


@virtually
async def test_uncertain_key_stays_uncertain() -> None:
    transport = FakeTransport(in_turn([refused(500)], [defapi_done()]))
    async with defapi(transport, retry=RetryPolicy(max_attempts=1)) as session:
        for _ in range(2):
            with pytest.raises(JobUncertain):
                await bought(session)
    assert len(transport.creates) == 1


@virtually
async def test_inline_images_are_not_kept_and_polled_again() -> None:
    inline = "data:image/png;base64,iVBORw0KGgo="
    transport = FakeTransport(in_turn([defapi_created("t1")], [defapi_done("t1", inline)]))
    ledger = MemoryLedger()
    async with defapi(transport, ledger=ledger) as session:
        first = await bought(session)
        asked = len(transport.polls)
        again = await bought(session)
        assert (first.url, again.url) == (inline, inline)
        assert (len(transport.creates), len(transport.polls)) == (1, asked + 1)
        assert inline not in repr(ledger._ended)


@virtually
async def test_sequential_and_concurrent_callers_pay_once() -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        for _ in range(3):
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(bought(session))
    assert gateway.sold == 1
