"""Creates without idempotency keys (defapi): a job in doubt becomes uncertain and is not sent again."""

import asyncio
from typing import Any

import pytest

from nanobanana_async import JobState, JobUncertain, RetryPolicy, Timeouts, TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, defapi, now, virtually
from tests.support.replies import Step, defapi_created, defapi_done, in_turn, json_reply, task

LOST = TransportError("the connection was reset", possibly_sent=True)


def no(status: int, code: int | None = None, message: str = "No") -> HttpResponse:
    return json_reply(status, {"code": status if code is None else code, "message": message})


DOUBTS: dict[str, Reply] = {
    "a lost answer": LOST,
    "a 503 with the envelope": no(503),
    "a 500 with the envelope": no(500),
    "a 502": no(502),
    "a 504": no(504),
    "the HTML of a proxy": HttpResponse(status=502, body=b"<html>"),
    "garbage in a 200": HttpResponse(status=200, body=b"{"),
    "a 200 without a task id": json_reply(200, {"code": 0, "message": "ok", "data": {}}),
    "a 409": no(409),
    "an unknown refusal in a 200": no(200, code=7777, message="hm"),
    "a status of no reference": HttpResponse(status=418, body=b"{}"),
}


def bought(*creates: Step) -> FakeTransport:
    return FakeTransport(in_turn([*creates], [task("in_progress", "ta1"), defapi_done()]))


class Remembering(FakeTransport):
    """Notes for each request whether a fresh connection was asked for."""

    def __init__(self, *creates: Step) -> None:
        super().__init__(in_turn([*creates], [defapi_done()]))
        self.fresh: list[tuple[str, bool]] = []

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        self.fresh.append((request.method, fresh_connection))
        return await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)


@virtually
async def test_defapi_job_returns_its_images() -> None:
    transport = bought(defapi_created())
    async with defapi(transport) as session:
        result = await session.generate("a fox", idempotency_key="order-1")
        assert session.stats().succeeded == 1
    assert (result.key, result.task_id, result.url) == ("order-1", "ta1", "https://cdn.example/a.png")
    assert result.credits is not None
    assert str(result.credits) == "0.500000"
    assert len(transport.creates) == 1


@pytest.mark.parametrize("name", DOUBTS)
@virtually
async def test_every_ambiguous_answer_is_uncertain_without_a_repeat(name: str) -> None:
    transport, ledger = bought(DOUBTS[name], defapi_created()), RecordingLedger()
    async with defapi(transport, ledger=ledger) as session:
        for _ in range(3):
            with pytest.raises(JobUncertain) as caught:
                await session.generate("a fox", idempotency_key="order-1")
            assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", False)
        await asyncio.sleep(3600.0)
        job = await session.job("order-1")
        assert job is not None
        with pytest.raises(JobUncertain):
            await job
    assert len(transport.creates) == 1
    assert ledger.states() == {"order-1": JobState.UNCERTAIN}


@virtually
async def test_create_timeout_is_uncertain() -> None:
    async def slow(_: HttpRequest) -> Reply:
        await asyncio.sleep(500.0)
        return defapi_created()

    transport = FakeTransport(slow)
    async with defapi(transport, timeouts=Timeouts(create_s=120.0)) as session:
        with pytest.raises(JobUncertain, match="no answer in time"):
            await session.generate("a fox")
        assert now() == pytest.approx(120.0)
    assert len(transport.creates) == 1


@virtually
async def test_uncertain_job_holds_its_slot_while_it_may_run() -> None:
    async with defapi(bought(LOST)) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
        assert session.stats().slots_held == 1
        await asyncio.sleep(600.0)
        assert session.stats().slots_held == 0


@virtually
async def test_only_creates_use_a_fresh_connection() -> None:
    transport = Remembering(defapi_created())
    async with defapi(transport) as session:
        await session.generate("a fox")
    assert transport.fresh == [("POST", True), ("GET", False)]


@virtually
async def test_keyed_creates_may_use_a_pooled_connection() -> None:
    fresh: list[bool] = []

    class Noting(FakeTransport):
        async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
            fresh.append(fresh_connection)
            return await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)

    async with apimall(Noting(FakeGateway().answer)) as session:
        await session.generate("a fox")
    assert fresh
    assert not any(fresh)


@virtually
async def test_no_idempotency_key_is_sent() -> None:
    transport = bought(defapi_created())
    async with defapi(transport) as session:
        await session.generate("a fox", idempotency_key="order-1")
    request = transport.creates[0]
    assert b"order-1" not in (request.body or b"")
    assert "order-1" not in str(request.headers)


@pytest.mark.parametrize("name", ["a lost answer", "a 500 with the envelope", "garbage in a 200"])
@virtually
async def test_retry_uncertain_repeats_without_a_key(name: str) -> None:
    transport = bought(DOUBTS[name], DOUBTS[name], defapi_created())
    async with defapi(transport, retry=RetryPolicy(retry_uncertain=True)) as session:
        assert (await session.generate("a fox")).task_id == "ta1"
    assert len(transport.creates) == 3


@virtually
async def test_retry_unkeyed_5xx_does_not_repeat_lost_answers() -> None:
    transport = bought(no(503), no(500), defapi_created())
    retry = RetryPolicy(retry_unkeyed_5xx=True)
    async with defapi(transport, retry=retry) as session:
        assert (await session.generate("a fox")).task_id == "ta1"
    assert len(transport.creates) == 3
    lost = bought(no(503), LOST, defapi_created())
    async with defapi(lost, retry=retry) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
    assert len(lost.creates) == 2


@pytest.mark.parametrize(("code", "name"), [(402, "InsufficientCredits"), (401, "AuthenticationError")])
@virtually
async def test_refusal_in_a_200_is_read_from_the_envelope(code: int, name: str) -> None:
    transport = bought(no(200, code=code, message="the words"))
    async with defapi(transport) as session:
        with pytest.raises(Exception, match="the words") as caught:
            await session.generate("a fox")
        assert session.stats().refused == 1
    assert type(caught.value).__name__ == name


@virtually
async def test_inline_image_is_in_the_result_and_not_the_ledger() -> None:
    inline = "data:image/png;base64,iVBORw0KGgo="
    ledger = RecordingLedger(keep_ended=True)
    transport = FakeTransport(in_turn([defapi_created()], [defapi_done(image=inline)]))
    async with defapi(transport, ledger=ledger) as session:
        result = await session.generate("a fox", idempotency_key="order-1")
    assert result.url == inline
    assert inline not in str(result.raw)
    assert ledger.record("order-1").images == ("",)
    assert inline not in str(ledger.record("order-1"))


@virtually
async def test_callers_with_different_callback_urls_share_a_job() -> None:
    transport = FakeTransport(FakeGateway().answer)
    async with defapi(transport) as session, asyncio.TaskGroup() as group:
        for number in range(3):
            fields: dict[str, Any] = {"callback_url": f"https://me.example/{number}"}
            group.create_task(session.generate("a fox", idempotency_key="order-1", **fields))
    assert len(transport.creates) == 1
