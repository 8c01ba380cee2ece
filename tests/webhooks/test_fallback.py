"""Looking goes on as a slow safety net: a call that is lost, late or false costs time and never the job."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nanobanana_async import JobState, Session, TransportError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import CallbackReceiver
from tests.support import replies
from tests.support.callbacks import KEY, PUBLIC, CallbackGateway, call, callback_body, calling
from tests.support.fakes import RecordingLedger, defapi, now, virtually

JOB_S = 10.0


class CallingGateway(CallbackGateway):
    """A shop that calls: for the k-th task of a cycle as often as `times` says, so much after its end."""

    def __init__(self, *times: int, job_s: float = JOB_S, delay_s: float = 0.0, limit: int | None = None) -> None:
        super().__init__(job_s=job_s, limit=limit)
        self.times = times or (1,)
        self.delay_s = delay_s
        self.receiver: CallbackReceiver | None = None
        self.group: asyncio.TaskGroup | None = None
        self.troubles: list[Reply] = []
        self.statuses: list[int] = []

    def answer(self, request: HttpRequest) -> Reply:
        before = self.sold
        reply = super().answer(request)
        if self.sold > before and self.group is not None:
            for _ in range(self.times[before % len(self.times)]):
                self.group.create_task(self._call(f"t{self.sold}"))
        return self.troubles.pop(0) if request.method == "GET" and self.troubles else reply

    async def _call(self, task_id: str) -> None:
        await asyncio.sleep(self.job_s + self.delay_s)
        assert self.receiver is not None
        self.statuses.append(await call(self.receiver, self.urls[task_id], callback_body(task_id)))


@asynccontextmanager
async def called(shop: CallingGateway, **settings: Any) -> AsyncIterator[Session]:
    """Open a session whose gateway calls back; wait for its last call."""
    async with calling(shop.answer, **settings) as (session, receiver, _):
        shop.receiver = receiver
        async with asyncio.TaskGroup() as shop.group:
            yield session
        shop.group = None


async def buy(session: Session, count: int) -> float:
    """Buy so many at once; return how long it took."""
    begun = now()
    outcomes = [row async for row in session.generate_many(f"fox {number}" for number in range(count))]
    assert sum(row.ok for row in outcomes) == count
    return now() - begun


@virtually
async def test_when_all_calls_come_each_job_is_asked_about_once_and_at_once() -> None:
    shop = CallingGateway()
    async with called(shop) as session:
        took = await buy(session, 40)
    assert len(shop.polled) == 40
    assert took < JOB_S + 2.0


@virtually
async def test_repeated_calls_cost_no_more() -> None:
    shop = CallingGateway(3)
    async with called(shop) as session:
        await buy(session, 40)
    assert len(shop.polled) == 40
    assert shop.statuses == [200] * 120


@virtually
async def test_late_calls_find_the_job_seen_or_wake_it() -> None:
    shop = CallingGateway(delay_s=4.0)
    async with called(shop) as session:
        await buy(session, 40)
    assert shop.statuses == [200] * 40
    assert len(shop.polled) <= 80


@virtually
async def test_calls_teach_how_long_jobs_take_and_with_it_when_one_is_lost() -> None:
    shop = CallingGateway()
    async with called(shop) as session:
        await buy(session, 40)
        median_s = session.stats().job_duration_median_s
        assert median_s is not None
        assert abs(median_s - JOB_S) < 1.0
        shop.times = (0,)
        begun = now()
        await session.generate("a fox")
        assert now() - begun < 2 * JOB_S


@virtually
async def test_a_job_whose_call_is_lost_is_seen_within_a_minute() -> None:
    shop = CallingGateway(0)
    async with called(shop) as session:
        begun = now()
        await session.generate("a fox")
        assert now() - begun <= 60.5


@virtually
async def test_where_calls_are_lost_jobs_are_looked_at_as_if_there_were_none() -> None:
    shop = CallingGateway(0)
    async with called(shop) as session:
        for _ in range(3):
            await session.generate("a fox")
        begun = now()
        for _ in range(5):
            await session.generate("a fox")
        assert (now() - begun) / 5 < JOB_S + 1.0
        shop.times = (1,)  # and when they come again, they are relied on again
        for _ in range(30):
            await session.generate("a fox")
        looks = len(shop.polled)
        for _ in range(5):
            await session.generate("a fox")
        assert len(shop.polled) - looks == 5


@virtually
async def test_one_lost_call_in_ten_does_not_make_us_look_more_often() -> None:
    shop = CallingGateway(*[1] * 9, 0)
    async with called(shop) as session:
        await buy(session, 100)
    assert len(shop.polled) <= 150


@virtually
async def test_a_third_lost_and_a_third_repeated_all_jobs_end_and_none_is_bought_twice() -> None:
    shop = CallingGateway(0, 1, 2, limit=20)
    async with called(shop) as session:
        await buy(session, 100)
    assert shop.sold == 100


@virtually
async def test_a_call_for_a_job_that_still_runs_costs_one_look_and_it_goes_on() -> None:
    shop = CallingGateway(delay_s=-8.0)
    async with called(shop) as session:
        await session.generate("a fox")
    assert shop.polled[:1] == ["t1"]
    assert len(shop.polled) <= 3


TROUBLES: dict[str, Reply] = {
    "a lost answer": TransportError("the connection was reset", possibly_sent=True),
    "a 503": replies.json_reply(503, {"code": 503, "message": "unavailable"}),
    "a 429": replies.json_reply(429, {"code": 429, "message": "too many requests"}),
    "no picture yet": replies.task("success", "t1"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@virtually
async def test_when_the_look_after_a_call_brings_nothing_the_next_one_comes_soon(trouble: str) -> None:
    shop = CallingGateway()
    shop.troubles = [TROUBLES[trouble]]
    async with called(shop) as session:
        begun = now()
        await session.generate("a fox")
        assert now() - begun < JOB_S + 3.0
    assert len(shop.polled) == 2


@virtually
async def test_failed_looks_after_calls_do_not_count_as_lost_calls() -> None:
    shop = CallingGateway()
    async with called(shop) as session:
        for _ in range(10):
            shop.troubles = [TROUBLES["a lost answer"]]
            await session.generate("a fox")
        looks = len(shop.polled)
        await session.generate("a fox")
        assert len(shop.polled) - looks == 1


@virtually
async def test_a_look_that_fails_is_repeated_in_its_own_time_whoever_calls() -> None:
    shop = CallbackGateway(job_s=1.0)
    troubled = [TROUBLES["a lost answer"]] * 100
    transport = FakeTransport(lambda request: shop.answer(request) if request.method == "POST" else troubled.pop())
    session = defapi(transport)
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        await (await session.submit("a fox", idempotency_key=KEY)).accepted()
        await asyncio.sleep(1.0)
        for _ in range(1000):
            await call(receiver, shop.url(), callback_body("t1"))
            await asyncio.sleep(0.06)
    assert len(transport.polls) < 15


@virtually
async def test_of_a_job_found_again_the_call_may_have_come_while_nobody_was_there() -> None:
    shop, ledger = CallbackGateway(job_s=JOB_S), RecordingLedger(keep_ended=True)
    async with calling(shop.answer, ledger=ledger) as (session, _, _):
        await (await session.submit("a fox", idempotency_key=KEY)).accepted()
        await asyncio.sleep(1.0)
    await asyncio.sleep(JOB_S)
    async with calling(shop.answer, ledger=ledger) as (session, _, _):
        (job,) = await session.resume()
        begun = now()
        await job
        assert now() - begun < 1.0


@virtually
async def test_a_job_found_again_that_still_runs_waits_for_its_call() -> None:
    shop, ledger = CallingGateway(job_s=60.0), RecordingLedger(keep_ended=True)
    async with calling(shop.answer, ledger=ledger) as (session, _, _):
        await (await session.submit("a fox", idempotency_key=KEY)).accepted()
        await asyncio.sleep(25.0)
    async with calling(shop.answer, ledger=ledger) as (session, receiver, _):
        (job,) = await session.resume()
        await asyncio.sleep(60.0 - now() + 0.1)
        looks = len(shop.polled)
        assert looks <= 3
        await call(receiver, shop.url(), callback_body("t1"))
        await asyncio.sleep(0.2)
        assert (job.state, len(shop.polled)) == (JobState.SUCCEEDED, looks + 1)
