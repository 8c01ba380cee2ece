"""Many repeated creates after an outage: they must not starve each other."""

import asyncio

import pytest
from attrs import evolve

from nanobanana_async import GenerationResult
from nanobanana_async.emulator import Fixed, faults
from tests.support.loopback import QUICK_RETRIES, charged, emulated, outcome, quick, received, together

pytestmark = pytest.mark.slow


async def test_probe_leaves_when_the_circuit_breaker_allows() -> None:
    async with emulated() as emulator:
        emulator.queue_faults("apimall.create", *[faults.reset(processed=True)] * 10)
        async with quick(emulator) as session:
            results = await together(session, [f"fox {number}" for number in range(10)])
        assert all(isinstance(result, GenerationResult) for result in results)
        assert charged(emulator.stats(), 10)
        assert emulator.now() < 1.5


@pytest.mark.parametrize("status", [409, 429])
async def test_waiting_uncertain_create_leaves_retry_budget_for_others(status: int) -> None:
    retry = evolve(QUICK_RETRIES, max_attempts=1000, max_backoff_s=0.01)
    async with emulated(duration=Fixed(0.02)) as emulator:
        walls = [faults.error(status)] * 80
        emulator.queue_faults("apimall.create", faults.reset(processed=True), *walls)
        async with quick(emulator, retry=retry) as session, asyncio.timeout(1), asyncio.TaskGroup() as group:
            patient = group.create_task(outcome(session, "a fox"))
            await received(emulator, 40)
        assert isinstance(patient.result(), GenerationResult)
        assert charged(emulator.stats(), 1)


async def test_repeated_429s_increase_the_backoff_of_an_uncertain_create() -> None:
    retry = evolve(QUICK_RETRIES, first_backoff_s=0.02, max_backoff_s=1.0)
    async with emulated() as emulator:
        emulator.queue_faults("apimall.create", faults.reset(processed=True), *[faults.error(429)] * 99)
        async with quick(emulator, retry=retry) as session:
            await outcome(session, "a fox", timeout=1.0)
        assert charged(emulator.stats(), 1)
        assert emulator.stats().creates_received < 15
