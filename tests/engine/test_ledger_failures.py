"""A ledger that can't be written: nothing is bought without a durable intent, nothing bought is lost."""

import asyncio

import pytest

from nanobanana_async import JobState, JobWithdrawn, LedgerError, RetryPolicy, TransportError
from nanobanana_async.events import Event, PollFailed
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, Opening, RecordingLedger, apimall, defapi, virtually
from tests.support.replies import created, refused, scripted_creates

LOST = TransportError("the connection was reset", possibly_sent=True)
CLAIM, INTENT, ANSWER, END = 1, 2, 3, 4


@pytest.mark.parametrize("session_of", [apimall, defapi])
@pytest.mark.parametrize("broken", [CLAIM, INTENT])
@virtually
async def test_unstored_intent_sends_nothing(session_of: Opening, broken: int) -> None:
    transport, ledger = FakeTransport(FakeGateway().answer), RecordingLedger(failing_writes=[broken])
    async with session_of(transport, ledger=ledger) as session:
        with pytest.raises(LedgerError, match="the disk is full") as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert not transport.requests
        assert session.stats().slots_held == 0
        assert (caught.value.key, caught.value.task_id) == ("order-1", None)
        # A claim that was not answered leaves open what an earlier session has bought under this key.
        assert caught.value.safe_to_repeat is (broken != CLAIM)
        assert JobState.SUBMITTING not in ledger.states().values()
        await session.generate("a fox", idempotency_key="order-1")  # now the disk has room again
    assert len(transport.creates) == 1


@virtually
async def test_unstored_job_is_not_submitted() -> None:
    transport = FakeTransport(FakeGateway().answer)
    async with apimall(transport, ledger=RecordingLedger(failing_writes=[CLAIM])) as session:
        with pytest.raises(LedgerError):
            await session.submit("a fox")
    assert not transport.requests


@virtually
async def test_unstored_task_id_is_in_the_error_and_polling_continues() -> None:
    transport, ledger = scripted_creates(created()), RecordingLedger(failing_writes=[ANSWER])
    async with apimall(transport, ledger=ledger) as session:
        with pytest.raises(LedgerError) as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert (caught.value.key, caught.value.task_id) == ("order-1", "img_1")
        assert not caught.value.safe_to_repeat
        assert session.stats().slots_held == 1
        job = await session.job("order-1")
        assert job is not None
        assert (await job).task_id == "img_1"
        assert session.stats().slots_held == 0
    assert ledger.states() == {}  # the last write caught up
    assert len(transport.creates) == 1


@virtually
async def test_each_waiter_gets_the_unstored_task_id() -> None:
    async with apimall(scripted_creates(created()), ledger=RecordingLedger(failing_writes=[ANSWER])) as session:
        job = await session.submit("a fox")
        waiting = [asyncio.Task(job.wait_for_task_id()), asyncio.Task(job.result())]
        await asyncio.wait(waiting)
        errors = [waiter.exception() for waiter in waiting]
        assert all(isinstance(error, LedgerError) for error in errors)
        assert errors[0] is not errors[1]
        assert await job.wait_for_task_id() == "img_1"
        assert (await job).task_id == "img_1"


@virtually
async def test_result_is_returned_though_its_write_failed() -> None:
    events: list[Event] = []
    ledger = RecordingLedger(failing_writes=[END])
    async with apimall(scripted_creates(created()), ledger=ledger, observers=[events.append]) as session:
        assert (await session.generate("a fox", idempotency_key="order-1")).task_id == "img_1"
        assert session.stats().slots_held == 0
    assert ledger.states() == {"order-1": JobState.RUNNING}  # to be found again
    assert any(isinstance(event, PollFailed) and isinstance(event.error, LedgerError) for event in events)


@virtually
async def test_unstored_result_is_found_by_its_key() -> None:
    transport = scripted_creates(created())
    async with apimall(transport, ledger=RecordingLedger(failing_writes=[END])) as session:
        await session.generate("a fox", idempotency_key="order-1")
        assert (await session.generate("a fox", idempotency_key="order-1")).task_id == "img_1"
    assert len(transport.creates) == 1


@pytest.mark.parametrize("answer", [LOST, refused(503), refused(429), refused(402)], ids=["lost", "503", "429", "402"])
@virtually
async def test_unstored_failure_stays_submitting_without_a_repeat(
    answer: Reply,
) -> None:
    transport, ledger = scripted_creates(answer, created()), RecordingLedger(failing_writes=[ANSWER])
    async with apimall(transport, ledger=ledger) as session:
        with pytest.raises(LedgerError) as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert not caught.value.safe_to_repeat
        assert len(transport.creates) == 1
        assert ledger.states() == {"order-1": JobState.SUBMITTING}
        assert (await session.generate("a fox", idempotency_key="order-1")).task_id == "img_1"
    assert len(transport.creates) == 2


@virtually
async def test_unstored_uncertain_state_is_a_ledger_error() -> None:
    transport = scripted_creates(TransportError("refused", possibly_sent=False))
    async with apimall(
        transport, ledger=RecordingLedger(failing_writes=[ANSWER]), retry=RetryPolicy(max_attempts=1)
    ) as session:
        with pytest.raises(LedgerError):
            await session.generate("a fox")
    assert len(transport.creates) == 1


@virtually
async def test_unstored_withdrawal_sends_nothing() -> None:
    gateway = FakeGateway(job_s=50.0, limit=1)
    ledger = RecordingLedger()
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        await (await session.submit("one")).wait_for_task_id()
        waiting = await session.submit("two", idempotency_key="order-2")
        await asyncio.sleep(5.0)
        ledger.fails = {ledger.writes + 1}
        assert waiting.state is JobState.PENDING
        assert not await waiting.cancel()
        with pytest.raises(LedgerError):
            await waiting
        await asyncio.sleep(100.0)
    assert gateway.sold == 1
    assert ledger.states() == {"order-2": JobState.PENDING}


@pytest.mark.parametrize("broken", range(1, 7))
@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_any_failed_write_keeps_intents_and_single_purchases(broken: int, session_of: Opening) -> None:
    gateway, ledger, bare = FakeGateway(), RecordingLedger(failing_writes=[broken], keep_ended=True), list[str]()

    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST" and JobState.SUBMITTING not in ledger.states().values():
            bare.append("a POST without a durable intent")
        return gateway.answer(request)

    async with session_of(FakeTransport(answer), ledger=ledger) as session:
        for _ in range(3):
            try:
                await session.generate("a fox", idempotency_key="order-1")
            except LedgerError:
                continue
    assert bare == []
    assert gateway.sold == 1


@virtually
async def test_overtaken_write_sends_nothing_and_follows_what_is_stored() -> None:
    transport, ledger = FakeTransport(FakeGateway().answer), RecordingLedger(delay_s=0.5)
    async with apimall(transport, ledger=ledger) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        known = ledger.record("order-1")
        ledger.delay_s = 0.0
        await ledger.advance(known, known.transition_to(JobState.WITHDRAWN))
        with pytest.raises(JobWithdrawn):
            await job
    assert not transport.requests
