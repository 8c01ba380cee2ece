"""Caps over real sockets: what the emulator charged stays within the cap, also with lost answers."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import CreditLimitReached, GenerationResult, JobUncertain
from nanobanana_async.emulator import Fixed, faults
from tests.credits.fakes import BOTH, FIFTY, GatewayName, budget_of, engine_of, foxes, outcome, run_batch
from tests.support.loopback import CREATE, emulated, quick, together

PRICE: dict[GatewayName, Decimal] = {"apimall": Decimal(8), "defapi": Decimal("0.5")}
EACH_GATEWAY = pytest.mark.parametrize("name", BOTH)


@EACH_GATEWAY
async def test_two_hundred_at_once_are_charged_what_the_session_allows(name: GatewayName) -> None:
    limit = 40 * PRICE[name]
    async with emulated(duration=Fixed(0.05)) as emulator:
        async with quick(emulator, name, max_credits=limit, concurrency=FIFTY) as session:
            answers = await together(session, foxes(200))
            assert session.stats().credits_spent == limit
            assert budget_of(session).reserved == 0
        stats = emulator.stats()
    assert sum(isinstance(answer, GenerationResult) for answer in answers) == 40
    assert sum(isinstance(answer, CreditLimitReached) for answer in answers) == 160
    assert (stats.credits_charged, stats.creates_received) == (limit, 40)


@EACH_GATEWAY
async def test_lost_answers_are_charged_once_and_counted_once(name: GatewayName) -> None:
    limit = 30 * PRICE[name]
    async with emulated(duration=Fixed(0.03)) as emulator:
        losing = (faults.reset(processed=True), None, faults.cut(processed=True), None)
        async with quick(emulator, name, max_credits=limit, concurrency=FIFTY) as session:
            answers: list[Any] = [await session.generate("an owl")]  # it reports the price
            emulator.queue_faults(CREATE[name], *losing * 3)
            answers += await together(session, foxes(100))
            doubts = sum(isinstance(answer, JobUncertain) for answer in answers)
            assert doubts == (0 if name == "apimall" else 6)
            assert budget_of(session).reserved == doubts * PRICE[name]
            assert budget_of(session).spent == limit - doubts * PRICE[name]
        stats = emulator.stats()
    assert sum(isinstance(answer, GenerationResult) for answer in answers) == 30 - doubts
    assert (stats.credits_charged, stats.double_charges) == (limit, 0)


@EACH_GATEWAY
async def test_refunded_failures_make_room_for_others(name: GatewayName) -> None:
    limit = 20 * PRICE[name]
    async with emulated(duration=Fixed(0.02), failure_probability=0.3, seed=3) as emulator:
        async with quick(emulator, name, concurrency=FIFTY) as session:
            run = await run_batch(session, foxes(120), max_credits=limit)
            assert session.stats().credits_spent == limit
            assert not engine_of(session).tracked
        stats = emulator.stats()
    assert run.results == 20
    assert stats.failed > 0
    assert stats.credits_charged - stats.credits_refunded == limit


@EACH_GATEWAY
async def test_a_named_batch_on_disk_keeps_its_limit_over_sessions(name: GatewayName, tmp_path: Path) -> None:
    async with emulated() as emulator:
        charged = []
        for rows, jobs in ((foxes(30), 10), (["an owl", *foxes(30)], 10), (foxes(30), 10.5), (foxes(30), 17)):
            async with quick(emulator, name, ledger=tmp_path / "jobs.sqlite", concurrency=FIFTY) as session:
                await run_batch(session, rows, batch="spring", max_credits=float(PRICE[name]) * jobs)
            charged.append(emulator.stats().credits_charged / PRICE[name])
    assert charged == [10, 10, 10, 17]


@pytest.mark.slow
async def test_remaining_credits_are_a_hint_only() -> None:
    async with emulated(credits=100) as emulator, quick(emulator, max_credits=80) as session:
        await session.generate("a fox")
        assert session.stats().credits_remaining == 92
        assert session.stats().credits_spent == 8
        answers = [await outcome(session, f"fox {number}") for number in range(10)]
        assert sum(isinstance(answer, CreditLimitReached) for answer in answers) == 1
        assert session.stats().credits_remaining == 20
        assert session.stats().credits_spent == 80
