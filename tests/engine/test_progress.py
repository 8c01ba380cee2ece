"""How much of a job is done: never back, 1 exactly when it has succeeded, and at no cost for jobs that are not read."""

import asyncio
import itertools
import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from nanobanana_async import Job, JobFailed, JobState
from nanobanana_async.engine.progress import MOST_COUNTED_JOBS, sum_of_progress
from nanobanana_async.engine.tracked_job import MOST_PROGRESS, StatedProgress
from nanobanana_async.jobs import JobSnapshot
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.testing import EPOCH, FakeTransport, Reply
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, now, virtually
from tests.support.replies import completed, created, in_turn, task
from tests.support.shared_ledger import FakeProcess, SharedLedger, found


async def watched(job: Job, until: Callable[[], bool], every_s: float = 0.25) -> list[float]:
    """Return the progress of a job at short intervals."""
    shares: list[float] = []
    while not until():
        shares.append(job.progress)
        await asyncio.sleep(every_s)
    return shares


def stating(*progress: object, then: Reply) -> FakeTransport:
    """Return a gateway whose polls state these numbers in turn, and then end the task."""
    running: list[Any] = [task("processing", progress=each) for each in progress]
    return FakeTransport(in_turn([created()], [*running, then]))


@virtually
async def test_progress_rises_smoothly_and_is_one_only_at_the_end() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=20.0).answer)) as session:
        for prompt in ("one", "two", "three"):
            await session.generate(prompt)
        job = await session.submit("a fox")
        assert (job.progress, job.expected_end) == (0.0, None)
        await job.wait_for_task_id()
        shares = await watched(job, lambda: job.state is not JobState.RUNNING)
        assert (job.progress, job.expected_end) == (1.0, None)
    assert shares == sorted(shares)
    assert shares[0] < 0.05
    assert 0.3 < shares[len(shares) // 2] < 0.7
    assert 0.7 < shares[-1] <= MOST_PROGRESS
    assert max(later - earlier for earlier, later in itertools.pairwise(shares)) < 0.05


@virtually
async def test_expected_end_is_learned_and_moves_with_a_late_job() -> None:
    gateway = FakeGateway(job_s=20.0)
    async with apimall(FakeTransport(gateway.answer)) as session:
        for number in range(12):
            await session.generate(f"fox {number}")
        gateway.job_s = 300.0
        job = await session.submit("a slow fox")
        await job.wait_for_task_id()
        began = EPOCH + timedelta(seconds=now())
        early = job.expected_end
        assert early is not None
        assert early.tzinfo is not None
        assert abs((early - began).total_seconds() - 20.0) < 4.0
        await asyncio.sleep(100.0)
        late, share = job.expected_end, job.progress
        assert late is not None
        assert late > EPOCH + timedelta(seconds=now())
        assert share <= MOST_PROGRESS
        elapsed_s, whole_s = now() - (began - EPOCH).total_seconds(), (late - began).total_seconds()
        assert math.isclose(share, elapsed_s / whole_s, rel_tol=0.02)  # the bar and the expected end say the same


@virtually
async def test_number_of_the_gateway_counts_and_never_goes_back() -> None:
    async with apimall(stating("10%", 40, 30, None, 0.6, 100, then=completed())) as session:
        job = await session.submit("a fox")
        shares = [seen.progress async for seen in job.updates() if seen.state is JobState.RUNNING]
        assert job.progress == 1.0
    stated = shares[1:]
    assert stated == [max(shares[0], each) for each in (0.1, 0.4, 0.4, 0.4, 0.6, MOST_PROGRESS)]


@virtually
async def test_gateway_that_states_progress_is_not_overruled_by_age() -> None:
    async with apimall(stating(5, then=task("processing", progress=5))) as session:
        job = await session.submit("a fox")
        await job.wait_for_task_id()
        await asyncio.sleep(600.0)
        assert job.progress == 0.05


@virtually
async def test_failed_job_keeps_what_it_showed_and_a_new_purchase_begins_at_zero() -> None:
    failed = task("failed", error_message="no capacity")
    transport = FakeTransport(in_turn([created(), created("img_2")], [task("processing", progress=70), failed]))
    async with apimall(transport, ledger=RecordingLedger(keep_ended=True)) as session:
        job = await session.submit("a fox")
        with pytest.raises(JobFailed):
            await job
        assert (job.state, job.progress, job.expected_end) == (JobState.FAILED, 0.7, None)
        again = await session.resolve(job, buy_again=True)
        assert again.progress == 0.0


@virtually
async def test_updates_bring_a_snapshot_after_each_poll() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=20.0).answer)) as session:
        job = await session.submit("a fox")
        seen = [each async for each in job.updates()]
        polls = session.stats().polls
    running = [each for each in seen if each.state is JobState.RUNNING]
    assert 3 <= len(running) <= polls + 1
    assert all(isinstance(each, JobSnapshot) and each.expected_end is not None for each in running)
    shares = [each.progress for each in seen]
    assert shares == sorted(shares)
    assert [each.progress == 1.0 for each in seen] == [each.state is JobState.SUCCEEDED for each in seen]
    assert seen[-1].expected_end is None


@virtually
async def test_late_listener_gets_no_share_of_a_later_state() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=2.0).answer)) as session:
        job = await session.submit("a fox")
        seen = []
        async for each in job.updates():
            seen.append(each)
            await asyncio.sleep(60.0)
        states = [each.state for each in seen]
    assert states[-1] is JobState.SUCCEEDED
    assert all(each.progress < 1.0 for each in seen[:-1])
    assert len(states) == len(set(states))  # polls that it slept through are one update


@virtually
async def test_job_of_another_process_has_progress_too() -> None:
    shared, gateway = SharedLedger(), FakeGateway(job_s=20.0)
    a_process = partial(FakeProcess, shared, gateway.answer, session_of=apimall)
    async with a_process() as a, a_process() as b:
        mine = await a.session.submit("a fox", idempotency_key="order-17")
        await mine.wait_for_task_id()
        await asyncio.sleep(8.0)
        theirs = await found(b.session, "order-17")
        assert 0.1 < theirs.progress < 0.9
        assert theirs.expected_end is not None
        await mine


@virtually
async def test_reading_progress_writes_and_asks_nothing() -> None:
    transport = FakeTransport(FakeGateway(job_s=20.0).answer)

    async def requests(*, read: bool) -> int:
        ledger = MemoryLedger()
        async with apimall(transport, ledger=ledger) as session:
            before = len(transport.requests)
            job = await session.submit("a fox")
            await job.wait_for_task_id()
            while job.state is JobState.RUNNING:
                if read:
                    assert 0.0 <= job.progress < 1.0
                    assert job.expected_end is not None
                await asyncio.sleep(0.1)
            return len(transport.requests) - before

    assert abs(await requests(read=True) - await requests(read=False)) <= 1


@virtually
async def test_sum_over_many_jobs_costs_no_more_than_over_a_few() -> None:
    reads = 0
    async with apimall(FakeTransport(FakeGateway(job_s=20.0).answer)) as session:
        jobs = [(await session.submit(f"fox {number}"))._tracked for number in range(MOST_COUNTED_JOBS * 3 + 1)]
        await asyncio.sleep(12.0)
        engine = session._require_engine()
        wanted = sum(engine.estimates.schedule_of(job) is not None for job in jobs)
        assert wanted == len(jobs)
        total = sum_of_progress(engine, jobs)
        assert 0 < total < len(jobs)
        reads = sum(1 for job in jobs if job.progress > 0.0)
        assert sum_of_progress(engine, []) == 0.0
    assert reads <= MOST_COUNTED_JOBS


def test_stated_progress_holds_nothing_but_its_number() -> None:
    assert not hasattr(StatedProgress(0.5), "__dict__")


@virtually
async def test_unread_job_shares_the_zero_of_all() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=20.0).answer)) as session:
        jobs = [(await session.submit(prompt))._tracked for prompt in ("a", "b")]
        await asyncio.sleep(5.0)
        assert jobs[0].progress is jobs[1].progress
