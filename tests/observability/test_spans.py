"""The span of each job: its parent, its events and its end."""

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from nanobanana_async import (
    CreditLimitReached,
    ImageRequest,
    JobFailed,
    JobUncertain,
    JobUnfinished,
    LedgerError,
    PromptBlocked,
    RetryPolicy,
    Timeouts,
    TransportError,
)
from nanobanana_async.gateways import Secret
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import API_KEY, FakeGateway, RecordingLedger, apimall, defapi, virtually
from tests.support.replies import completed, created, in_turn, refused, task
from tests.support.shared_ledger import LedgerView, SharedLedger, leave_pending, leave_running
from tests.support.telemetry import TelemetryCollector, event_names, events_named, facts, messages, outcome

PROMPT = "a-very-secret-fox-in-the-snow"
REFERENCE = "https://me.example/private-photo.png?token=abc"
LOST = TransportError("the connection was reset", possibly_sent=True)
ECHO = f"we do not like {PROMPT}, nor {API_KEY}"

SUCCEEDED_ATTRIBUTES = {
    "gen_ai.operation.name": "generate_content",
    "gen_ai.provider.name": "apimall",
    "gen_ai.output.type": "image",
    "gen_ai.request.model": "nano-banana-pro",
    "gen_ai.response.id": "img_1",
    "gen_ai.response.model": "nano-banana-pro",
    "nanobanana.job.key": "order-1",
    "nanobanana.job.generation": 1,
    "nanobanana.job.adopted": False,
    "nanobanana.job.state": "succeeded",
    "nanobanana.job.attempts": 1,
    "nanobanana.job.polls": 2,
    "nanobanana.job.credits": 8.0,
}


def selling(*queries: Any) -> FakeTransport:
    return FakeTransport(in_turn([created()], list(queries or [completed()])))


@virtually
async def test_a_job_is_one_span_with_exactly_the_documented_attributes() -> None:
    collector = TelemetryCollector()
    async with apimall(selling(task("processing"), completed()), observers=[collector.telemetry]) as session:
        await session.generate(PROMPT, idempotency_key="order-1")
        span = collector.span  # the span ends before the caller gets the result
    assert (span.name, span.kind, span.status.status_code) == (
        "generate_content nano-banana-pro",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert facts(span) == SUCCEEDED_ATTRIBUTES
    assert event_names(span) == ["create.sent", "create.accepted", "poll.answered", "poll.answered", "job.ended"]
    assert [fact["nanobanana.poll.status"] for fact in events_named(span, "poll.answered")] == [
        "processing",
        "completed",
    ]
    assert events_named(span, "create.accepted") == [{"gen_ai.response.id": "img_1"}]
    assert events_named(span, "job.ended") == [{"nanobanana.job.state": "succeeded"}]
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.events[0].timestamp <= span.end_time


@virtually
async def test_the_request_is_in_attributes_and_span_name() -> None:
    collector = TelemetryCollector()
    request = ImageRequest(
        PROMPT,
        model="pro-2",
        num_images=3,
        resolution="2K",
        aspect_ratio="16:9",
        output_format="png",
        images=[REFERENCE],
    )
    async with apimall(selling(), observers=[collector.telemetry]) as session:
        await session.generate(request)
    assert collector.span.name == "generate_content pro-2"
    request_attributes = {
        "gen_ai.request.model": "pro-2",
        "gen_ai.request.choice.count": 3,
        "nanobanana.image.resolution": "2K",
        "nanobanana.image.aspect_ratio": "16:9",
        "nanobanana.image.format": "png",
        "nanobanana.image.references": 1,
    }
    assert request_attributes.items() <= facts(collector.span).items()
    assert facts(collector.span).keys() == SUCCEEDED_ATTRIBUTES.keys() | request_attributes.keys()


@virtually
async def test_prompts_are_recorded_only_on_request() -> None:
    for record_prompts in (False, True):
        collector = TelemetryCollector(record_prompts=record_prompts)
        async with apimall(selling(), observers=[collector.telemetry]) as session:
            await session.generate(PROMPT, images=[REFERENCE])
        text = collector.exported_text()
        assert ("gen_ai.input.messages" in facts(collector.span)) is record_prompts
        assert (PROMPT in text, REFERENCE in text, API_KEY in text) == (record_prompts, record_prompts, False)
    parts = [{"type": "text", "content": PROMPT}, {"type": "uri", "modality": "image", "uri": REFERENCE}]
    assert messages(collector.span) == [{"role": "user", "parts": parts}]


@virtually
async def test_the_parent_is_the_span_that_requested_the_job() -> None:
    collector = TelemetryCollector()
    transport = FakeTransport(FakeGateway(limit=1).answer)  # the second job waits for the slot of the first
    async with apimall(transport, observers=[collector.telemetry]) as session:

        async def request(name: str) -> None:
            with collector.tracer.start_as_current_span(name):
                await session.generate("a fox", idempotency_key=name)

        async def accepted_only(name: str) -> None:
            with collector.tracer.start_as_current_span(name):
                job = await session.submit("a fox", idempotency_key=name)
            await job

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(request(name))
            group.create_task(accepted_only("d"))
        await session.generate("a fox", idempotency_key="alone")
    contexts = [(span.get_span_context(), span.name) for span in collector.all_spans]
    parents = {context.span_id: name for context, name in contexts if context is not None}
    found = {facts(span)["nanobanana.job.key"]: span.parent for span in collector.spans}
    assert {key: parent and parents[parent.span_id] for key, parent in found.items()} == {
        "a": "a",
        "b": "b",
        "c": "c",
        "d": "d",
        "alone": None,
    }


@virtually
async def test_requests_run_in_the_context_of_the_session() -> None:
    collector, gateway = TelemetryCollector(), FakeGateway()
    current: set[bool] = set()

    def answer(request: HttpRequest) -> Reply:
        current.add(trace.get_current_span().get_span_context().is_valid)
        return gateway.answer(request)

    async with apimall(FakeTransport(answer)) as session:
        with collector.tracer.start_as_current_span("first"):
            await session.generate("a fox")
        await session.generate("another fox")
    assert current == {False}


@virtually
async def test_jobs_of_a_batch_are_children_of_the_span_that_started_it() -> None:
    collector = TelemetryCollector()
    async with apimall(FakeTransport(FakeGateway().answer), observers=[collector.telemetry]) as session:
        with collector.tracer.start_as_current_span("nightly") as nightly:
            async with session.generate_many(f"fox {number}" for number in range(30)) as outcomes:
                assert [outcome.ok async for outcome in outcomes] == [True] * 30
    parents = {span.parent.span_id for span in collector.spans if span.parent is not None}
    assert (len(collector.spans), parents) == (30, {nightly.get_span_context().span_id})


@virtually
async def test_two_callers_with_one_key_share_a_span() -> None:
    collector = TelemetryCollector()
    async with apimall(selling(), observers=[collector.telemetry]) as session, asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(session.generate(PROMPT, idempotency_key="order-1"))
    assert event_names(collector.span)[-1] == "job.ended"


@virtually
async def test_throttled_creates_have_limit_kind_and_wait() -> None:
    collector = TelemetryCollector()
    busy = refused(429, "too_many_concurrent_jobs", ECHO)
    slow = refused(429, "no", ECHO, **{"retry-after": "7"})
    transport = FakeTransport(in_turn([busy, slow, created()], [completed()]))
    async with apimall(transport, observers=[collector.telemetry]) as session:
        await session.generate(PROMPT)
    first, second = events_named(collector.span, "create.throttled")
    assert first == {
        "error.type": "RateLimited",
        "http.response.status_code": 429,
        "nanobanana.limit.kind": "jobs",
        "nanobanana.create.decision": "requeue",
        "nanobanana.wait": 0.0,
    }
    assert (second["nanobanana.limit.kind"], second["nanobanana.wait"]) == ("unknown", 7.0)
    assert event_names(collector.span).count("create.sent") == 3
    assert collector.span.status.status_code is StatusCode.UNSET


@virtually
async def test_lost_creates_and_polls_are_events_of_a_succeeded_job() -> None:
    collector = TelemetryCollector()
    transport = FakeTransport(in_turn([LOST, created()], [LOST, completed()]))
    async with apimall(transport, observers=[collector.telemetry]) as session:
        await session.generate(PROMPT)
    assert event_names(collector.span) == [
        "create.sent",
        "create.failed",
        "create.accepted",
        "poll.failed",
        "poll.answered",
        "job.ended",
    ]
    (failed,) = events_named(collector.span, "create.failed")
    assert (failed["error.type"], failed["nanobanana.create.decision"]) == ("TransportError", "repeat")
    assert failed["nanobanana.wait"] > 0
    ends = facts(collector.span)
    assert (ends["nanobanana.job.attempts"], ends["nanobanana.job.polls"], "error.type" in ends) == (2, 2, False)


BAD_ENDS: dict[str, tuple[Any, list[Any], list[Any], type[Exception], str, dict[str, Any]]] = {
    "failed": (apimall, [created()], [task("failed", error_message=ECHO)], JobFailed, "failed", {}),
    "refused": (apimall, [refused(451, "blocked", ECHO)], [completed()], PromptBlocked, "refused", {}),
    "uncertain": (defapi, [LOST], [completed()], JobUncertain, "uncertain", {}),
    "given up": (
        apimall,
        [TransportError("refused", possibly_sent=False)],
        [completed()],
        TransportError,
        "pending",
        {"retry": RetryPolicy(max_attempts=2)},
    ),
    "never stored": (
        apimall,
        [created()],
        [completed()],
        LedgerError,
        "pending",
        {"ledger": RecordingLedger(failing_writes=[1])},
    ),
    "no credits": (apimall, [created()], [completed()], CreditLimitReached, "withdrawn", {"max_credits": 0}),
}


@pytest.mark.parametrize("name", BAD_ENDS)
@virtually
async def test_a_failed_job_has_an_error_type_and_no_messages(name: str) -> None:
    opening, creates, queries, expected, state, settings = BAD_ENDS[name]
    collector = TelemetryCollector()
    transport = FakeTransport(in_turn(creates, queries))
    async with opening(transport, observers=[collector.telemetry], **settings) as session:
        with pytest.raises(expected):
            await session.generate(PROMPT)
    span = collector.span
    assert span.status.status_code is StatusCode.ERROR
    assert (facts(span)["error.type"], facts(span)["nanobanana.job.state"]) == (expected.__name__, state)
    text = collector.exported_text()
    assert PROMPT not in text
    assert API_KEY not in text
    (point,) = collector.measured("gen_ai.client.operation.duration")
    assert (point.attributes or {})["error.type"] == expected.__name__


@virtually
async def test_cancelling_a_caller_ends_the_span_of_an_unsent_job_only() -> None:
    collector = TelemetryCollector()
    gateway = FakeGateway(job_s=30.0, limit=1)
    async with apimall(FakeTransport(gateway.answer), observers=[collector.telemetry]) as session:
        sent = asyncio.Task(session.generate("a fox", idempotency_key="sent"))
        await asyncio.sleep(5.0)
        waits = asyncio.Task(session.generate("a fox", idempotency_key="waits"))
        await asyncio.sleep(5.0)
        sent.cancel()
        waits.cancel()
        await asyncio.wait([sent, waits])
        await asyncio.sleep(0.1)
        assert facts(collector.span)["nanobanana.job.key"] == "waits"
        assert facts(collector.span)["nanobanana.job.state"] == "withdrawn"
        assert collector.span.status.status_code is StatusCode.UNSET
        await asyncio.sleep(60.0)
    assert [facts(span)["nanobanana.job.state"] for span in collector.spans] == ["withdrawn", "succeeded"]
    assert len(collector.measured("gen_ai.client.operation.duration")) == 1


@virtually
async def test_closing_ends_the_span_and_the_next_session_starts_another() -> None:
    first, second = TelemetryCollector(), TelemetryCollector()
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    async with apimall(
        FakeTransport(gateway.answer), ledger=LedgerView(shared), observers=[first.telemetry]
    ) as session:
        await (await session.submit("a fox", idempotency_key="order-1")).wait_for_task_id()
    assert facts(first.span)["nanobanana.job.state"] == "running"
    assert first.span.status.status_code is StatusCode.UNSET
    async with apimall(
        FakeTransport(gateway.answer), ledger=LedgerView(shared), observers=[second.telemetry], adopt=None
    ) as session:
        with second.tracer.start_as_current_span("lifespan") as lifespan:
            (job,) = await session.resume()
        await job
    span = second.span
    assert span.parent is not None
    assert span.parent.span_id == lifespan.get_span_context().span_id
    assert (facts(span)["nanobanana.job.adopted"], facts(span)["nanobanana.job.state"]) == (True, "succeeded")
    assert set(event_names(span)) == {"poll.answered", "job.ended"}
    assert (first.value("nanobanana.credits.spent"), second.value("nanobanana.credits.spent")) == (0, 8)
    assert second.measured("gen_ai.client.operation.duration") == []


@virtually
async def test_the_span_of_an_adopted_job_starts_at_its_adoption() -> None:
    collector, gateway, shared = TelemetryCollector(), FakeGateway(job_s=30.0), SharedLedger()
    await leave_running(shared, gateway, "order-1", session_of=apimall)
    async with apimall(
        FakeTransport(gateway.answer), ledger=LedgerView(shared), observers=[collector.telemetry]
    ) as session:
        with collector.tracer.start_as_current_span("lifespan"):
            (job,) = await session.resume()
        await job
    (lifespan,) = (span for span in collector.all_spans if span.name == "lifespan")
    assert collector.span.start_time is not None
    assert lifespan.end_time is not None
    assert collector.span.start_time <= lifespan.end_time < collector.span.events[0].timestamp


@virtually
async def test_an_unsent_job_bought_by_resume_is_adopted() -> None:
    collector, gateway, shared = TelemetryCollector(), FakeGateway(), SharedLedger()
    await leave_pending(shared, gateway, "order-1", session_of=apimall)
    async with apimall(
        FakeTransport(gateway.answer), ledger=LedgerView(shared), observers=[collector.telemetry]
    ) as session:
        (job,) = await session.resume(buy=True)
        await job
    assert facts(collector.span)["nanobanana.job.adopted"] is True
    assert event_names(collector.span)[:2] == ["create.sent", "create.accepted"]


@virtually
async def test_requesting_a_finished_job_again_has_no_span() -> None:
    collector = TelemetryCollector()
    ledger = RecordingLedger(keep_ended=True)
    async with apimall(selling(), ledger=ledger, observers=[collector.telemetry]) as session:
        for _ in range(2):
            await session.generate(PROMPT, idempotency_key="order-1")
    assert facts(collector.span)["nanobanana.job.adopted"] is False


@virtually
async def test_each_generation_of_a_job_has_a_span() -> None:
    collector = TelemetryCollector()
    transport = FakeTransport(in_turn([refused(402), created()], [completed()]))
    async with apimall(transport, ledger=RecordingLedger(keep_ended=True), observers=[collector.telemetry]) as session:
        for _ in range(2):
            await outcome(session.generate(PROMPT, idempotency_key="order-1"))
    generations = [
        (facts(span)["nanobanana.job.generation"], facts(span)["nanobanana.job.adopted"]) for span in collector.spans
    ]
    assert generations == [(1, False), (2, False)]


@virtually
async def test_a_resolved_job_has_a_second_span() -> None:
    collector = TelemetryCollector()
    gateway = FakeGateway()
    gateway.tasks["t1"] = 0.0

    def answer(request: Any) -> Any:
        return LOST if request.method == "POST" else gateway.answer(request)

    async with defapi(
        FakeTransport(answer), ledger=RecordingLedger(keep_ended=True), observers=[collector.telemetry]
    ) as session:
        assert isinstance(await outcome(session.generate(PROMPT, idempotency_key="order-1")), JobUncertain)
        await (await session.resolve("order-1", task_id="t1"))
    first, second = collector.spans
    assert facts(first)["error.type"] == "JobUncertain"
    assert event_names(second) == ["job.resolved", "poll.answered", "job.ended"]
    assert (facts(second)["nanobanana.job.adopted"], facts(second)["gen_ai.response.id"]) == (True, "t1")


@virtually
async def test_a_callback_is_an_event_of_the_span() -> None:
    collector = TelemetryCollector()
    gateway = FakeGateway(job_s=30.0)
    async with defapi(FakeTransport(gateway.answer), observers=[collector.telemetry]) as session:
        session._callback_router.enable("https://app.example/hooks", Secret("0123456789abcdef"))
        job = await session.submit(PROMPT)
        await asyncio.sleep(30.5)
        assert await session._callback_router.handle_callback(job.key, b"{}")
        await job
    assert event_names(collector.span) == [
        "create.sent",
        "create.accepted",
        "callback.received",
        "poll.answered",
        "job.ended",
    ]


@virtually
async def test_one_telemetry_separates_the_jobs_of_two_sessions() -> None:
    collector = TelemetryCollector()
    lines = [FakeTransport(FakeGateway(job_s=job_s).answer) for job_s in (5.0, 20.0)]
    async with (
        apimall(lines[0], observers=[collector.telemetry]) as quick,
        apimall(lines[1], observers=[collector.telemetry]) as slow,
        asyncio.TaskGroup() as group,
    ):
        for session in (quick, slow):
            group.create_task(session.generate("a fox", idempotency_key="order-1"))
        await asyncio.sleep(2.0)
        assert collector.value("nanobanana.slot.held") == 2
    assert [facts(span)["nanobanana.job.state"] for span in collector.spans] == ["succeeded"] * 2
    assert [event_names(span)[:2] for span in collector.spans] == [["create.sent", "create.accepted"]] * 2
    assert collector.value("nanobanana.slot.held") == 0


@virtually
async def test_a_job_past_job_s_is_an_error_and_can_be_followed_again() -> None:
    collector = TelemetryCollector()
    transport = FakeTransport(FakeGateway(job_s=90.0).answer)
    timeouts = Timeouts(job_s=60.0)
    async with apimall(transport, timeouts=timeouts, observers=[collector.telemetry]) as session:
        job = await session.submit(PROMPT)
        assert isinstance(await outcome(job.result()), JobUnfinished)
        await asyncio.sleep(60.0)
        await job
    first, second = collector.spans
    assert (facts(first)["error.type"], facts(first)["nanobanana.job.state"]) == ("JobUnfinished", "running")
    assert (facts(second)["nanobanana.job.adopted"], facts(second)["nanobanana.job.state"]) == (True, "succeeded")
