"""What is noted of a run, and how much memory that takes."""

from itertools import pairwise

import pytest

from nanobanana_async.errors import TransportError
from nanobanana_async.events import JobPolled, JobStateChanged, PollFailed
from nanobanana_async.jobs import JobState
from nanobanana_async.report import Recorder
from tests.report.scenes import START, Clock, a_job, learned, record


def test_it_knows_the_limit_as_it_was_last_told() -> None:
    clock = Clock()
    recorder = Recorder(utcnow=clock)
    assert (recorder.job_limit, recorder.refusals, recorder.started_at) == (None, 0, None)
    recorder(learned(None))
    clock.pass_s(5)
    recorder(learned(20, 3))
    assert (recorder.job_limit, recorder.refusals) == (20, 3)
    assert (recorder.started_at, recorder.last_at) == (START, clock.now)
    assert [point.job_limit for point in recorder.points] == [None, 20]


def test_a_run_of_days_takes_bounded_memory_and_keeps_its_shape() -> None:
    clock = Clock()
    recorder = Recorder(max_points=100, utcnow=clock)
    for number in range(20_000):
        clock.pass_s(10)
        recorder(learned(10 if number < 10_000 else 20, number // 10, gate_open=number != 5000))
    points = recorder.points
    assert 25 <= len(points) <= 100
    assert (points[0].at - START).total_seconds() == 10
    gaps = [(after.at - before.at).total_seconds() for before, after in pairwise(points)]
    assert max(gaps) < 4 * min(gaps)
    assert points[len(points) // 4].job_limit == 10
    assert points[-1].job_limit == 20
    assert recorder.refusals == 1999
    assert [point.gate_open for point in points].count(False) == 1
    assert sorted(point.refusals for point in points) == [point.refusals for point in points]


def test_a_clock_that_stands_still_or_goes_back_does_no_harm() -> None:
    clock = Clock()
    recorder = Recorder(max_points=10, utcnow=clock)
    for number in range(1000):
        clock.pass_s(-1 if number % 2 else 0)
        recorder(learned(number))
    assert len(recorder.points) <= 10
    assert recorder.job_limit == 999


def test_a_delay_is_what_lay_between_the_last_two_looks() -> None:
    clock = Clock()
    recorder = Recorder(utcnow=clock)
    a_job(recorder, clock, "often", 5.0, 3.0, 1.0)
    a_job(recorder, clock, "once", 4.0)
    assert recorder.delays_s() == pytest.approx([1.0, 4.0], rel=0.06)


def test_a_job_that_nobody_saw_running_has_no_delay() -> None:
    clock = Clock()
    recorder = Recorder(utcnow=clock)
    recorder(JobPolled(record=record("resumed"), status="completed", polls=1))
    recorder(JobStateChanged(before=JobState.RUNNING, record=record("resumed", JobState.SUCCEEDED)))
    recorder(JobStateChanged(before=JobState.PENDING, record=record("refused", JobState.REFUSED)))
    assert recorder.delays_s() == []


def test_a_job_that_is_followed_no_longer_is_forgotten() -> None:
    clock = Clock()
    recorder = Recorder(utcnow=clock)
    recorder(JobStateChanged(before=JobState.SUBMITTING, record=record("left")))
    lost = TransportError("lost", possibly_sent=True)
    recorder(PollFailed(record=record("left"), error=lost, wait_s=2.0))
    clock.pass_s(1)
    recorder(PollFailed(record=record("left"), error=lost, wait_s=None))
    recorder(JobPolled(record=record("left"), status="completed", polls=2))
    recorder(JobStateChanged(before=JobState.RUNNING, record=record("left", JobState.SUCCEEDED)))
    assert recorder.delays_s() == []


def test_two_points_are_the_least() -> None:
    with pytest.raises(ValueError, match="max_points"):
        Recorder(max_points=1)
