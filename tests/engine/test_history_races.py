"""Jobs in doubt that begin to wait for the gateway's history while it is read or refused, on virtual time."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

import pytest

from nanobanana_async import Job, JobState, JobUncertain, RetryPolicy, Session, Timeouts
from nanobanana_async.engine.phases import Phase
from nanobanana_async.errors import NanoBananaError, TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import TaskTaken
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import RecordingLedger, apimall, now, virtually, wire_key
from tests.support.replies import completed, created, history_page, past_task, refused, task

LOST = TransportError("the connection was reset", possibly_sent=True)
AT_ONCE = RetryPolicy(max_attempts=1)
LONGEST_S = 3600.0
"""No job waits so long for a history that can't be read."""


class LossyGateway:
    """API Mall: it loses the answers to some creates, answers each repeated key with 409, and lists its tasks."""

    def __init__(self) -> None:
        self.loses: Callable[[str], bool] = lambda _: True
        """Whether the answer to the create of a prompt is lost."""
        self.trouble: Callable[[], Awaitable[Reply | None]] | None = None
        """What is answered in place of the history."""
        self.on_repeat: Callable[[str], Awaitable[Reply | None]] | None = None
        """What is answered in place of 409."""
        self.tasks: dict[str, tuple[float, str]] = {}
        self.keys: set[str | None] = set()
        self.readings: list[float] = []

    def transport(self) -> FakeTransport:
        return FakeTransport(self.answer)

    async def answer(self, request: HttpRequest) -> Reply:
        if request.method == "POST":
            return await self._create(request)
        if "/history?" in request.url:
            self.readings.append(now())
            reply = None if self.trouble is None else await self.trouble()
            return reply or self._history()
        task_id = request.url.rpartition("/")[2]
        return completed(task_id) if now() > self.tasks[task_id][0] + 10.0 else task("processing", task_id)

    async def _create(self, request: HttpRequest) -> Reply:
        prompt, key = json.loads(request.body or b"{}")["prompt"], wire_key(request)
        if key in self.keys:
            reply = None if self.on_repeat is None else await self.on_repeat(prompt)
            return reply or refused(409, "idempotency_conflict", "Idempotency-Key conflict")
        self.keys.add(key)
        task_id = f"t{len(self.tasks) + 1}"
        self.tasks[task_id] = now(), prompt
        return LOST if self.loses(prompt) else created(task_id)

    def _history(self) -> HttpResponse:
        return history_page((past_task(task_id, at) for task_id, (at, _) in reversed(self.tasks.items())), now())


async def no_history(status: int = 404) -> Reply:
    return refused(status)


def unwatched(session: Session) -> list[str]:
    """Return the jobs that wait for the history, and about which it will not decide."""
    engine = session._session_task.engine
    assert engine is not None
    checking = [key for key, job in engine.tracked.items() if job.phase is Phase.CHECKING]
    return [key for key in checking if key not in engine.history.awaiting_jobs]


async def uncertain(job: Job) -> None:
    async with asyncio.timeout(LONGEST_S):
        with pytest.raises(JobUncertain):
            await job


@pytest.mark.parametrize("status", [404, 403])
@pytest.mark.parametrize("later_s", [0.02, 0.05, 0.09, 0.12, 0.2])
@virtually
async def test_history_that_is_refused_while_a_job_in_doubt_is_written_leaves_it_uncertain(
    status: int, later_s: float
) -> None:
    gateway, ledger = LossyGateway(), RecordingLedger(delay_s=0.1)
    gateway.trouble = lambda: no_history(status)
    async with apimall(gateway.transport(), ledger=ledger, retry=AT_ONCE) as session:
        first = await session.submit("a fox", idempotency_key="order-1")
        await asyncio.sleep(later_s)
        second = await session.submit("an owl", idempotency_key="order-2")
        await uncertain(first)
        await uncertain(second)
        record = ledger.record("order-2")
        assert (record.state, record.in_doubt, record.attempts) == (JobState.UNCERTAIN, True, 1)
        assert record.failure is not None
        assert record.lost_at is not None
        assert session.stats().slots_held == 2
    assert len(gateway.readings) == 1


@pytest.mark.parametrize("status", [404, 403])
@virtually
async def test_history_that_is_refused_while_another_job_begins_to_wait_for_it_is_not_read_again(status: int) -> None:
    gateway, ledger = LossyGateway(), RecordingLedger()

    async def refuse_late() -> Reply:
        await asyncio.sleep(5.0)
        return refused(status)

    gateway.trouble = refuse_late
    async with apimall(gateway.transport(), ledger=ledger, retry=AT_ONCE) as session:
        first = await session.submit("a fox", idempotency_key="order-1")
        await asyncio.sleep(0.02)
        second = await session.submit("an owl", idempotency_key="order-2")
        await asyncio.sleep(1.0)
        assert {ledger.record(key).state for key in ("order-1", "order-2")} == {JobState.SUBMITTING}
        await uncertain(first)
        await uncertain(second)
    assert len(gateway.readings) == 1


class TakenTasks(RecordingLedger):
    """A ledger in which another process gives each found task to a job of its own first."""

    meanwhile: Callable[[], Awaitable[object]] | None = None
    """What happens while that write is in progress."""

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        if after.task_id is not None and before.in_doubt:
            if self.meanwhile is not None:
                await self.meanwhile()
            raise TaskTaken(after.task_id, "order-of-another", key=after.key)
        await super().advance(before, after)


@virtually
async def test_history_that_is_refused_while_a_found_task_is_written_leaves_the_job_uncertain() -> None:
    gateway, ledger = LossyGateway(), TakenTasks()
    gateway.trouble = no_history
    async with apimall(gateway.transport(), ledger=ledger, retry=AT_ONCE) as session:
        await uncertain(await session.submit("a crow"))
    gateway.trouble = None
    await asyncio.sleep(LONGEST_S)
    gateway.loses = lambda prompt: prompt == "a fox"
    async with apimall(gateway.transport(), ledger=ledger) as session:

        async def history_ends() -> None:
            gateway.trouble = no_history
            with contextlib.suppress(NanoBananaError):
                await session.reconcile()

        ledger.meanwhile = history_ends
        await session.generate("an owl")
        await uncertain(await session.submit("a fox", idempotency_key="order-1"))
        assert gateway.trouble is not None
    assert ledger.record("order-1").state is JobState.UNCERTAIN


@virtually
async def test_reconcile_ends_when_another_process_has_taken_the_task() -> None:
    gateway, ledger = LossyGateway(), TakenTasks()
    gateway.loses = lambda prompt: prompt == "a fox"
    gateway.trouble = no_history
    retry = RetryPolicy(max_wait_s=90.0)
    async with apimall(gateway.transport(), ledger=ledger, retry=retry) as session:
        await session.generate("an owl")
        await uncertain(await session.submit("a fox", idempotency_key="order-1"))
    gateway.trouble = None
    async with apimall(gateway.transport(), ledger=ledger) as session, asyncio.timeout(LONGEST_S):
        assert await session.reconcile() == []
    assert ledger.record("order-1").state is JobState.UNCERTAIN


@virtually
async def test_job_whose_found_task_is_contradicted_during_a_reading_still_waits_for_the_history() -> None:
    gateway, released = LossyGateway(), asyncio.Event()
    gateway.loses = lambda prompt: prompt != "a crow"

    async def hold_fox(prompt: str) -> Reply | None:
        if prompt != "a fox" or now() < 35.0:
            return None
        await released.wait()
        return refused(400, "invalid_request", "no")

    async def release_fox() -> Reply | None:
        if len(gateway.readings) > 1:
            released.set()
            await asyncio.sleep(5.0)
        return None

    gateway.on_repeat, gateway.trouble = hold_fox, release_fox
    # A repeat leaves, and is held, between the times of `hold_fox` and of the first reading.
    retry = RetryPolicy(max_wait_s=50.0, max_backoff_s=2.0)
    async with apimall(gateway.transport(), timeouts=Timeouts(create_s=300.0), retry=retry) as session:
        await session.generate("a crow")
        fox = await session.submit("a fox")
        await asyncio.sleep(20.0)
        owl = await session.submit("an owl")
        await released.wait()
        await asyncio.sleep(10.0)
        assert fox._tracked.phase is Phase.CHECKING
        assert not unwatched(session)
        await uncertain(fox)
        assert gateway.tasks[(await owl).task_id][1] == "an owl"
