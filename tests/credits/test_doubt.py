"""Refunds, uncertain jobs and failures: reservations last as long as the price may still be charged."""

import asyncio
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import (
    CreditLimitReached,
    GenerationResult,
    JobFailed,
    JobState,
    JobUncertain,
    NanoBananaError,
    Session,
)
from nanobanana_async.batch.rows import RowInput
from tests.credits.fakes import (
    BOTH,
    ChargingGateway,
    GatewayName,
    a_session,
    budget_of,
    charging_gateway,
    foxes,
    nothing_is_left,
    outcome,
    run_batch,
)
from tests.support.fakes import now, virtually
from tests.support.shared_ledger import LedgerView, SharedLedger

EACH_GATEWAY = pytest.mark.parametrize("name", BOTH)
LIMIT: dict[GatewayName, float] = {"apimall": 80, "defapi": 5}


@EACH_GATEWAY
@virtually
async def test_refunds_let_others_be_bought(name: GatewayName) -> None:
    gateway = charging_gateway(name)
    rows = [f"a {'[fail] ' if number % 3 == 0 else ''}fox {number}" for number in range(60)]
    async with a_session(name, gateway.transport()) as session:
        run = await run_batch(session, rows, max_credits=LIMIT[name])
        assert session.stats().credits_spent == LIMIT[name] == gateway.taken
    assert run.results == 10
    assert gateway.sold > 10
    assert gateway.peak == LIMIT[name]
    assert run.stopped is not None


@pytest.mark.parametrize("refunds", [True, False])
@virtually
async def test_next_job_waits_for_a_possible_refund(refunds: bool) -> None:
    gateway = ChargingGateway(refunds=refunds)
    async with a_session("apimall", gateway.transport(), max_credits=8) as session:
        first = await session.submit("a [fail] fox")
        await first.wait_for_task_id()
        second = await session.submit("an owl")
        await asyncio.sleep(gateway.job_s / 2)
        assert (first.state, second.state) == (JobState.RUNNING, JobState.PENDING)
        if refunds:
            assert (await second).credits == 8
        else:
            with pytest.raises(CreditLimitReached):
                await second
        assert session.stats().credits_spent == 8
        assert nothing_is_left(session)


@EACH_GATEWAY
@virtually
async def test_refund_on_defapi_is_not_a_price_of_zero(name: GatewayName) -> None:
    gateway = charging_gateway(name)
    async with a_session(name, gateway.transport(), max_credits=LIMIT[name]) as session:
        assert isinstance(await outcome(session, "a [fail] fox"), JobFailed)
        run = await run_batch(session, foxes(200))
        assert run.results == 10
        assert gateway.peak == LIMIT[name]
        assert nothing_is_left(session)


async def uncertain(session: Session, gateway: ChargingGateway, key: str = "fox-1") -> None:
    """Buy a job whose answer is lost, where no key is taken."""
    gateway.faults.append(True)
    assert isinstance(await outcome(session, "a fox", idempotency_key=key), JobUncertain)


@pytest.mark.parametrize("priced", ["before", "after"])
@virtually
async def test_uncertain_job_keeps_its_credits_reserved(priced: str) -> None:
    gateway = charging_gateway("defapi")
    async with a_session("defapi", gateway.transport(), max_credits=5) as session:
        if priced == "before":
            await session.generate("a fox")
        await uncertain(session, gateway)
        run = await run_batch(session, foxes(40), **({} if priced == "before" else {"expected_credits": 0.5}))
        assert run.results == (8 if priced == "before" else 9)
        assert gateway.taken == 5  # the one in doubt was bought
        assert budget_of(session).reserved == Decimal("0.5")
        assert "0.5" in str(run.why)
        assert "are reserved for jobs in doubt" in str(run.why)
    assert now() < 600


@pytest.mark.parametrize("later_s", [0.0, 7200.0], ids=["at once", "long after"])
@pytest.mark.parametrize("way", ["not_bought", "task_id", "buy_again"])
@virtually
async def test_reservation_of_an_uncertain_job_ends_when_resolved(way: str, later_s: float) -> None:
    gateway = charging_gateway("defapi")
    async with a_session("defapi", gateway.transport(), max_credits=1) as session:
        await session.generate("an owl")
        await uncertain(session, gateway)
        assert isinstance(await outcome(session, "a crow"), CreditLimitReached)
        await asyncio.sleep(later_s)
        orders: dict[str, Any] = {"task_id": "t2"} if way == "task_id" else {way: True}
        if way == "buy_again":  # what it may have cost stays set aside, and the cap holds for what is bought by hand
            with pytest.raises(CreditLimitReached, match=r"0\.5 are reserved for jobs in doubt"):
                await session.resolve("fox-1", **orders)
            assert budget_of(session).reserved == Decimal("0.5")
            return
        job = await session.resolve("fox-1", **orders)
        if way != "not_bought":
            assert (await job).credits == Decimal("0.5")
        assert budget_of(session).spent == (Decimal("0.5") if way == "not_bought" else 1)
        assert nothing_is_left(session)
        more = await outcome(session, "a crow")
        assert isinstance(more, GenerationResult if way == "not_bought" else CreditLimitReached)


@pytest.mark.parametrize("later_s", [0.0, 7200.0], ids=["at once", "long after"])
@virtually
async def test_resolved_row_returns_its_credits_to_its_batch(later_s: float) -> None:
    gateway = charging_gateway("defapi")
    async with a_session("defapi", gateway.transport()) as session:
        batch = session.generate_many(_slowly(gateway, later_s, session), max_credits=1.0)
        states = [outcome.job.state.name if outcome.job else "" async for outcome in batch]
    assert states == ["SUCCEEDED", "UNCERTAIN", "SUCCEEDED"]
    assert gateway.sold == 3


async def _slowly(gateway: ChargingGateway, later_s: float, session: Session) -> AsyncGenerator[RowInput]:
    yield "an owl"
    await asyncio.sleep(60.0)
    gateway.faults.append(True)
    yield {"prompt": "a fox", "key": "fox-1"}
    await asyncio.sleep(60.0 + later_s)
    await session.resolve("fox-1", not_bought=True)
    yield "a crow"


@virtually
async def test_job_resolved_by_another_session_returns_its_credits() -> None:
    gateway, shared = charging_gateway("defapi"), SharedLedger()
    async with (
        a_session("defapi", gateway.transport(), ledger=LedgerView(shared), max_credits=1) as session,
        a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as other,
    ):
        gateway.faults.append(True)
        job = await session.submit("a fox", idempotency_key="fox-1")
        with pytest.raises(JobUncertain):
            await job
        await other.resolve("fox-1", not_bought=True)
        with pytest.raises(NanoBananaError):
            await job
        assert isinstance(await outcome(session, "an owl"), GenerationResult)
        assert nothing_is_left(session)


@virtually
async def test_batch_counts_uncertain_jobs_of_earlier_runs() -> None:
    gateway, shared = charging_gateway("defapi"), SharedLedger()
    async with a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as session:
        gateway.faults.append(True)
        run = await run_batch(session, foxes(1), batch="spring", max_credits=2.5)
        assert isinstance(run.outcomes[0].error, JobUncertain)
    async with a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as session:
        run = await run_batch(session, foxes(30), batch="spring", max_credits=2.5)
        assert "bought at an estimate, and its cost is still unknown" in str(run.why)
        run = await run_batch(session, foxes(30), batch="spring", max_credits=2.5, expected_credits=0.5)
        assert run.results == 4
    assert gateway.taken == Decimal("2.5")
