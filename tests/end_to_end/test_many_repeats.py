"""Many repeated creates after an outage, on virtual time: they must not starve each other."""

import asyncio

import pytest
from attrs import evolve

from nanobanana_async import ApiMall, GenerationResult, RetryPolicy, Session
from nanobanana_async.emulator import API_KEY, Fault, Fixed, RandomFault, faults
from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.testing import EmulatorTransport
from tests.support.fakes import now, virtually
from tests.support.loopback import QUICK_POLLS, QUICK_RETRIES, charged, outcome, together

NO_HISTORY = RandomFault(1.0, faults.error(404), "apimall.history")


def gateway(*creates: Fault, duration_s: float = 0.01) -> GatewaySimulator:
    """Return API Mall without a list of tasks, with these faults of its next creates."""
    simulator = GatewaySimulator(EmulatorSettings(duration=Fixed(duration_s), random_faults=[NO_HISTORY]))
    simulator.queue_faults("apimall.create", *creates)
    return simulator


def session_of(simulator: GatewaySimulator, retry: RetryPolicy = QUICK_RETRIES) -> Session:
    transport = EmulatorTransport(simulator, api_key=API_KEY, latency_s=0.002)
    apimall = ApiMall(api_key=API_KEY, expected_job_s=0.01, history_delay_s=0.01)
    return Session(apimall, http=transport, polling=QUICK_POLLS, retry=retry)


@virtually
async def test_probe_leaves_when_the_circuit_breaker_allows() -> None:
    simulator = gateway(*[faults.reset(processed=True)] * 10)
    async with session_of(simulator) as session:
        results = await together(session, [f"fox {number}" for number in range(10)])
    assert all(isinstance(result, GenerationResult) for result in results)
    assert charged(simulator.stats(now()), 10)
    assert now() < 1.5


@pytest.mark.parametrize("status", [409, 429])
@virtually
async def test_waiting_uncertain_create_leaves_retry_budget_for_others(status: int) -> None:
    retry = evolve(QUICK_RETRIES, max_attempts=1000, max_backoff_s=0.01)
    simulator = gateway(faults.reset(processed=True), *[faults.error(status)] * 80, duration_s=0.02)
    async with session_of(simulator, retry) as session, asyncio.timeout(1):
        assert isinstance(await outcome(session, "a fox"), GenerationResult)
    assert charged(simulator.stats(now()), 1)


@virtually
async def test_repeated_429s_increase_the_backoff_of_an_uncertain_create() -> None:
    retry = evolve(QUICK_RETRIES, first_backoff_s=0.02, max_backoff_s=1.0)
    simulator = gateway(faults.reset(processed=True), *[faults.error(429)] * 99)
    async with session_of(simulator, retry) as session:
        await outcome(session, "a fox", timeout=1.0)
    assert charged(simulator.stats(now()), 1)
    assert simulator.stats(now()).creates_received < 15
