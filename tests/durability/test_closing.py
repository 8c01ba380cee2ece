"""A session closed with creates in flight: answers in time are stored, the rest waits for `resume()`."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from nanobanana_async import (
    ConcurrencyPolicy,
    GenerationResult,
    JobState,
    JobUncertain,
    Session,
    SessionClosed,
    Timeouts,
)
from nanobanana_async.emulator import Emulator, Fault, Fixed, faults
from nanobanana_async.errors import NanoBananaError
from tests.support.ledger_file import Outcome, all_keys, written
from tests.support.loopback import BOTH, CREATE, GatewayName, charged, emulated, quick, received

KEYS = [f"row-{number}" for number in range(4)]
ALL_SLOTS = ConcurrencyPolicy(max_jobs=len(KEYS), learn=False)


async def closed_during_posts(
    emulator: Emulator, name: GatewayName, path: Path, fault: Fault, *, close_s: float
) -> float:
    """Send a create for each row, close the session, and return how long closing took."""
    emulator.queue_faults(CREATE[name], *[fault] * len(KEYS))
    session = quick(emulator, name, ledger=path, timeouts=Timeouts(close_s=close_s), concurrency=ALL_SLOTS)
    await session.open()
    callers = asyncio.Task(all_keys(session, KEYS))
    await received(emulator, creates=len(KEYS))
    began_at = asyncio.get_running_loop().time()
    await session.aclose()
    took_s = asyncio.get_running_loop().time() - began_at
    assert {type(each) for each in (await callers).values()} == {SessionClosed}
    return took_s


async def resumed(session: Session) -> dict[str, Outcome]:
    """Resume, and wait for the outcome of each job."""
    found: dict[str, Outcome] = {}
    for job in await session.resume():
        try:
            found[job.key] = await job
        except NanoBananaError as error:
            found[job.key] = error
    return found


async def states(path: Path) -> Counter[JobState]:
    return Counter(record.state for record in (await written(path)).values())


@pytest.mark.parametrize("name", BOTH)
async def test_answer_during_close_is_stored_and_followed_later(tmp_path: Path, name: GatewayName) -> None:
    path = tmp_path / "jobs.sqlite"
    async with emulated(duration=Fixed(0.05), double_charges_by="prompt") as emulator:
        took_s = await closed_during_posts(emulator, name, path, faults.delay(0.3), close_s=5.0)
        assert 0.1 < took_s < 2.0
        records = await written(path)
        assert {record.state for record in records.values()} == {JobState.RUNNING}
        assert {record.task_id for record in records.values()} == {job.task_id for job in emulator.jobs()}
        async with quick(emulator, name, ledger=path) as session:
            found = await resumed(session)
        assert {key: type(each) for key, each in found.items()} == dict.fromkeys(KEYS, GenerationResult)
        assert emulator.stats().creates_received == len(KEYS)
        assert charged(emulator.stats(), len(KEYS))


@pytest.mark.parametrize(
    "fault", [faults.stall(30.0, processed=True), faults.stall(30.0)], ids=["bought", "not bought"]
)
async def test_apimall_unanswered_create_is_finished_by_resume_once(tmp_path: Path, fault: Fault) -> None:
    path = tmp_path / "jobs.sqlite"
    async with emulated(duration=Fixed(0.05), double_charges_by="prompt") as emulator:
        took_s = await closed_during_posts(emulator, "apimall", path, fault, close_s=0.3)
        assert took_s < 1.5
        assert await states(path) == {JobState.SUBMITTING: len(KEYS)}
        async with quick(emulator, "apimall", ledger=path) as session:
            found = await resumed(session)
        assert {key: type(each) for key, each in found.items()} == dict.fromkeys(KEYS, GenerationResult)
        assert await states(path) == {JobState.SUCCEEDED: len(KEYS)}
        assert charged(emulator.stats(), len(KEYS))


@pytest.mark.parametrize("bought", [True, False])
async def test_defapi_unanswered_create_becomes_uncertain_and_is_not_resent(tmp_path: Path, bought: bool) -> None:
    path = tmp_path / "jobs.sqlite"
    async with emulated(duration=Fixed(0.05), double_charges_by="prompt") as emulator:
        stall = faults.stall(30.0, processed=bought)
        took_s = await closed_during_posts(emulator, "defapi", path, stall, close_s=0.3)
        assert took_s < 1.5
        assert await states(path) == {JobState.SUBMITTING: len(KEYS)}
        async with quick(emulator, "defapi", ledger=path) as session:
            found = await resumed(session)
            again = await all_keys(session, KEYS)
        for outcomes in (found, again):
            assert {key: type(each) for key, each in outcomes.items()} == dict.fromkeys(KEYS, JobUncertain)
        assert await states(path) == {JobState.UNCERTAIN: len(KEYS)}
        assert emulator.stats().creates_received == len(KEYS)
        assert charged(emulator.stats(), len(KEYS) if bought else 0)
