"""`Timeouts.job_s` ends the wait for a running job on time in all its phases; the job goes on."""

import asyncio
import math

import pytest

from nanobanana_async import ApiMall, JobState, JobUnfinished, RateLimited, Session, Timeouts
from nanobanana_async.config import job_s_of
from nanobanana_async.errors import GatewayUnavailable
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.callbacks import CallbackGateway, calling
from tests.support.fakes import API_KEY, FakeGateway, apimall, now, virtually
from tests.support.replies import refused
from tests.support.shared_ledger import KEY, FakeProcess, SharedLedger

ENDLESS = Timeouts(job_s=math.inf)
SLOW = ApiMall(api_key=API_KEY, expected_job_s=36_000.0)


class PolledGateway(FakeGateway):
    """A fake gateway whose jobs do not end; notes when it was polled, and answers first with `troubles`."""

    def __init__(self, *troubles: Reply) -> None:
        super().__init__(job_s=math.inf)
        self.troubles = list(troubles)
        self.polled_at: list[float] = []

    def answer(self, request: HttpRequest) -> Reply:
        if request.method == "GET":
            self.polled_at.append(now())
        return self.troubles.pop(0) if request.method == "GET" and self.troubles else super().answer(request)


@virtually
async def test_wait_ends_at_job_s_although_the_next_poll_is_far_away() -> None:
    gateway = PolledGateway()
    async with Session(SLOW, http=FakeTransport(gateway.answer), timeouts=Timeouts(job_s=3.0)) as session:
        job = await session.submit("a fox")
        with pytest.raises(JobUnfinished, match="still runs after 3 s"):
            await job
        assert 3.0 <= now() < 3.3
        assert gateway.polled_at == [pytest.approx(3.0, abs=0.2)]
        with pytest.raises(JobUnfinished, match="still runs after 6 s"):
            await job
        assert 6.0 <= now() < 6.6
        outcomes = [outcome async for outcome in session.generate_many(["a fox", "a lynx"])]
        assert [type(outcome.error) for outcome in outcomes] == [JobUnfinished] * 2
        assert now() < 10.0


@virtually
async def test_wait_ends_at_job_s_while_a_callback_is_expected() -> None:
    gateway = CallbackGateway(job_s=math.inf)
    async with calling(gateway.answer, timeouts=Timeouts(job_s=7.0)) as (session, _, _):
        with pytest.raises(JobUnfinished, match="still runs after 7 s"):
            await session.generate("a fox")
        assert 7.0 <= now() < 7.3
    assert len(gateway.polled) == 1


@virtually
async def test_wait_ends_at_job_s_before_the_time_that_the_gateway_asked_for() -> None:
    gateway = PolledGateway(refused(503, "internal", "Oops", **{"retry-after": "100"}))
    async with apimall(FakeTransport(gateway.answer), timeouts=Timeouts(job_s=30.0)) as session:
        job = await session.submit("a fox")
        with pytest.raises(GatewayUnavailable):
            await job
        assert 29.9 <= now() < 31.5
        assert job.state is JobState.RUNNING
    assert len(gateway.polled_at) == 1


@virtually
async def test_wait_ends_at_job_s_while_no_poll_may_leave() -> None:
    gateway = PolledGateway(refused(429, "too_many_requests", "Slow down", **{"retry-after": "110"}))
    async with apimall(FakeTransport(gateway.answer), timeouts=Timeouts(job_s=30.0)) as session:
        jobs = [await session.submit(f"a fox {number}") for number in range(2)]
        waits = [asyncio.Task(job.result()) for job in jobs]
        await asyncio.wait(waits)
        ends = [wait.exception() for wait in waits]
        assert sorted(type(end).__name__ for end in ends) == [JobUnfinished.__name__, RateLimited.__name__]
        (unfinished,) = (end for end in ends if isinstance(end, JobUnfinished))
        assert "is not known to have ended after 31 s (Timeouts.job_s); await it again" in str(unfinished)
        assert now() < 31.5
        assert max(gateway.polled_at) < 10.0
        gateway.job_s = 40.0
        await asyncio.sleep(100.0)
        assert [(await job).task_id for job in jobs] == ["t1", "t2"]
    assert gateway.sold == 2


@virtually
async def test_wait_for_a_job_of_another_owner_ends_at_job_s() -> None:
    gateway, shared = FakeGateway(job_s=5000.0), SharedLedger()
    async with (
        FakeProcess(shared, gateway.answer, session_of=apimall, timeouts=ENDLESS) as first,
        FakeProcess(shared, gateway.answer, session_of=apimall, timeouts=Timeouts(job_s=20.0)) as second,
    ):
        owned = await first.session.submit("a fox", idempotency_key=KEY)
        await owned.wait_for_task_id()
        for _ in range(2):
            await asyncio.sleep(100.0)
            began = now()
            with pytest.raises(JobUnfinished, match="still runs after") as caught:
                await second.session.generate("a fox", idempotency_key=KEY)
            assert 20.0 <= now() - began < 21.5
            assert not caught.value.safe_to_repeat
        assert (second.queries, second.held) == (0, 0)
        assert (await owned).task_id == "t1"
    assert gateway.sold == 1


@virtually
async def test_wait_that_began_at_another_owner_goes_on_after_the_adoption() -> None:
    gateway, shared = FakeGateway(job_s=5000.0), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=apimall, timeouts=Timeouts(job_s=60.0)) as second:
        async with FakeProcess(shared, gateway.answer, session_of=apimall) as first:
            await (await first.session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
            began = now()
            waiting = asyncio.Task(second.session.generate("a fox", idempotency_key=KEY))
            await asyncio.sleep(40.0)
        with pytest.raises(JobUnfinished):
            await waiting
        assert 60.0 <= now() - began < 61.5
        assert second.queries > 0


@pytest.mark.parametrize(
    ("given", "expected_s", "job_s"), [(None, 20.0, 1800.0), (None, 36_000.0, 108_000.0), (3.0, 36_000.0, 3.0)]
)
def test_job_s_follows_the_expected_duration_unless_it_is_given(
    given: float | None, expected_s: float, job_s: float
) -> None:
    assert job_s_of(Timeouts(job_s=given), ApiMall(api_key=API_KEY, expected_job_s=expected_s)) == job_s
