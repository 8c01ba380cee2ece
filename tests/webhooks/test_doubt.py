"""Uncertain jobs: a callback with a task id that the gateway confirms resolves them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nanobanana_async import JobState, JobUncertain, Session, TransportError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import CallbackReceiver
from tests.support import replies
from tests.support.callbacks import KEY, PUBLIC, CallbackGateway, call, callback_body, calling
from tests.support.fakes import RecordingLedger, defapi, now, virtually
from tests.support.shared_ledger import found

LOST = TransportError("the connection was reset", possibly_sent=True)


class LosingCallbackGateway(CallbackGateway):
    """Sells, and its answers to creates are lost; its queries answer what stands first in `troubles`."""

    def __init__(self, *, job_s: float = 2.0) -> None:
        super().__init__(job_s=job_s)
        self.troubles: list[Reply] = []

    def answer(self, request: HttpRequest) -> Reply:
        reply = super().answer(request)
        if request.method == "POST":
            return LOST
        return self.troubles.pop(0) if self.troubles else reply


async def doubted(session: Session, key: str = KEY) -> None:
    with pytest.raises(JobUncertain):
        await session.generate(f"a fox for {key}", idempotency_key=key)


@virtually
async def test_callback_resolves_in_the_same_session_and_keeps_the_slot() -> None:
    gateway, ledger = LosingCallbackGateway(job_s=5.0), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, transport):
        await doubted(session)
        job = await found(session, KEY)
        await asyncio.sleep(5.0)
        assert session.stats().slots_held == 1
        assert await call(receiver, gateway.url(), callback_body("t1")) == 200
        await asyncio.sleep(0.2)
        assert ledger.record(KEY).state is JobState.RUNNING
        assert (await job).task_id == "t1"
        stats = session.stats()
        assert (stats.slots_held, stats.uncertain, stats.succeeded) == (0, 0, 1)
    assert (len(transport.creates), gateway.polled) == (1, ["t1", "t1"])


@virtually
async def test_callback_resolves_a_job_that_still_runs() -> None:
    gateway = LosingCallbackGateway(job_s=20.0)
    async with calling(gateway.answer) as (session, receiver, _):
        await doubted(session)
        job = await found(session, KEY)
        await call(receiver, gateway.url(), callback_body("t1", "in_progress"))
        await asyncio.sleep(3.0)
        assert (await found(session, KEY)).state is JobState.RUNNING
        assert (await job).task_id == "t1"


@virtually
async def test_callback_resolves_in_a_later_session() -> None:
    gateway, ledger = LosingCallbackGateway(), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, _, _):
        await doubted(session)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, transport):
        await asyncio.sleep(2.0)
        assert await call(receiver, gateway.url(), callback_body("t1")) == 200
        await asyncio.sleep(2.0)
        assert (await session.generate(f"a fox for {KEY}", idempotency_key=KEY)).task_id == "t1"
        assert transport.creates == []


@pytest.mark.parametrize(
    ("body", "polled"),
    [
        (callback_body("t999"), ["t999"]),  # the gateway does not know it
        (callback_body("../t1"), ["..%2Ft1"]),
        (callback_body("x" * 60_000, "in_progress"), []),  # no gateway can have given it
        (callback_body(None), []),
        (b"", []),
        (b"not JSON", []),
    ],
)
@virtually
async def test_callback_with_an_unknown_task_leaves_it_uncertain(body: bytes, polled: list[str]) -> None:
    gateway, ledger = LosingCallbackGateway(), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        await doubted(session)
        record = ledger.record(KEY)
        assert await call(receiver, gateway.url(), body) == 200
        await asyncio.sleep(100.0)
        assert ledger.record(KEY) == record
    assert gateway.polled == polled


@virtually
async def test_callback_with_the_task_of_another_job_is_ignored() -> None:
    gateway, ledger = LosingCallbackGateway(), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        for number in (1, 2):
            await doubted(session, f"order-{number}")
        await asyncio.sleep(2.0)
        await call(receiver, gateway.url(1), callback_body("t1"))
        await asyncio.sleep(3.0)
        assert ledger.states() == {"order-1": JobState.SUCCEEDED, "order-2": JobState.UNCERTAIN}
        polled = len(gateway.polled)
        await call(receiver, gateway.url(2), callback_body("t1"))
        await asyncio.sleep(3.0)
        assert (ledger.states()["order-2"], len(gateway.polled)) == (JobState.UNCERTAIN, polled)


@virtually
async def test_forged_callback_does_not_hide_the_next() -> None:
    gateway, ledger = LosingCallbackGateway(), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        await doubted(session)
        await asyncio.sleep(2.0)
        for task_id in ("t998", "t999", "t1"):
            await call(receiver, gateway.url(), callback_body(task_id))
            await asyncio.sleep(0.01)
        await asyncio.sleep(4.0)
        assert ledger.states() == {KEY: JobState.SUCCEEDED}
    assert gateway.polled == ["t998", "t1", "t1"]


TROUBLES: dict[str, Reply] = {
    "a lost answer": TransportError("the connection was reset", possibly_sent=True),
    "a 503": replies.json_reply(503, {"code": 503, "message": "unavailable"}),
    "a 429": replies.json_reply(429, {"code": 429, "message": "too many requests"}),
    "a proxy's page": replies.json_reply(502, "<html>"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@virtually
async def test_failed_confirmation_does_not_lose_the_callback(trouble: str) -> None:
    gateway, ledger = LosingCallbackGateway(), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        await doubted(session)
        await asyncio.sleep(2.0)
        gateway.troubles = [TROUBLES[trouble]] * 4
        await call(receiver, gateway.url(), callback_body("t1"))
        await asyncio.sleep(30.0)
        assert ledger.states() == {KEY: JobState.SUCCEEDED}
    assert len(gateway.polled) == 6


@virtually
async def test_uncertain_job_is_polled_at_most_once_a_second() -> None:
    gateway = LosingCallbackGateway()
    async with calling(gateway.answer, ledger=RecordingLedger(keep_ended=True)) as (session, receiver, _):
        await doubted(session)
        begun = now()
        while now() < begun + 10.0:
            await call(receiver, gateway.url(), callback_body("t999"))
            await asyncio.sleep(0.03)
    assert 9 <= len(gateway.polled) <= 11


@pytest.mark.slow
@virtually
async def test_uncertain_jobs_are_polled_a_few_at_a_time() -> None:
    gateway, ledger = LosingCallbackGateway(), RecordingLedger(keep_ended=True)
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, transport):
        for number in range(40):
            await doubted(session, f"order-{number}")
        await asyncio.sleep(2.0)
        most = 0
        for url in gateway.urls.values():
            await call(
                receiver, url, callback_body(next(task_id for task_id, known in gateway.urls.items() if known == url))
            )
        while JobState.UNCERTAIN in ledger.states().values():
            most = max(most, transport.in_flight)
            await asyncio.sleep(0.01)
        assert most <= 16
        await asyncio.sleep(5.0)
        assert set(ledger.states().values()) == {JobState.SUCCEEDED}


def late(gateway: CallbackGateway, seconds: float, reply: Reply | None = None) -> Callable[[HttpRequest], Any]:
    """Let the answers to creates come so late, or another reply instead."""

    async def answer(request: HttpRequest) -> Reply:
        reply_before = gateway.answer(request)
        if request.method == "POST":
            await asyncio.sleep(seconds)
            return reply_before if reply is None else reply
        return reply_before

    return answer


@pytest.mark.parametrize("answer", [None, LOST])
@virtually
async def test_callback_before_a_lost_create_answer_counts(answer: Reply | None) -> None:
    gateway, ledger = CallbackGateway(job_s=1.0), RecordingLedger(keep_ended=True)
    async with calling(late(gateway, 5.0, answer), ledger=ledger) as (session, receiver, transport):
        job = await session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(1.5)
        assert ledger.states() == {KEY: JobState.SUBMITTING}
        assert await call(receiver, gateway.url(), callback_body("t1")) == 200
        await asyncio.sleep(0.5)
        assert (ledger.states(), gateway.polled) == ({KEY: JobState.SUBMITTING}, [])
        await asyncio.sleep(5.0)
        assert job.state is JobState.SUCCEEDED
        assert (await job).task_id == "t1"
        assert len(transport.creates) == 1
    assert gateway.polled == ["t1"] * (1 if answer is None else 2)


@virtually
async def test_create_answer_overrides_an_earlier_callback() -> None:
    gateway = CallbackGateway(job_s=1.0)
    async with calling(late(gateway, 5.0)) as (session, receiver, _):
        job = await session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(1.5)
        await call(receiver, gateway.url(), callback_body("t999"))
        assert (await job).task_id == "t1"
    assert gateway.polled == ["t1"]


@virtually
async def test_close_during_the_confirmation_leaves_it_uncertain() -> None:
    gateway, ledger = CallbackGateway(job_s=1.0), RecordingLedger(keep_ended=True)
    session = defapi(FakeTransport(late(gateway, 5.0, LOST)), ledger=ledger)
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        await session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(1.5)
        await call(receiver, gateway.url(), callback_body("t1"))
    assert ledger.states() == {KEY: JobState.UNCERTAIN}


@virtually
async def test_failed_earlier_generation_does_not_decide_the_next() -> None:
    gateway, ledger = LosingCallbackGateway(), RecordingLedger(keep_ended=True)
    failed = replies.task("failed", "t1")
    async with calling(gateway.answer, ledger=ledger) as (session, receiver, _):
        await doubted(session)
        await session.resolve(KEY, buy_again=True)
        await asyncio.sleep(1.0)
        assert ledger.record(KEY).generation == 2
        gateway.troubles = [failed] * 3
        await call(receiver, gateway.url(1), callback_body("t1", "failed"))
        await asyncio.sleep(2.0)
        assert ledger.states() == {KEY: JobState.UNCERTAIN}
        gateway.troubles = []
        await call(receiver, gateway.url(2), callback_body("t2"))
        await asyncio.sleep(4.0)
        assert (ledger.record(KEY).state, ledger.record(KEY).task_id) == (JobState.SUCCEEDED, "t2")
