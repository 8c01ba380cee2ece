"""Outages: few jobs become uncertain without keys, and few extra requests are sent with keys."""

import asyncio
import itertools
from collections import Counter

import pytest

from nanobanana_async import ConcurrencyPolicy, JobUncertain, JobUnfinished, RetryPolicy, Session, TransportError
from nanobanana_async.events import CreateFailed, Event, GatewayUnreachable, PollFailed
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.models import GenerationResult
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, apimall, defapi, now, virtually, wire_key
from tests.support.replies import refused

LOST = TransportError("the connection was reset", possibly_sent=True)
PROXY = HttpResponse(status=502, body=b"<html>502</html>")
JOBS = 200


class Outage:
    """A fake gateway that answers creates, and polls if asked to, with `answer` from `begins` to `ends`."""

    def __init__(
        self, answer: Reply, *, begins: float, ends: float, limit: int | None = None, everything: bool = False
    ) -> None:
        self.gateway = FakeGateway(limit=limit)
        self._everything = everything
        self._answer = answer
        self._begins, self.ends = begins, ends
        self.creates_during = 0
        self.back_at: float | None = None
        self.asked: Counter[str | None] = Counter()

    def answer(self, request: HttpRequest) -> Reply:
        down = self._begins <= now() < self.ends
        if request.method == "POST":
            self.asked[wire_key(request)] += 1
            self.creates_during += down
            if not down and now() >= self.ends and self.back_at is None:
                self.back_at = now()
        hit = request.method == "POST" or self._everything
        return self._answer if down and hit else self.gateway.answer(request)


async def generate_all(session: Session) -> list[GenerationResult | BaseException]:
    async def one(number: int) -> GenerationResult | BaseException:
        try:
            return await session.generate(f"fox {number}", idempotency_key=f"order-{number}")
        except JobUncertain as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(JOBS)]
    return [task.result() for task in tasks]


MANY = ConcurrencyPolicy(max_jobs=50, learn=False, max_requests=64)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [LOST, PROXY], ids=["reset", "proxy"])
@pytest.mark.parametrize("begins", [0.0, 5.0])
@pytest.mark.parametrize("everything", [False, True])
@virtually
async def test_outage_without_keys_leaves_few_jobs_uncertain(answer: Reply, begins: float, everything: bool) -> None:
    outage = Outage(answer, begins=begins, ends=begins + 300.0, limit=20, everything=everything)
    async with defapi(FakeTransport(outage.answer), concurrency=ConcurrencyPolicy()) as session:
        outcomes = await generate_all(session)
    uncertain = sum(isinstance(outcome, JobUncertain) for outcome in outcomes)
    assert uncertain <= 25
    assert uncertain or everything  # with all slots held by jobs that can't be polled, nothing is sent
    assert outage.gateway.sold == JOBS - uncertain
    assert outage.creates_during == uncertain


@pytest.mark.parametrize("everything", [False, True])
@virtually
async def test_outage_with_keys_loses_nothing_at_few_requests(everything: bool) -> None:
    outage = Outage(PROXY, begins=3.0, ends=123.0, everything=everything)
    async with apimall(FakeTransport(outage.answer), concurrency=MANY) as session:
        outcomes = await generate_all(session)
    assert all(isinstance(outcome, GenerationResult) for outcome in outcomes)
    assert outage.gateway.sold == JOBS
    assert outage.creates_during <= 50 + 50
    assert sum(outage.asked.values()) - JOBS <= 100


@virtually
async def test_creates_resume_within_one_backoff_after_an_outage() -> None:
    outage = Outage(LOST, begins=3.0, ends=203.0)
    async with apimall(FakeTransport(outage.answer), concurrency=MANY) as session:
        await generate_all(session)
    assert outage.back_at is not None
    assert outage.back_at - outage.ends <= RetryPolicy().max_backoff_s + 1.0


@virtually
async def test_outage_allows_single_probes_only() -> None:
    outage = Outage(refused(503), begins=0.0, ends=120.0)
    together: list[int] = []
    transport = FakeTransport(outage.answer)

    def watched(request: HttpRequest) -> Reply:
        if request.method == "POST" and 10.0 < now() < outage.ends:
            together.append(transport.in_flight)
        return outage.answer(request)

    transport._answer = watched
    async with apimall(transport, concurrency=ConcurrencyPolicy(max_requests=64)) as session:
        await generate_all(session)
    assert together
    assert max(together) == 1
    assert outage.gateway.sold == JOBS


@virtually
async def test_jobs_in_doubt_take_turns_as_probes() -> None:
    outage = Outage(PROXY, begins=0.0, ends=250.0)
    six = ConcurrencyPolicy(max_jobs=6, learn=False)
    async with apimall(FakeTransport(outage.answer), concurrency=six) as session, asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(session.generate("a fox", idempotency_key=f"order-{number}"))
    assert outage.gateway.sold == 6
    assert max(outage.asked.values()) <= 7


@virtually
async def test_single_lost_answer_does_not_pause_others() -> None:
    gateway, lost = FakeGateway(), list[str | None]()

    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST" and not lost:
            lost.append(wire_key(request))
            return LOST
        return gateway.answer(request)

    async with apimall(FakeTransport(answer), retry=RetryPolicy(first_backoff_s=100.0, max_backoff_s=100.0)) as session:
        first = await session.submit("first")
        second = await session.submit("second")
        await second
        assert now() < 10.0
        await first
    assert gateway.sold == 2


@virtually
async def test_empty_retry_budget_delays_repeats_only() -> None:
    gateway, seen = FakeGateway(), Counter[str | None]()

    def each_first_answer_is_lost(request: HttpRequest) -> Reply:
        if request.method == "GET":
            return gateway.answer(request)
        seen[wire_key(request)] += 1
        reply = gateway.answer(request)
        return reply if seen[wire_key(request)] > 1 or len(seen) % 2 else LOST

    async with apimall(FakeTransport(each_first_answer_is_lost), concurrency=MANY) as session:
        outcomes = await generate_all(session)
    assert all(isinstance(outcome, GenerationResult) for outcome in outcomes)
    assert gateway.sold == JOBS
    assert max(seen.values()) == 2


@virtually
async def test_repeats_waiting_for_a_request_use_no_retry_budget() -> None:
    gateway, seen = FakeGateway(job_s=0.1), set[str | None]()

    async def answer(request: HttpRequest) -> Reply:
        if request.method == "POST" and wire_key(request) == "order-0" and not seen:
            seen.add("order-0")
            return LOST
        await asyncio.sleep(5.0)
        return gateway.answer(request)

    async with apimall(
        FakeTransport(answer), concurrency=ConcurrencyPolicy(max_jobs=9, learn=False, max_requests=1)
    ) as session:
        await generate_all(session)
        assert session._session_task.engine is not None
        assert session._session_task.engine.slots.retry_budget.tokens >= 49.0
    assert gateway.sold == JOBS


DOWN = TransportError("can't reach gateway.example: Connection refused", possibly_sent=False)


@virtually
async def test_unreachable_gateway_is_reported_at_once_then_each_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    reports: list[tuple[float, GatewayUnreachable]] = []

    def observe(event: Event) -> None:
        if isinstance(event, GatewayUnreachable):
            reports.append((now(), event))

    outage = Outage(DOWN, begins=0.0, ends=150.0)
    often = RetryPolicy(max_attempts=1000, max_backoff_s=2.0)  # a report comes with a failure, whose time is random
    async with apimall(FakeTransport(outage.answer), observers=[observe], retry=often) as session:
        caplog.set_level("WARNING", "nanobanana_async")
        await session.generate("a fox")
    times = [at for at, _ in reports]
    assert times[0] < 0.2
    assert 4 <= len(times) <= 5
    assert all(30.0 <= later - at <= 35.0 for at, later in itertools.pairwise(times))
    assert [str(event.error) for _, event in reports] == [str(DOWN)] * len(times)
    assert reports[0][1].for_s == pytest.approx(times[0], abs=0.1)
    assert caplog.text.count("gateway.unreachable") == len(times)
    assert "error=TransportError: can't reach gateway.example: Connection refused" in caplog.text


@pytest.mark.parametrize("everything", [False, True])
@virtually
async def test_failures_of_half_a_minute_are_reported_once(everything: bool) -> None:
    events: list[Event] = []
    gateway, asked = FakeGateway(), itertools.count()

    def answer(request: HttpRequest) -> Reply:  # every third request fails
        hit = request.method == "POST" or everything
        return DOWN if hit and next(asked) % 3 == 1 else gateway.answer(request)

    async with apimall(FakeTransport(answer), observers=[events.append]) as session:
        for number in range(4):
            await session.generate(f"fox {number}")
        assert now() < 30.0
        assert session.stats().outage is None
    assert sum(isinstance(event, (CreateFailed, PollFailed)) for event in events) > 1
    assert sum(isinstance(event, GatewayUnreachable) for event in events) == 1


@virtually
async def test_unanswered_polls_are_reported() -> None:
    events: list[Event] = []
    outage = Outage(LOST, begins=1.0, ends=30.0, everything=True)
    async with apimall(FakeTransport(outage.answer), observers=[events.append]) as session:
        await session.generate("a fox")
    (report,) = [event for event in events if isinstance(event, GatewayUnreachable)]
    assert report.record.task_id == "t1"
    assert report.retried is True


@virtually
async def test_first_failure_after_a_long_wait_is_reported_at_once() -> None:
    events: list[tuple[float, Event]] = []

    async def slow(request: HttpRequest) -> Reply:
        await asyncio.sleep(10.0)
        return TransportError("can't reach gateway.example: no connection within 10 s", possibly_sent=False)

    async with apimall(FakeTransport(slow), observers=[lambda event: events.append((now(), event))]) as session:
        with pytest.raises(JobUnfinished):
            await session.generate("a fox", timeout=15.0)
    assert [at for at, event in events if isinstance(event, GatewayUnreachable)] == [pytest.approx(10.0, abs=0.1)]


@virtually
async def test_refusals_are_no_outage() -> None:
    events: list[Event] = []
    outage = Outage(refused(429, "too_many", "slow down"), begins=0.0, ends=60.0)
    async with apimall(FakeTransport(outage.answer), observers=[events.append]) as session:
        await session.generate("a fox")
    assert not any(isinstance(event, GatewayUnreachable) for event in events)
