"""Closing a session: answers of creates in flight are stored, waiters end, and nothing is left open."""

import asyncio
from typing import Any

import anyio
import pytest

from nanobanana_async import ConcurrencyPolicy, JobState, SessionClosed, Timeouts
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, Opening, RecordingLedger, apimall, defapi, now, states_of, virtually
from tests.support.replies import created, refused


def answering_after(delay_s: float, reply: Reply) -> FakeTransport:
    async def answer(_: HttpRequest) -> Reply:
        await asyncio.sleep(delay_s)
        return reply

    return FakeTransport(answer, latency_s=0.0)


@virtually
async def test_close_waits_for_a_create_and_stores_its_answer() -> None:
    ledger = RecordingLedger()
    async with apimall(answering_after(6.0, created("img_1")), ledger=ledger) as session:
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(1.0)
    assert now() == pytest.approx(6.0)
    assert ledger.states() == {"order-1": JobState.RUNNING}
    assert ledger.record("order-1").task_id == "img_1"
    with pytest.raises(SessionClosed) as caught:
        await caller
    assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", False)


@pytest.mark.parametrize(
    ("status", "state"), [(429, JobState.PENDING), (503, JobState.SUBMITTING), (402, JobState.REFUSED)]
)
@virtually
async def test_refusal_during_close_is_stored_and_not_repeated(status: int, state: JobState) -> None:
    ledger, transport = RecordingLedger(keep_ended=True), answering_after(6.0, refused(status))
    async with apimall(transport, ledger=ledger) as session:
        await session.submit("a fox", idempotency_key="order-1")
        await asyncio.sleep(1.0)
    assert now() == pytest.approx(6.0)
    assert ledger.states() == {"order-1": state}
    assert len(transport.creates) == 1


@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_unanswered_create_at_close_stays_submitting(session_of: Opening) -> None:
    ledger, transport = RecordingLedger(), answering_after(100.0, created())
    async with session_of(transport, ledger=ledger, timeouts=Timeouts(close_s=3.0)) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        waiting = [asyncio.Task(job.result()), asyncio.Task(job.wait_for_task_id())]
        await asyncio.sleep(1.0)
    assert now() == pytest.approx(4.0)
    assert ledger.states() == {"order-1": JobState.SUBMITTING}
    await asyncio.wait(waiting)
    for waiter in waiting:
        error = waiter.exception()
        assert isinstance(error, SessionClosed)
        assert (error.key, error.safe_to_repeat) == ("order-1", False)
    assert transport.in_flight == 0


@virtually
async def test_unsent_job_stays_pending_and_safe_to_repeat() -> None:
    gateway, ledger = FakeGateway(job_s=99.0), RecordingLedger()
    one = ConcurrencyPolicy(max_jobs=1, learn=False)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger, concurrency=one) as session:
        await (await session.submit("first", idempotency_key="order-1")).wait_for_task_id()
        caller = asyncio.Task(session.generate("second", idempotency_key="order-2"))
        await asyncio.sleep(1.0)
    with pytest.raises(SessionClosed) as caught:
        await caller
    assert (caught.value.key, caught.value.safe_to_repeat) == ("order-2", True)
    assert ledger.states() == {"order-1": JobState.RUNNING, "order-2": JobState.PENDING}
    assert gateway.sold == 1


@virtually
async def test_handle_after_closing_says_possibly_bought() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=99.0).answer)) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        await job.wait_for_task_id()
    for _ in range(2):
        with pytest.raises(SessionClosed) as caught:
            await job
        assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", False)
    assert await job.wait_for_task_id() == "t1"
    assert not await job.cancel()
    assert job.state is JobState.RUNNING


@virtually
async def test_close_ends_updates() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=99.0).answer)) as session:
        job = await session.submit("a fox")
        states: list[JobState] = []

        async def listen() -> None:
            states.extend(await states_of(job))

        listening = asyncio.Task(listen())
        await asyncio.sleep(1.0)
    await asyncio.wait([listening])
    assert listening.exception() is None
    assert states[-1] is JobState.RUNNING


@virtually
async def test_close_does_not_wait_for_polls() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=99.0).answer)) as session:
        await (await session.submit("a fox")).wait_for_task_id()
        await asyncio.sleep(10.0)
        before = now()
    assert now() - before < 0.2


@virtually
async def test_close_waits_for_ledger_writes() -> None:
    ledger = RecordingLedger(delay_s=2.0)
    transport = FakeTransport(FakeGateway().answer)
    async with apimall(transport, ledger=ledger) as session:
        caller = asyncio.Task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(1.0)
    assert ledger.states() == {"order-1": JobState.PENDING}
    assert not transport.requests
    with pytest.raises(SessionClosed) as caught:
        await caller
    assert caught.value.safe_to_repeat


class Slow(FakeTransport):
    """Takes its time to close, and says when it has."""

    closed = False

    async def aclose(self) -> None:
        await asyncio.sleep(0.5)
        self.closed = True


@virtually
async def test_cancelled_close_still_closes_everything() -> None:
    ledger, transport = RecordingLedger(), Slow(FakeGateway(job_s=99.0).answer, latency_s=8.0)
    session = apimall(transport, ledger=ledger)
    await session.open()
    await session.submit("a fox", idempotency_key="order-1")
    await asyncio.sleep(1.0)
    owner = asyncio.Task(session.aclose())
    for _ in range(3):
        await asyncio.sleep(1.0)
        owner.cancel()
    await asyncio.wait([owner])
    assert owner.cancelled()
    assert transport.closed
    assert ledger.closed == 1
    assert ledger.states() == {"order-1": JobState.RUNNING}


@virtually
async def test_cancelled_anyio_scope_still_closes_everything() -> None:
    ledger, transport = RecordingLedger(), Slow(FakeGateway(job_s=99.0).answer, latency_s=8.0)
    with anyio.move_on_after(2.0) as scope:
        async with apimall(transport, ledger=ledger) as session:
            await session.generate("a fox", idempotency_key="order-1")
    assert scope.cancelled_caught
    assert transport.closed
    assert ledger.closed == 1
    assert ledger.states() == {"order-1": JobState.RUNNING}


@virtually
async def test_failing_task_group_still_closes_everything() -> None:
    ledger, transport = RecordingLedger(), Slow(FakeGateway(job_s=99.0).answer)

    async def fail() -> None:
        await asyncio.sleep(3.0)
        raise ZeroDivisionError

    async def own() -> None:
        async with apimall(transport, ledger=ledger) as session:
            await session.generate("a fox", idempotency_key="order-1")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(own())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert caught.group_contains(ZeroDivisionError)
    assert transport.closed
    assert ledger.states() == {"order-1": JobState.RUNNING}


@virtually
async def test_no_poll_is_sent_after_closing_began() -> None:
    asked: list[float] = []

    async def answer(request: HttpRequest) -> Reply:
        asked.append(now())
        if request.method == "POST":
            await asyncio.sleep(4.0)
        return gateway.answer(request)

    gateway = FakeGateway(job_s=0.1)
    transport = FakeTransport(answer, latency_s=0.0)
    async with apimall(transport, concurrency=ConcurrencyPolicy(max_jobs=2, learn=False)) as session:
        for number in range(6):
            await session.submit(f"fox {number}")
        await asyncio.sleep(1.0)
        closing_at = now()
    assert now() == pytest.approx(4.0)
    assert all(moment < closing_at for moment in asked)


@virtually
async def test_close_ends_a_hundred_waiters() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=99.0).answer)) as session:
        callers: list[asyncio.Task[Any]] = [asyncio.Task(session.generate(f"fox {n}")) for n in range(100)]
        await asyncio.sleep(1.0)
    await asyncio.wait(callers)
    errors = [caller.exception() for caller in callers]
    assert all(isinstance(error, SessionClosed) for error in errors)
    assert len({id(error) for error in errors}) == 100
