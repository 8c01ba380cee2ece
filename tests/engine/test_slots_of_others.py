"""Slots of the account that other sessions hold when one opens."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import (
    ApiMall,
    ConcurrencyPolicy,
    ImageRequest,
    JobState,
    Session,
    SqliteLedger,
)
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import API_KEY, FakeGateway, Opening, apimall, defapi, now, virtually
from tests.support.shared_feeding import Row
from tests.support.shared_ledger import (
    FakeProcess,
    SharedLedger,
    leave_running,
)


@virtually
async def test_slots_of_other_sessions_count_until_their_jobs_end() -> None:
    gateway, shared = FakeGateway(job_s=60.0, limit=4), SharedLedger()
    four = ConcurrencyPolicy(max_jobs=4, learn=False)
    async with FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=four) as a:
        for number in range(3):
            await (await a.session.submit(f"crow {number}")).wait_for_task_id()
        async with FakeProcess(shared, gateway.answer, session_of=apimall, concurrency=four) as b:
            jobs = [await b.session.submit(f"fox {number}") for number in range(4)]
            await asyncio.sleep(20.0)
            assert (b.held, b.creates, b.session.stats().queued) == (1, 1, 3)
            await asyncio.sleep(55.0)
            assert b.creates == 4
            for job in jobs:
                await job
            assert b.session.stats().throttled == 0
    assert gateway.most_running == 4


class FourFor4K(ApiMall):
    """A gateway whose account takes four job slots for a large image."""

    def slots_for(self, request: ImageRequest) -> int:
        return 4 if request.resolution == "4K" else 1


def four_for_4k(transport: FakeTransport, **settings: Any) -> Session:
    return Session(FourFor4K(api_key=API_KEY), http=transport, **settings)


def three_for_three_images(transport: FakeTransport, **settings: Any) -> Session:
    return Session(ApiMall(api_key=API_KEY, slots_per_image=True), http=transport, **settings)


@pytest.mark.parametrize(
    ("session_of", "asked", "free"),
    [(three_for_three_images, {"num_images": 3}, 1), (four_for_4k, {"resolution": "4K"}, 0)],
)
@virtually
async def test_job_of_another_session_counts_as_many_slots_as_it_takes(
    session_of: Opening, asked: dict[str, Any], free: int
) -> None:
    gateway, shared = FakeGateway(job_s=60.0), SharedLedger()
    four = ConcurrencyPolicy(max_jobs=4, learn=False)
    async with FakeProcess(shared, gateway.answer, session_of=session_of, concurrency=four) as a:
        await (await a.session.submit("crow", **asked)).wait_for_task_id()
        async with FakeProcess(shared, gateway.answer, session_of=session_of, concurrency=four) as b:
            for number in range(3):
                await b.session.submit(f"fox {number}")
            await asyncio.sleep(20.0)
            assert (b.creates, b.session.stats().queued) == (free, 3 - free)
            await asyncio.sleep(55.0)
            assert b.creates == 3


async def test_sessions_with_one_file_count_the_images_of_each_other(tmp_path: Path) -> None:
    gateway, six = FakeGateway(job_s=600.0), ConcurrencyPolicy(max_jobs=6, learn=False)

    def session() -> Session:
        ledger = SqliteLedger(tmp_path / "jobs.sqlite")
        return three_for_three_images(FakeTransport(gateway.answer), ledger=ledger, concurrency=six)

    async with session() as a, asyncio.timeout(10):
        await (await a.submit("crow", num_images=3)).wait_for_task_id()
        async with session() as b:
            first = await b.submit("fox", num_images=2)
            await b.submit("hen", num_images=2)
            await first.wait_for_task_id()
            await asyncio.sleep(0.2)
            assert (gateway.sold, b.stats().slots_held, b.stats().queued) == (2, 2, 1)


@virtually
async def test_adopted_jobs_are_counted_twice_only_briefly() -> None:
    gateway, shared = FakeGateway(job_s=60.0), SharedLedger()
    await leave_running(shared, gateway, "a", "b", "c", session_of=apimall)
    async with FakeProcess(
        shared, gateway.answer, session_of=apimall, concurrency=ConcurrencyPolicy(max_jobs=4, learn=False)
    ) as b:
        await b.session.resume()
        await b.session.submit("fox")
        await asyncio.sleep(5.1)
        assert (b.held, b.creates) == (4, 1)


@pytest.mark.parametrize(("age_s", "sent"), [(10.0, 1), (1900.0, 4)])
@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.UNCERTAIN])
@virtually
async def test_only_possibly_running_jobs_count_at_opening(state: JobState, age_s: float, sent: int) -> None:
    gateway, shared = FakeGateway(job_s=3600.0), SharedLedger()
    await leave_running(shared, gateway, "a", "b", "c", session_of=defapi)
    for key, row in list(shared.rows.items()):
        if state is JobState.UNCERTAIN:
            shared.rows[key] = Row(evolve(row.record, state=state, task_id=None, in_doubt=True), None)
    await asyncio.sleep(age_s)
    four = ConcurrencyPolicy(max_jobs=4, learn=False)
    async with FakeProcess(shared, gateway.answer, session_of=defapi, concurrency=four) as b:
        for number in range(4):
            await b.session.submit(f"fox {number}")
        await asyncio.sleep(1.0)
        assert b.creates == sent


@virtually
async def test_unowned_jobs_free_their_slots_when_ended() -> None:
    gateway, shared = FakeGateway(job_s=60.0, limit=3), SharedLedger()
    await leave_running(shared, gateway, "a", "b", "c", session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as b:
        began_at = now()
        await b.session.generate("fox")
        assert now() - began_at < 300.0
    assert gateway.sold == 4
