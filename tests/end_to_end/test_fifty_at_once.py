"""Fifty jobs at once against a hidden limit of ten."""

import asyncio

import pytest

from nanobanana_async import GenerationResult, JobState
from nanobanana_async.emulator import Fixed
from nanobanana_async.emulator.settings import RetryAfter
from tests.support.clocks import leap
from tests.support.loopback import BOTH, GatewayName, RecordingObserver, charged, emulated, quick, together, until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("states_kind", [True, False], ids=["kind stated", "kind unstated"])
@pytest.mark.parametrize("name", BOTH)
async def test_fifty_jobs_against_a_hidden_limit_of_ten(name: GatewayName, states_kind: bool) -> None:
    before = asyncio.all_tasks()
    listener = RecordingObserver()
    first: list[float] = []
    async with emulated(
        job_limit=10, states_429_kind=states_kind, duration=lambda _: first.pop() if first else 0.1
    ) as emulator:
        async with quick(emulator, name, observers=[listener]) as session:
            first += [60.0] * 10  # these run at the same time, until the clock leaps
            buying = asyncio.Task(together(session, [f"fox {number}" for number in range(50)]))
            await until(lambda: emulator.stats().running_now == 10)
            await asyncio.sleep(1.0)  # the others ask for a slot, and learn that there are ten
            leap(60.0)
            results = await buying
            stats = session.stats()
        assert session.stats().requests_in_flight == 0
        await emulator.wait_for_no_connections()
        seen = emulator.stats()
    assert all(isinstance(result, GenerationResult) for result in results)
    assert len({result.task_id for result in results if isinstance(result, GenerationResult)}) == 50
    assert (stats.succeeded, stats.slots_held, stats.queued) == (50, 0, 0)
    assert charged(seen, 50)
    assert seen.running_max == 10
    assert seen.refusals_429.get("jobs", 0) <= 25
    assert seen.open_connections == 0
    assert listener.states.count(JobState.SUCCEEDED) == 50
    assert asyncio.all_tasks() == before


async def test_limit_can_count_images() -> None:
    async with emulated(job_limit=6, limit_counts="images") as emulator:
        gateway = emulator.apimall(expected_job_s=0.05, slots_per_image=True)
        async with quick(emulator, gateway=gateway) as session:
            results = await together(session, [f"fox {number}" for number in range(9)], num_images=3)
        seen = emulator.stats()
    assert [len(result.images) for result in results if isinstance(result, GenerationResult)] == [3] * 9
    assert charged(seen, 9)
    assert seen.running_max <= 2


@pytest.mark.parametrize("manner", ["seconds", "date"])
async def test_retry_after_pauses_all_creates(manner: RetryAfter) -> None:
    async with emulated(job_limit=0, retry_after=manner, retry_after_s=1.0, duration=Fixed(0.1)) as emulator:
        async with quick(emulator) as session:
            begun_at = emulator.now()
            buying = asyncio.Task(together(session, ["one", "two", "three", "four"]))
            await until(lambda: "jobs" in emulator.stats().refusals_429)
            emulator.set_job_limit(2)
            results = await buying
            took_s = emulator.now() - begun_at
        seen = emulator.stats()
    assert all(isinstance(result, GenerationResult) for result in results)
    assert charged(seen, 4)
    assert seen.refusals_429["jobs"] <= 4
    assert 0.9 < took_s < 5.0


async def test_create_rate_limit_loses_nothing() -> None:
    async with emulated(creates_per_minute=600, rate_burst=5) as emulator:
        async with quick(emulator) as session, asyncio.timeout(8):
            results = await together(session, [f"fox {number}" for number in range(15)])
        seen = emulator.stats()
    assert all(isinstance(result, GenerationResult) for result in results)
    assert charged(seen, 15)


async def test_query_rate_limit_loses_nothing() -> None:
    async with emulated(queries_per_minute=1800, rate_burst=5) as emulator:
        async with quick(emulator) as session:
            results = await together(session, [f"fox {number}" for number in range(15)])
        seen = emulator.stats()
    assert all(isinstance(result, GenerationResult) for result in results)
    assert charged(seen, 15)
