"""Thousands of jobs: all done, in order."""

import asyncio

from nanobanana_async import ConcurrencyPolicy, JobState
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, now, virtually, wire_key

JOBS = 3000


@virtually
async def test_three_thousand_generates_at_once_leave_nothing() -> None:
    shop, ledger = FakeGateway(job_s=2.0), RecordingLedger()
    transport = FakeTransport(shop.answer)
    wide = ConcurrencyPolicy(max_jobs=300, learn=False, max_requests=64)
    async with apimall(transport, ledger=ledger, concurrency=wide) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(JOBS):
                group.create_task(session.generate(f"fox {number}"))
        stats = session.stats()
        assert len(asyncio.all_tasks()) <= 64 + JOBS // 10
    assert (shop.sold, stats.succeeded, stats.slots_held, stats.queued) == (JOBS, JOBS, 0, 0)
    assert ledger.states() == {}
    assert now() < 120.0


@virtually
async def test_never_more_jobs_are_held_than_the_policy_allows() -> None:
    shop = FakeGateway(job_s=2.0)
    policy = ConcurrencyPolicy(max_jobs=7)
    async with apimall(FakeTransport(shop.answer), concurrency=policy) as session, asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(session.generate(f"fox {number}"))
    assert shop.sold == 60
    assert 4 <= shop.most_running <= 7


@virtually
async def test_never_more_requests_are_on_the_wire_than_the_policy_allows() -> None:
    shop, most = FakeGateway(job_s=0.2), 0

    def answer(request: object) -> object:
        nonlocal most
        most = max(most, transport.in_flight)
        return shop.answer(request)  # type: ignore[arg-type]

    transport = FakeTransport(answer)  # type: ignore[arg-type]
    policy = ConcurrencyPolicy(max_jobs=50, learn=False, max_requests=5)
    async with apimall(transport, concurrency=policy) as session, asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(session.generate(f"fox {number}"))
    assert shop.sold == 100
    assert 3 <= most <= 5


@virtually
async def test_who_came_first_is_sent_first() -> None:
    told: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, JobStateChanged) and event.record.state is JobState.SUBMITTING:
            told.append(event.record.key)

    shop = FakeGateway(job_s=1.0)
    transport = FakeTransport(shop.answer)
    policy = ConcurrencyPolicy(max_jobs=3, learn=False)
    async with apimall(transport, concurrency=policy, observers=[observe]) as session, asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(session.generate("a fox", idempotency_key=f"order-{number:02}"))
    assert told == [f"order-{number:02}" for number in range(40)]
    assert [wire_key(request) for request in transport.creates] == told
