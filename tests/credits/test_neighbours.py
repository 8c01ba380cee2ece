"""Several processes that run one batch at the same time share its cap."""

import asyncio
from decimal import Decimal

from nanobanana_async import GenerationResult
from tests.credits.fakes import ChargingGateway, a_session, budget_of, charging_gateway, foxes, run_batch
from tests.support.fakes import virtually
from tests.support.shared_ledger import LedgerView, SharedLedger


@virtually
async def test_rows_that_another_process_buys_are_not_bought_or_counted_twice() -> None:
    till, book = ChargingGateway(), SharedLedger()
    async with (
        a_session("apimall", till.transport(), ledger=LedgerView(book)) as ours,
        a_session("apimall", till.transport(), ledger=LedgerView(book)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        both = [
            group.create_task(run_batch(each, foxes(10), batch="spring", max_credits=80)) for each in (ours, theirs)
        ]
        runs = [await run for run in both]
    assert till.sold == 10
    assert [run.results for run in runs] == [10, 10]
    assert [run.stopped for run in runs] == [None, None]


@virtually
async def test_two_processes_at_once_share_the_cap() -> None:
    till, book = ChargingGateway(), SharedLedger()
    async with (
        a_session("apimall", till.transport(), ledger=LedgerView(book)) as ours,
        a_session("apimall", till.transport(), ledger=LedgerView(book)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(run_batch(ours, foxes(20), batch="spring", max_credits=80))
        group.create_task(run_batch(theirs, foxes(20, word="owl"), batch="spring", max_credits=80))
    assert till.sold == 10
    async with a_session("apimall", till.transport(), ledger=LedgerView(book)) as later:
        run = await run_batch(later, foxes(20, word="crow"), batch="spring", max_credits=88)
    assert run.results == 1
    assert till.taken == 88


@virtually
async def test_second_process_counts_running_jobs_of_the_first() -> None:
    till, book = charging_gateway("defapi", job_s=200.0), SharedLedger()
    async with (
        a_session("defapi", till.transport(), ledger=LedgerView(book)) as ours,
        a_session("defapi", till.transport(), ledger=LedgerView(book)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        first = group.create_task(run_batch(ours, foxes(6), batch="spring", max_credits=5))
        await asyncio.sleep(50.0)
        assert till.sold == 1  # until it has told the price, in whichever process
        run = await run_batch(theirs, foxes(30), batch="spring", max_credits=5)
        await first
    assert till.taken == 5
    assert run.results == 10


@virtually
async def test_purchases_of_others_do_not_count_for_a_session() -> None:
    till, book = ChargingGateway(), SharedLedger()
    async with (
        a_session("apimall", till.transport(), ledger=LedgerView(book), max_credits=8) as ours,
        a_session("apimall", till.transport(), ledger=LedgerView(book)) as theirs,
    ):
        bought = await theirs.submit("a fox", idempotency_key="fox-1")
        await bought.accepted()
        assert isinstance(await ours.generate("a fox", idempotency_key="fox-1"), GenerationResult)
        assert budget_of(ours).spent == 0
        assert ours.stats().credits_spent == 0
        await ours.generate("an owl")
        assert ours.stats().credits_spent == Decimal(8)
    assert till.sold == 2
