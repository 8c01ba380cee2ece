"""Timeouts and cancel scopes around the waiting: they end the waiting, and the job only if nothing was sent."""

import asyncio
from typing import Any

import anyio
import pytest

from nanobanana_async import (
    ConcurrencyPolicy,
    JobState,
    JobUnfinished,
    LedgerError,
    PollPolicy,
    Session,
    Timeouts,
    TransportError,
)
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, now, virtually

ONE = ConcurrencyPolicy(max_jobs=1, learn=False)


@virtually
async def test_wait_timeout_does_not_affect_the_job() -> None:
    transport = FakeTransport(FakeGateway(job_s=30.0).answer)
    async with apimall(transport) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        with pytest.raises(JobUnfinished, match="after 5 s") as caught:
            await job.result(timeout=5.0)
        assert now() == pytest.approx(5.0)
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.key, caught.value.safe_to_repeat, caught.value.job) == ("order-1", False, job)
        assert (await caught.value.job).task_id == "t1"
    assert len(transport.creates) == 1


@virtually
async def test_generate_timeout_after_the_create_leaves_the_job_running() -> None:
    transport = FakeTransport(FakeGateway(job_s=30.0).answer)
    async with apimall(transport) as session:
        with pytest.raises(JobUnfinished) as caught:
            await session.generate("a fox", idempotency_key="order-1", timeout=5.0)
        assert not caught.value.safe_to_repeat
        job = await session.job("order-1")
        assert job is not None
        assert (await job).task_id == "t1"
    assert len(transport.creates) == 1


@virtually
async def test_generate_timeout_before_the_create_withdraws() -> None:
    transport, ledger = FakeTransport(FakeGateway(job_s=60.0).answer), RecordingLedger(keep_ended=True)
    async with apimall(transport, ledger=ledger, concurrency=ONE) as session:
        await (await session.submit("first")).wait_for_task_id()
        with pytest.raises(JobUnfinished) as caught:
            await session.generate("a fox", idempotency_key="order-1", timeout=5.0)
        assert caught.value.safe_to_repeat
        assert str(caught.value) == "job order-1 was not sent within 5 s and was withdrawn: nothing was bought"
        await asyncio.sleep(0.0)
        assert ledger.states()["order-1"] is JobState.WITHDRAWN
    assert len(transport.creates) == 1


@virtually
async def test_timeout_during_an_unfinished_claim_is_not_safe() -> None:
    ledger = RecordingLedger(delay_s=10.0)
    async with apimall(FakeTransport(FakeGateway().answer), ledger=ledger) as session:
        with pytest.raises(JobUnfinished) as caught:
            await session.generate("a fox", idempotency_key="order-1", timeout=1.0)
        assert not caught.value.safe_to_repeat
        assert "was not stored within 1 s: it is withdrawn, unless it was sent before" in str(caught.value)
        assert now() == pytest.approx(2.0)  # the timeout, and one second for the ledger
        await asyncio.sleep(20.0)
        assert ledger.states().get("order-1") is not JobState.RUNNING


@virtually
async def test_timeout_during_a_claim_waits_for_the_withdrawal() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger(delay_s=0.4, keep_ended=True)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        with pytest.raises(JobUnfinished, match="was withdrawn: nothing was bought") as caught:
            await session.generate("a fox", idempotency_key="order-1", timeout=0.1)
        assert caught.value.safe_to_repeat
        assert ledger.states()["order-1"] is JobState.WITHDRAWN
    assert gateway.sold == 0


@virtually
async def test_ledger_failure_after_the_timeout_is_raised() -> None:
    ledger = RecordingLedger(delay_s=0.4, failing_writes=[1])
    async with apimall(FakeTransport(FakeGateway().answer), ledger=ledger) as session:
        with pytest.raises(LedgerError, match="the disk is full"):
            await session.generate("a fox", timeout=0.1)


@virtually
async def test_timeout_names_why_the_job_was_not_sent() -> None:
    unreachable = TransportError("can't reach gateway.example: Connection refused", possibly_sent=False)
    async with apimall(FakeTransport(lambda _: unreachable)) as session:
        with pytest.raises(JobUnfinished) as caught:
            await session.generate("a fox", idempotency_key="order-1", timeout=4.0)
    assert str(caught.value) == (
        "job order-1 was not sent within 4 s (can't reach gateway.example: Connection refused)"
        " and was withdrawn: nothing was bought"
    )
    assert caught.value.safe_to_repeat


@virtually
async def test_timeout_while_the_create_is_sent_says_so() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger(delay_s=0.4)
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        with pytest.raises(
            JobUnfinished, match=r"is being sent after 0\.6 s; the job goes on: await it again"
        ) as caught:
            await session.generate("a fox", idempotency_key="order-1", timeout=0.6)
        assert not caught.value.safe_to_repeat
        assert (await caught.value.job).task_id == "t1"


@virtually
async def test_each_wait_gets_the_whole_job_s() -> None:
    transport = FakeTransport(FakeGateway(job_s=250.0).answer)
    polling = PollPolicy(target_delay_s=0.5, max_gap_s=8.0)
    async with apimall(transport, timeouts=Timeouts(job_s=100.0), polling=polling) as session:
        job = await session.submit("a fox")
        for waits in (1, 2):
            with pytest.raises(JobUnfinished, match="still runs after") as caught:
                await job
            assert 100.0 * waits <= now() <= 115.0 * waits
            assert (caught.value.job, caught.value.safe_to_repeat) == (job, False)
        assert (await caught.value.job).task_id == "t1"
    assert len(transport.creates) == 1


@virtually
async def test_outage_does_not_shorten_a_later_wait() -> None:
    gateway, down = FakeGateway(job_s=150.0), [True]

    def answer(request: HttpRequest) -> Reply:
        if request.method == "GET" and down[0]:
            return TransportError("the connection was reset", possibly_sent=True)
        return gateway.answer(request)

    async with apimall(FakeTransport(answer), timeouts=Timeouts(job_s=100.0)) as session:
        job = await session.submit("a fox")
        with pytest.raises(TransportError):
            await job
        again = asyncio.Task(job.result())
        await asyncio.sleep(20.0)
        assert not again.done()
        down[0] = False
        assert (await again).task_id == "t1"


@pytest.mark.parametrize("scope", ["asyncio", "fail_after", "move_on_after"])
@pytest.mark.parametrize("deadline", [0.01, 1.0])
@virtually
async def test_outer_deadline_ends_the_wait_and_not_the_job(scope: str, deadline: float) -> None:
    scopes: dict[str, Any] = {
        "asyncio": asyncio.timeout,
        "fail_after": anyio.fail_after,
        "move_on_after": anyio.move_on_after,
    }
    transport = FakeTransport(FakeGateway(job_s=30.0).answer)
    async with apimall(transport) as session:
        ended = asyncio.Task(waited(scopes[scope](deadline), session))
        await asyncio.wait([ended])
        error = ended.exception()
        assert type(error) is (type(None) if scope == "move_on_after" else TimeoutError)
        assert now() == pytest.approx(deadline)
        job = await session.job("order-1")
        assert job is not None
        assert (await job).task_id == "t1"
    assert len(transport.creates) == 1


async def waited(scope: Any, session: Session) -> None:
    async with as_async(scope):
        await session.generate("a fox", idempotency_key="order-1")
        pytest.fail("it can't be done by then")


class as_async:  # noqa: N801 - reads like the scopes it stands for
    """Let anyio's scopes and asyncio's be used alike."""

    def __init__(self, scope: Any) -> None:
        self._scope = scope

    async def __aenter__(self) -> None:
        if hasattr(self._scope, "__aenter__"):
            await self._scope.__aenter__()
        else:
            self._scope.__enter__()

    async def __aexit__(self, *why: Any) -> Any:
        if hasattr(self._scope, "__aexit__"):
            return await self._scope.__aexit__(*why)
        return self._scope.__exit__(*why)
