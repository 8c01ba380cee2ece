"""Fallback polling: a callback that is lost, late or false costs time and never the job."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nanobanana_async import JobState, PollPolicy, Session, TransportError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import CallbackReceiver
from tests.support import replies
from tests.support.callbacks import KEY, PUBLIC, CallbackGateway, call, callback_body, calling
from tests.support.fakes import RecordingLedger, defapi, now, virtually

JOB_S = 10.0


class CallingGateway(CallbackGateway):
    """A fake gateway that calls back for the k-th task of a cycle as often as `times` says, `delay_s` after its end."""

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
async def called(gateway: CallingGateway, **settings: Any) -> AsyncIterator[Session]:
    """Open a session whose gateway calls back; wait for its last call."""
    async with calling(gateway.answer, **settings) as (session, receiver, _):
        gateway.receiver = receiver
        async with asyncio.TaskGroup() as gateway.group:
            yield session
        gateway.group = None


async def buy(session: Session, count: int) -> float:
    """Buy so many at once; return how long it took."""
    begun = now()
    outcomes = [row async for row in session.generate_many(f"fox {number}" for number in range(count))]
    assert sum(row.ok for row in outcomes) == count
    return now() - begun


@virtually
async def test_each_callback_causes_one_immediate_poll() -> None:
    gateway = CallingGateway()
    async with called(gateway) as session:
        took = await buy(session, 40)
    assert len(gateway.polled) == 40
    assert took < JOB_S + 2.0


@virtually
async def test_repeated_callbacks_cause_no_more_polls() -> None:
    gateway = CallingGateway(3)
    async with called(gateway) as session:
        await buy(session, 40)
    assert len(gateway.polled) == 40
    assert gateway.statuses == [200] * 120


@virtually
async def test_late_callbacks_cost_at_most_two_polls_per_job() -> None:
    gateway = CallingGateway(delay_s=4.0)
    async with called(gateway) as session:
        await buy(session, 40)
    assert gateway.statuses == [200] * 40
    assert len(gateway.polled) <= 80


@virtually
async def test_callbacks_teach_durations_for_the_fallback() -> None:
    gateway = CallingGateway()
    async with called(gateway) as session:
        await buy(session, 40)
        median_s = session.stats().job_duration_median_s
        assert median_s is not None
        assert abs(median_s - JOB_S) < 1.0
        gateway.times = (0,)
        begun = now()
        await session.generate("a fox")
        assert now() - begun < 2 * JOB_S


@virtually
async def test_job_with_a_lost_callback_ends_within_a_minute() -> None:
    gateway = CallingGateway(0)
    async with called(gateway) as session:
        begun = now()
        await session.generate("a fox")
        assert now() - begun <= 60.5


@pytest.mark.slow
@virtually
async def test_lost_callbacks_fall_back_to_normal_polling() -> None:
    gateway = CallingGateway(0)
    async with called(gateway, polling=PollPolicy(target_delay_s=0.5, max_gap_s=8.0)) as session:
        for _ in range(3):
            await session.generate("a fox")
        begun = now()
        for _ in range(5):
            await session.generate("a fox")
        assert (now() - begun) / 5 < JOB_S + 1.0
        gateway.times = (1,)  # and when they come again, they are relied on again
        for _ in range(30):
            await session.generate("a fox")
        polled = len(gateway.polled)
        for _ in range(5):
            await session.generate("a fox")
        assert len(gateway.polled) - polled == 5


@pytest.mark.slow
@virtually
async def test_one_lost_callback_in_ten_adds_no_polls() -> None:
    gateway = CallingGateway(*[1] * 9, 0)
    async with called(gateway) as session:
        await buy(session, 100)
    assert len(gateway.polled) <= 150


@pytest.mark.slow
@virtually
async def test_lost_and_repeated_callbacks_buy_once() -> None:
    gateway = CallingGateway(0, 1, 2, limit=20)
    async with called(gateway) as session:
        await buy(session, 100)
    assert gateway.sold == 100


@virtually
async def test_early_callback_costs_one_poll() -> None:
    gateway = CallingGateway(delay_s=-8.0)
    async with called(gateway) as session:
        await session.generate("a fox")
    assert gateway.polled[:1] == ["t1"]
    assert len(gateway.polled) <= 3


TROUBLES: dict[str, Reply] = {
    "a lost answer": TransportError("the connection was reset", possibly_sent=True),
    "a 503": replies.json_reply(503, {"code": 503, "message": "unavailable"}),
    "a 429": replies.json_reply(429, {"code": 429, "message": "too many requests"}),
    "no image yet": replies.task("success", "t1"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@virtually
async def test_poll_after_an_early_callback_is_repeated_soon(trouble: str) -> None:
    gateway = CallingGateway()
    gateway.troubles = [TROUBLES[trouble]]
    async with called(gateway) as session:
        begun = now()
        await session.generate("a fox")
        assert now() - begun < JOB_S + 3.0
    assert len(gateway.polled) == 2


@virtually
async def test_failed_poll_is_not_a_lost_callback() -> None:
    gateway = CallingGateway()
    async with called(gateway) as session:
        for _ in range(10):
            gateway.troubles = [TROUBLES["a lost answer"]]
            await session.generate("a fox")
        polled = len(gateway.polled)
        await session.generate("a fox")
        assert len(gateway.polled) - polled == 1


@pytest.mark.slow
@virtually
async def test_callback_does_not_hasten_a_failed_poll() -> None:
    gateway = CallbackGateway(job_s=1.0)
    troubled = [TROUBLES["a lost answer"]] * 100
    transport = FakeTransport(lambda request: gateway.answer(request) if request.method == "POST" else troubled.pop())
    session = defapi(transport)
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        await (await session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
        await asyncio.sleep(1.0)
        for _ in range(1000):
            await call(receiver, gateway.url(), callback_body("t1"))
            await asyncio.sleep(0.06)
    assert len(transport.polls) < 15


@virtually
async def test_adopted_job_is_polled_for_a_past_callback() -> None:
    gateway, ledger = CallbackGateway(job_s=JOB_S), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, _, _):
        await (await session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
        await asyncio.sleep(1.0)
    await asyncio.sleep(JOB_S)
    async with calling(gateway.answer, ledger=ledger) as (session, _, _):
        (job,) = await session.resume()
        begun = now()
        await job
        assert now() - begun < 1.0


@virtually
async def test_adopted_running_job_waits_for_its_callback() -> None:
    gateway, ledger = CallingGateway(job_s=60.0), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, _, _):
        await (await session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
        await asyncio.sleep(25.0)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        (job,) = await session.resume()
        await asyncio.sleep(60.0 - now() + 0.1)
        polled = len(gateway.polled)
        assert polled <= 3
        await call(receiver, gateway.url(), callback_body("t1"))
        await asyncio.sleep(0.2)
        assert (job.state, len(gateway.polled)) == (JobState.SUCCEEDED, polled + 1)
