"""defapi on the emulator, which calls back over real sockets: few queries, no delay, nothing bought twice or lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Unpack

import pytest

from nanobanana_async import ConcurrencyPolicy, JobState, Outcome, Session
from nanobanana_async.emulator import Emulator, EmulatorOptions, EmulatorStats, Fixed, LogNormal, RandomFault, faults
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.callbacks import received
from tests.support.ledger_file import written
from tests.support.loopback import RecordingObserver, emulated, until

pytestmark = pytest.mark.slow

LOST = RandomFault(0.2, faults.reset(processed=True), "defapi.create")


@asynccontextmanager
async def gateway(
    tmp_path: Path, max_jobs: int | None = None, **options: Unpack[EmulatorOptions]
) -> AsyncIterator[tuple[Emulator, Session]]:
    """Run an emulator, and an app with a session on a file; `max_jobs` sets its limit."""
    settings: EmulatorOptions = {"job_limit": 20, "duration": LogNormal(median_s=0.6, sigma=0.4), "seed": 1}
    settings.update(options)
    async with emulated(**settings) as emulator:
        concurrency = ConcurrencyPolicy(max_jobs=max_jobs)
        session = Session(emulator.defapi(), ledger=tmp_path / "jobs.sqlite", concurrency=concurrency)
        async with received(session), session:
            yield emulator, session


async def buy(session: Session, count: int) -> list[Outcome]:
    return [row async for row in session.generate_many(f"fox {number}" for number in range(count))]


def well(stats: EmulatorStats, count: int) -> bool:
    return (stats.creates_accepted, stats.double_charges, stats.callbacks_failed) == (count, 0, 0)


async def test_callbacks_leave_about_one_poll_per_job(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (emulator, session):
        outcomes = await buy(session, 60)
        stats = emulator.stats()
    assert all(outcome.ok for outcome in outcomes)
    assert well(stats, 60)
    assert stats.polls_per_job_mean <= 1.2  # how soon it is seen: `python -m benchmarks callbacks`


async def test_dropped_and_repeated_callbacks_end_all_jobs_once(tmp_path: Path) -> None:
    options: EmulatorOptions = {"callback_drop_probability": 1 / 3, "callback_duplicate_probability": 1 / 3}
    async with gateway(tmp_path, **options) as (emulator, session):
        outcomes = await buy(session, 30)
        stats = emulator.stats()
    assert all(outcome.ok for outcome in outcomes)
    assert well(stats, 30)
    assert stats.callbacks_dropped > 0
    assert stats.polls_per_job_mean <= 4.0


async def test_callbacks_resolve_unanswered_creates(tmp_path: Path) -> None:
    # The limit is set, since a lost refusal leaves a doubt that no callback can resolve.
    async with gateway(tmp_path, max_jobs=20, random_faults=[LOST]) as (emulator, session):
        outcomes = await buy(session, 60)
        doubtful = [outcome.key for outcome in outcomes if not outcome.ok]
        assert len(doubtful) == emulator.stats().lost_creates > 0
        await until(lambda: emulator.stats().running_now == 0, timeout_s=15.0)
        await until(lambda: session.stats().uncertain == 0 and session.stats().slots_held == 0, timeout_s=15.0)
        for key in doubtful:
            job = await session.job(key)
            assert job is not None
            assert (await job).images
        stats = emulator.stats()
    assert well(stats, 60)
    assert {record.state for record in (await written(tmp_path / "jobs.sqlite")).values()} == {JobState.SUCCEEDED}


async def test_callback_behind_a_balancer_reaches_the_owner(tmp_path: Path) -> None:
    async with emulated(duration=Fixed(0.3)) as emulator:
        observer = RecordingObserver()
        buyer = Session(emulator.defapi(), ledger=tmp_path / "jobs.sqlite")
        other = Session(emulator.defapi(), ledger=tmp_path / "jobs.sqlite", observers=[observer])
        async with received(other) as (url,), other:
            CallbackReceiver(buyer, public_url=url)
            async with buyer, asyncio.timeout(4.0):
                outcomes = await buy(buyer, 10)
        stats = emulator.stats()
    assert all(outcome.ok for outcome in outcomes)
    assert well(stats, 10)
    assert stats.polls_per_job_mean <= 1.2
    assert observer.events == []
