"""Prices: several classes, changing prices, decimals, and gateways that never report a price."""

from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import CreditLimitReached, GenerationResult
from tests.credits.fakes import (
    BOTH,
    ChargingGateway,
    GatewayName,
    a_session,
    budget_of,
    charging_gateway,
    engine_of,
    foxes,
    run_batch,
)
from tests.support.fakes import now, virtually
from tests.support.shared_ledger import LedgerView, SharedLedger

EACH_GATEWAY = pytest.mark.parametrize("name", BOTH)
BY_SIZE = {"1K": Decimal(8), "2K": Decimal(12), "4K": Decimal(16)}


def by_size(body: dict[str, Any]) -> Decimal:
    return BY_SIZE[body["resolution"]] * int(body.get("num_images", 1))


def mixed(count: int, **facts: Any) -> list[dict[str, Any]]:
    sizes = list(BY_SIZE)
    return [{"prompt": f"fox {number}", "resolution": sizes[number % 3], **facts} for number in range(count)]


@pytest.mark.parametrize("limit", [160, 167])
@virtually
async def test_each_class_has_its_price_within_the_cap(limit: int) -> None:
    gateway = ChargingGateway(by_size)
    async with a_session("apimall", gateway.transport()) as session:
        run = await run_batch(session, mixed(60), max_credits=limit)
        assert session.stats().credits_spent == gateway.taken == gateway.peak
    assert limit - min(BY_SIZE.values()) < gateway.taken <= limit  # what was pulled with the one too many may still fit
    assert "would pass it" in str(run.why)


@virtually
async def test_jobs_of_unknown_price_go_one_at_a_time_across_all_classes() -> None:
    gateway = ChargingGateway(by_size, says="at end")
    async with a_session("apimall", gateway.transport()) as session:
        run = await run_batch(session, mixed(3), max_credits=1000)
        assert (run.results, gateway.most_at_once) == (3, 1)  # each of them is the first of its class
        run = await run_batch(session, mixed(12), max_credits=1000)
        assert gateway.most_at_once == 12


@virtually
async def test_several_images_are_a_price_class() -> None:
    gateway = ChargingGateway(by_size)
    rows = [{"prompt": "a fox", "resolution": "1K", "num_images": number} for number in (1, 2, 3, 1, 2, 3)]
    async with a_session("apimall", gateway.transport()) as session:
        run = await run_batch(session, rows, max_credits=72)
    assert sorted(sale.price for sale in gateway.sales.values()) == [8, 8, 16, 16, 24]
    assert "a job for 24 would pass it" in str(run.why)


@virtually
async def test_prices_of_several_classes_are_learned_from_the_ledger() -> None:
    gateway, shared = ChargingGateway(by_size, says="at end"), SharedLedger()
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as session:
        await run_batch(session, mixed(6), batch="spring", max_credits=1000)
    gateway.most_at_once = 0
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as session:
        run = await run_batch(session, mixed(60), batch="spring", max_credits=160)
        assert run.stopped is not None
    assert 160 - min(BY_SIZE.values()) < gateway.taken <= 160
    assert gateway.most_at_once > len(BY_SIZE)


@EACH_GATEWAY
@virtually
async def test_higher_price_applies_from_its_first_report(name: GatewayName) -> None:
    old, new = (Decimal(8), Decimal(16)) if name == "apimall" else (Decimal("0.5"), Decimal(1))
    gateway = charging_gateway(name, price=lambda _: old if now() < 100 else new)
    async with a_session(name, gateway.transport(), max_credits=100 * old) as session:
        await session.generate("a fox")
        while now() < 100:
            await session.generate("an owl")
        await session.generate("a crow")
        spent = budget_of(session).spent
        run = await run_batch(session, foxes(200))
        assert run.results == (100 * old - spent) // new
        assert gateway.taken <= 100 * old
        assert budget_of(session).reserved == 0


@virtually
async def test_unreported_higher_price_exceeds_the_cap_by_jobs_in_flight_only() -> None:
    gateway = charging_gateway("defapi", price=lambda _: Decimal("0.5") if now() < 50 else Decimal(1))
    async with a_session("defapi", gateway.transport()) as session:
        while now() < 50:
            await session.generate("a fox")
        run = await run_batch(session, foxes(200), max_credits=10)
        assert run.results == 20  # the price was unknown; then it stops
        assert session.stats().credits_spent == gateway.taken


@virtually
async def test_lower_price_lets_more_be_bought() -> None:
    gateway = ChargingGateway(lambda _: Decimal(8) if now() < 50 else Decimal(4))
    async with a_session("apimall", gateway.transport(), max_credits=80) as session:
        while now() < 50:
            await session.generate("a fox")
        spent = budget_of(session).spent
        run = await run_batch(session, foxes(200))
        assert run.results == (80 - spent) // 4
        assert gateway.taken == 80


@pytest.mark.parametrize(
    ("price", "limit", "sold"),
    [
        ("0.1", 0.3, 3),
        ("0.1", Decimal("0.3"), 3),
        ("0.10", 1, 10),
        ("0.07", 0.7, 10),
        ("1.1", 3.3, 3),
        ("0.000001", Decimal("0.000003"), 3),
    ],
)
@EACH_GATEWAY
@virtually
async def test_decimals_are_counted_exactly(name: GatewayName, price: str, limit: Any, sold: int) -> None:
    gateway = charging_gateway(name, price=price)
    async with a_session(name, gateway.transport(), max_credits=limit) as session:
        run = await run_batch(session, foxes(sold + 3), expected_credits=Decimal(price))
        assert (run.results, gateway.sold) == (sold, sold)
        assert budget_of(session).spent == gateway.taken == Decimal(str(limit))


@EACH_GATEWAY
@virtually
async def test_gateway_without_prices_sells_one_job(name: GatewayName) -> None:
    gateway = charging_gateway(name, says="never")
    async with a_session(name, gateway.transport()) as session:
        run = await run_batch(session, foxes(20), max_credits=100)
        assert (gateway.sold, run.results) == (1, 1)
        assert "bought at an estimate, and its cost is still unknown" in str(run.why)
        assert "set expected_credits to what such jobs cost" in str(run.why)
        run = await run_batch(session, foxes(20), max_credits=80, expected_credits=8)
        assert (gateway.sold, run.results) == (11, 10)
        assert "max_credits is 80, 80 are spent, and a job for 8 would pass it" in str(run.why)
        assert not engine_of(session).store.credits._reservations


@virtually
async def test_gateway_without_prices_and_a_session_cap() -> None:
    gateway = charging_gateway("defapi", says="never")
    async with a_session("defapi", gateway.transport(), max_credits=4) as session:
        assert isinstance(await session.generate("a fox"), GenerationResult)
        with pytest.raises(CreditLimitReached, match="set expected_credits to what such jobs cost"):
            await session.generate("an owl")
        run = await run_batch(session, foxes(20), expected_credits=0.5)
        assert run.results == 7


@virtually
async def test_expected_price_counts_in_all_runs_of_a_batch() -> None:
    gateway, shared = charging_gateway("defapi", says="never"), SharedLedger()
    for sold, limit in ((10, 5), (10, 5), (14, 7)):
        async with a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as session:
            await run_batch(session, foxes(40), batch="spring", max_credits=limit, expected_credits=0.5)
        assert gateway.sold == sold


@virtually
async def test_reported_price_overrides_expected_credits() -> None:
    gateway = ChargingGateway()
    async with a_session("apimall", gateway.transport()) as session:
        await run_batch(session, foxes(1), max_credits=8, expected_credits=4)
        run = await run_batch(session, foxes(40), max_credits=80, expected_credits=4)
        assert run.results == 10
        assert session.stats().credits_spent == 88


@virtually
async def test_a_free_job_costs_nothing_and_is_always_bought() -> None:
    gateway = ChargingGateway("0")
    async with a_session("apimall", gateway.transport()) as session:
        run = await run_batch(session, foxes(40), max_credits=1, expected_credits=0)
        assert (run.results, run.stopped) == (40, None)


@virtually
async def test_unreported_price_is_not_zero() -> None:
    class Late(ChargingGateway):
        """Says 0 at the create, and what it took at the end."""

        def _create(self, request: Any) -> Any:
            reply: Any = super()._create(request)
            body = reply.body.replace(b'"credits_used": "8"', b'"credits_used": 0')
            assert body != reply.body
            return type(reply)(status=200, headers={}, body=body)

    gateway = Late()
    async with a_session("apimall", gateway.transport(), max_credits=80) as session:
        run = await run_batch(session, foxes(40))
        assert run.results == 10
        assert gateway.taken == 80
        assert budget_of(session).reserved == 0
