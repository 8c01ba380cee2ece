"""Creates whose answers are lost, at a gateway that answers each repeat with 409: its history shows the tasks."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ConfigurationError, JobState, JobUncertain, RetryPolicy, Session, SqliteLedger
from nanobanana_async.emulator import Emulator, Fixed, RandomFault, faults
from nanobanana_async.errors import TransportError
from nanobanana_async.events import CreateFailed, JobStateChanged
from nanobanana_async.jobs import JobRecord
from nanobanana_async.policy.reconcile import ROUNDING_S
from tests.support.loopback import QUICK_RETRIES, RecordingObserver, charged, emulated, gateway_of, quick

DELAY_S = 0.3
KEY = "fox-1"
LOST = faults.reset(processed=True)
NEVER_ARRIVED = faults.reset(processed=False)
IMPATIENT = RetryPolicy(first_backoff_s=0.05, max_backoff_s=0.5, max_wait_s=4.0)


def patient(emulator: Emulator, **settings: Any) -> Session:
    """Return a session at API Mall, whose history shows a task soon."""
    gateway = gateway_of(emulator, "apimall", history_delay_s=DELAY_S, **settings.pop("mall", {}))
    return quick(emulator, "apimall", **{"gateway": gateway, "retry": QUICK_RETRIES, **settings})


def prompts_by_task(emulator: Emulator) -> dict[str, str]:
    return {job.task_id: job.prompt for job in emulator.jobs()}


async def test_job_whose_answer_is_lost_gets_its_image_from_the_history() -> None:
    async with emulated(history=True, idempotency="refuse") as emulator:
        emulator.queue_faults("apimall.create", LOST)
        observer = RecordingObserver()
        async with patient(emulator, observers=[observer]) as session:
            result = await session.generate("a fox")
            assert session.stats().credits_spent == 8
        assert prompts_by_task(emulator) == {result.task_id: "a fox"}
        assert charged(emulator.stats(), 1)
    assert JobState.UNCERTAIN not in observer.states


async def test_create_that_never_arrived_is_bought_once_its_key_has_expired() -> None:
    async with emulated(history=True) as emulator:
        emulator.queue_faults("apimall.create", NEVER_ARRIVED)
        retry = RetryPolicy(first_backoff_s=0.5)
        async with patient(emulator, mall={"key_lifetime_s": 0.1}, retry=retry, max_credits=8) as session:
            result = await session.generate("a fox")
            assert session.stats().credits_spent == 8
        assert prompts_by_task(emulator) == {result.task_id: "a fox"}
        assert charged(emulator.stats(), 1)
        assert emulator.stats().creates_received == 2


async def test_processed_create_with_an_expired_key_stays_uncertain_with_its_candidate(tmp_path: Path) -> None:
    ledger = tmp_path / "jobs.sqlite"
    async with emulated(history=True) as emulator:
        emulator.queue_faults("apimall.create", LOST)
        retry = RetryPolicy(first_backoff_s=0.5)
        async with patient(emulator, mall={"key_lifetime_s": 0.1}, ledger=ledger, retry=retry) as session:
            with pytest.raises(JobUncertain, match=f"1 task could be it: `nanobanana jobs show {KEY} --ledger"):
                await session.generate("a fox", idempotency_key=KEY)
            assert await session.reconcile() == []
        (bought,) = prompts_by_task(emulator)
        (candidate,) = (await record_of(ledger)).candidates
        assert candidate.task_id == bought
        assert candidate.image_url is not None
        assert charged(emulator.stats(), 1)


async def record_of(ledger: Path) -> JobRecord:
    reader = SqliteLedger(ledger, read_only=True)
    await reader.open()
    try:
        record = await reader.find(KEY)
    finally:
        await reader.aclose()
    assert record is not None
    return record


async def leave_uncertain(emulator: Emulator, ledger: Path) -> None:
    """Buy a job, lose its answer, and let the history be out of order until it is UNCERTAIN."""
    emulator.queue_faults("apimall.history", faults.error(404))
    retry = RetryPolicy(first_backoff_s=0.01, max_backoff_s=0.05, max_wait_s=0.8, max_attempts=2)
    async with patient(emulator, ledger=ledger, retry=retry) as session:
        with pytest.raises(JobUncertain, match="lost"):
            await session.generate("a fox", idempotency_key=KEY)
        with pytest.raises(ConfigurationError, match=r"session\.resolve"):
            await session.reconcile()


async def test_reconcile_finds_the_task_of_an_earlier_session(tmp_path: Path) -> None:
    ledger = tmp_path / "jobs.sqlite"
    async with emulated(history=True, idempotency="refuse") as emulator:
        emulator.queue_faults("apimall.create", LOST)
        await leave_uncertain(emulator, ledger)
        async with patient(emulator, ledger=ledger) as session:
            (job,) = await session.reconcile()
            assert (job.key, job.state) == (KEY, JobState.RUNNING)
            result = await job
            assert await session.reconcile() == []
        assert prompts_by_task(emulator) == {result.task_id: "a fox"}
        assert charged(emulator.stats(), 1)


async def test_reconcile_reopens_a_job_that_was_not_bought_and_does_not_buy_it(tmp_path: Path) -> None:
    ledger = tmp_path / "jobs.sqlite"
    async with emulated(history=True) as emulator:
        emulator.queue_faults("apimall.create", NEVER_ARRIVED, NEVER_ARRIVED)
        await leave_uncertain(emulator, ledger)
        async with patient(emulator, ledger=ledger) as session:
            (job,) = await session.reconcile()
            assert (job.key, job.state) == (KEY, JobState.PENDING)
            assert emulator.stats().creates_accepted == 0
        async with patient(emulator, ledger=ledger) as session:
            assert (await session.generate("a fox", idempotency_key=KEY)).key == KEY
        assert charged(emulator.stats(), 1)


@asynccontextmanager
async def other_client(emulator: Emulator, every_s: float | None) -> AsyncIterator[dict[str, float]]:
    """Let another client of the account buy tasks in the meantime; return their ids and times."""
    tasks: dict[str, float] = {}

    async def buy() -> None:
        chance = random.Random(1)
        while every_s is not None:
            await asyncio.sleep(chance.expovariate(1 / every_s))
            now = emulator.now()
            tasks.update(dict.fromkeys(emulator.add_foreign_tasks(now), now))

    async with asyncio.TaskGroup() as group:
        buying = group.create_task(buy())
        yield tasks
        buying.cancel()


def indistinguishable(emulator: Emulator, observer: RecordingObserver, foreign: Iterable[float]) -> set[str]:
    """Return the keys of the lost jobs near which another lost job, or another client, bought a task."""
    lost = {each.record.key for each in observer.events if isinstance(each, CreateFailed) and is_lost(each)}
    bought = {job.key: job.created_at for job in emulator.jobs() if job.key in lost}
    left = [each.record for each in observer.events if isinstance(each, JobStateChanged)]
    windows_s = [(each.lost_at - each.sent_at).total_seconds() for each in left if each.lost_at and each.sent_at]
    near_s = 2 * (ROUNDING_S + DELAY_S) + 1.0 + max(windows_s, default=0.0)
    others = [("", at) for at in foreign] + list(bought.items())
    return {
        key
        for key, at in bought.items()
        if any(other != key and abs(at - other_at) < near_s for other, other_at in others)
    }


def is_lost(event: CreateFailed) -> bool:
    return isinstance(event.error, TransportError) and event.in_doubt


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("jobs", "foreign_every_s"), [(100, None), (60, 2.0)], ids=["alone", "with another client"])
async def test_every_lost_job_that_can_be_found_ends_with_its_own_image(
    jobs: int, foreign_every_s: float | None
) -> None:
    lossy = [RandomFault(0.2, LOST, "apimall.create")]
    observer = RecordingObserver()
    async with emulated(
        history=True, idempotency="refuse", random_faults=lossy, duration=Fixed(0.05), history_time_step_s=1
    ) as emulator:
        prompts = [f"prompt {number}" for number in range(jobs)]
        async with (
            patient(emulator, retry=IMPATIENT, observers=[observer]) as session,
            other_client(emulator, foreign_every_s) as foreign,
            session.generate_many(prompts) as rows,
        ):
            outcomes = [row async for row in rows]
        uncertain = {row.key for row in outcomes if isinstance(row.error, JobUncertain)}
        by_task = prompts_by_task(emulator)
        for row in outcomes:
            if row.key not in uncertain:
                assert row.request is not None
                assert by_task[row.unwrap().task_id] == row.request.prompt
        assert not {row.result.task_id for row in outcomes if row.result} & set(foreign)
        assert charged(emulator.stats(), jobs)
        assert emulator.stats().lost_creates > jobs / 10
        assert uncertain <= indistinguishable(emulator, observer, foreign.values())
        assert len(uncertain) < emulator.stats().lost_creates / (4 if foreign_every_s is None else 1)
