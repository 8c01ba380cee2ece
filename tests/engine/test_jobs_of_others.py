"""Jobs that another session on the same ledger owns: awaited through the ledger, adopted when the owner exits."""

import asyncio

import pytest

from nanobanana_async import (
    ConcurrencyPolicy,
    JobState,
    JobUncertain,
    JobUnfinished,
    LedgerError,
    SessionClosed,
)
from tests.support.fakes import FakeGateway, Opening, apimall, defapi, now, states_of, virtually
from tests.support.shared_ledger import (
    KEY,
    FakeProcess,
    SharedLedger,
    found,
    fox,
    two_processes,
)

BOTH = pytest.mark.parametrize("session_of", [apimall, defapi])
ONE = ConcurrencyPolicy(max_jobs=1, learn=False)


async def queued_behind_another(first: FakeProcess) -> None:
    """Let the key wait for the one slot of a session."""
    await (await first.session.submit("another")).wait_for_task_id()
    await first.session.submit("a fox", idempotency_key=KEY)


@BOTH
@virtually
async def test_job_of_another_session_is_awaited_through_the_ledger(session_of: Opening) -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=session_of) as (a, b):
        mine = fox(a.session)
        await asyncio.sleep(1.0)
        theirs = fox(b.session)
        done_at = []
        theirs.add_done_callback(lambda _: done_at.append(now()))
        assert await mine == "t1"
        written_at = now()
        assert await theirs == "t1"
        assert done_at[0] - written_at <= 1.1
        assert not b.transport.requests
        assert b.held == 0
    assert gateway.sold == 1


@BOTH
@pytest.mark.parametrize("end", ["killed", "closed"])
@virtually
async def test_running_job_is_adopted_when_its_owner_exits(session_of: Opening, end: str) -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=session_of) as b:
        async with FakeProcess(shared, gateway.answer, session_of=session_of) as a:
            await (await a.session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
            theirs = fox(b.session)
            await asyncio.sleep(5.0)
            assert (b.held, len(b.transport.requests)) == (0, 0)
            if end == "killed":
                a.kill()
            else:
                await a.session.aclose()
            await asyncio.sleep(1.1)
            assert b.held == 1
            assert shared.owner(KEY) is b.ledger
            assert await theirs == "t1"
        assert (b.held, b.creates) == (0, 0)
    assert gateway.sold == 1


@virtually
async def test_submitting_job_of_a_dead_owner_is_repeated_with_its_key() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=apimall) as (a, b):
        await a.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(0.03)
        theirs = fox(b.session)
        await asyncio.sleep(0)
        a.kill()
        assert await theirs == "t1"
        assert b.creates == 1
    assert gateway.sold == 1


@virtually
async def test_unkeyed_submitting_job_of_a_dead_owner_is_uncertain() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=defapi) as (a, b):
        await a.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(0.03)
        theirs = fox(b.session)
        await asyncio.sleep(0)
        a.kill()
        with pytest.raises(JobUncertain):
            await theirs
        assert not b.transport.requests
        assert b.held == 1
    assert gateway.sold == 1


@BOTH
@pytest.mark.parametrize("end", ["killed", "closed"])
@virtually
async def test_pending_job_wanted_here_is_bought_when_owner_exits(session_of: Opening, end: str) -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=session_of) as b:
        a = FakeProcess(shared, gateway.answer, session_of=session_of, concurrency=ONE)
        async with a:
            await queued_behind_another(a)
            theirs = fox(b.session)
            await asyncio.sleep(5.0)
            assert not b.transport.requests
            if end == "killed":
                a.kill()
        assert await theirs == "t2"
    assert gateway.sold == 2


@virtually
async def test_pending_job_only_found_here_is_not_bought() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as b:
        async with FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=ONE) as a:
            await queued_behind_another(a)
            job = await found(b.session, KEY)
            waiting = asyncio.Task(job.result())
            await asyncio.sleep(5.0)
            assert not waiting.done()
            assert not await job.cancel()
            a.kill()
            with pytest.raises(JobUnfinished, match="never bought") as caught:
                await waiting
            assert caught.value.safe_to_repeat
        await asyncio.sleep(60.0)
        assert not b.transport.requests
        assert shared.owner(KEY) is None
        assert await job.cancel()
    assert shared.states()[KEY] is JobState.WITHDRAWN
    assert gateway.sold == 1


@virtually
async def test_found_pending_job_returns_its_owners_result() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=ONE) as a,
        FakeProcess(shared, gateway.answer, session_of=apimall) as b,
    ):
        await queued_behind_another(a)
        job = await found(b.session, KEY)
        assert (await job).task_id == "t2"
        assert not b.transport.requests
    assert gateway.sold == 2


@virtually
async def test_departed_caller_does_not_buy_an_unsent_job() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as b:
        async with FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=ONE) as a:
            await queued_behind_another(a)
            with pytest.raises(JobUnfinished) as caught:
                await b.session.generate("a fox", idempotency_key=KEY, timeout=3.0)
            assert not caught.value.safe_to_repeat
            a.kill()
        await asyncio.sleep(60.0)
        assert b.creates == 0
        assert shared.states()[KEY] is JobState.PENDING
        assert shared.owner(KEY) is None
    assert gateway.sold == 1


@virtually
async def test_caller_cancelled_during_the_claim_does_not_buy() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=0.5) as b:
        async with FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=ONE) as a:
            await queued_behind_another(a)
            await asyncio.sleep(1.0)
            caller = fox(b.session)
            await asyncio.sleep(0.1)
            caller.cancel()
            await asyncio.sleep(5.0)
            a.kill()
        await asyncio.sleep(60.0)
        assert b.creates == 0
        assert shared.owner(KEY) is None
    assert gateway.sold == 1


@virtually
async def test_job_of_others_without_waiters_is_not_checked() -> None:
    gateway, shared = FakeGateway(job_s=300.0), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=apimall) as (a, b):
        await (await a.session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
        with pytest.raises(JobUnfinished):
            await b.session.generate("a fox", idempotency_key=KEY, timeout=3.0)
        await asyncio.sleep(2.0)
        b.ledger.calls.clear()
        await asyncio.sleep(60.0)
        assert not b.ledger.calls["adopt"]
        assert await fox(b.session) == "t1"
    assert gateway.sold == 1


@virtually
async def test_updates_yield_changes_of_other_sessions() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=ONE) as a,
        FakeProcess(shared, gateway.answer, session_of=apimall) as b,
    ):
        await queued_behind_another(a)
        job = await found(b.session, KEY)
        assert await states_of(job) == [JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED]
        assert job.task_id == "t2"
        assert (await job).task_id == "t2"
        assert not b.transport.requests


@virtually
async def test_accepted_returns_a_task_id_of_another_session() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=ONE) as a,
        FakeProcess(shared, gateway.answer, session_of=apimall) as b,
    ):
        await queued_behind_another(a)
        job = await b.session.submit("a fox", idempotency_key=KEY)
        assert await job.wait_for_task_id() == "t2"
        with pytest.raises(JobUnfinished):
            await job.result(timeout=0.5)
        assert (await job).task_id == "t2"
        assert not b.transport.requests


@virtually
async def test_job_pruned_during_the_wait_is_a_ledger_error() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=apimall) as (a, b):
        await (await a.session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
        theirs = fox(b.session)
        await asyncio.sleep(1.5)
        shared.forget(KEY)
        with pytest.raises(LedgerError, match="no longer in the ledger") as caught:
            await theirs
        assert caught.value.key == KEY
        assert not b.transport.requests


@virtually
async def test_ledger_failure_during_the_wait_can_be_awaited_again() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=ONE) as a,
        FakeProcess(shared, gateway.answer, session_of=apimall) as b,
    ):
        await queued_behind_another(a)
        handle_by_key = await found(b.session, KEY)
        job = await b.session.submit("a fox", idempotency_key=KEY)
        for handle in (handle_by_key, job):
            waiting = asyncio.Task(handle.result())
            await asyncio.sleep(0.1)
            b.ledger.fails["adopt"] = 1
            with pytest.raises(LedgerError, match="the disk is full"):
                await waiting
        await asyncio.sleep(30.0)
        assert (await handle_by_key).task_id == "t2"
        assert (await job).task_id == "t2"
    assert gateway.sold == 2


@virtually
async def test_close_ends_waits_for_jobs_of_other_sessions() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=ONE) as a:
        await queued_behind_another(a)
        async with FakeProcess(shared, gateway.answer, session_of=apimall) as b:
            waiting = [fox(b.session), asyncio.Task((await found(b.session, KEY)).result())]
            await asyncio.sleep(3.0)
        await asyncio.wait(waiting)
        assert all(isinstance(waiter.exception(), SessionClosed) for waiter in waiting)
        assert shared.owner(KEY) is a.ledger
        assert await fox(a.session) == "t2"
