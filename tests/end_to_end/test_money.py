"""Credits: spent, refunded, remaining, and exhausted."""

from decimal import Decimal

import pytest

from nanobanana_async import GenerationResult, InsufficientCredits, JobFailed
from nanobanana_async.emulator import faults
from tests.support.loopback import BOTH, GatewayName, charged, emulated, outcome, quick, together

PRICE: dict[GatewayName, Decimal] = {"apimall": Decimal(8), "defapi": Decimal("0.5")}


@pytest.mark.parametrize("name", BOTH)
async def test_result_has_its_price(name: GatewayName) -> None:
    async with emulated(credits=100) as emulator, quick(emulator, name) as session:
        result = await session.generate("a fox")
        assert result.credits == PRICE[name]
        assert session.stats().credits_spent == PRICE[name]
        assert emulator.stats().credits_charged == PRICE[name]


async def test_4k_and_several_images_cost_the_gateways_price() -> None:
    async with emulated() as emulator, quick(emulator) as session:
        large = await session.generate("a fox", resolution="4K")
        several = await session.generate("a fox", num_images=3)
        assert large.credits == 16
        assert several.credits == 24
        assert session.stats().credits_spent == 40


@pytest.mark.parametrize("name", BOTH)
async def test_refunded_failure_costs_nothing(name: GatewayName) -> None:
    async with emulated(credits=100) as emulator:
        async with quick(emulator, name) as session:
            job = await session.submit("a [fail] fox")
            with pytest.raises(JobFailed):
                await job
            assert job.credits == 0
            assert (await session.generate("an owl")).credits == PRICE[name]
            assert session.stats().credits_spent == PRICE[name]
            assert (session.stats().succeeded, session.stats().failed) == (1, 1)
        seen = emulator.stats()
        assert seen.credits_charged - seen.credits_refunded == PRICE[name]


@pytest.mark.parametrize("name", BOTH)
async def test_failure_without_refund_is_paid(name: GatewayName) -> None:
    async with emulated(refund_on_failure=False) as emulator, quick(emulator, name) as session:
        assert isinstance(await outcome(session, "a [fail] fox"), JobFailed)
        assert session.stats().credits_spent == PRICE[name]


async def test_remaining_credits_come_from_apimall_only() -> None:
    async with emulated(credits=100) as emulator:
        async with quick(emulator) as session:
            assert session.stats().credits_remaining is None
            for left in (92, 84):
                await session.generate("a fox")
                assert session.stats().credits_remaining == left
        async with quick(emulator, "defapi") as session:
            await session.generate("a fox")
            assert session.stats().credits_remaining is None
        assert emulator.stats().credits_remaining == Decimal("83.5")


@pytest.mark.parametrize("name", BOTH)
async def test_jobs_without_credits_are_refused(name: GatewayName) -> None:
    async with emulated(credits=5 * PRICE[name]) as emulator:
        async with quick(emulator, name) as session:
            results = await together(session, [f"fox {number}" for number in range(12)])
            assert session.stats().credits_spent == 5 * PRICE[name]
            assert session.stats().refused == 7
        assert sum(isinstance(result, GenerationResult) for result in results) == 5
        refusals = [result for result in results if isinstance(result, InsufficientCredits)]
        assert len(refusals) == 7
        assert all(refusal.safe_to_repeat and refusal.key for refusal in refusals)
        assert charged(emulator.stats(), 5)
        assert emulator.stats().credits_remaining == 0


@pytest.mark.parametrize("name", BOTH)
async def test_refused_job_is_bought_once_after_a_top_up(name: GatewayName) -> None:
    async with emulated(credits=0) as emulator, quick(emulator, name) as session:
        for _ in range(2):
            with pytest.raises(InsufficientCredits):
                await session.generate("a fox", idempotency_key="fox-1")
        emulator.add_credits(PRICE[name])
        assert (await session.generate("a fox", idempotency_key="fox-1")).credits == PRICE[name]
        assert charged(emulator.stats(), 1)


async def test_lost_answer_of_the_last_credits_is_recovered() -> None:
    async with emulated(credits=8) as emulator:
        emulator.queue_faults("apimall.create", faults.reset(processed=True))
        async with quick(emulator) as session:
            assert (await session.generate("a fox")).credits == 8
            with pytest.raises(InsufficientCredits):
                await session.generate("an owl")
        assert charged(emulator.stats(), 1)
