"""Polling a job: its states, failed polls, and what ends a wait without ending the job."""

import asyncio
import logging
from decimal import Decimal
from itertools import pairwise

import pytest

from nanobanana_async import (
    AccessDenied,
    AuthenticationError,
    JobFailed,
    JobState,
    TaskNotFound,
    Timeouts,
    TransportError,
)
from nanobanana_async.events import Event, JobPolled, UnknownStatus
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, Opening, RecordingLedger, apimall, defapi, now, states_of, virtually
from tests.support.replies import (
    Step,
    completed,
    created,
    defapi_created,
    defapi_done,
    in_turn,
    json_reply,
    refused,
    task,
)

LOST = TransportError("the connection was reset", possibly_sent=True)


def seen(*queries: Step) -> FakeTransport:
    return FakeTransport(in_turn([created()], [*queries]))


def until(moment: float, before: Reply, after: Reply) -> FakeTransport:
    """A gateway whose queries change their answer at a moment."""
    return FakeTransport(lambda asked: created() if asked.method == "POST" else before if now() < moment else after)


@virtually
async def test_apimall_job_reaches_its_images() -> None:
    transport = seen(task("pending"), task("processing"), task("PROCESSING"), completed())
    async with apimall(transport) as session:
        job = await session.submit("a fox")
        states = await states_of(job)
        result = await job
    assert states == [JobState.PENDING, JobState.SUBMITTING, JobState.RUNNING, JobState.SUCCEEDED]
    assert result.url == "https://cdn.example/a.png"
    assert result.completed_at is not None
    assert len(transport.polls) == 4


@virtually
async def test_early_404_is_a_lagging_replica() -> None:
    transport = until(20.0, refused(404), completed())
    async with apimall(transport) as session:
        assert (await session.generate("a fox")).task_id == "img_1"
        assert 20.0 <= now() <= 60.0


@virtually
async def test_lasting_404_ends_the_wait_and_stays_running() -> None:
    ledger = RecordingLedger()
    transport = until(500.0, refused(404), completed())
    async with apimall(transport, ledger=ledger) as session:
        with pytest.raises(TaskNotFound) as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert 30.0 <= now() <= 62.0
        assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", False)
        assert ledger.states() == {"order-1": JobState.RUNNING}
        await asyncio.sleep(600.0)
        job = await session.job("order-1")
        assert job is not None
        assert (await job).task_id == "img_1"
    assert len(transport.creates) == 1


@virtually
async def test_completed_task_without_images_is_polled_again() -> None:
    async with apimall(seen(task("completed"), task("completed"), completed())) as session:
        assert (await session.generate("a fox")).url == "https://cdn.example/a.png"


@virtually
async def test_ten_seconds_without_images_is_a_failed_job() -> None:
    transport = seen(task("completed", credits_used=8))
    async with apimall(transport) as session:
        with pytest.raises(JobFailed, match="it ended without an image") as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert 10.0 <= now() <= 20.0  # ten seconds after the first poll that found no image
        job = await session.job("order-1")
        assert job is not None
        assert (job.state, job.credits) == (JobState.FAILED, Decimal(8))
    assert caught.value.kind == "unknown"
    assert len(transport.polls) >= 3


@virtually
async def test_unknown_status_counts_as_running_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[Event] = []
    strange = [task("dreaming"), task("dreaming"), task("napping"), completed()]
    with caplog.at_level(logging.WARNING, "nanobanana_async"):
        async with apimall(seen(*strange), observers=[events.append]) as session:
            assert (await session.generate("a fox")).url
    assert [event.status for event in events if isinstance(event, UnknownStatus)] == ["dreaming", "napping"]
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (403, AccessDenied)])
@virtually
async def test_rejected_api_key_ends_the_wait_and_not_the_job(status: int, kind: type[Exception]) -> None:
    ledger = RecordingLedger()
    transport = until(100.0, refused(status), completed())
    async with apimall(transport, ledger=ledger) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        for _ in range(2):
            with pytest.raises(kind) as caught:
                await job
            assert not getattr(caught.value, "safe_to_repeat", True)
        assert ledger.states() == {"order-1": JobState.RUNNING}
        await asyncio.sleep(100.0)
        assert (await job).task_id == "img_1"
        assert session.stats().slots_held == 0
    assert len(transport.creates) == 1


TROUBLE: dict[str, Reply] = {
    "lost connections": LOST,
    "no connections": TransportError("refused", possibly_sent=False),
    "503s": refused(503),
    "500s": refused(500),
    "garbage": HttpResponse(status=200, body=b"garbage"),
    "a proxy's HTML": HttpResponse(status=502, body=b"<html>"),
    "429s": refused(429),
    "400s": refused(400),
    "answers about another task": completed("img_other"),
}


@pytest.mark.parametrize("name", TROUBLE)
@virtually
async def test_poll_errors_never_fail_a_job(name: str) -> None:
    transport = until(1200.0, TROUBLE[name], completed())
    async with apimall(transport) as session:
        assert (await session.generate("a fox")).task_id == "img_1"
        assert 1200.0 <= now() <= 1300.0
    assert len(transport.polls) <= 150


@pytest.mark.parametrize("name", [*TROUBLE, "a job that never ends"])
@virtually
async def test_polling_ends_after_job_s_and_job_stays_running(name: str) -> None:
    ledger = RecordingLedger()
    transport = seen({**TROUBLE, "a job that never ends": task("processing")}[name])
    async with apimall(transport, ledger=ledger, timeouts=Timeouts(job_s=300.0)) as session:
        with pytest.raises(Exception, match=r".") as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert 300.0 <= now() <= 400.0
        assert not getattr(caught.value, "safe_to_repeat", True)
        assert session.stats().slots_held == 0
    assert ledger.states() == {"order-1": JobState.RUNNING}


@virtually
async def test_failing_polls_back_off() -> None:
    moments: list[float] = []

    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST":
            return created()
        moments.append(now())
        return LOST if len(moments) < 9 else completed()

    async with apimall(FakeTransport(answer)) as session:
        await session.generate("a fox")
    gaps = [later - sooner for sooner, later in pairwise(moments)]
    assert gaps[-1] > 4 * gaps[0]


@pytest.mark.parametrize("asked", [45.0, None])
@virtually
async def test_429_on_a_poll_slows_polls_only(asked: float | None) -> None:
    gateway, left, asked_first = FakeGateway(job_s=1.0), list[tuple[str, float]](), asyncio.Event()
    headers = {} if asked is None else {"retry-after": str(asked)}

    def answer(request: HttpRequest) -> Reply:
        left.append((request.method, now()))
        if request.method == "GET":
            asked_first.set()
        first_poll = sum(method == "GET" for method, _ in left) == 1
        return refused(429, **headers) if request.method == "GET" and first_poll else gateway.answer(request)

    async with apimall(FakeTransport(answer)) as session:
        first = await session.submit("one")
        await asked_first.wait()
        limited_at = now()
        second = await session.submit("two")
        await second.wait_for_task_id()
        assert now() - limited_at < 1.0
        await first
        await second
    queries = [moment for method, moment in left if method == "GET"]
    assert queries[1] - queries[0] >= (asked or 0.5)


@virtually
async def test_poll_retry_after_is_capped_at_two_minutes() -> None:
    moments: list[float] = []

    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST":
            return created()
        moments.append(now())
        return refused(503, **{"retry-after": "9999"}) if len(moments) == 1 else completed()

    async with apimall(FakeTransport(answer)) as session:
        await session.generate("a fox")
    assert moments[1] - moments[0] == pytest.approx(120.0, abs=1.0)


@virtually
async def test_answer_about_another_task_is_rejected() -> None:
    async with apimall(seen(completed("img_other", "https://cdn.example/not-mine.png"), completed())) as session:
        assert (await session.generate("a fox")).url == "https://cdn.example/a.png"


@pytest.mark.parametrize("field", ["error_message", "failMsg"])
@virtually
async def test_failed_task_has_the_gateways_reason_and_refund(field: str) -> None:
    failed = task("failed", credits_used=8, credits_refunded=8, **{field: "the model gave up"})
    async with apimall(seen(failed)) as session:
        with pytest.raises(JobFailed, match="the model gave up") as caught:
            await session.generate("a fox", idempotency_key="order-1")
        stats = session.stats()
        assert caught.value.job.task_id == "img_1"
    assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", True)
    assert (stats.failed, stats.slots_held) == (1, 0)
    assert stats.credits_spent == 0


@virtually
async def test_failed_task_without_a_reason_says_so() -> None:
    async with apimall(seen(task("failed"))) as session:
        with pytest.raises(JobFailed, match="no reason"):
            await session.generate("a fox")


@virtually
async def test_defapi_job_reaches_its_images() -> None:
    words = ["pending", "submitted", "in_progress"]
    queries: list[Step] = [json_reply(200, {"code": 0, "data": {"task_id": "ta1", "status": word}}) for word in words]
    events: list[Event] = []
    transport = FakeTransport(in_turn([defapi_created()], [*queries, defapi_done()]))
    async with defapi(transport, observers=[events.append]) as session:
        assert (await session.generate("a fox")).url == "https://cdn.example/a.png"
    polls = [(event.status, event.polls) for event in events if isinstance(event, JobPolled)]
    assert polls == [("pending", 1), ("submitted", 2), ("in_progress", 3), ("success", 4)]
    assert not any(isinstance(event, UnknownStatus) for event in events)


@virtually
async def test_failed_defapi_task_has_its_reason() -> None:
    failed = {"task_id": "ta1", "status": "failed", "status_reason": {"message": "blocked upstream"}}
    transport = FakeTransport(in_turn([defapi_created()], [json_reply(200, {"code": 0, "data": failed})]))
    async with defapi(transport) as session:
        with pytest.raises(JobFailed, match="blocked upstream"):
            await session.generate("a fox")


@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_attached_task_that_has_ended_costs_one_query(session_of: Opening) -> None:
    gateway = FakeGateway()
    gateway.tasks["t77"] = 0.0
    transport = FakeTransport(gateway.answer)
    async with session_of(transport) as session:
        await asyncio.sleep(100.0)
        job = await session.attach("t77")
        assert job.state is JobState.SUCCEEDED
        assert (await job).task_id == "t77"
        assert session.stats().polls == 1
        assert session.stats().job_duration_median_s is None
        assert await session.resume() == []
    assert (transport.creates, len(transport.requests)) == ([], 1)


@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_attach_by_task_id_buys_nothing(session_of: Opening) -> None:
    gateway = FakeGateway()
    gateway.tasks["t77"] = 0.0
    transport = FakeTransport(gateway.answer)
    async with session_of(transport) as session:
        job = await session.attach("t77")
        assert (job.key, job.task_id, job.request, job.state) == ("task-t77", "t77", None, JobState.RUNNING)
        again = await session.attach("t77")
        assert again.key == job.key
        assert (await job).url == (await again).url
    assert not transport.creates
