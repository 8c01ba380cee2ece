"""`max_requests_per_minute` bounds all requests of a session: creates, repeats, polls and single queries."""

import asyncio
from bisect import bisect_left

import pytest

from nanobanana_async import ConcurrencyPolicy, RetryPolicy
from nanobanana_async.errors import JobUncertain, TransportError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, apimall, now, virtually
from tests.support.replies import refused


def most_in_a_minute(sent: list[float]) -> int:
    return max(bisect_left(sent, at + 60.0) - number for number, at in enumerate(sent))


@virtually
async def test_all_requests_stay_below_the_cap() -> None:
    gateway = FakeGateway(job_s=5.0)
    sent: list[float] = []

    def answer(request: HttpRequest) -> Reply:
        sent.append(now())
        failing = request.method == "POST" and len(sent) % 4 == 0
        return refused(503, "unavailable") if failing else gateway.answer(request)

    policy = ConcurrencyPolicy(max_requests_per_minute=30)
    async with apimall(FakeTransport(answer), concurrency=policy) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(session.generate(f"fox {number}"))
        assert session.stats().throttled == 0
        gateway.tasks |= {f"other{number}": 0.0 for number in range(40)}
        for number in range(40):
            await session.attach(f"other{number}")
    assert 25 <= most_in_a_minute(sent) <= 30


@virtually
async def test_repeats_of_creates_in_doubt_count() -> None:
    sent: list[float] = []

    def lost(_: HttpRequest) -> Reply:
        sent.append(now())
        return TransportError("lost", possibly_sent=True)

    policy = ConcurrencyPolicy(max_requests_per_minute=2)
    retry = RetryPolicy(first_backoff_s=0.01, max_backoff_s=0.01, max_wait_s=200.0)
    async with apimall(FakeTransport(lost), concurrency=policy, retry=retry) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
    assert len(sent) > 4
    assert most_in_a_minute(sent) <= 2
