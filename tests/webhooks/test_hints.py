"""A callback is a hint: it causes a poll, and its content is not trusted."""

import asyncio
import gc
import itertools
import tracemalloc
from collections import Counter

import pytest

from nanobanana_async import JobState
from nanobanana_async.errors import JobFailed
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import Reply
from nanobanana_async.webhooks import MAX_BODY
from tests.support.callbacks import KEY, CallbackGateway, Piece, Wait, call, callback_body, calling
from tests.support.fakes import RecordingLedger, now, virtually
from tests.support.replies import defapi_created, in_turn, task

LIES = {
    "success of another task": callback_body("t999"),
    "success": callback_body("t1", result=[{"image": "https://evil.example/a.png"}], consumed="0.000001"),
    "failure": callback_body("t1", "failed", status_reason={"message": "no"}),
    "an unknown state": callback_body("t1", "exploded"),
    "that it runs": callback_body("t1", "in_progress"),
    "other JSON": b'{"event": "push", "task": 1}',
    "no JSON": b"\x00\xff{",
    "depth": b"[" * 60_000,
    "a number without end": b'{"task_id": ' + b"9" * 60_000 + b"}",
    "a path": callback_body("../../admin?x=1"),
    "half a character": callback_body("\ud800"),
    "a very long task id": callback_body("x" * 60_000, "in_progress"),
    "nothing": b"",
    "too much": b"x" * (MAX_BODY + 1),
}


@pytest.mark.parametrize("lie", LIES)
@virtually
async def test_false_callback_causes_one_poll_and_job_continues(lie: str) -> None:
    gateway, ledger = CallbackGateway(job_s=10.0), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        job = await session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        await asyncio.sleep(3.0)
        assert await call(receiver, gateway.url(), LIES[lie]) == 200
        await asyncio.sleep(1.0)
        assert (job.state, gateway.polled) == (JobState.RUNNING, ["t1"])
        result = await job
    assert (result.task_id, result.url) == ("t1", "https://cdn.example/a.png")
    assert str(result.credits) == "0.500000"


@pytest.mark.parametrize("lie", LIES)
@virtually
async def test_callback_for_an_ended_job_causes_no_poll(lie: str) -> None:
    gateway, ledger = CallbackGateway(), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        await session.generate("a fox", idempotency_key=KEY)
        polled, record = len(gateway.polled), ledger.record(KEY)
        for _ in range(3):
            assert await call(receiver, gateway.url(), LIES[lie]) == 200
            await asyncio.sleep(1.5)
        assert (len(gateway.polled), ledger.record(KEY)) == (polled, record)


@virtually
async def test_callback_does_not_revive_a_failed_job() -> None:
    def fails(request: HttpRequest) -> Reply:
        return in_turn([defapi_created()], [task("failed", "ta1")])(request)

    async with calling(fails, ledger=RecordingLedger(keep_ended=True)) as (session, receiver, transport):
        with pytest.raises(JobFailed):
            await session.generate("a fox", idempotency_key=KEY)
        polled = len(transport.polls)
        assert await call(receiver, await session._callback_router.make_url(KEY), callback_body("ta1")) == 200
        await asyncio.sleep(5.0)
        assert len(transport.polls) == polled


@virtually
async def test_callback_does_not_affect_a_waiting_job() -> None:
    gateway, ledger = CallbackGateway(job_s=30.0, limit=1), RecordingLedger()
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        await (await session.submit("a hare")).wait_for_task_id()
        job = await session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(5.0)
        record = ledger.record(KEY)
        assert record.state is JobState.PENDING
        for body in (callback_body("t1"), b""):
            assert await call(receiver, await session._callback_router.make_url(KEY), body) == 200
        assert (job.state, job.task_id, gateway.polled) == (JobState.PENDING, None, [])
        assert ledger.record(KEY) == record
        assert await job.cancel()


@virtually
async def test_callback_for_an_unknown_job_is_ignored() -> None:
    gateway = CallbackGateway()
    async with calling(gateway.answer) as (session, receiver, _):
        assert await call(receiver, await session._callback_router.make_url("never-was"), callback_body("t1")) == 200
        await asyncio.sleep(5.0)
    assert gateway.polled == []


@virtually
async def test_callbacks_cause_at_most_one_poll_a_second() -> None:
    gateway = CallbackGateway(job_s=5.0)
    async with calling(gateway.answer) as (session, receiver, _):
        job = await session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        begun = now()
        while now() < begun + 6.5:
            await call(receiver, gateway.url(), callback_body("t1"))
            await asyncio.sleep(0.03)
        assert job.state is JobState.SUCCEEDED
    assert 5 <= len(gateway.polled) <= 7


@virtually
async def test_callback_during_a_poll_causes_another_poll() -> None:
    gateway = CallbackGateway(job_s=3.05)
    async with calling(gateway.answer) as (session, receiver, _):
        job = await session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        await asyncio.sleep(2.95)
        for _ in range(2):  # the first look still finds it running
            await call(receiver, gateway.url(), callback_body("t1"))
            await asyncio.sleep(0.04)
        await asyncio.sleep(1.5)
        assert (job.state, len(gateway.polled)) == (JobState.SUCCEEDED, 2)


@pytest.mark.slow
@virtually
async def test_four_thousand_forged_callbacks_use_no_memory() -> None:
    gateway = CallbackGateway(job_s=600.0)
    ledger = RecordingLedger(keep_ended=True)
    bodies: list[list[Piece]] = [[lie] for lie in LIES.values()]
    bodies += [[b"x" * 1000] * 70, [b"{", Wait(8.0), b"}"], [Wait(8.0)]]
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, transport):
        jobs = [await session.submit("a fox", idempotency_key=f"order-{number}") for number in range(20)]
        for job in jobs:
            await job.wait_for_task_id()
        urls = [*gateway.urls.values()]
        wrong = [url[:-1] + ("A" if url[-1] != "A" else "B") for url in urls]
        turns = zip(itertools.cycle([*urls, *wrong]), itertools.cycle(bodies), strict=True)
        writes, answers, begun = ledger.writes, Counter[int](), now()

        async def forge(calls: int) -> None:
            for _ in range(calls):
                url, pieces = next(turns)
                answers[await call(receiver, url, *pieces)] += 1

        async def flood(calls: int) -> int:
            async with asyncio.TaskGroup() as group:
                for _ in range(50):
                    group.create_task(forge(calls // 50))
            transport.requests.clear()  # what the test itself keeps
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        await flood(500)
        tracemalloc.start()
        first = await flood(500)
        last = await flood(3000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert answers == {200: 2000, 404: 2000}
        took = now() - begun
        assert ledger.writes == writes
        assert {job.state for job in jobs} <= {JobState.RUNNING, JobState.SUCCEEDED}
        assert max(Counter(gateway.polled).values()) <= took + 1
    assert last - first < 70_000
    assert peak < 16_000_000
