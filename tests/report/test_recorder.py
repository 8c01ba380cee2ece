"""The recorder of a run and its memory."""

from itertools import pairwise

import pytest

from nanobanana_async.errors import TransportError
from nanobanana_async.events import JobPolled, JobStateChanged, PollFailed
from nanobanana_async.jobs import JobState
from nanobanana_async.report import Recorder
from tests.support.reports import START, Clock, limits_changed, record, run_job


def test_the_recorder_has_the_last_known_limit() -> None:
    clock = Clock()
    recorder = Recorder(utcnow=clock)
    assert (recorder.job_limit, recorder.throttled_count, recorder.started_at) == (None, 0, None)
    recorder(limits_changed(None))
    clock.pass_s(5)
    recorder(limits_changed(20, 3))
    assert (recorder.job_limit, recorder.throttled_count) == (20, 3)
    assert (recorder.started_at, recorder.last_at) == (START, clock.now)
    assert [sample.job_limit for sample in recorder.samples] == [None, 20]


@pytest.mark.slow
def test_a_long_run_is_downsampled() -> None:
    clock = Clock()
    recorder = Recorder(max_samples=100, utcnow=clock)
    for number in range(20_000):
        clock.pass_s(10)
        recorder(limits_changed(10 if number < 10_000 else 20, number // 10, creates_paused=number == 5000))
    samples = recorder.samples
    assert 25 <= len(samples) <= 100
    assert (samples[0].at - START).total_seconds() == 10
    gaps = [(after.at - before.at).total_seconds() for before, after in pairwise(samples)]
    assert max(gaps) < 4 * min(gaps)
    assert samples[len(samples) // 4].job_limit == 10
    assert samples[-1].job_limit == 20
    assert recorder.throttled_count == 1999
    assert [sample.creates_paused for sample in samples].count(True) == 1
    assert sorted(sample.throttled for sample in samples) == [sample.throttled for sample in samples]


def test_a_stopped_or_backward_clock_keeps_memory_bounded() -> None:
    clock = Clock()
    recorder = Recorder(max_samples=10, utcnow=clock)
    for number in range(1000):
        clock.pass_s(-1 if number % 2 else 0)
        recorder(limits_changed(number))
    assert len(recorder.samples) <= 10
    assert recorder.job_limit == 999


def test_a_delay_is_the_gap_between_the_last_two_polls() -> None:
    clock = Clock()
    recorder = Recorder(utcnow=clock)
    run_job(recorder, clock, "often", 5.0, 3.0, 1.0)
    run_job(recorder, clock, "once", 4.0)
    assert recorder.delays_s() == pytest.approx([1.0, 4.0], rel=0.06)


def test_a_job_never_seen_running_has_no_delay() -> None:
    clock = Clock()
    recorder = Recorder(utcnow=clock)
    recorder(JobPolled(record=record("resumed"), status="completed", polls=1))
    recorder(JobStateChanged(before=JobState.RUNNING, record=record("resumed", JobState.SUCCEEDED)))
    recorder(JobStateChanged(before=JobState.PENDING, record=record("refused", JobState.REFUSED)))
    assert recorder.delays_s() == []


def test_a_job_no_longer_followed_is_forgotten() -> None:
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


def test_max_samples_must_be_at_least_two() -> None:
    with pytest.raises(ValueError, match="max_samples"):
        Recorder(max_samples=1)
