"""A fifth of the create answers is lost, over real sockets, on a ledger in a file."""

from collections import Counter
from pathlib import Path

import pytest

from nanobanana_async import GenerationResult, JobState, JobUncertain
from nanobanana_async.emulator import RandomFault, faults
from nanobanana_async.emulator.settings import Idempotency
from tests.support.ledger_file import all_keys, written
from tests.support.loopback import CREATE, GatewayName, charged, emulated, quick

pytestmark = pytest.mark.slow

KEYS = [f"row-{number}" for number in range(100)]


def losing(name: GatewayName) -> list[RandomFault]:
    return [RandomFault(0.2, faults.reset(processed=True), CREATE[name])]


@pytest.mark.parametrize("manner", ["replay", "conflict"])
async def test_apimall_lost_answers_end_in_one_charge_each(tmp_path: Path, manner: Idempotency) -> None:
    path = tmp_path / "jobs.sqlite"
    async with emulated(
        random_faults=losing("apimall"), job_limit=30, idempotency=manner, double_charges_by="prompt"
    ) as emulator:
        async with quick(emulator, ledger=path) as session:
            outcomes = await all_keys(session, KEYS)
            assert session.stats().credits_spent == 8 * len(KEYS)
        assert {type(each) for each in outcomes.values()} == {GenerationResult}
        assert emulator.stats().lost_creates > 10
        assert charged(emulator.stats(), len(KEYS))
        assert Counter(record.state for record in (await written(path)).values()) == {JobState.SUCCEEDED: len(KEYS)}
        creates = emulator.stats().creates_received
        async with quick(emulator, ledger=path) as session:
            assert await session.resume(buy=True) == []
            again = await all_keys(session, KEYS)
        assert [each.images for each in again.values() if isinstance(each, GenerationResult)] == [
            each.images for each in outcomes.values() if isinstance(each, GenerationResult)
        ]
        assert emulator.stats().creates_received == creates


async def test_defapi_lost_answers_are_uncertain_and_not_resent(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    async with emulated(random_faults=losing("defapi"), double_charges_by="prompt") as emulator:
        async with quick(emulator, "defapi", ledger=path) as session:
            outcomes = await all_keys(session, KEYS)
        seen = emulator.stats()
        doubtful = {key for key, each in outcomes.items() if isinstance(each, JobUncertain)}
        well = {key for key, each in outcomes.items() if isinstance(each, GenerationResult)}
        assert len(doubtful) == seen.lost_creates > 10
        assert doubtful | well == set(KEYS)
        assert charged(seen, len(KEYS))
        assert seen.creates_received == len(KEYS)
        records = await written(path)
        assert {key for key, record in records.items() if record.state is JobState.UNCERTAIN} == doubtful
        async with quick(emulator, "defapi", ledger=path) as session:
            assert await session.resume(buy=True) == []
            again = await all_keys(session, KEYS)
        assert {key for key, each in again.items() if isinstance(each, JobUncertain)} == doubtful
        assert {key for key, each in again.items() if isinstance(each, GenerationResult)} == well
        assert all(not each.safe_to_repeat for each in again.values() if isinstance(each, JobUncertain))
        assert emulator.stats().requests == seen.requests
