"""Faults of the first job of an unknown price, or of the ledger: nothing hangs, nothing stays reserved."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    CreditLimitReached,
    GenerationResult,
    JobFailed,
    JobState,
    JobUncertain,
    LedgerError,
    NanoBananaError,
    RetryPolicy,
    Session,
)
from nanobanana_async.errors import TransportError
from nanobanana_async.testing import FakeTransport, Reply
from tests.credits.fakes import (
    BOTH,
    ChargingGateway,
    GatewayName,
    a_session,
    budget_of,
    charging_gateway,
    foxes,
    full,
    nothing_is_left,
    outcome,
    run_batch,
)
from tests.support.fakes import API_KEY, RecordingLedger, now, virtually
from tests.support.shared_ledger import LedgerView, SharedLedger

EACH_GATEWAY = pytest.mark.parametrize("name", BOTH)
LIMIT: dict[GatewayName, float] = {"apimall": 80, "defapi": 5}

UNSENT = TransportError("connection refused", possibly_sent=False)
TROUBLES: dict[str, list[Reply | bool | None]] = {
    "lost": [True],
    "lost three times": [True, True, True],
    "never sent": [UNSENT, UNSENT],
    "full": [full(429)],
    "full for long": [full(429)] * 5,
    "refused": [full(400)],
    "poor": [full(402)],
    "in trouble": [full(503), full(500)],
}


@EACH_GATEWAY
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("first", ["a fox", "a [fail] fox"])
@virtually
async def test_any_fault_of_the_first_unpriced_job_keeps_the_cap(name: GatewayName, trouble: str, first: str) -> None:
    gateway = charging_gateway(name)
    gateway.faults.extend(TROUBLES[trouble])
    async with a_session(name, gateway.transport(), max_credits=LIMIT[name]) as session:
        async with asyncio.timeout(1800.0), asyncio.TaskGroup() as group:
            tasks = [group.create_task(outcome(session, prompt)) for prompt in [first, *foxes(40)]]
        answers: list[Any] = [task.result() for task in tasks]
        price = Decimal(8) if name == "apimall" else Decimal("0.5")
        if any(isinstance(answer, JobUncertain) for answer in answers):  # the price of that job is never reported
            refusals = [answer for answer in answers if isinstance(answer, CreditLimitReached)]
            assert len(refusals) == 40
            assert all("expected_credits" in str(refusal) for refusal in refusals)
            run = await run_batch(session, foxes(40, first=40), expected_credits=price)
            answers += [outcome.result or outcome.error for outcome in run.outcomes]
        doubts = sum(isinstance(answer, JobUncertain) for answer in answers)
        assert sum(isinstance(answer, GenerationResult) for answer in answers) == 10 - doubts
        assert gateway.peak <= LIMIT[name]
        assert budget_of(session).reserved == doubts * price
        assert bool(doubts) != nothing_is_left(session)
    assert now() < 1800


@EACH_GATEWAY
@pytest.mark.parametrize("write", [2, 3, 4, 5])
@virtually
async def test_ledger_failure_of_the_first_unpriced_job_blocks_no_other(name: GatewayName, write: int) -> None:
    gateway = charging_gateway(name)
    async with a_session(
        name, gateway.transport(), ledger=RecordingLedger(failing_writes=[write]), max_credits=LIMIT[name]
    ) as session:
        async with asyncio.timeout(1800.0):
            answers = [await outcome(session, "a fox", idempotency_key="fox-1")]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(outcome(session, prompt)) for prompt in foxes(40)]
            answers += [task.result() for task in tasks]
            unwritten = sum(isinstance(answer, LedgerError) for answer in answers)
            assert unwritten <= 1
            assert gateway.peak == LIMIT[name]
            again = await outcome(session, "a fox", idempotency_key="fox-1")
            assert isinstance(again, GenerationResult | CreditLimitReached)
        assert nothing_is_left(session)


@pytest.mark.slow
@virtually
async def test_first_unpriced_job_can_be_withdrawn() -> None:
    gateway = charging_gateway("defapi", job_s=3000.0)
    async with a_session("defapi", gateway.transport(), max_credits=5) as session:
        gateway.faults.append(full())
        first = await session.submit("a fox")
        second = await session.submit("an owl")
        async for seen in first.updates():
            if seen.state is JobState.PENDING:
                break
        assert await first.cancel()
        await second.wait_for_task_id()  # nothing was bought yet, so this one goes alone
        third = await session.submit("a crow")
        await asyncio.sleep(60.0)
        assert (gateway.sold, third.state) == (1, JobState.PENDING)
        with pytest.raises(NanoBananaError, match="still runs"):
            await second  # it is no longer polled, and its price may never be reported
        with pytest.raises(CreditLimitReached, match="set expected_credits to what such jobs cost"):
            await third
        assert gateway.sold == 1


@virtually
async def test_unanswered_creates_become_uncertain_and_unblock_others() -> None:
    gateway = ChargingGateway()
    shut: list[Reply] = []

    def answer(request: Any) -> Reply:
        if request.method == "POST" and not shut:
            return TransportError("the connection was reset", possibly_sent=True)
        return gateway.answer(request)

    settings = ApiMall(api_key=API_KEY, key_lifetime_s=60.0)
    retry = RetryPolicy(max_attempts=3, first_backoff_s=0.1, max_backoff_s=1.0)
    async with Session(settings, http=FakeTransport(answer), retry=retry, max_credits=16) as session:
        assert isinstance(await outcome(session, "a fox", idempotency_key="fox-1"), JobUncertain)
        shut.append(full())
        assert isinstance(await outcome(session, "an owl"), CreditLimitReached)  # the price of the first job is unknown
        run = await run_batch(session, ["an owl"], expected_credits=8)
        assert run.results == 1
        assert budget_of(session).reserved == 8
        assert isinstance(await outcome(session, "a crow"), CreditLimitReached)
        await session.resolve("fox-1", not_bought=True)
        assert isinstance(await outcome(session, "a crow"), GenerationResult)
        assert nothing_is_left(session)


@virtually
async def test_jobs_no_longer_polled_stay_counted() -> None:
    gateway = ChargingGateway()
    blind: list[bool] = [True]

    def answer(request: Any) -> Reply:
        return full(401) if request.method == "GET" and blind else gateway.answer(request)

    async with a_session("apimall", FakeTransport(answer), max_credits=8) as session:
        job = await session.submit("a [fail] fox", idempotency_key="fox-1")
        with pytest.raises(NanoBananaError):
            await job
        assert isinstance(await outcome(session, "an owl"), CreditLimitReached)  # and does not wait
        blind.clear()
        await asyncio.sleep(60.0)
        again = await session.job("fox-1")
        assert again is not None
        with pytest.raises(JobFailed):
            await again
        assert nothing_is_left(session)
        assert isinstance(await outcome(session, "an owl"), GenerationResult)


@EACH_GATEWAY
@virtually
async def test_closing_with_unpriced_jobs_does_not_hang(name: GatewayName) -> None:
    gateway, shared = charging_gateway(name), SharedLedger()
    async with a_session(name, gateway.transport(), ledger=LedgerView(shared), max_credits=LIMIT[name]) as session:
        tasks = [asyncio.Task(outcome(session, prompt)) for prompt in foxes(40)]
        await asyncio.sleep(5.0)
    await asyncio.wait(tasks)
    assert now() < 60
    async with a_session(name, gateway.transport(), ledger=LedgerView(shared), max_credits=LIMIT[name]) as session:
        for job in await session.resume():
            await job
        assert budget_of(session).spent == 0
