"""Cancelled callers: nothing that was sent is lost, nothing that was not sent is bought.

`tests/faults/test_cancelling.py` cancels each call at each of its steps.
"""

import asyncio
from typing import Any

import pytest

from nanobanana_async import ConcurrencyPolicy, JobState, SessionClosed
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, Opening, RecordingLedger, apimall, defapi, virtually

ONE = ConcurrencyPolicy(max_jobs=1, learn=False)


async def cancelled(caller: "asyncio.Task[Any]") -> None:
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()


@virtually
async def test_generate_cancelled_before_the_create_is_withdrawn() -> None:
    gateway, ledger = FakeGateway(job_s=60.0), RecordingLedger(keep_ended=True)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger, concurrency=ONE) as session:
        await (await session.submit("first")).wait_for_task_id()
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(1.0)
        assert session.stats().queued == 1
        await cancelled(caller)
        await asyncio.sleep(100.0)
        assert ledger.states()["order-1"] is JobState.WITHDRAWN
        assert (session.stats().withdrawn, session.stats().queued, session.stats().slots_held) == (1, 0, 0)
    assert gateway.sold == 1


@pytest.mark.parametrize("delay_s", [0.0, 2.0])
@virtually
async def test_generate_cancelled_at_its_first_step_is_withdrawn(delay_s: float) -> None:
    gateway, ledger = FakeGateway(), RecordingLedger(keep_ended=True, delay_s=delay_s)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger, concurrency=ONE) as session:
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(0)
        await cancelled(caller)
        await asyncio.sleep(60.0)
        assert session.stats().slots_held == 0
    assert ledger.states() == {"order-1": JobState.WITHDRAWN} or gateway.sold == 1


@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_generate_cancelled_during_the_create_is_charged_once(
    session_of: Opening,
) -> None:
    gateway = FakeGateway()
    transport = FakeTransport(gateway.answer, latency_s=1.0)
    async with session_of(transport) as session:
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(0.5)
        assert transport.in_flight == 1
        await cancelled(caller)
        job = await session.job("order-1")
        assert job is not None
        assert job.state is JobState.SUBMITTING
        assert (await job).task_id == "t1"
        assert session.stats().slots_held == 0
    assert gateway.sold == 1
    assert len(transport.creates) == 1


@virtually
async def test_generate_during_a_withdrawal_buys_once() -> None:
    gateway, ledger = FakeGateway(job_s=10.0), RecordingLedger(delay_s=0.5)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger, concurrency=ONE) as session:
        first = await session.submit("first")
        await first.wait_for_task_id()
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(2.0)
        await cancelled(caller)
        async with asyncio.TaskGroup() as group:  # the withdrawal is being written at this moment
            again = [group.create_task(session.generate("a fox", idempotency_key="order-1")) for _ in range(2)]
    assert {caller.result().task_id for caller in again} == {"t2"}
    assert gateway.sold == 2


@virtually
async def test_cancelled_caller_does_not_withdraw_an_adopted_running_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway, ledger = FakeGateway(job_s=30.0), RecordingLedger()
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        await (await session.submit("a fox", idempotency_key="order-1")).wait_for_task_id()
    ledger.delay_s = 0.5
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(0.1)
        await cancelled(caller)  # while the ledger is being asked
        again = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(1.0)
        await cancelled(again)
        await asyncio.sleep(60.0)  # it is polled to its end without a waiter
        assert (session.stats().succeeded, session.stats().slots_held) == (1, 0)
    assert ledger.states() == {}
    assert gateway.sold == 1
    assert not caplog.records


@virtually
async def test_submit_cancelled_before_the_write_is_withdrawn() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger(delay_s=1.0, keep_ended=True)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        caller = asyncio.Task(session.submit("a fox", idempotency_key="order-1"))
        await asyncio.sleep(0.5)
        await cancelled(caller)
        await asyncio.sleep(30.0)
    assert ledger.states() == {"order-1": JobState.WITHDRAWN}
    assert gateway.sold == 0


@virtually
async def test_submitted_job_outlives_its_callers() -> None:
    gateway = FakeGateway(job_s=5.0)
    async with apimall(FakeTransport(gateway.answer), concurrency=ONE) as session:
        await (await session.submit("first")).wait_for_task_id()
        job = await session.submit("a fox", idempotency_key="order-1")
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(1.0)
        await cancelled(caller)
        assert (await job).task_id == "t2"
    assert gateway.sold == 2


@virtually
async def test_cancel_withdraws_unsent_jobs_only() -> None:
    gateway = FakeGateway(job_s=5.0)
    async with apimall(FakeTransport(gateway.answer, latency_s=1.0), concurrency=ONE) as session:
        sent, waiting = await session.submit("sent"), await session.submit("waiting")
        await asyncio.sleep(0.5)
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(waiting.cancel()) for _ in range(2)]
        assert [task.result() for task in both] == [True, True]
        assert not await sent.cancel()
        assert (await sent).task_id == "t1"
        assert not await sent.cancel()
    assert gateway.sold == 1


def _balanced(gateway: FakeGateway, ledger: RecordingLedger) -> None:
    """Every charge is a job that the ledger knows as bought, and every such job is a charge."""
    states = list(ledger.states().values())
    assert gateway.sold == states.count(JobState.SUCCEEDED) + states.count(JobState.UNCERTAIN)
    assert set(states) <= {JobState.SUCCEEDED, JobState.UNCERTAIN, JobState.WITHDRAWN}


@pytest.mark.slow
@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_cancel_at_any_time_agrees_with_the_ledger(
    session_of: Opening,
) -> None:
    for moment in range(80):
        gateway, ledger = FakeGateway(job_s=1.0), RecordingLedger(keep_ended=True, delay_s=0.03)
        async with session_of(FakeTransport(gateway.answer), ledger=ledger, concurrency=ONE) as session:
            callers = [asyncio.Task(session.generate("a fox", idempotency_key=f"order-{n}")) for n in range(3)]
            await asyncio.sleep(moment * 0.05)
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)
            await asyncio.sleep(60.0)
            assert (session.stats().slots_held, session.stats().queued) == (0, 0)
        _balanced(gateway, ledger)


@virtually
async def test_callers_cancelled_during_close_leave_nothing() -> None:
    gateway = FakeGateway(job_s=60.0)
    async with apimall(FakeTransport(gateway.answer), concurrency=ONE) as session:
        callers = [asyncio.Task(session.generate("a fox")) for _ in range(3)]
        await asyncio.sleep(1.0)
        closing = asyncio.Task(session.aclose())
        await asyncio.sleep(0)
        callers[0].cancel()
        await asyncio.wait([closing, *callers])
    assert callers[0].cancelled()
    assert all(isinstance(caller.exception(), SessionClosed) for caller in callers[1:])
    assert gateway.sold == 1
