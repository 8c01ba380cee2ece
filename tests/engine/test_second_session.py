"""A second session on the same ledger continues the jobs of the first."""

import asyncio
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    ConfigurationError,
    IdempotencyConflict,
    JobState,
    JobUncertain,
    JobUnfinished,
    LedgerError,
    Session,
    Timeouts,
)
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import (
    API_KEY,
    FakeGateway,
    Opening,
    RecordingLedger,
    apimall,
    defapi,
    now,
    states_of,
    virtual_loop,
    virtually,
    wire_key,
)

KEY = "order-1"


async def left_running(session_of: Opening, ledger: RecordingLedger, gateway: FakeGateway) -> None:
    async with session_of(FakeTransport(gateway.answer), ledger=ledger) as session:
        await (await session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()


async def left_submitting(session_of: Opening, ledger: RecordingLedger, gateway: FakeGateway) -> FakeTransport:
    """Leave a job whose POST was sold, and whose answer never came."""

    async def never(request: HttpRequest) -> Reply:
        gateway.answer(request)
        await asyncio.sleep(1e5)
        raise AssertionError

    transport = FakeTransport(never)
    async with session_of(transport, ledger=ledger, timeouts=Timeouts(close_s=1.0)) as session:
        await session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(1.0)
    assert ledger.states() == {KEY: JobState.SUBMITTING}
    return transport


async def left_pending(ledger: RecordingLedger, gateway: FakeGateway) -> None:
    ledger.delay_s = 1.0
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        caller = asyncio.Task(session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(0.5)
    await asyncio.wait([caller])
    ledger.delay_s = 0.0
    assert caller.exception() is not None
    assert ledger.states() == {KEY: JobState.PENDING}


@pytest.mark.parametrize("session_of", [apimall, defapi])
@pytest.mark.parametrize("way", ["job", "generate", "attach", "updates"])
@virtually
async def test_running_job_is_polled_to_its_end_by_the_next_session(session_of: Opening, way: str) -> None:
    gateway, ledger = FakeGateway(job_s=30.0), RecordingLedger()
    await left_running(session_of, ledger, gateway)
    transport = FakeTransport(gateway.answer)
    async with session_of(transport, ledger=ledger) as session:
        if way == "generate":
            assert (await session.generate("a fox", idempotency_key=KEY)).task_id == "t1"
        else:
            job = await session.attach("t1") if way == "attach" else await session.job(KEY)
            assert job is not None
            assert (job.key, job.task_id, job.state) == (KEY, "t1", JobState.RUNNING)
            if way == "updates":
                assert await states_of(job) == [JobState.RUNNING, JobState.SUCCEEDED]
            assert (await job).task_id == "t1"
        assert session.stats().slots_held == 0
    assert not transport.creates
    assert gateway.sold == 1


@virtually
async def test_two_handles_of_a_found_job_return_its_result() -> None:
    gateway, ledger = FakeGateway(job_s=30.0), RecordingLedger()
    await left_running(apimall, ledger, gateway)
    transport = FakeTransport(gateway.answer)
    async with apimall(transport, ledger=ledger) as session:
        one, two = await session.job(KEY), await session.job(KEY)
        assert one is not None
        assert two is not None
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(job.result()) for job in (one, two)]
        assert results[0].result() == results[1].result()
    assert len(transport.polls) <= 40


@pytest.mark.parametrize("way", ["job", "generate", "accepted"])
@virtually
async def test_apimall_submitting_job_is_repeated_with_its_key(way: str) -> None:
    gateway, ledger = FakeGateway(), RecordingLedger()
    first = await left_submitting(apimall, ledger, gateway)
    transport = FakeTransport(gateway.answer)
    async with apimall(transport, ledger=ledger) as session:
        job = await session.job(KEY)
        assert job is not None
        if way == "accepted":
            assert await job.wait_for_task_id() == "t1"
        result = await (session.generate("a fox", idempotency_key=KEY) if way == "generate" else job)
    assert result.task_id == "t1"
    assert gateway.sold == 1
    before, after = first.creates[0], transport.creates[0]
    assert (before.body, wire_key(before)) == (after.body, wire_key(after)) == (after.body, KEY)


@pytest.mark.parametrize("way", ["job", "generate"])
@virtually
async def test_defapi_submitting_job_is_uncertain_and_not_resent(way: str) -> None:
    gateway, ledger = FakeGateway(), RecordingLedger()
    await left_submitting(defapi, ledger, gateway)
    transport = FakeTransport(gateway.answer)
    async with defapi(transport, ledger=ledger) as session:
        job = await session.job(KEY)
        assert job is not None
        for _ in range(2):
            with pytest.raises(JobUncertain) as caught:
                await (session.generate("a fox", idempotency_key=KEY) if way == "generate" else job)
            assert not caught.value.safe_to_repeat
    assert not transport.requests
    assert ledger.states() == {KEY: JobState.UNCERTAIN}


@virtually
async def test_submitting_job_with_an_expired_key_is_not_repeated() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger()
    await left_submitting(apimall, ledger, gateway)
    await asyncio.sleep(1801.0)
    transport = FakeTransport(gateway.answer)
    async with apimall(transport, ledger=ledger) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox", idempotency_key=KEY)
    assert not transport.creates


@virtually
async def test_submitting_job_is_not_repeated_after_the_clock_went_back() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger()
    await left_submitting(apimall, ledger, gateway)
    virtual_loop().wall_clock_offset -= virtual_loop().utcnow() - ledger.record(KEY).created_at
    virtual_loop().wall_clock_offset *= 2
    transport = FakeTransport(gateway.answer)
    async with apimall(transport, ledger=ledger) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox", idempotency_key=KEY)
    assert not transport.creates


@pytest.mark.parametrize("leave", [left_running, left_submitting])
@virtually
async def test_job_of_another_account_is_neither_polled_nor_repeated(leave: Any) -> None:
    gateway, ledger = FakeGateway(), RecordingLedger()
    await leave(apimall, ledger, gateway)
    transport = FakeTransport(gateway.answer)
    async with Session(ApiMall(api_key="another-key-of-mine"), ledger=ledger, http=transport) as session:
        job = await session.job(KEY)
        assert job is not None
        with pytest.raises(ConfigurationError, match="another account") as caught:
            await job
        assert not caught.value.safe_to_repeat
        with pytest.raises(IdempotencyConflict, match="another account"):
            await session.generate("a fox", idempotency_key=KEY)
    assert not transport.requests


@virtually
async def test_pending_job_is_bought_only_by_generate() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger()
    await left_pending(ledger, gateway)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        job = await session.job(KEY)
        assert job is not None
        for wait in (job.result, job.wait_for_task_id):
            with pytest.raises(JobUnfinished, match="never bought") as caught:
                await wait()
            assert caught.value.safe_to_repeat
        assert await states_of(job) == [JobState.PENDING]
        assert gateway.sold == 0
        caller = asyncio.Task(session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(0.01)
        assert (await job).task_id == "t1"
        assert (await caller).task_id == "t1"
    assert gateway.sold == 1


@virtually
async def test_found_pending_job_can_be_withdrawn() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger(keep_ended=True)
    await left_pending(ledger, gateway)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        job = await session.job(KEY)
        assert job is not None
        assert await job.cancel()
        assert job.state is JobState.WITHDRAWN
        assert session.stats().withdrawn == 1
    assert ledger.states() == {KEY: JobState.WITHDRAWN}
    assert gateway.sold == 0


@virtually
async def test_cancel_does_not_affect_a_found_running_job() -> None:
    gateway, ledger = FakeGateway(job_s=30.0), RecordingLedger()
    await left_submitting(apimall, ledger, gateway)
    transport = FakeTransport(gateway.answer)
    async with apimall(transport, ledger=ledger) as session:
        job = await session.job(KEY)
        assert job is not None
        assert not await job.cancel()
        await asyncio.sleep(5.0)
    assert not transport.requests


@virtually
async def test_adopted_job_is_polled_by_its_age() -> None:
    gateway, ledger = FakeGateway(job_s=30.0), RecordingLedger()
    await left_running(apimall, ledger, gateway)
    await asyncio.sleep(3600.0)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        before = now()
        await session.generate("a fox", idempotency_key=KEY)
        assert now() - before < 8.0


@virtually
async def test_attach_uses_the_given_key_for_one_task() -> None:
    gateway = FakeGateway()
    gateway.tasks |= {"t8": 0.0, "t9": 0.0}
    async with apimall(FakeTransport(gateway.answer)) as session:
        job = await session.attach("t8", key="mine")
        assert job.key == "mine"
        with pytest.raises(IdempotencyConflict):
            await session.attach("t9", key="mine")
        assert (await job).task_id == "t8"
    assert API_KEY not in repr(job)


@virtually
async def test_ledger_failure_at_adoption_sends_nothing_and_is_retryable() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger()
    await left_submitting(apimall, ledger, gateway)
    transport = FakeTransport(gateway.answer)
    ledger.fails = {ledger.writes + 1}
    async with apimall(transport, ledger=ledger) as session:
        job = await session.job(KEY)
        assert job is not None
        with pytest.raises(LedgerError) as caught:
            await job
        assert not caught.value.safe_to_repeat
        assert not transport.requests
        assert (await job).task_id == "t1"
    assert gateway.sold == 1
