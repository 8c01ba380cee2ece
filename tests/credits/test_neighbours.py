"""Several processes that run one batch at the same time share its cap."""

import asyncio
from decimal import Decimal

import pytest

from nanobanana_async import Budget, GenerationResult
from nanobanana_async.keys import batch_key_prefix
from tests.credits.fakes import ChargingGateway, a_session, budget_of, charging_gateway, foxes, run_batch
from tests.support.fakes import virtually
from tests.support.shared_ledger import LedgerView, SharedLedger


@virtually
async def test_rows_of_another_process_are_not_bought_or_counted_twice() -> None:
    gateway, shared = ChargingGateway(), SharedLedger()
    async with (
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as ours,
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        both = [
            group.create_task(run_batch(each, foxes(10), batch="spring", max_credits=80)) for each in (ours, theirs)
        ]
        runs = [await run for run in both]
    assert gateway.sold == 10
    assert [run.results for run in runs] == [10, 10]
    assert [run.stopped for run in runs] == [None, None]


@virtually
async def test_two_processes_at_once_share_the_cap() -> None:
    gateway, shared = ChargingGateway(), SharedLedger()
    async with (
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as ours,
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(run_batch(ours, foxes(20), batch="spring", max_credits=80))
        group.create_task(run_batch(theirs, foxes(20, word="owl"), batch="spring", max_credits=80))
    assert gateway.sold == 10
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as later:
        run = await run_batch(later, foxes(20, word="crow"), batch="spring", max_credits=88)
    assert run.results == 1
    assert gateway.taken == 88


@pytest.mark.slow
@virtually
async def test_second_process_counts_running_jobs_of_the_first() -> None:
    gateway, shared = charging_gateway("defapi", job_s=200.0), SharedLedger()
    async with (
        a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as ours,
        a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        first = group.create_task(run_batch(ours, foxes(6), batch="spring", max_credits=5))
        await asyncio.sleep(50.0)
        assert gateway.sold == 1  # until it has reported the price, in either process
        run = await run_batch(theirs, foxes(30), batch="spring", max_credits=5)
        await first
    assert gateway.taken == 5
    assert run.results == 10


@virtually
async def test_purchases_of_others_do_not_count_for_a_session() -> None:
    gateway, shared = ChargingGateway(), SharedLedger()
    async with (
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared), max_credits=8) as ours,
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as theirs,
    ):
        bought = await theirs.submit("a fox", idempotency_key="fox-1")
        await bought.wait_for_task_id()
        assert isinstance(await ours.generate("a fox", idempotency_key="fox-1"), GenerationResult)
        assert budget_of(ours).spent == 0
        assert ours.stats().credits_spent == 0
        await ours.generate("an owl")
        assert ours.stats().credits_spent == Decimal(8)
    assert gateway.sold == 2


@virtually
async def test_batch_that_follows_a_refused_row_of_another_process_stops_with_the_budget_not_a_derived_key() -> None:
    gateway, shared = ChargingGateway(), SharedLedger()
    async with (
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as ours,
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        budget = Budget(name="alice", max_credits=24)
        both = [group.create_task(run_batch(each, foxes(6), batch="spring", budget=budget)) for each in (ours, theirs)]
        stopped = [(await run).stopped for run in both]
    assert gateway.taken == 24
    for error in stopped:
        assert error is not None
        assert "budget alice: its cap is 24" in str(error)
        assert batch_key_prefix("spring") not in str(error)
