"""The heap of due times with its one timer, and the queue of jobs to submit."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.engine.request_queues import RepeatQueue
from nanobanana_async.engine.timers import TICK_S, Timed, Timers
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.jobs import JobRecord
from tests.support.fakes import now, virtually


def job_number(number: int = 0) -> TrackedJob:
    record = JobRecord(
        key=f"order-{number}",
        gateway="g",
        account="a",
        request=None,
        body=b"",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    job = TrackedJob(record, 1)
    job.place = number
    return job


class RecordedTimer(asyncio.Event):
    """Timers whose due times are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.fired_at: list[float] = []
        self.timers = Timers(asyncio.get_running_loop())
        self.timers.fired = self

    def set(self) -> None:
        self.fired_at.append(now())


@virtually
async def test_due_jobs_are_ordered_by_time() -> None:
    timers = RecordedTimer().timers
    jobs: list[Timed] = [job_number(number) for number in range(4)]
    for job, due in zip(jobs, (3.0, 1.0, 2.0, 9.0), strict=True):
        timers.set_due(job, due)
    assert [jobs.index(job) for job in timers.take_due(3.0)] == [1, 2, 0]
    assert list(timers.take_due(3.0)) == []
    assert jobs[0].due == NEVER


@virtually
async def test_rescheduled_job_is_due_once() -> None:
    timers, job = RecordedTimer().timers, job_number()
    for due in (1.0, 5.0, 2.0):
        timers.set_due(job, due)
    assert list(timers.take_due(1.5)) == []
    assert list(timers.take_due(2.0)) == [job]
    assert list(timers.take_due(9.0)) == []


@virtually
async def test_job_due_within_a_tick_is_due_now() -> None:
    timers, job = RecordedTimer().timers, job_number()
    timers.set_due(job, 1.0)
    assert list(timers.take_due(1.0 - 2 * TICK_S)) == []
    assert list(timers.take_due(1.0 - TICK_S / 2)) == [job]


@virtually
async def test_timer_fires_at_the_earliest_due_time() -> None:
    timer = RecordedTimer()
    timer.timers.set_due(job_number(1), 30.0)
    timer.timers.set_loop_timer(now())
    timer.timers.set_due(job_number(2), 10.0)
    timer.timers.set_loop_timer(now())
    await asyncio.sleep(15.0)
    assert timer.fired_at == [10.0]
    list(timer.timers.take_due(now()))
    timer.timers.set_loop_timer(now(), also_at=20.0)
    timer.timers.set_loop_timer(now(), also_at=25.0)
    await asyncio.sleep(100.0)
    assert timer.fired_at == [10.0, 20.0]


@virtually
async def test_stopped_or_empty_timer_does_not_fire() -> None:
    timer = RecordedTimer()
    timer.timers.set_loop_timer(now())
    timer.timers.set_due(job_number(), 10.0)
    timer.timers.set_loop_timer(now())
    timer.timers.stop()
    await asyncio.sleep(100.0)
    assert timer.fired_at == []


@virtually
async def test_timer_fires_at_most_once_per_tick() -> None:
    timer = RecordedTimer()
    timer.timers.set_due(job_number(), 0.0)
    timer.timers.set_loop_timer(now())
    await asyncio.sleep(1.0)
    assert timer.fired_at == [TICK_S]


@given(st.lists(st.integers(0, 50), unique=True))
def test_queue_is_ordered_by_place(numbers: list[int]) -> None:
    queue = RepeatQueue()
    assert not queue
    for number in numbers:
        queue.add(job_number(number))
    assert sorted(job.place for job in queue) == sorted(numbers)
    served: list[int] = []
    while queue:
        first = queue.first()
        assert first is not None
        assert queue.drop_first() is first
        served.append(first.place)
    assert served == sorted(numbers)


def test_tracked_job_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        job_number().anything = 1  # type: ignore[attr-defined]
