"""Closing a session: POSTs on the wire are answered and written down, waiters are sent away, nothing is left behind."""

import asyncio
from typing import Any

import anyio
import pytest

from nanobanana_async import ConcurrencyPolicy, JobState, SessionClosed, Timeouts
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, Opening, RecordingLedger, apimall, defapi, now, virtually
from tests.support.replies import created, refused


def answering_after(delay_s: float, reply: Reply) -> FakeTransport:
    async def answer(_: HttpRequest) -> Reply:
        await asyncio.sleep(delay_s)
        return reply

    return FakeTransport(answer, latency_s=0.0)


@virtually
async def test_a_post_on_the_wire_is_waited_for_and_its_answer_is_written_down() -> None:
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
async def test_a_refusal_that_comes_while_closing_is_written_down_and_nothing_is_sent_after_it(
    status: int, state: JobState
) -> None:
    ledger, transport = RecordingLedger(keep_ended=True), answering_after(6.0, refused(status))
    async with apimall(transport, ledger=ledger) as session:
        await session.submit("a fox", idempotency_key="order-1")
        await asyncio.sleep(1.0)
    assert now() == pytest.approx(6.0)
    assert ledger.states() == {"order-1": state}
    assert len(transport.creates) == 1


@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_without_an_answer_in_time_the_job_stays_submitting_and_the_waiters_go(session_of: Opening) -> None:
    ledger, transport = RecordingLedger(), answering_after(100.0, created())
    async with session_of(transport, ledger=ledger, timeouts=Timeouts(close_s=3.0)) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        waiting = [asyncio.Task(job.result()), asyncio.Task(job.accepted())]
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
async def test_what_was_not_sent_stays_pending_and_is_safe_to_repeat() -> None:
    shop, ledger = FakeGateway(job_s=99.0), RecordingLedger()
    one = ConcurrencyPolicy(max_jobs=1, learn=False)
    async with apimall(FakeTransport(shop.answer), ledger=ledger, concurrency=one) as session:
        await (await session.submit("first", idempotency_key="order-1")).accepted()
        caller = asyncio.Task(session.generate("second", idempotency_key="order-2"))
        await asyncio.sleep(1.0)
    with pytest.raises(SessionClosed) as caught:
        await caller
    assert (caught.value.key, caught.value.safe_to_repeat) == ("order-2", True)
    assert ledger.states() == {"order-1": JobState.RUNNING, "order-2": JobState.PENDING}
    assert shop.sold == 1


@virtually
async def test_a_handle_kept_beyond_closing_says_closed_and_that_the_job_may_be_bought() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=99.0).answer)) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        await job.accepted()
    for _ in range(2):
        with pytest.raises(SessionClosed) as caught:
            await job
        assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", False)
    assert await job.accepted() == "t1"
    assert not await job.cancel()
    assert job.state is JobState.RUNNING


@virtually
async def test_a_listener_is_let_go_when_the_session_closes() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=99.0).answer)) as session:
        job = await session.submit("a fox")
        heard: list[JobState] = []

        async def listen() -> None:
            heard.extend([state async for state in job.updates()])

        listening = asyncio.Task(listen())
        await asyncio.sleep(1.0)
    await asyncio.wait([listening])
    assert listening.exception() is None
    assert heard[-1] is JobState.RUNNING


@virtually
async def test_closing_is_quick_when_nothing_is_on_the_wire_but_queries() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=99.0).answer)) as session:
        await (await session.submit("a fox")).accepted()
        await asyncio.sleep(10.0)
        before = now()
    assert now() - before < 0.2


@virtually
async def test_a_write_on_its_way_is_waited_for_too() -> None:
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
async def test_an_owner_cancelled_while_closing_still_closes_everything_and_is_cancelled_then() -> None:
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
async def test_an_owner_in_a_cancelled_anyio_scope_closes_everything_too() -> None:
    ledger, transport = RecordingLedger(), Slow(FakeGateway(job_s=99.0).answer, latency_s=8.0)
    with anyio.move_on_after(2.0) as scope:
        async with apimall(transport, ledger=ledger) as session:
            await session.generate("a fox", idempotency_key="order-1")
    assert scope.cancelled_caught
    assert transport.closed
    assert ledger.closed == 1
    assert ledger.states() == {"order-1": JobState.RUNNING}


@virtually
async def test_a_task_group_that_fails_around_it_closes_everything_too() -> None:
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
async def test_nothing_is_asked_once_closing_has_begun() -> None:
    asked: list[float] = []

    async def answer(request: HttpRequest) -> Reply:
        asked.append(now())
        if request.method == "POST":
            await asyncio.sleep(4.0)
        return shop.answer(request)

    shop = FakeGateway(job_s=0.1)
    transport = FakeTransport(answer, latency_s=0.0)
    async with apimall(transport, concurrency=ConcurrencyPolicy(max_jobs=2, learn=False)) as session:
        for number in range(6):
            await session.submit(f"fox {number}")
        await asyncio.sleep(1.0)
        closing_at = now()
    assert now() == pytest.approx(4.0)
    assert all(moment < closing_at for moment in asked)


@virtually
async def test_a_hundred_waiters_all_hear_of_it() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=99.0).answer)) as session:
        callers: list[asyncio.Task[Any]] = [asyncio.Task(session.generate(f"fox {n}")) for n in range(100)]
        await asyncio.sleep(1.0)
    await asyncio.wait(callers)
    errors = [caller.exception() for caller in callers]
    assert all(isinstance(error, SessionClosed) for error in errors)
    assert len({id(error) for error in errors}) == 100
