"""Failures that only another setting cures end the waiting within seconds, unless the gateway has answered before."""

import asyncio
from collections.abc import Callable

import pytest

from nanobanana_async import (
    BatchStopped,
    JobState,
    JobUncertain,
    JobUnfinished,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.events import CreateFailed, Event, GatewayUnreachable
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, Opening, RecordingLedger, apimall, defapi, now, virtually

UNKNOWN = TransportError("can't reach gw.exmaple: its name can't be resolved", possibly_sent=False, lasting=True)
REFUSED = TransportError("can't reach gw.example: Connection refused", possibly_sent=False)
PAGE = b"<!doctype html><html>Welcome</html>"
NOT_FOUND = HttpResponse(status=404, body=PAGE)
NO_ROUTE = HttpResponse(status=404, body=b'{"detail":"Not Found"}')
NO_POST = HttpResponse(status=501, body=b"Unsupported method")
MOVED = UnexpectedResponse("redirects are refused: check base_url", status=308, body="www.gw.example")
WRONG = [UNKNOWN, NOT_FOUND, NO_ROUTE, NO_POST, MOVED]


class Switch:
    """Answers as `first` until it is switched, then as the gateway."""

    def __init__(self, wrong: Reply) -> None:
        self.gateway = FakeGateway()
        self.wrong: Reply | None = wrong

    def __call__(self, request: HttpRequest) -> Reply:
        return self.gateway.answer(request) if self.wrong is None else self.wrong


@pytest.mark.parametrize("wrong", WRONG, ids=["name", "page", "route", "method", "redirect"])
@pytest.mark.parametrize("opening", [apimall, defapi])
@virtually
async def test_wrong_setting_ends_the_job_in_seconds_unsent(opening: Opening, wrong: Reply) -> None:
    events: list[Event] = []
    transport, ledger = FakeTransport(Switch(wrong)), RecordingLedger()
    async with opening(transport, ledger=ledger, observers=[events.append]) as session:
        with pytest.raises((TransportError, UnexpectedResponse)) as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert 3.0 <= now() <= 5.0
        assert caught.value.safe_to_repeat
        assert 2 < len(transport.creates) < 10
        assert ledger.states() == {"order-1": JobState.PENDING}
    reports = [event for event in events if isinstance(event, GatewayUnreachable)]
    assert [report.retried for report in reports] == [True]
    assert [event.action for event in events if isinstance(event, CreateFailed)][-2:] == ["repeat", "give_up"]


@pytest.mark.parametrize("opening", [apimall, defapi])
@virtually
async def test_job_can_be_generated_once_the_setting_is_right(opening: Opening) -> None:
    switch = Switch(NOT_FOUND)
    async with opening(FakeTransport(switch)) as session:
        with pytest.raises(UnexpectedResponse, match="check base_url"):
            await session.generate("a fox", idempotency_key="order-1")
        switch.wrong = None
        await session.generate("a fox", idempotency_key="order-1")
    assert switch.gateway.sold == 1


@pytest.mark.slow
@virtually
async def test_many_jobs_end_together_on_a_wrong_setting() -> None:
    async with apimall(FakeTransport(Switch(UNKNOWN))) as session:
        jobs = [await session.submit(f"fox {number}") for number in range(200)]
        for job in jobs:
            with pytest.raises(TransportError, match="its name can't be resolved"):
                await job
    assert now() <= 12.0


@virtually
async def test_wrong_setting_stops_a_batch() -> None:
    transport = FakeTransport(Switch(UNKNOWN))
    async with apimall(transport) as session:
        batch = session.generate_many(f"fox {number}" for number in range(10_000))
        with pytest.raises(BatchStopped, match="its name can't be resolved") as caught:
            await anext(aiter(batch))
    assert isinstance(caught.value.cause, TransportError)
    assert now() <= 5.0


@virtually
async def test_page_of_another_site_leaves_a_keyed_job_repeatable() -> None:
    switch, ledger = Switch(HttpResponse(status=200, body=PAGE)), RecordingLedger()
    async with apimall(FakeTransport(switch), ledger=ledger) as session:
        with pytest.raises(UnexpectedResponse, match="HTML page: check base_url; the job may have been") as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert now() <= 5.0
        assert not caught.value.safe_to_repeat
        assert ledger.states() == {"order-1": JobState.SUBMITTING}
        switch.wrong = None
        await session.generate("a fox", idempotency_key="order-1")
    assert list(switch.gateway.keys) == ["order-1"]


@virtually
async def test_page_of_another_site_leaves_an_unkeyed_job_uncertain() -> None:
    events: list[Event] = []
    transport = FakeTransport(Switch(HttpResponse(status=200, body=PAGE)))
    async with defapi(transport, observers=[events.append]) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
    assert [event.retried for event in events if isinstance(event, GatewayUnreachable)] == [False]


@pytest.mark.parametrize("wrong", [UNKNOWN, NOT_FOUND])
@virtually
async def test_after_the_first_answer_it_is_an_outage(wrong: Reply) -> None:
    switch = Switch(wrong)
    switch.wrong = None
    async with apimall(FakeTransport(switch)) as session:
        await session.generate("first")
        switch.wrong = wrong
        job = await session.submit("second")
        await asyncio.sleep(60.0)
        assert session.stats().outage is not None
        switch.wrong = None
        await job
        assert session.stats().outage is None
    assert switch.gateway.sold == 2


@virtually
async def test_missing_path_after_the_first_answer_is_doubt_without_keys() -> None:
    switch = Switch(NOT_FOUND)
    switch.wrong = None
    async with defapi(FakeTransport(switch)) as session:
        await session.generate("first")
        switch.wrong = NOT_FOUND
        with pytest.raises(JobUncertain):
            await session.generate("second")


@virtually
async def test_attaching_on_a_wrong_setting_ends_in_seconds() -> None:
    events: list[Event] = []
    async with apimall(FakeTransport(Switch(UNKNOWN)), observers=[events.append]) as session:
        with pytest.raises(TransportError, match="resolved"):
            await session.attach("t1")
    assert now() <= 5.0
    assert sum(isinstance(event, GatewayUnreachable) for event in events) == 1


@virtually
async def test_resumed_job_on_a_wrong_setting_ends_its_waiting_only() -> None:
    switch = Switch(UNKNOWN)
    switch.wrong = None
    ledger = RecordingLedger()
    async with apimall(FakeTransport(switch), ledger=ledger) as session:
        await (await session.submit("a fox", idempotency_key="order-1")).wait_for_task_id()
    began, switch.wrong = now(), UNKNOWN
    async with apimall(FakeTransport(switch), ledger=ledger) as session:
        (job,) = await session.resume()
        with pytest.raises(TransportError, match="resolved") as caught:
            await job
        assert now() - began <= 15.0  # its first poll is due after some seconds
        assert not caught.value.safe_to_repeat
        assert job.state is JobState.RUNNING
        switch.wrong = None
        assert (await job).task_id == "t1"


def refusing(method: str) -> Callable[[HttpRequest], Reply]:
    gateway = FakeGateway()
    return lambda request: REFUSED if request.method == method else gateway.answer(request)


@pytest.mark.parametrize("method", ["POST", "GET"])
@virtually
async def test_timeout_has_the_last_failure_as_its_cause(method: str) -> None:
    async with apimall(FakeTransport(refusing(method))) as session:
        with pytest.raises(JobUnfinished, match=r"\(can't reach gw.example: Connection refused\)") as caught:
            await session.generate("a fox", timeout=20.0)
    cause = caught.value.__cause__
    assert isinstance(cause, TransportError)
    assert (cause.message, cause.key) == (REFUSED.message, caught.value.key)
    assert caught.value.safe_to_repeat is (method == "POST")


@virtually
async def test_timeout_of_a_queued_job_names_what_holds_it_back() -> None:
    async with apimall(FakeTransport(refusing("POST"))) as session:
        await session.submit("first")
        await session.submit("second")
        await asyncio.sleep(60.0)
        with pytest.raises(JobUnfinished, match="Connection refused") as caught:
            await session.generate("a fox", timeout=1.0)
    assert isinstance(caught.value.__cause__, TransportError)


@virtually
async def test_timeout_of_a_job_that_runs_has_no_cause() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=60.0).answer)) as session:
        with pytest.raises(JobUnfinished) as caught:
            await session.generate("a fox", timeout=20.0)
    assert caught.value.__cause__ is None
