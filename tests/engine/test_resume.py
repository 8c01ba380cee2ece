"""resume(): one session continues the jobs of dead processes, and each is bought once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    ConcurrencyPolicy,
    JobState,
    JobUncertain,
    JobUnfinished,
    LedgerError,
    Session,
    SessionClosed,
)
from nanobanana_async.jobs import ACTIVE_STATES
from tests.support.fakes import API_KEY, FakeGateway, Opening, apimall, defapi, now, virtually, wire_key
from tests.support.shared_ledger import (
    KEY,
    FakeProcess,
    LosingGateway,
    SharedLedger,
    found,
    leave_pending,
    leave_running,
    leave_submitting,
    two_processes,
)

BOTH = pytest.mark.parametrize("session_of", [apimall, defapi])
Leaving = Callable[..., Awaitable[None]]


@BOTH
@virtually
async def test_running_job_is_followed_and_nothing_is_bought(session_of: Opening) -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    await leave_running(shared, gateway, "a", "b", session_of=session_of)
    async with FakeProcess(shared, gateway.answer, session_of=session_of) as process:
        jobs = await process.session.resume()
        assert [(job.key, job.state, job.task_id) for job in jobs] == [
            ("a", JobState.RUNNING, "t1"),
            ("b", JobState.RUNNING, "t2"),
        ]
        assert process.held == 2
        assert [(await job).task_id for job in jobs] == ["t1", "t2"]
        assert (process.held, process.session.stats().succeeded) == (0, 2)
        assert process.creates == 0
    assert gateway.sold == 2


@virtually
async def test_unanswered_create_is_repeated_with_its_key_and_bytes() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=apimall)
    before = shared.record(KEY)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        (job,) = await process.session.resume()
        assert (await job).task_id == "t1"
        (create,) = process.transport.creates
    assert (wire_key(create), create.body) == (KEY, before.body)
    assert gateway.sold == 1


@virtually
async def test_unanswered_unkeyed_create_is_uncertain() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=defapi)
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        (job,) = await process.session.resume()
        assert job.state is JobState.UNCERTAIN
        with pytest.raises(JobUncertain) as caught:
            await job
        assert not caught.value.safe_to_repeat
        stats = process.session.stats()
        assert (stats.uncertain, stats.slots_held) == (1, 1)
        await asyncio.sleep(1800.0)
        assert process.held == 0
        assert await process.session.resume() == []
        assert not process.transport.requests
    assert gateway.sold == 1


@virtually
async def test_unanswered_create_with_an_expired_key_is_not_repeated() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=apimall)
    await asyncio.sleep(1801.0)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        (job,) = await process.session.resume()
        with pytest.raises(JobUncertain):
            await job
        assert not process.transport.creates


@BOTH
@virtually
async def test_unsent_job_is_bought_only_with_buy(session_of: Opening) -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    await leave_pending(shared, gateway, "a", "b", session_of=session_of)
    async with FakeProcess(shared, gateway.answer, session_of=session_of) as process:
        assert await process.session.resume() == []
        await asyncio.sleep(60.0)
        assert not process.transport.requests
        assert shared.owner("a") is None
        jobs = await process.session.resume(buy=True)
        assert [job.key for job in jobs] == ["a", "b"]
        assert {(await job).task_id for job in jobs} == {"t1", "t2"}
    assert gateway.sold == 2


@virtually
async def test_jobs_of_another_account_are_not_resumed() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    await leave_running(shared, gateway, KEY, session_of=apimall)

    def mine(transport: Any, **settings: Any) -> Session:
        return Session(ApiMall(api_key=f"{API_KEY}-of-mine"), http=transport, **settings)

    async with FakeProcess(shared, gateway.answer, session_of=mine) as process:
        assert await process.session.resume(buy=True) == []
        await asyncio.sleep(60.0)
        assert not process.transport.requests
    assert shared.states() == {KEY: JobState.RUNNING}


@BOTH
@virtually
async def test_jobs_of_a_living_owner_are_not_resumed(session_of: Opening) -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    one = ConcurrencyPolicy(max_jobs=1, learn=False)
    async with (
        FakeProcess(shared, gateway.answer, session_of=session_of, concurrency=one) as first,
        FakeProcess(shared, gateway.answer, session_of=session_of) as second,
    ):
        running, waiting = await first.session.submit("one"), await first.session.submit("two")
        await running.wait_for_task_id()
        assert await second.session.resume(buy=True) == []
        await asyncio.sleep(10.0)
        assert not second.transport.requests
        await running
        await waiting
    assert gateway.sold == 2


@pytest.mark.slow
@virtually
async def test_hundreds_of_jobs_resume_once_oldest_first() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    keys = [f"order-{number}" for number in range(450)]
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as first:
        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(first.session.submit("a fox", idempotency_key=key))
        await asyncio.sleep(29.0)
        assert gateway.sold == 450
        first.kill()
        assert list(shared.states()) == keys
        async with FakeProcess(shared, gateway.answer, session_of=apimall) as second:
            jobs = await second.session.resume()
            assert [job.key for job in jobs] == keys
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job.result())
            assert (second.held, second.creates) == (0, 0)
    assert gateway.sold == 450


@virtually
async def test_repeated_or_concurrent_resume_returns_each_job_once() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    await leave_running(shared, gateway, "a", "b", "c", session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=0.1) as process:
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(process.session.resume()) for _ in range(2)]
        assert sorted(job.key for task in both for job in task.result()) == ["a", "b", "c"]
        assert await process.session.resume() == []
        assert process.held == 3


@pytest.mark.parametrize("leave", [leave_running, leave_submitting, leave_pending])
@pytest.mark.parametrize("delay_s", [0.0, 0.3])
@virtually
async def test_generate_shares_a_resumed_job(leave: Leaving, delay_s: float) -> None:
    for moment in (0.0, 0.2, 0.4, 0.7, 1.0, 1.3):
        gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
        await leave(shared, gateway, KEY, session_of=apimall)
        async with FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=delay_s) as process:
            resuming = asyncio.Task(process.session.resume())
            await asyncio.sleep(moment)
            result = await process.session.generate(f"a fox for {KEY}", idempotency_key=KEY)
            for job in await resuming:
                assert await job == result
        assert gateway.sold == 1


@pytest.mark.parametrize("leave", [leave_running, leave_submitting, leave_pending])
@virtually
async def test_two_sessions_resuming_at_once_buy_once(leave: Leaving) -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    keys = {"a", "b", "c", "d"}
    await leave(shared, gateway, *sorted(keys), session_of=apimall)
    async with (
        FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=0.01) as first,
        FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=0.013) as second,
    ):
        async with asyncio.TaskGroup() as group:
            lists = [group.create_task(one.session.resume(buy=True)) for one in (first, second)]
        mine, theirs = ({job.key for job in task.result()} for task in lists)
        assert mine | theirs == keys
        assert not mine & theirs
        assert first.held + second.held <= 4
        for task in lists:
            for job in task.result():
                await job
    assert gateway.sold == 4


@virtually
async def test_unreadable_list_is_a_ledger_error_and_resume_is_repeatable() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    await leave_running(shared, gateway, KEY, session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        process.ledger.fails["adoptable_jobs"] = 1
        with pytest.raises(LedgerError, match="the disk is full"):
            await process.session.resume()
        (job,) = await process.session.resume()
        assert (await job).task_id == "t1"


@pytest.mark.parametrize("method", ["adopt", "advance"])
@virtually
async def test_job_that_fails_to_resume_continues_when_awaited(method: str) -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        process.ledger.fails[method] = 1
        (job,) = await process.session.resume()
        await asyncio.sleep(10.0)
        assert not process.transport.requests
        assert (job.state, process.held) == (JobState.SUBMITTING, 0)
        assert (await job).task_id == "t1"
    assert gateway.sold == 1


@virtually
async def test_job_that_fails_to_resume_is_released() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=apimall)
    async with two_processes(shared, gateway.answer, session_of=apimall) as (first, second):
        first.ledger.fails["advance"] = 1
        await first.session.resume()
        await asyncio.sleep(1.0)
        assert shared.owner(KEY) is None
        (job,) = await second.session.resume()
        assert (await job).task_id == "t1"
    assert gateway.sold == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
@virtually
async def test_close_during_resume_leaves_jobs_to_the_next_session(delay_s: float) -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    await leave_running(shared, gateway, "a", "b", "c", session_of=apimall)
    for moment in (0.0, 0.3, 0.6, 0.8, 1.1, 1.6):
        async with FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=delay_s) as process:
            resuming = asyncio.Task(process.session.resume())
            await asyncio.sleep(moment)
            await process.session.aclose()
            await asyncio.wait([resuming], timeout=30.0)
            assert resuming.done()
            assert isinstance(resuming.exception(), (SessionClosed, LedgerError, type(None)))
            if resuming.exception() is None:
                for job in resuming.result():
                    with pytest.raises(SessionClosed):
                        await job
        assert [shared.owner(key) for key in "abc"] == [None, None, None]
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        assert len(await process.session.resume()) == 3 - sum(
            state not in ACTIVE_STATES for state in shared.states().values()
        )
    assert gateway.sold == 3


@virtually
async def test_job_losing_answers_again_is_bought_once() -> None:
    gateway, shared = LosingGateway(job_s=5.0), SharedLedger()
    await leave_submitting(shared, gateway, "a", "b", session_of=apimall)
    gateway.lost_answers = [True, True, True]
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        jobs = await process.session.resume()
        assert {(await job).task_id for job in jobs} == {"t1", "t2"}
        assert process.held == 0
    assert gateway.sold == 2


@virtually
async def test_jobs_resumed_by_dying_processes_are_bought_once() -> None:
    gateway, shared = FakeGateway(job_s=60.0), SharedLedger()
    await leave_submitting(shared, gateway, "a", "b", session_of=apimall)
    for life_s in (0.0, 0.02, 0.04, 0.06, 0.2):
        async with FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=0.01) as process:
            resuming = asyncio.Task(process.session.resume())
            await asyncio.sleep(life_s)
            process.kill()
            resuming.cancel()
            await asyncio.wait([resuming])
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        began_at = now()
        for job in await process.session.resume():
            await job
        assert now() - began_at < 60.0
        assert process.held == 0
    assert gateway.sold == 2
    assert set(shared.states().values()) == {JobState.SUCCEEDED}


@virtually
async def test_unresumed_pending_job_can_be_found_and_generated() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    await leave_pending(shared, gateway, KEY, session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        await process.session.resume()
        with pytest.raises(JobUnfinished, match="never bought"):
            await (await found(process.session, KEY))
        assert (await process.session.generate(f"a fox for {KEY}", idempotency_key=KEY)).task_id == "t1"
    assert gateway.sold == 1
