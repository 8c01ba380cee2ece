"""Callers share a job, time out and are cancelled: one job, one payment."""

import asyncio

import pytest

from nanobanana_async import (
    ConcurrencyPolicy,
    IdempotencyConflict,
    ImageRequest,
    JobState,
    JobUnfinished,
    JobWithdrawn,
)
from nanobanana_async.emulator import Fixed, faults
from tests.support.clocks import leap
from tests.support.fakes import states_of
from tests.support.loopback import (
    BOTH,
    CREATE,
    GatewayName,
    RecordingObserver,
    charged,
    emulated,
    gateway_of,
    quick,
    received,
    until,
)

ONE_AT_A_TIME = ConcurrencyPolicy(max_jobs=1, learn=False)


@pytest.mark.parametrize("name", BOTH)
async def test_generate_cancelled_during_the_create_is_charged_once(name: GatewayName) -> None:
    async with emulated() as emulator:
        emulator.queue_faults(CREATE[name], faults.delay(60.0))
        async with quick(emulator, name) as session, asyncio.TaskGroup() as group:
            caller = group.create_task(session.generate("a fox", idempotency_key="fox-1"))
            await received(emulator)
            caller.cancel()
            await asyncio.wait([caller])
            assert caller.cancelled()
            job = await session.job("fox-1")
            assert job is not None
            assert job.state is JobState.SUBMITTING
            leap(60.0)
            result = await job
        assert (result.key, len(result.images)) == ("fox-1", 1)
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_job_goes_on_after_a_timeout_during_the_create(name: GatewayName) -> None:
    async with emulated() as emulator:
        emulator.queue_faults(CREATE[name], faults.late(90.0))
        async with quick(emulator, name) as session:
            calling = asyncio.Task(session.generate("a fox", idempotency_key="fox-1", timeout=60.0))
            await received(emulator)
            leap(60.0)
            with pytest.raises(JobUnfinished) as caught:
                await calling
            leap(30.0)
            assert (caught.value.key, caught.value.safe_to_repeat) == ("fox-1", False)
            result = await session.generate("a fox", idempotency_key="fox-1")
        assert result.key == "fox-1"
        assert charged(emulator.stats(), 1)


async def test_running_job_goes_on_after_generate_is_cancelled() -> None:
    async with emulated(duration=Fixed(0.2)) as emulator, quick(emulator) as session:
        async with asyncio.TaskGroup() as group:
            caller = group.create_task(session.generate("a fox", idempotency_key="fox-1"))
            await until(lambda: session.stats().slots_held == 1)
            caller.cancel()
        job = await session.job("fox-1")
        assert job is not None
        assert (await job).task_id == job.task_id
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_generate_cancelled_before_the_create_is_withdrawn(name: GatewayName) -> None:
    listener = RecordingObserver()
    async with emulated(duration=Fixed(60.0)) as emulator:
        session = quick(emulator, name, concurrency=ONE_AT_A_TIME, observers=[listener])
        async with session, asyncio.TaskGroup() as group:
            first = group.create_task(session.generate("a fox"))
            await received(emulator)
            second = group.create_task(session.generate("an owl", idempotency_key="owl-1"))
            await until(lambda: session.stats().queued == 1)
            second.cancel()
            await asyncio.wait([second])
            await until(lambda: session.stats().withdrawn == 1)
            leap(60.0)
            assert (await first).images
            withdrawn = await session.job("owl-1")
            assert withdrawn is not None
            assert withdrawn.state is JobState.WITHDRAWN
        assert emulator.stats().creates_received == 1
        assert charged(emulator.stats(), 1)
    assert JobState.WITHDRAWN in listener.states


@pytest.mark.slow
async def test_withdrawn_job_can_be_bought_with_its_key() -> None:
    async with emulated() as emulator:
        emulator.queue_faults("apimall.create", faults.error(429, retry_after="100"))
        async with quick(emulator) as session:
            calling = asyncio.Task(session.generate("a fox", idempotency_key="fox-1", timeout=60.0))
            await until(lambda: bool(emulator.stats().refusals_429) and not session.stats().requests_in_flight)
            leap(60.0)  # the next create may leave later
            with pytest.raises(JobUnfinished) as caught:
                await calling
            assert caught.value.safe_to_repeat is True
            calling = asyncio.Task(session.generate("a fox", idempotency_key="fox-1"))
            await until(lambda: session.stats().queued == 1)
            leap(200.0)
            await until(lambda: emulator.stats().creates_accepted == 1)
            leap(200.0)  # a request in half a minute may leave after that 429
            assert (await calling).key == "fox-1"
        assert charged(emulator.stats(), 1)


async def test_cancel_returns_whether_it_was_in_time() -> None:
    async with emulated(duration=Fixed(60.0)) as emulator:
        async with quick(emulator, concurrency=ONE_AT_A_TIME) as session:
            sent = await session.submit("a fox")
            await sent.wait_for_task_id()
            waiting = await session.submit("an owl")
            assert await waiting.cancel() is True
            assert await sent.cancel() is False
            with pytest.raises(JobWithdrawn) as caught:
                await waiting
            assert caught.value.safe_to_repeat is True
            leap(60.0)
            assert (await sent).images
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_five_callers_with_one_key_share_one_charge(name: GatewayName) -> None:
    async with emulated() as emulator:
        async with quick(emulator, name) as session, asyncio.TaskGroup() as group:
            callers = [group.create_task(session.generate("a fox", idempotency_key="fox-1")) for _ in range(5)]
        assert len({caller.result().task_id for caller in callers}) == 1
        assert emulator.stats().creates_received == 1
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_cancelled_callers_do_not_affect_another(name: GatewayName) -> None:
    async with emulated() as emulator:
        emulator.queue_faults(CREATE[name], faults.delay(60.0))
        async with quick(emulator, name) as session, asyncio.TaskGroup() as group:
            callers = [group.create_task(session.generate("a fox", idempotency_key="fox-1")) for _ in range(5)]
            await received(emulator)
            for caller in callers[1:]:
                caller.cancel()
            leap(60.0)
        assert callers[0].result().images
        assert all(caller.cancelled() for caller in callers[1:])
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_one_key_for_two_requests_is_a_local_conflict(name: GatewayName) -> None:
    async with emulated() as emulator:
        emulator.queue_faults(CREATE[name], faults.delay(0.1))
        async with quick(emulator, name) as session:
            job = await session.submit("a fox", idempotency_key="fox-1")
            with pytest.raises(IdempotencyConflict, match="another request") as caught:
                await session.generate("an owl", idempotency_key="fox-1")
            assert (caught.value.status, caught.value.key) == (None, "fox-1")
            assert (await job).images
        assert emulator.stats().creates_received == 1
        assert charged(emulator.stats(), 1)


async def test_another_callback_url_is_the_same_request() -> None:
    async with emulated() as emulator, quick(emulator, "defapi") as session:
        requests = [ImageRequest("a fox", callback_url=f"https://hook.example/{number}") for number in range(2)]
        jobs = [await session.submit(request, idempotency_key="fox-1") for request in requests]
        assert (await jobs[0]).task_id == (await jobs[1]).task_id
        assert charged(emulator.stats(), 1)


async def test_result_can_be_awaited_from_many_tasks() -> None:
    async with emulated() as emulator, quick(emulator) as session:
        job = await session.submit("a fox")
        async with asyncio.TaskGroup() as group:
            waiters = [group.create_task(job.result()) for _ in range(10)]
        assert {waiter.result() for waiter in waiters} == {await job}
        assert await job.wait_for_task_id() == job.task_id
        assert emulator.stats().creates_received == 1


async def test_updates_yield_each_state_once() -> None:
    async with emulated() as emulator, quick(emulator) as session:
        job = await session.submit("a fox")
        seen = await states_of(job)
    assert seen[-2:] == [JobState.RUNNING, JobState.SUCCEEDED]
    assert len(seen) == len(set(seen))


async def test_timeout_ends_one_wait_and_not_the_job() -> None:
    async with emulated(duration=Fixed(60.0)) as emulator, quick(emulator) as session:
        job = await session.submit("a fox")
        await job.wait_for_task_id()
        with pytest.raises(TimeoutError) as caught:
            await job.result(timeout=0.05)
        assert isinstance(caught.value, JobUnfinished)
        leap(60.0)
        assert (await caught.value.job).task_id == job.task_id
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_two_sessions_with_one_key_pay_once_if_the_gateway_supports_keys(name: GatewayName) -> None:
    async with emulated() as emulator:
        async with quick(emulator, name) as one, quick(emulator, name) as other, asyncio.TaskGroup() as group:
            tasks = [group.create_task(session.generate("a fox", idempotency_key="k")) for session in (one, other)]
        assert all(task.result().images for task in tasks)
        bought = 1 if gateway_of(emulator, name).supports_idempotency_keys else 2
        assert emulator.stats().creates_accepted == bought
