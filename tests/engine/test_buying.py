"""Creates with idempotency keys (API Mall): order of writes and requests, identical repeats, lasting doubt."""

from typing import Any

import pytest

from nanobanana_async import (
    IdempotencyConflict,
    JobState,
    JobUncertain,
    RetryPolicy,
    TransportError,
)
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.gateways.contract import HttpResponse
from nanobanana_async.gateways.refusals import ERROR_BY_STATUS
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import EventLog, RecordingLedger, apimall, states_of, virtually, wire_key
from tests.support.replies import completed, created, in_turn, json_reply, refused, scripted_creates

LOST = TransportError("the connection was reset", possibly_sent=True)
UNSENT = TransportError("connection refused", possibly_sent=False)
HTML = HttpResponse(status=502, body=b"<html><h1>502 Bad Gateway</h1></html>")

DOUBTS: dict[str, Reply] = {
    "a lost answer": LOST,
    "a 503 with the envelope": refused(503),
    "a 500 with the envelope": refused(500),
    "a 502 with the envelope": refused(502),
    "a 504 with the envelope": refused(504),
    "a 503 without the envelope": HttpResponse(status=503, body=b"upstream connect error"),
    "the HTML of a proxy": HTML,
    "garbage in a 200": HttpResponse(status=200, body=b"\x00\xff garbage"),
    "a 200 without a task id": json_reply(200, {"success": True, "data": {}}),
    "a status of no reference": HttpResponse(status=418, body=b"{}"),
    "a redirect": HttpResponse(status=302, headers={"location": "https://elsewhere.example"}),
}
REFUSALS = [429, 402, 401, 451, 403, 400, 404]


@virtually
async def test_transition_is_stored_before_request_and_event() -> None:
    log = EventLog()
    transport = FakeTransport(log.recording_requests(in_turn([created()], [completed()])))
    async with apimall(transport, ledger=RecordingLedger(log=log), observers=[log.observe]) as session:
        job = await session.submit("a fox")
        await job.wait_for_task_id()
        log.append("the caller has the task id")
        await job
    assert log == [
        "claim PENDING",
        "event PENDING",
        "PENDING -> SUBMITTING",
        "event SUBMITTING",
        "POST",
        "SUBMITTING -> RUNNING",
        "event RUNNING",
        "the caller has the task id",
        "GET",
        "RUNNING -> SUCCEEDED",
        "event SUCCEEDED",
    ]


@virtually
async def test_slow_ledger_stores_the_intent_before_the_create() -> None:
    ledger = RecordingLedger(delay_s=1.0)
    standing: list[JobState] = []

    def answer(request: Any) -> Reply:
        standing.append(ledger.states()["order-1"])
        return created() if request.method == "POST" else completed()

    async with apimall(FakeTransport(answer), ledger=ledger) as session:
        await session.generate("a fox", idempotency_key="order-1")
    assert standing == [JobState.SUBMITTING, JobState.RUNNING]


@virtually
async def test_result_has_images_and_credits() -> None:
    async with apimall(scripted_creates(created(cost=9))) as session:
        result = await session.generate("a fox", idempotency_key="order-1", num_images=2)
        stats = session.stats()
    assert (result.key, result.task_id, result.url) == ("order-1", "img_1", "https://cdn.example/a.png")
    assert result.credits == 8  # the last word is that of the query
    assert result.raw["request_id"] == "req_2"
    assert (stats.succeeded, stats.slots_held) == (1, 0)
    assert [stats.credits_spent, stats.credits_remaining] == [8, 100]


@pytest.mark.parametrize("name", DOUBTS)
@virtually
async def test_lost_create_is_repeated_with_same_bytes_and_key(name: str) -> None:
    transport = scripted_creates(DOUBTS[name], DOUBTS[name], created())
    async with apimall(transport) as session:
        result = await session.generate("a fox", idempotency_key="order-1", aspect_ratio="16:9")
    first, *repeats = transport.creates
    assert result.task_id == "img_1"
    assert len(repeats) == 2
    assert all((request.body, request.headers) == (first.body, first.headers) for request in repeats)
    assert wire_key(first) == "order-1"


@virtually
async def test_doubt_is_stored_before_the_repeat() -> None:
    ledger, doubts = RecordingLedger(), list[bool]()

    def answer(request: Any) -> Reply:
        doubts.append(ledger.record("order-1").in_doubt)
        return completed() if request.method == "GET" else LOST if len(doubts) == 1 else created()

    async with apimall(FakeTransport(answer), ledger=ledger) as session:
        await session.generate("a fox", idempotency_key="order-1")
    assert doubts == [False, True, False]
    assert ledger.log == [
        "claim PENDING",
        "PENDING -> SUBMITTING",
        "SUBMITTING -> SUBMITTING",
        "SUBMITTING -> RUNNING",
        "RUNNING -> SUCCEEDED",
    ]


@pytest.mark.parametrize("status", REFUSALS)
@virtually
async def test_lost_answer_then_refusal_then_task_is_running(status: int) -> None:
    transport = scripted_creates(LOST, refused(status), refused(status), created())
    states: list[JobState] = []
    async with apimall(transport) as session:
        job = await session.submit("a fox")
        states.extend(await states_of(job))
        assert (await job).task_id == "img_1"
    assert JobState.REFUSED not in states
    assert JobState.PENDING not in states[1:]
    assert len({wire_key(request) for request in transport.creates}) == 1
    assert len(transport.creates) == 4


@pytest.mark.parametrize("status", REFUSALS)
@virtually
async def test_lost_answer_then_only_refusals_is_uncertain(status: int) -> None:
    transport, ledger = scripted_creates(LOST, refused(status)), RecordingLedger()
    retry = RetryPolicy(max_attempts=4, max_wait_s=200.0)
    async with apimall(transport, ledger=ledger, retry=retry) as session:
        with pytest.raises(JobUncertain) as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert session.stats().uncertain == 1
    assert not caught.value.safe_to_repeat
    assert caught.value.key == "order-1"
    assert ledger.states() == {"order-1": JobState.UNCERTAIN}
    assert not {"SUBMITTING -> PENDING", "SUBMITTING -> REFUSED"} & set(ledger.log)


@virtually
async def test_generate_does_not_resend_an_uncertain_job() -> None:
    transport = scripted_creates(LOST)
    async with apimall(transport, retry=RetryPolicy(max_attempts=2)) as session:
        for _ in range(3):
            with pytest.raises(JobUncertain):
                await session.generate("a fox", idempotency_key="order-1")
    assert len(transport.creates) == 2


@virtually
async def test_409_on_a_sent_key_means_in_progress() -> None:
    transport = scripted_creates(LOST, refused(409), refused(409), created())
    async with apimall(transport) as session:
        assert (await session.generate("a fox")).task_id == "img_1"
    assert len(transport.creates) == 4


@virtually
async def test_409_on_an_unsent_key_is_a_conflict() -> None:
    transport, ledger = (
        scripted_creates(refused(409, "idempotency_conflict", "taken")),
        RecordingLedger(keep_ended=True),
    )
    async with apimall(transport, ledger=ledger) as session:
        with pytest.raises(IdempotencyConflict, match="taken") as caught:
            await session.generate("a fox", idempotency_key="order-1")
    assert (caught.value.status, caught.value.key, caught.value.safe_to_repeat) == (409, "order-1", False)
    assert ledger.states() == {"order-1": JobState.UNCERTAIN}
    assert len(transport.creates) == 1


@virtually
async def test_409_after_an_unsent_attempt_is_a_conflict() -> None:
    async with apimall(scripted_creates(UNSENT, refused(409))) as session:
        with pytest.raises(IdempotencyConflict) as caught:
            await session.generate("a fox")
    assert not caught.value.safe_to_repeat


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 451])
@virtually
async def test_clear_refusal_has_the_gateways_message(status: int) -> None:
    transport, ledger = scripted_creates(refused(status, "the_code", "the words")), RecordingLedger(keep_ended=True)
    async with apimall(transport, ledger=ledger) as session:
        with pytest.raises(ERROR_BY_STATUS[status], match="the words") as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert (session.stats().refused, session.stats().slots_held) == (1, 0)
    error = caught.value
    assert (error.status, error.code, error.request_id) == (status, "the_code", "req_9")
    assert (error.key, error.safe_to_repeat) == ("order-1", True)
    assert ledger.states() == {"order-1": JobState.REFUSED}
    assert len(transport.creates) == 1


@virtually
async def test_kept_refused_job_is_bought_again_with_a_new_wire_key() -> None:
    transport = scripted_creates(refused(402), created())
    async with apimall(transport, ledger=RecordingLedger(keep_ended=True)) as session:
        with pytest.raises(NanoBananaError):
            await session.generate("a fox", idempotency_key="order-1")
        result = await session.generate("a fox", idempotency_key="order-1")
    keys = [wire_key(request) for request in transport.creates]
    assert result.key == "order-1"
    assert keys[0] == "order-1"
    assert keys[1] != "order-1"


@virtually
async def test_kept_finished_job_is_returned_without_a_request() -> None:
    transport = scripted_creates(created())
    async with apimall(transport, ledger=RecordingLedger(keep_ended=True)) as session:
        first = await session.generate("a fox", idempotency_key="order-1")
        asked = len(transport.requests)
        again = await session.generate("a fox", idempotency_key="order-1")
        assert len(transport.requests) == asked
    assert again.images == first.images
    assert again.credits == first.credits


@virtually
async def test_gateway_bug_reaches_waiters_and_job_is_in_doubt() -> None:
    def broken(_: Any) -> Reply:
        raise ZeroDivisionError("a bug")

    ledger = RecordingLedger()
    async with apimall(FakeTransport(broken), ledger=ledger) as session:
        with pytest.raises(NanoBananaError, match="ZeroDivisionError") as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert session.stats().slots_held == 0
    assert not caught.value.safe_to_repeat
    assert ledger.states() == {"order-1": JobState.SUBMITTING}


@virtually
async def test_uncertain_error_quotes_the_last_answer() -> None:
    async with apimall(scripted_creates(HTML), retry=RetryPolicy(max_attempts=1)) as session:
        with pytest.raises(JobUncertain, match="502 Bad Gateway"):
            await session.generate("a fox", idempotency_key="order-1")
