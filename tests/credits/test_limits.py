"""`max_credits` of a batch: exactly what fits is bought, over any number of runs."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ConcurrencyPolicy, JobFailed, SqliteLedger
from nanobanana_async.events import Event, PriceAboveEstimate
from nanobanana_async.testing import FakeTransport
from tests.credits.fakes import (
    BOTH,
    ChargingGateway,
    GatewayName,
    a_session,
    budgets_now,
    charging_gateway,
    engine_of,
    foxes,
    quick,
    run_batch,
)
from tests.support.fakes import now, virtually
from tests.support.shared_ledger import LedgerView, SharedLedger

TEN: dict[GatewayName, dict[str, Any]] = {"apimall": {"max_credits": 80}, "defapi": {"max_credits": 5}}
PRICE: dict[GatewayName, float] = {"apimall": 8, "defapi": 0.5}
EACH_GATEWAY = pytest.mark.parametrize("name", BOTH)


@EACH_GATEWAY
@pytest.mark.parametrize("price_known", [False, True], ids=["price unknown", "price expected"])
@virtually
async def test_only_jobs_within_the_cap_are_bought_with_free_slots(name: GatewayName, price_known: bool) -> None:
    gateway = charging_gateway(name)
    expected = {"expected_credits": PRICE[name]} if price_known else {}
    async with a_session(name, gateway.transport()) as session:
        run = await run_batch(session, foxes(200), **TEN[name], **expected)
        assert session.stats().credits_spent == TEN[name]["max_credits"]
        assert not engine_of(session).tracked
    assert (gateway.sold, run.results, len(run.outcomes)) == (10, 10, 10)
    assert "max_credits is" in str(run.why)
    assert run.stopped is not None
    assert run.stopped.done == 10
    assert gateway.most_at_once == (10 if name == "apimall" else 9)  # nine after the one that reported the price


@virtually
async def test_price_in_the_create_response_delays_others_by_one_round_trip() -> None:
    gateway = ChargingGateway()
    async with a_session("apimall", gateway.transport()) as session:
        await run_batch(session, foxes(11), max_credits=80)
        starts = sorted({sale.ends_at - gateway.job_s for sale in gateway.sales.values()})
    assert len(gateway.sales) == 10
    assert starts[-1] - starts[0] < 0.2


@virtually
async def test_endless_input_ends_at_the_cap() -> None:
    gateway = ChargingGateway()

    def endless() -> Any:
        while True:
            yield "a fox"

    async with a_session("apimall", gateway.transport()) as session:
        run = await run_batch(session, endless(), max_credits=80)
    assert (gateway.sold, run.results) == (10, 10)
    assert now() < 120


@EACH_GATEWAY
@virtually
async def test_cap_met_exactly_by_the_last_row_stops_nothing(name: GatewayName) -> None:
    gateway = charging_gateway(name)
    async with a_session(name, gateway.transport()) as session:
        run = await run_batch(session, foxes(10), **TEN[name])
    assert (run.stopped, run.results) == (None, 10)


async def a_run(
    shared: SharedLedger,
    name: GatewayName,
    gateway: ChargingGateway,
    rows: list[str],
    max_credits: float,
    **options: Any,
) -> tuple[int, bool]:
    """One process runs the named batch; return how many jobs it bought, and whether it was stopped."""
    before = gateway.sold
    async with a_session(name, gateway.transport(), ledger=LedgerView(shared)) as session:
        run = await run_batch(session, rows, batch="spring", max_credits=max_credits, **options)
    return gateway.sold - before, run.stopped is not None


@EACH_GATEWAY
@pytest.mark.parametrize("limit", [10, 10.5], ids=["even", "uneven"])
@virtually
async def test_cap_holds_over_all_runs_of_a_named_batch(name: GatewayName, limit: float) -> None:
    gateway, shared, price = charging_gateway(name), SharedLedger(), PRICE[name]
    assert await a_run(shared, name, gateway, foxes(30), limit * price) == (10, True)
    assert await a_run(shared, name, gateway, foxes(30), limit * price) == (0, True)
    assert await a_run(shared, name, gateway, ["an owl", *foxes(30)], limit * price) == (0, True)
    assert await a_run(shared, name, gateway, foxes(30), (limit + 7) * price) == (7, True)
    assert await a_run(shared, name, gateway, foxes(30), 1000 * price) == (13, False)
    assert gateway.taken == 30 * Decimal(str(price))


@EACH_GATEWAY
@virtually
async def test_cap_below_spent_credits_buys_nothing(name: GatewayName) -> None:
    gateway, shared = charging_gateway(name), SharedLedger()
    assert await a_run(shared, name, gateway, foxes(30), TEN[name]["max_credits"]) == (10, True)
    async with a_session(name, gateway.transport(), ledger=LedgerView(shared)) as session:
        run = await run_batch(session, foxes(30), batch="spring", max_credits=PRICE[name])
    assert (gateway.sold, run.results) == (10, 10)
    assert f"{Decimal(str(TEN[name]['max_credits']))} are spent" in str(run.why).replace("5.000000", "5")


@EACH_GATEWAY
async def test_the_sqlite_ledger_remembers_prices_and_costs(name: GatewayName, tmp_path: Path) -> None:
    gateway, limit = charging_gateway(name, job_s=0.01), float(TEN[name]["max_credits"])
    sold = []
    for rows, max_credits in (
        (foxes(30), limit),
        (["an owl", *foxes(30)], limit),
        (foxes(30), limit + 3.5 * PRICE[name]),
    ):
        async with quick(name, gateway.transport(latency_s=0.001), ledger=tmp_path / "jobs.sqlite") as session:
            await run_batch(session, rows, batch="spring", max_credits=max_credits)
        sold.append(gateway.sold)
    assert sold == [10, 10, 13]


@virtually
async def test_prices_in_the_ledger_are_not_learned_again() -> None:
    gateway, shared = charging_gateway("defapi"), SharedLedger()
    assert await a_run(shared, "defapi", gateway, foxes(4), 100) == (4, False)
    gateway.most_at_once = 0
    assert await a_run(shared, "defapi", gateway, foxes(12), 100) == (8, False)
    assert gateway.most_at_once == 8


@virtually
async def test_free_failure_does_not_change_the_known_price() -> None:
    gateway, shared = charging_gateway("defapi"), SharedLedger()
    assert await a_run(shared, "defapi", gateway, [*foxes(3), "a [fail] fox"], 100) == (4, False)
    assert await a_run(shared, "defapi", gateway, [*foxes(60), "a [fail] fox"], 2.5) == (2, True)
    assert gateway.taken == Decimal("2.5")


async def test_sqlite_ledger_takes_no_price_from_a_refund(tmp_path: Path) -> None:
    gateway = charging_gateway("defapi", job_s=0.01)
    for rows, limit in (([*foxes(3), "a [fail] fox"], 100.0), (foxes(60), 2.5)):
        async with quick("defapi", gateway.transport(latency_s=0.001), ledger=tmp_path / "jobs.sqlite") as session:
            await run_batch(session, rows, batch="spring", max_credits=limit)
    assert gateway.taken == Decimal("2.5")


@EACH_GATEWAY
@virtually
async def test_running_jobs_of_a_killed_run_are_counted(name: GatewayName) -> None:
    gateway, shared = charging_gateway(name, job_s=60.0), SharedLedger()
    view = LedgerView(shared)
    async with a_session(name, FakeTransport(gateway.answer), ledger=view) as session:
        async with session.generate_many(foxes(30), batch="spring", **TEN[name]) as batch:
            if name == "defapi":  # the first one reports the price at its end
                await anext(batch)
            taking = asyncio.Task(anext(batch))
            await asyncio.sleep(30.0)
            assert gateway.sold == 10
            taking.cancel()
            await asyncio.wait([taking])
        view.kill()
    assert await a_run(shared, name, gateway, foxes(30), TEN[name]["max_credits"]) == (0, True)
    assert now() < 600


@virtually
async def test_jobs_of_a_killed_run_count_once_their_price_is_known() -> None:
    gateway, shared = charging_gateway("defapi", job_s=60.0), SharedLedger()
    view = LedgerView(shared)
    async with a_session("defapi", gateway.transport(), ledger=view) as session:
        batch = session.generate_many(foxes(4), batch="spring")
        taking = asyncio.Task(anext(batch))
        await asyncio.sleep(30.0)
        assert gateway.sold == 4  # no cap holds them back
        taking.cancel()
        await asyncio.wait([taking])
        await batch.aclose()
        view.kill()
    # Neither the price nor an end was reported yet: the bought job is polled, and reports both.
    assert await a_run(shared, "defapi", gateway, foxes(30), 3) == (2, True)
    assert gateway.taken == 3


@EACH_GATEWAY
@virtually
async def test_a_batch_without_a_name_counts_only_itself(name: GatewayName) -> None:
    gateway = charging_gateway(name)
    async with a_session(name, gateway.transport()) as session:
        for sold in (10, 20):
            run = await run_batch(session, foxes(30), **TEN[name])
            assert run.results == 10
            assert gateway.sold == sold


@virtually
async def test_rows_left_unbought_are_counted_and_withdrawn() -> None:
    gateway, shared = ChargingGateway(), SharedLedger()
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as session:
        run = await run_batch(session, foxes(30), batch="spring", max_credits=80)
        assert run.stopped is not None
        assert session.stats().withdrawn == run.stopped.unbought > 0
    assert sum(state.name == "SUCCEEDED" for state in shared.states().values()) == 10
    assert sum(state.name == "WITHDRAWN" for state in shared.states().values()) == run.stopped.unbought


@virtually
async def test_ended_batch_leaves_no_reservation() -> None:
    gateway = ChargingGateway(job_s=5.0)
    slow = ConcurrencyPolicy(max_jobs=3, learn=False)
    async with a_session("apimall", gateway.transport(), concurrency=slow, max_credits=1000) as session:
        async with session.generate_many([*foxes(8), *foxes(4, word="[fail] owl")], max_credits=90) as batch:
            await anext(batch)
            budgets = budgets_now(session)
            assert len(budgets) == 2
            assert all(budget.reserved for budget in budgets)
            assert all(budget.spent + budget.reserved <= budget.max_credits for budget in budgets)
            async for _ in batch:
                pass
        assert [budget.reserved for budget in budgets] == [0, 0]
        assert [budget.spent for budget in budgets] == [64, 64]
        assert not any(budget._reservations for budget in budgets)
        assert not engine_of(session).store.credits._reservations


def by_images(body: dict[str, Any]) -> Decimal:
    return Decimal(8 * body.get("num_images", 1))


@virtually
async def test_unpriced_class_is_estimated_beside_known_prices() -> None:
    gateway = ChargingGateway(by_images, says="at end")
    rows = [
        {"prompt": "small 0"},
        {"prompt": "big", "num_images": 4},
        *({"prompt": f"small {n}"} for n in range(1, 30)),
    ]
    async with a_session("apimall", gateway.transport()) as session:
        run = await run_batch(session, rows, max_credits=40)
    assert gateway.taken == 40
    assert run.stopped is not None


@pytest.mark.parametrize("name", BOTH)
async def test_charged_failures_stay_spent_when_bought_again(name: GatewayName, tmp_path: Path) -> None:
    gateway = charging_gateway(name, job_s=0.01, refunds=False)
    limit = 12.5 * PRICE[name]
    for _ in range(6):
        async with quick(name, gateway.transport(latency_s=0.001), ledger=tmp_path / "jobs.sqlite") as session:
            await run_batch(session, foxes(10, word="[fail] fox"), batch="spring", max_credits=limit, retry_failed=True)
    assert gateway.sold == 12


async def test_pruned_rows_and_resolved_jobs_stay_spent(tmp_path: Path) -> None:
    gateway, path = charging_gateway("defapi", job_s=0.01, refunds=False), tmp_path / "jobs.sqlite"
    async with quick("defapi", gateway.transport(latency_s=0.001), ledger=path) as session:
        run = await run_batch(session, foxes(2, word="[fail] fox"), batch="spring", max_credits=2)
        for outcome in run.outcomes:
            with pytest.raises(JobFailed):
                await (await session.resolve(outcome.key, buy_again=True))
    assert gateway.taken == 2
    ledger = SqliteLedger(path)
    await ledger.open()
    assert await ledger.prune(datetime(2100, 1, 1, tzinfo=UTC)) == 2
    await ledger.aclose()
    async with quick("defapi", gateway.transport(latency_s=0.001), ledger=path) as session:
        run = await run_batch(session, foxes(2, word="[fail] fox"), batch="spring", max_credits=2)
    assert run.why.message == "max_credits is 2, 2 are spent, and a job for 0.5 would pass it"
    assert gateway.taken == 2


@EACH_GATEWAY
@virtually
async def test_price_above_the_estimate_exceeds_the_cap_by_one_job(name: GatewayName) -> None:
    estimate = Decimal(str(PRICE[name]))
    gateway = charging_gateway(name, price=lambda _: 3 * estimate)
    events: list[Event] = []
    async with a_session(name, gateway.transport(), observers=[events.append]) as session:
        run = await run_batch(session, foxes(20), max_credits=2 * estimate)
    assert (gateway.sold, run.results) == (1, 1)
    (dear,) = [event for event in events if isinstance(event, PriceAboveEstimate)]
    assert (dear.estimate, dear.record.credits_used) == (estimate, 3 * estimate)
