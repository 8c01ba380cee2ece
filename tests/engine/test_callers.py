"""Callers that wait for a job: several at once, timeouts, handles and updates, independent of each other."""

import asyncio
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import (
    ConcurrencyPolicy,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidRequest,
    JobFailed,
    JobState,
    JobWithdrawn,
)
from nanobanana_async.errors import ConfigurationError, GatewayError
from nanobanana_async.failures import Failure
from nanobanana_async.models import ImageRequest
from nanobanana_async.testing import EPOCH, FakeTransport
from tests.support.fakes import FakeGateway, Opening, RecordingLedger, apimall, defapi, states_of, virtually
from tests.support.replies import created, in_turn, refused, scripted_creates, task

ONE = ConcurrencyPolicy(max_jobs=1, learn=False)


async def after(delay_s: float, waiter: "asyncio.Task[Any]") -> None:
    await asyncio.sleep(delay_s)
    waiter.cancel()
    await asyncio.wait([waiter])


@pytest.mark.parametrize("session_of", [apimall, defapi])
@pytest.mark.parametrize("ledger_delay_s", [0.0, 0.7])
@virtually
async def test_five_callers_with_one_key_share_one_create(session_of: Opening, ledger_delay_s: float) -> None:
    transport = FakeTransport(FakeGateway().answer)
    async with session_of(transport, ledger=RecordingLedger(delay_s=ledger_delay_s)) as session:
        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(session.generate("a fox", idempotency_key="order-1")) for _ in range(5)]
        assert session.stats().succeeded == 1
    assert len({caller.result().task_id for caller in callers}) == 1
    assert len(transport.creates) == 1


@pytest.mark.parametrize("moment", [0.0, 0.03, 0.2, 1.0, 2.5])
@virtually
async def test_cancelled_caller_does_not_affect_the_others(moment: float) -> None:
    transport = FakeTransport(FakeGateway().answer)
    async with apimall(transport) as session:
        callers = [asyncio.Task(session.generate("a fox", idempotency_key="order-1")) for _ in range(5)]
        await after(moment, callers[2])
        results = await asyncio.wait(callers)
        assert not results[1]
    assert [caller.cancelled() for caller in callers] == [number == 2 for number in range(5)]
    assert len(transport.creates) == 1


@virtually
async def test_key_of_another_request_is_a_local_conflict() -> None:
    transport = FakeTransport(FakeGateway(job_s=10.0).answer)
    async with apimall(transport) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        await job.wait_for_task_id()
        asked = len(transport.requests)
        for _ in range(2):
            with pytest.raises(IdempotencyConflict, match="another request") as caught:
                await session.generate("a wolf", idempotency_key="order-1")
            assert (caught.value.key, caught.value.status) == ("order-1", None)
        assert len(transport.requests) == asked
        assert (await job).task_id == "t1"


@virtually
async def test_key_stored_for_another_request_is_a_conflict() -> None:
    transport, ledger = FakeTransport(FakeGateway().answer), RecordingLedger(keep_ended=True)
    async with apimall(transport, ledger=ledger) as session:
        await session.generate("a fox", idempotency_key="order-1")
        with pytest.raises(IdempotencyConflict) as caught:
            await session.generate("a wolf", idempotency_key="order-1")
    assert caught.value.key == "order-1"
    assert len(transport.creates) == 1


@virtually
async def test_each_waiter_gets_its_own_exception() -> None:
    async with apimall(scripted_creates(refused(402))) as session:
        callers = [asyncio.Task(session.generate("a fox", idempotency_key="order-1")) for _ in range(3)]
        await asyncio.wait(callers)
    errors = [caller.exception() for caller in callers]
    assert all(isinstance(error, InsufficientCredits) for error in errors)
    assert len({id(error) for error in errors}) == 3
    assert {getattr(error, "key", None) for error in errors} == {"order-1"}


@virtually
async def test_job_can_be_awaited_repeatedly_and_concurrently() -> None:
    async with apimall(scripted_creates(created())) as session:
        job = await session.submit("a fox")
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(job.result()) for _ in range(3)]
        first = await job
        assert await job == first
        done, _ = await asyncio.wait([*waiting, asyncio.Task(job.result())])
        assert {waiter.result().url for waiter in done} == {first.url}
        assert job.state is JobState.SUCCEEDED
        assert job.credits == 8
        assert "succeeded task img_1" in repr(job)


@virtually
async def test_failed_job_raises_on_each_await() -> None:
    async with apimall(FakeTransport(in_turn([created()], [task("failed")]))) as session:
        job = await session.submit("a fox")
        for _ in range(2):
            with pytest.raises(JobFailed) as caught:
                await job
            assert caught.value.job is job


@virtually
async def test_accepted_returns_the_task_id_or_raises() -> None:
    async with apimall(scripted_creates(created("img_9"), refused(402))) as session:
        job = await session.submit("a fox")
        assert job.task_id is None
        assert await job.wait_for_task_id() == await job.wait_for_task_id() == "img_9"
        poor = await session.submit("a wolf")
        with pytest.raises(InsufficientCredits):
            await poor.wait_for_task_id()
        with pytest.raises(InsufficientCredits):
            await poor.wait_for_task_id()


@virtually
async def test_updates_yield_each_state_once_per_listener() -> None:
    listeners: list[list[JobState]] = [[], [], []]
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        job = await session.submit("a fox")

        async def listen(to: list[JobState]) -> None:
            async for seen in job.updates():
                if seen.state not in to:
                    to.append(seen.state)
                await asyncio.sleep(len(to))  # a slow listener misses nothing

        async with asyncio.TaskGroup() as group:
            for states in listeners[:2]:
                group.create_task(listen(states))
            await job.wait_for_task_id()
            group.create_task(listen(listeners[2]))
        assert await states_of(job) == [JobState.SUCCEEDED]
    whole = [JobState.PENDING, JobState.SUBMITTING, JobState.RUNNING, JobState.SUCCEEDED]
    assert listeners == [whole[1:], whole[1:], whole[2:]]


@virtually
async def test_closed_updates_iterator_leaves_nothing() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        job = await session.submit("a fox")
        listening = job.updates()
        assert (await anext(listening)).state is JobState.PENDING
        await listening.aclose()
        assert (await job).task_id == "t1"


@virtually
async def test_invalid_request_is_refused_before_ledger_and_gateway() -> None:
    transport, ledger = FakeTransport(FakeGateway().answer), RecordingLedger()
    async with defapi(transport, ledger=ledger) as session:
        with pytest.raises(InvalidRequest, match="resolution"):
            await session.generate("a fox", resolution="2K")
        with pytest.raises(InvalidRequest, match="prompt is empty"):
            await session.submit("  ")
        with pytest.raises(InvalidRequest, match="idempotency_key"):
            await session.submit("a fox", idempotency_key="no spaces allowed")
        with pytest.raises(ConfigurationError, match="put it into the ImageRequest"):
            await session.submit(ImageRequest("a fox"), model="other")
        with pytest.raises(InvalidRequest, match="task_id"):
            await session.attach("")
    assert not transport.requests
    assert ledger.log == []


@virtually
async def test_unknown_key_is_none() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        assert await session.job("order-1") is None


@virtually
async def test_generate_without_a_key_is_a_new_job() -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session, asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(session.generate("the same prompt"))
    assert gateway.sold == 3
    assert len(gateway.keys) == 3


@virtually
async def test_withdrawal_raises_for_all_waiters() -> None:
    transport = FakeTransport(FakeGateway(job_s=60.0).answer)
    async with apimall(transport, concurrency=ONE) as session:
        await (await session.submit("first")).wait_for_task_id()
        job = await session.submit("a fox", idempotency_key="order-1")
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(1.0)
        assert await job.cancel()
        with pytest.raises(JobWithdrawn):
            await caller
        with pytest.raises(JobWithdrawn) as caught:
            await job
        assert caught.value.safe_to_repeat
        assert await job.cancel()
        assert session.stats().withdrawn == 1
    assert len(transport.creates) == 1


@virtually
async def test_calls_before_open_are_refused() -> None:
    session = apimall(FakeTransport(FakeGateway().answer))
    for attempt in (session.generate("x"), session.submit("x"), session.job("x"), session.attach("x")):
        with pytest.raises(ConfigurationError, match="not open"):
            await attempt
    with pytest.raises(ConfigurationError, match="not open"):
        session.stats()
    assert repr(session) == "<Session apimall not open>"


@virtually
async def test_job_has_the_given_request() -> None:
    request = ImageRequest("a fox", num_images=2, aspect_ratio="16:9")
    transport = FakeTransport(FakeGateway().answer)
    async with apimall(transport) as session:
        job = await session.submit(request)
        named = evolve(request, model="nano-banana-pro")  # the model that was bought is part of the request
        assert (job.request, job.created_at, job.credits) == (named, EPOCH, None)
        assert (await job).task_id == "t1"
    assert b'"num_images":2' in (transport.creates[0].body or b"")


@pytest.mark.parametrize("kind", ["OfALaterVersion", "NanoBananaError", "log"])
@virtually
async def test_stored_error_of_unknown_kind_is_still_raised(kind: str) -> None:
    ledger = RecordingLedger(keep_ended=True)
    async with apimall(scripted_creates(refused(402)), ledger=ledger) as session:
        with pytest.raises(InsufficientCredits):
            await session.generate("a fox", idempotency_key="order-1")
        known = ledger.record("order-1")
        ledger._jobs["order-1"] = evolve(known, failure=Failure(kind=kind, message="no more bananas", status=499))
        job = await session.job("order-1")
        assert job is not None
        with pytest.raises(GatewayError, match="no more bananas") as caught:
            await job
    assert (type(caught.value), caught.value.status, caught.value.safe_to_repeat) == (GatewayError, 499, True)
