"""The phases of a tracked job, and the table of its transitions."""

from datetime import UTC, datetime

import pytest

from nanobanana_async.engine.phases import FOLLOWED_PHASES, PHASE_TRANSITIONS, Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.jobs import JobRecord
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, apimall, virtually


def found_job() -> TrackedJob:
    created_at = datetime(2026, 1, 1, tzinfo=UTC)
    record = JobRecord(key="order-1", gateway="g", account="a", request=None, body=b"", created_at=created_at)
    return TrackedJob(record, 1)


def test_every_phase_has_transitions_and_is_reachable() -> None:
    assert set(PHASE_TRANSITIONS) == set(Phase)
    assert {phase for onward in PHASE_TRANSITIONS.values() for phase in onward} == set(Phase)


def test_every_live_phase_can_end() -> None:
    assert all(Phase.UNFOLLOWED in PHASE_TRANSITIONS[phase] for phase in FOLLOWED_PHASES)


def test_transition_outside_the_table_raises() -> None:
    job = found_job()
    with pytest.raises(RuntimeError, match="job order-1 cannot go KNOWN -> IN_FLIGHT"):
        job.enter_phase(Phase.IN_FLIGHT)
    assert job.phase is Phase.KNOWN


def test_transition_cancels_the_due_time() -> None:
    job = found_job()
    job.due = 3.0
    job.enter_phase(Phase.CLAIMING)
    assert job.due == float("inf")


@virtually
async def test_finished_job_is_no_longer_tracked() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        job = await session.submit("a fox")
        await job
        assert job._tracked.phase is Phase.UNFOLLOWED
        engine = session._session_task.engine
        assert engine is not None
        assert engine.tracked == {}
