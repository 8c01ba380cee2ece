"""Thousands of jobs at once: all end, in order and within the limits."""

import asyncio

import pytest

from nanobanana_async import ConcurrencyPolicy, JobState
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, now, virtually, wire_key

JOBS = 1000


@pytest.mark.slow
@virtually
async def test_a_thousand_concurrent_generates_leave_nothing() -> None:
    gateway, ledger = FakeGateway(job_s=2.0), RecordingLedger()
    transport = FakeTransport(gateway.answer)
    wide = ConcurrencyPolicy(max_jobs=300, learn=False, max_requests=64)
    async with apimall(transport, ledger=ledger, concurrency=wide) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(JOBS):
                group.create_task(session.generate(f"fox {number}"))
        stats = session.stats()
        assert len(asyncio.all_tasks()) <= 64 + JOBS // 10
    assert (gateway.sold, stats.succeeded, stats.slots_held, stats.queued) == (JOBS, JOBS, 0, 0)
    assert ledger.states() == {}
    assert now() < 120.0


@virtually
async def test_held_jobs_stay_within_max_jobs() -> None:
    gateway = FakeGateway(job_s=2.0)
    policy = ConcurrencyPolicy(max_jobs=7)
    async with apimall(FakeTransport(gateway.answer), concurrency=policy) as session, asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(session.generate(f"fox {number}"))
    assert gateway.sold == 60
    assert 4 <= gateway.most_running <= 7


@virtually
async def test_requests_in_flight_stay_within_max_requests() -> None:
    gateway, most = FakeGateway(job_s=0.2), 0

    def answer(request: object) -> object:
        nonlocal most
        most = max(most, transport.in_flight)
        return gateway.answer(request)  # type: ignore[arg-type]

    transport = FakeTransport(answer)  # type: ignore[arg-type]
    policy = ConcurrencyPolicy(max_jobs=50, learn=False, max_requests=5)
    async with apimall(transport, concurrency=policy) as session, asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(session.generate(f"fox {number}"))
    assert gateway.sold == 100
    assert 3 <= most <= 5


@virtually
async def test_creates_are_sent_in_submission_order() -> None:
    started: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, JobStateChanged) and event.record.state is JobState.SUBMITTING:
            started.append(event.record.key)

    gateway = FakeGateway(job_s=1.0)
    transport = FakeTransport(gateway.answer)
    policy = ConcurrencyPolicy(max_jobs=3, learn=False)
    async with apimall(transport, concurrency=policy, observers=[observe]) as session, asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(session.generate("a fox", idempotency_key=f"order-{number:02}"))
    assert started == [f"order-{number:02}" for number in range(40)]
    assert [wire_key(request) for request in transport.creates] == started
