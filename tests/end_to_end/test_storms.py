"""Many random faults at once: charges and results stay consistent."""

from collections import Counter

import pytest
from attrs import evolve

from nanobanana_async import GenerationResult, JobUncertain
from nanobanana_async.emulator import Emulator, Fixed, RandomFault, faults
from nanobanana_async.emulator.settings import Idempotency
from tests.support.loopback import CREATE, QUERY, QUICK_RETRIES, GatewayName, emulated, quick, together

pytestmark = pytest.mark.slow

JOBS = 60
# A repeat comes when the job may have ended: a key that is still in work is seldom met.
PATIENT = evolve(QUICK_RETRIES, first_backoff_s=0.04, max_backoff_s=0.2)


def chances(name: GatewayName) -> list[RandomFault]:
    return [
        RandomFault(chance, fault, endpoint)
        for endpoint in (CREATE[name], QUERY[name])
        for chance, fault in (
            (0.2, faults.reset(processed=True)),
            (0.05, faults.error(503)),
            (0.05, faults.garbage()),
        )
    ]


def charges(emulator: Emulator) -> Counter[str]:
    return Counter(job.prompt for job in emulator.jobs())


@pytest.mark.parametrize("manner", ["replay", "conflict", "forget"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_random_faults_on_apimall_end_in_one_charge_each(seed: int, manner: Idempotency) -> None:
    prompts = [f"fox {number}" for number in range(JOBS)]
    async with emulated(
        seed=seed, random_faults=chances("apimall"), idempotency=manner, double_charges_by="prompt", job_limit=25
    ) as emulator:
        async with quick(emulator, retry=PATIENT) as session:
            results = await together(session, prompts)
            assert session.stats().credits_spent == 8 * JOBS
        assert [type(result) for result in results] == [GenerationResult] * JOBS
        assert charges(emulator) == Counter(prompts)
        assert emulator.stats().double_charges == 0
        assert emulator.stats().lost_creates > 0


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_faults_on_defapi_charge_at_most_once(seed: int) -> None:
    prompts = [f"fox {number}" for number in range(JOBS)]
    async with emulated(seed=seed, random_faults=chances("defapi"), double_charges_by="prompt") as emulator:
        async with quick(emulator, "defapi") as session:
            results = await together(session, prompts)
            stats = session.stats()
        seen, bought = emulator.stats(), charges(emulator)
    ended = list(zip(prompts, results, strict=True))
    succeeded = {prompt for prompt, result in ended if isinstance(result, GenerationResult)}
    uncertain = {prompt for prompt, result in ended if isinstance(result, JobUncertain)}
    assert len(succeeded) + len(uncertain) == JOBS
    assert (stats.succeeded, stats.uncertain) == (len(succeeded), len(uncertain))
    assert succeeded
    assert uncertain
    assert seen.creates_received == JOBS
    assert set(bought.values()) == {1}
    assert succeeded <= set(bought)
    assert len(bought) == len(succeeded) + len(uncertain & set(bought))
    assert len(uncertain & set(bought)) == seen.lost_creates
    assert seen.double_charges == 0


async def test_lost_answers_and_failures_keep_credits_consistent() -> None:
    async with emulated(seed=3, random_faults=chances("apimall"), job_limit=15, failure_probability=0.2) as emulator:
        async with quick(emulator, retry=PATIENT) as session:
            results = await together(session, [f"fox {number}" for number in range(JOBS)])
            stats = session.stats()
        seen = emulator.stats()
    good = sum(isinstance(result, GenerationResult) for result in results)
    assert (stats.succeeded, stats.failed) == (good, JOBS - good)
    assert (seen.creates_accepted, seen.double_charges, seen.failed) == (JOBS, 0, JOBS - good)
    assert stats.credits_spent == seen.credits_charged - seen.credits_refunded == 8 * good


async def test_outage_on_defapi_makes_only_a_few_jobs_uncertain() -> None:
    async with emulated(duration=Fixed(0.02)) as emulator:
        emulator.queue_faults("defapi.create", *[faults.html(502)] * 10)
        async with quick(emulator, "defapi") as session:
            results = await together(session, [f"fox {number}" for number in range(JOBS)])
        seen = emulator.stats()
    uncertain = sum(isinstance(result, JobUncertain) for result in results)
    assert uncertain == 10
    assert sum(isinstance(result, GenerationResult) for result in results) == JOBS - uncertain
    assert (seen.creates_received, seen.creates_accepted, seen.double_charges) == (JOBS, JOBS - uncertain, 0)
