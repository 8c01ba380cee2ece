"""Jobs in doubt and the gateway's history, on virtual time: when it is read, and what it can't decide."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from nanobanana_async import ConfigurationError, JobState, JobUncertain, RetryPolicy, Session, SessionClosed
from nanobanana_async.engine.history import REFUSED_PAUSE_S
from nanobanana_async.errors import AccessDenied, TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import EPOCH, FakeTransport, Reply
from tests.support.fakes import RecordingLedger, apimall, defapi, now, virtual_loop, virtually, wire_key
from tests.support.loopback import together
from tests.support.replies import completed, created, history_page, json_reply, past_task, refused, task

LOST = TransportError("the connection was reset", possibly_sent=True)
KEY = "order-1"
AT_ONCE = RetryPolicy(max_attempts=1)


class SecretiveGateway:
    """API Mall, which answers every repeated key with 409 for ever, and lists its tasks."""

    def __init__(self, *, loses: Callable[[int], bool] = lambda number: number == 2, delay_s: float = 0.0) -> None:
        self.loses = loses
        self.delay_s = delay_s
        self.tasks: dict[str, float] = {}
        self.prompts: dict[str, str] = {}
        self.keys: set[str | None] = set()
        self.creates = 0
        self.dated = True
        """Whether its answers say when they were sent."""
        self.readings: list[float] = []
        self.trouble: list[Reply] = []
        """Answers to the next requests for the history, in place of it."""

    def transport(self) -> FakeTransport:
        return FakeTransport(self.answer)

    def sell(self, prompt: str) -> str:
        task_id = f"t{len(self.tasks) + 1}"
        self.tasks[task_id], self.prompts[task_id] = now(), prompt
        return task_id

    def answer(self, request: HttpRequest) -> Reply:
        if request.method == "POST":
            return self._create(request)
        if "/history?" in request.url:
            self.readings.append(now())
            return self.trouble.pop(0) if self.trouble else self._history()
        task_id = request.url.rpartition("/")[2]
        return completed(task_id) if now() > self.tasks[task_id] + 10.0 else task("processing", task_id)

    def _create(self, request: HttpRequest) -> Reply:
        if wire_key(request) in self.keys:
            return refused(409, "idempotency_conflict", "Idempotency-Key conflict")
        self.creates += 1
        self.keys.add(wire_key(request))
        task_id = self.sell(json.loads(request.body or b"{}")["prompt"])
        return LOST if self.loses(self.creates) else created(task_id)

    def _history(self) -> HttpResponse:
        listed = [(at, task_id) for task_id, at in self.tasks.items() if at <= now() - self.delay_s]
        tasks = (past_task(task_id, at) for at, task_id in sorted(listed, reverse=True))
        return history_page(tasks, now() if self.dated else None)


@virtually
async def test_lost_job_is_found_by_one_reading_of_the_history() -> None:
    gateway = SecretiveGateway()
    with pytest.MonkeyPatch.context() as patch:
        # The jitter decides at which fraction of a second the history is read: at some a second reading is needed.
        patch.setattr(random, "Random", partial(random.Random, 1))
        session = apimall(gateway.transport(), max_credits=Decimal(16))
        await session.open()
    async with aclosing(session):
        await session.generate("a crow")
        result = await session.generate("a fox", idempotency_key=KEY)
        assert gateway.prompts[result.task_id] == "a fox"
        assert session.stats().credits_spent == 16
        assert session.stats().slots_held == 0
    assert len(gateway.readings) == 1
    assert len(gateway.tasks) == 2


@virtually
async def test_history_that_is_late_is_read_a_handful_of_times() -> None:
    gateway = SecretiveGateway(delay_s=100.0)
    async with apimall(gateway.transport()) as session:
        await session.generate("a crow")
        result = await session.generate("a fox")
        assert gateway.prompts[result.task_id] == "a fox"
    assert 2 <= len(gateway.readings) <= 5


@virtually
async def test_task_of_another_client_at_the_same_time_leaves_the_job_uncertain() -> None:
    gateway = SecretiveGateway()
    async with apimall(gateway.transport()) as session:
        await session.generate("a crow")
        gateway.sell("of another client")
        with pytest.raises(JobUncertain, match="2 tasks could be it: t2, t3"):
            await session.generate("a fox")
    assert len(gateway.readings) <= 6


@virtually
async def test_two_lost_jobs_of_one_moment_are_uncertain_unless_they_are_alike() -> None:
    for other, found in (("a fox", 2), ("an owl", 0)):
        gateway = SecretiveGateway(loses=lambda number: number in (2, 3))
        async with apimall(gateway.transport()) as session:
            await session.generate("a crow")
            outcomes = await together(session, ["a fox", other])
        assert sum(not isinstance(outcome, JobUncertain) for outcome in outcomes) == found


@virtually
async def test_create_that_was_never_processed_is_bought_under_its_key() -> None:
    gateway = SecretiveGateway(loses=lambda _: False)
    posts: list[str | None] = []

    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST":
            posts.append(wire_key(request))
            if len(posts) == 2:
                return LOST
        return gateway.answer(request)

    async with apimall(FakeTransport(answer), retry=AT_ONCE, max_credits=Decimal(16)) as session:
        await session.generate("a crow")
        result = await session.generate("a fox", idempotency_key=KEY)
        assert gateway.prompts[result.task_id] == "a fox"
        assert session.stats().credits_spent == 16
    assert posts[1:] == [KEY, KEY]
    assert len(gateway.readings) == 2  # the first at once, because there may be no history


@pytest.mark.parametrize("answer", [refused(404), json_reply(200, {"success": True, "data": {}})])
@virtually
async def test_gateway_without_a_history_leaves_the_job_uncertain_at_once(answer: Reply) -> None:
    gateway = SecretiveGateway()
    gateway.trouble = [answer] * 9
    async with apimall(gateway.transport(), retry=AT_ONCE) as session:
        await session.generate("a crow")
        began, gateway.loses = now(), lambda _: True
        for prompt in ("a fox", "an owl"):
            with pytest.raises(JobUncertain):
                await session.generate(prompt)
        assert now() - began < 5.0
        with pytest.raises(ConfigurationError, match=r"session\.resolve"):
            await session.reconcile()
    assert len(gateway.readings) == 1


@pytest.mark.parametrize("status", [401, 403])
@virtually
async def test_history_that_a_key_may_not_read_is_read_again_later(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    link = "https://cdn.example/a-private-fox.png"
    gateway = SecretiveGateway()
    gateway.trouble = [refused(status, "forbidden", f"no right to list {link}")]
    async with apimall(gateway.transport(), retry=AT_ONCE) as session:
        await session.generate("a crow")
        gateway.loses = lambda _: True
        for prompt in ("a fox", "an owl"):
            with pytest.raises(JobUncertain):
                await session.generate(prompt)
        assert len(gateway.readings) == 1
        await asyncio.sleep(REFUSED_PAUSE_S)
        assert len(gateway.readings) == 1  # no request without a job in doubt
        with pytest.raises(JobUncertain):
            await session.generate("a hen")
        assert len(gateway.readings) > 1
    assert f"{status} forbidden: it is read again after 600 s" in caplog.text
    assert link not in caplog.text


@virtually
async def test_history_that_was_refused_is_read_at_once_when_asked_for() -> None:
    gateway, ledger = SecretiveGateway(), RecordingLedger()
    await left_uncertain(gateway, ledger, conflicts=True)
    gateway.trouble = [refused(403)]
    async with apimall(gateway.transport(), ledger=ledger) as session:
        with pytest.raises(AccessDenied):
            await session.reconcile()
        readings = len(gateway.readings)
        await session.reconcile()
        assert len(gateway.readings) > readings


@virtually
async def test_history_that_fails_for_a_while_is_read_again() -> None:
    gateway = SecretiveGateway()
    gateway.trouble = [refused(503), LOST, RuntimeError("a bug of the transport")]
    async with apimall(gateway.transport()) as session:
        await session.generate("a crow")
        result = await session.generate("a fox")
        assert gateway.prompts[result.task_id] == "a fox"


@virtually
async def test_history_without_any_clock_decides_nothing() -> None:
    gateway = SecretiveGateway(loses=lambda number: number == 1)
    gateway.dated = False
    async with apimall(gateway.transport(), retry=RetryPolicy(max_wait_s=60.0)) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")


@virtually
async def test_closing_the_session_while_the_history_is_awaited_keeps_the_job() -> None:
    gateway, ledger = SecretiveGateway(loses=lambda _: False), RecordingLedger()

    def answer(request: HttpRequest) -> Reply:
        return LOST if request.method == "POST" else gateway.answer(request)

    lossy = apimall(FakeTransport(answer), ledger=ledger, retry=AT_ONCE)
    async with asyncio.TaskGroup() as group, lossy as session:
        group.create_task(is_closed(session.generate("a fox", idempotency_key=KEY)))
        await asyncio.sleep(30.0)
    record = ledger.record(KEY)
    assert (record.state, record.in_doubt) == (JobState.SUBMITTING, True)


async def is_closed(call: Awaitable[object]) -> None:
    with pytest.raises(SessionClosed):
        await call


async def left_uncertain(gateway: SecretiveGateway, ledger: RecordingLedger, *, conflicts: bool) -> None:
    """Buy two jobs; the second is UNCERTAIN, after 409s or none, because the history is out of order."""
    gateway.trouble = [refused(404)]
    retry = RetryPolicy(max_wait_s=90.0) if conflicts else AT_ONCE
    async with apimall(gateway.transport(), ledger=ledger, retry=retry) as session:
        await session.generate("a crow", idempotency_key="order-0")
        with pytest.raises(JobUncertain):
            await session.generate("a fox", idempotency_key=KEY)
    gateway.trouble = []


async def reconciled(gateway: SecretiveGateway, ledger: RecordingLedger, **settings: Any) -> tuple[Session, list[Any]]:
    session = apimall(gateway.transport(), ledger=ledger, **settings)
    await session.open()
    return session, await session.reconcile()


@virtually
async def test_reconcile_waits_until_the_history_can_show_the_job() -> None:
    gateway, ledger = SecretiveGateway(), RecordingLedger()
    await left_uncertain(gateway, ledger, conflicts=True)
    lost_at = ledger.record(KEY).lost_at
    assert lost_at is not None
    session, jobs = await reconciled(gateway, ledger)
    (job,) = jobs
    assert gateway.readings[-1] >= (lost_at - EPOCH).total_seconds() + 120.0
    assert gateway.prompts[(await job).task_id] == "a fox"
    assert await session.reconcile() == []
    await session.aclose()


@virtually
async def test_reconcile_notes_the_candidates_of_a_job_without_evidence() -> None:
    gateway, ledger = SecretiveGateway(), RecordingLedger()
    await left_uncertain(gateway, ledger, conflicts=False)
    session, jobs = await reconciled(gateway, ledger)
    assert jobs == []
    assert [each.task_id for each in ledger.record(KEY).candidates] == ["t2"]
    revision = ledger.record(KEY).revision
    assert await session.reconcile() == []
    assert ledger.record(KEY).revision == revision
    job = await session.resolve(KEY, task_id="t2")
    assert (await job).task_id == "t2"
    assert ledger.record(KEY).candidates == () if KEY in ledger._jobs else True
    await session.aclose()


@virtually
async def test_reconcile_of_a_job_that_was_sent_before_the_clock_was_set_back_changes_nothing() -> None:
    gateway, ledger = SecretiveGateway(loses=lambda _: False), RecordingLedger()

    def answer(request: HttpRequest) -> Reply:
        return LOST if request.method == "POST" else gateway.answer(request)

    session = apimall(FakeTransport(answer), ledger=ledger)
    await session.open()
    job = await session.submit("a fox", idempotency_key=KEY)
    await asyncio.sleep(1.0)
    await session.aclose()
    del job
    virtual_loop().wall_clock_offset -= timedelta(hours=3)
    async with apimall(gateway.transport(), ledger=ledger) as later:
        (left,) = await later.resume()
        with pytest.raises(JobUncertain):
            await left
        assert await later.reconcile() == []
    assert not gateway.readings


@virtually
async def test_reconcile_raises_why_the_history_can_not_be_read() -> None:
    gateway, ledger = SecretiveGateway(), RecordingLedger()
    await left_uncertain(gateway, ledger, conflicts=True)
    gateway.trouble = [refused(403)]
    async with apimall(gateway.transport(), ledger=ledger) as session:
        with pytest.raises(AccessDenied):
            await session.reconcile()


@virtually
async def test_closing_the_session_ends_a_reconcile_that_waits() -> None:
    gateway, ledger = SecretiveGateway(), RecordingLedger()
    await left_uncertain(gateway, ledger, conflicts=True)
    async with asyncio.TaskGroup() as group, apimall(gateway.transport(), ledger=ledger) as session:
        group.create_task(is_closed(session.reconcile()))
        await asyncio.sleep(1.0)
    assert ledger.record(KEY).state is JobState.UNCERTAIN


@virtually
async def test_defapi_has_no_history_to_reconcile_by() -> None:
    async with defapi(FakeTransport(lambda _: LOST)) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
        assert now() < 1.0
        with pytest.raises(ConfigurationError, match="lists no tasks"):
            await session.reconcile()
