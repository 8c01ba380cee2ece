"""A delivery of the account's webhook is a hint: it causes one poll of its task, in whichever process has the job."""

import asyncio
import logging
from decimal import Decimal

import pytest

from nanobanana_async import JobState, MemoryLedger, Session
from nanobanana_async.engine import early_deliveries
from nanobanana_async.engine.deliveries import MAX_DELIVERY_AGE_S
from nanobanana_async.engine.early_deliveries import MOST_REMEMBERED, REMEMBERED_S
from nanobanana_async.errors import JobFailed
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import MAX_BODY
from tests.support.callbacks import KEY, callback_body
from tests.support.fakes import RecordingLedger, apimall, now, virtually
from tests.support.replies import task
from tests.support.shared_ledger import SharedLedger, killed_process
from tests.support.webhooks import WebhookGateway, delivery_body, hooked, process, receiving, signed

JOB_S = 30.0

LIES = {
    "success": delivery_body("t1"),
    "failure": delivery_body("t1", "job.failed"),
    "another event": delivery_body("t1", "job.exploded"),
    "the task of defapi's form": callback_body("t1"),
    "a task within data": b'{"event": "job.completed", "data": {"task_id": "t1"}}',
}
NO_TASKS = {
    "another task": delivery_body("t999"),
    "a path": delivery_body("../../admin?x=1"),
    "no text": delivery_body({"$ne": 1}),
    "half a character": delivery_body("\ud800"),
    "other JSON": b'{"event": "push"}',
    "a list": b"[1, 2]",
    "no JSON": b"\x00\xff{",
    "depth": b"[" * 60_000,
    "nothing": b"",
    "too much": b"x" * (MAX_BODY + 1),
}


async def prove(session: Session) -> None:
    """Buy a job whose end is delivered: from then on deliveries are relied on."""
    await session.generate("a hare")


@virtually
async def test_each_delivery_causes_one_immediate_poll() -> None:
    gateway = WebhookGateway(job_s=JOB_S)
    async with hooked(gateway) as session:
        await prove(session)
        begun = now()
        outcomes = [row async for row in session.generate_many(f"fox {number}" for number in range(40))]
        assert all(row.ok for row in outcomes)
        assert now() - begun < JOB_S + 1.0
    assert all(gateway.polled[f"t{number}"] == 1 for number in range(2, 42))


@virtually
async def test_jobs_are_polled_as_usual_until_the_first_delivery() -> None:
    gateway = WebhookGateway(job_s=JOB_S)
    async with hooked(gateway) as session:
        gateway.delays_s = {"t1": None, "t2": None}
        for _ in range(2):
            begun = now()
            await session.generate("a fox")
            assert now() - begun < JOB_S + 6.0
        assert min(gateway.polled[task_id] for task_id in ("t1", "t2")) >= 2
        await session.generate("a fox")
        for _ in range(3):
            await session.generate("a fox")
        assert [gateway.polled[task_id] for task_id in ("t4", "t5", "t6")] == [1, 1, 1]


@virtually
async def test_late_deliveries_prove_the_webhook_too() -> None:
    gateway = WebhookGateway(job_s=5.0)
    gateway.delays_s = dict.fromkeys([f"t{number}" for number in range(1, 5)], 20.0)
    async with hooked(gateway) as session:  # a ledger in memory forgets ended jobs
        for _ in range(4):
            await session.generate("a fox")
        await asyncio.sleep(20.0)
        for _ in range(3):
            await session.generate("a fox")
        assert [gateway.polled[task_id] for task_id in ("t5", "t6", "t7")] == [1, 1, 1]


@virtually
async def test_lost_deliveries_fall_back_to_usual_polls() -> None:
    gateway = WebhookGateway(job_s=5.0)
    async with hooked(gateway) as session:
        await prove(session)
        gateway.delays_s = {f"t{number}": None for number in range(2, 100)}
        for _ in range(8):
            await session.generate("a fox")
        begun = now()
        for _ in range(5):
            await session.generate("a fox")
        assert (now() - begun) / 5 < 5.0 + 2.0


@virtually
async def test_webhook_without_deliveries_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    gateway = WebhookGateway(job_s=10.0)
    gateway.delays_s = {f"t{number}": None for number in range(1, 100)}
    async with hooked(gateway) as session:
        for _ in range(15):
            await session.generate("a fox")
    (warning,) = (each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING)
    assert warning == (
        "webhook.silent no delivery came for 10 jobs: can the gateway reach public_url? Jobs are polled as usual"
    )


@pytest.mark.parametrize("lie", [*LIES, *NO_TASKS])
@virtually
async def test_false_delivery_changes_nothing_without_a_poll(lie: str) -> None:
    gateway, ledger = WebhookGateway(job_s=JOB_S), RecordingLedger(keep_ended=True)
    body = {**LIES, **NO_TASKS}[lie]
    async with hooked(gateway, ledger=ledger) as session:
        job = await session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        await asyncio.sleep(2.0)
        assert await gateway.call(gateway.urls[0], body) == 200
        await asyncio.sleep(0.5)
        assert (job.state, gateway.polled.total()) == (JobState.RUNNING, 1 if lie in LIES else 0)
        result = await job
        polled, record = gateway.polled.total(), ledger.record(KEY)
        assert (result.url, result.credits) == ("https://cdn.example/a.png", Decimal(8))
        assert await gateway.call(gateway.urls[0], body) == 200  # the job has ended
        await asyncio.sleep(2.0)
        assert (gateway.polled.total(), ledger.record(KEY)) == (polled, record)


@virtually
async def test_delivery_does_not_revive_a_failed_job() -> None:
    gateway = WebhookGateway(job_s=0.0)

    def fails(request: HttpRequest) -> Reply:
        polls = request.method == "GET" and "webhooks" not in request.url
        return task("failed", "t1", error_message="no") if polls else gateway.answer(request)

    session = apimall(FakeTransport(fails), ledger=RecordingLedger(keep_ended=True))
    receiving(session, gateway)
    async with session:
        with pytest.raises(JobFailed):
            await session.generate("a fox", idempotency_key=KEY)
        polls = session.stats().polls
        assert await gateway.deliver("t1") == 200
        await asyncio.sleep(3.0)
        assert session.stats().polls == polls


@pytest.mark.slow
@virtually
async def test_repeated_deliveries_cause_at_most_one_poll_a_second() -> None:
    gateway = WebhookGateway(job_s=10.0)
    async with hooked(gateway) as session:
        job = await session.submit("a fox")
        await job.wait_for_task_id()
        begun = now()
        while now() < begun + 11.5:
            await gateway.deliver("t1")
            await asyncio.sleep(0.03)
        assert job.state is JobState.SUCCEEDED
    assert 10 <= gateway.polled["t1"] <= 12


@virtually
async def test_wrong_tokens_get_404_and_cause_no_poll() -> None:
    gateway = WebhookGateway(job_s=JOB_S)
    async with hooked(gateway) as session:
        await (await session.submit("a fox")).wait_for_task_id()
        (url,) = gateway.urls
        base, name, token = url.rsplit("/", 2)
        job_url = await session._callback_router.make_url("apimall")
        for wrong in (
            f"{base}/{name}/{token[:-1]}",
            f"{base}/{name}/{token[::-1]}",
            f"{base}/{name}x/{token}",
            f"{base}/{job_url.split('/')[-2]}/{job_url.split('/')[-1]}",
            f"{base}/{token}",
            f"{base}/{name}/{token}/more",
        ):
            assert await gateway.call(wrong, delivery_body("t1")) == 404
        await asyncio.sleep(1.0)
        assert gateway.polled.total() == 0


# Signatures


@virtually
async def test_right_signature_that_is_old_is_a_replay(caplog: pytest.LogCaptureFixture) -> None:
    gateway = WebhookGateway(job_s=JOB_S)
    async with hooked(gateway) as session:
        await (await session.submit("a fox")).wait_for_task_id()
        for _ in range(2):
            assert await gateway.deliver("t1", age_s=MAX_DELIVERY_AGE_S + 2.0) == 200
            await asyncio.sleep(1.0)
        assert gateway.polled.total() == 0
        assert await gateway.deliver("t1", age_s=MAX_DELIVERY_AGE_S - 2.0) == 200
        await asyncio.sleep(0.5)
        assert gateway.polled.total() == 1
    (warning,) = (each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING)
    assert warning.startswith("webhook.old_delivery age_s=302 a replay, or the clock")


@virtually
async def test_wrong_signature_is_dropped_once_a_right_one_has_come() -> None:
    gateway = WebhookGateway(job_s=JOB_S)
    wrong = signed(delivery_body("t1"), "another secret")
    polls = []
    async with hooked(gateway) as session:
        await (await session.submit("a fox")).wait_for_task_id()
        for headers in (wrong, None, wrong):
            assert await gateway.deliver("t1", headers=headers) == 200
            await asyncio.sleep(1.5)
            polls.append(gateway.polled.total())
    assert polls == [1, 2, 2]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Nano-Signature": "v9,c2lnbmF0dXJl", "X-Nano-Timestamp": "1767225600"},
        {"X-Nano-Signature": "a" * 64},
        {"X-Nano-Signature": "a" * 64, "X-Nano-Timestamp": "yesterday"},
        {"X-Other-Signature": "a" * 64},
    ],
)
@virtually
async def test_missing_or_unknown_signature_stays_a_hint(headers: dict[str, str]) -> None:
    gateway = WebhookGateway(job_s=JOB_S)
    async with hooked(gateway) as session:
        await prove(session)  # with a right signature
        await (await session.submit("a fox")).wait_for_task_id()
        assert await gateway.deliver("t2", headers=headers) == 200
        await asyncio.sleep(0.5)
        assert gateway.polled["t2"] == 1


# Deliveries that overtake the answer to the create


def slow_creates(gateway: WebhookGateway, answer_s: float) -> FakeTransport:
    """Return a transport on which the answer to a create comes long after the sale."""

    async def answer(request: HttpRequest) -> Reply:
        reply = gateway.answer(request)
        if request.method == "POST" and "generate" in request.url:
            await asyncio.sleep(answer_s)
        return reply

    return FakeTransport(answer)


@virtually
async def test_delivery_before_the_creates_answer_is_polled_with_it() -> None:
    gateway = WebhookGateway(job_s=3.0)
    session = apimall(slow_creates(gateway, 10.0))
    receiving(session, gateway)
    async with session:
        job = await session.submit("a fox")
        await asyncio.sleep(5.0)
        assert await gateway.deliver("t1") == 200
        await job.wait_for_task_id()
        accepted_at = now()
        await job
        assert now() - accepted_at < 0.2
    assert gateway.polled == {"t1": 1}


@virtually
async def test_early_delivery_at_another_process_reaches_the_owner() -> None:
    gateway, shared = WebhookGateway(job_s=3.0), SharedLedger()
    mine, theirs = process(shared, gateway), process(shared, gateway)
    mine.transport._answer = slow_creates(gateway, 10.0)._answer
    gateway.receivers = gateway.receivers[1:]  # all deliveries go to the other process
    async with mine, theirs:
        job = await mine.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(5.0)
        assert await gateway.deliver("t1") == 200
        await job.wait_for_task_id()
        accepted_at = now()
        await job
        assert now() - accepted_at < 10.0
    assert gateway.polled == {"t1": 1}


@pytest.mark.slow
@virtually
async def test_unknown_tasks_are_forgotten_and_bounded() -> None:
    gateway = WebhookGateway(job_s=JOB_S)
    async with hooked(gateway) as session:
        engine = session._require_engine()
        early = engine.poller.fallback.early_deliveries
        for number in range(MOST_REMEMBERED + 50):
            assert await gateway.deliver(f"foreign-{number}") == 200
        assert len(early) == MOST_REMEMBERED
        await asyncio.sleep(REMEMBERED_S + 1.0)
        assert len(early) == 0
        assert not early.take(session.gateway.account, "foreign-1000")
    assert gateway.polled.total() == 0


@virtually
async def test_unknown_task_is_searched_ever_more_rarely() -> None:
    gateway, shared = WebhookGateway(job_s=JOB_S), SharedLedger()
    mine = process(shared, gateway)
    async with mine:
        await asyncio.sleep(1.0)
        await gateway.deliver("foreign")
        await asyncio.sleep(REMEMBERED_S)
        assert 8 <= mine.ledger.calls["find_task"] <= 12


def test_too_old_task_is_not_taken() -> None:
    times = iter([0.0, REMEMBERED_S])
    early = early_deliveries.EarlyDeliveries(lambda: next(times))
    early.add("a", "t1")
    assert not early.take("a", "t1")


# Several processes on one ledger


@virtually
async def test_delivery_at_the_wrong_process_reaches_the_owner() -> None:
    gateway, shared = WebhookGateway(job_s=JOB_S), SharedLedger()
    mine, theirs = process(shared, gateway), process(shared, gateway)
    gateway.receivers = gateway.receivers[1:]
    async with mine, theirs:
        await asyncio.sleep(1.0)
        job = await mine.session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        gateway.tasks["t1"] = now() - JOB_S
        assert await gateway.deliver("t1") == 200
        await asyncio.sleep(1.0)
        assert job.state is JobState.SUCCEEDED
    assert gateway.polled == {"t1": 1}


@virtually
async def test_deliveries_at_another_process_are_relied_on_too() -> None:
    gateway, shared = WebhookGateway(job_s=JOB_S), SharedLedger()
    mine, theirs = process(shared, gateway), process(shared, gateway)
    gateway.receivers = gateway.receivers[1:]
    async with mine, theirs, asyncio.TaskGroup() as gateway.group:
        await asyncio.sleep(1.0)
        for _ in range(4):  # the notice takes half a second: a usual poll may see the first ends before it
            await prove(mine.session)
        for _ in range(3):
            await mine.session.generate("a fox")
    assert [gateway.polled[task_id] for task_id in ("t5", "t6", "t7")] == [1, 1, 1]


@virtually
async def test_delivery_for_a_dead_owners_job_adopts_it() -> None:
    gateway, shared = WebhookGateway(job_s=JOB_S), SharedLedger()
    async with killed_process(shared, gateway.answer, session_of=apimall) as dead:
        await (await dead.session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
    async with process(shared, gateway):
        await asyncio.sleep(JOB_S)
        await gateway.deliver("t1")
        await asyncio.sleep(0.5)
        assert shared.states() == {KEY: JobState.SUCCEEDED}
    assert gateway.polled == {"t1": 1}


@virtually
async def test_delivery_during_a_ledger_failure_is_handled_later() -> None:
    gateway, shared = WebhookGateway(job_s=JOB_S), SharedLedger()
    mine = process(shared, gateway)
    async with mine:
        job = await mine.session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        gateway.tasks["t1"] = now() - JOB_S
        await asyncio.sleep(1.0)
        mine.ledger.fails["find_task"] = 2
        assert await gateway.deliver("t1") == 503
        await asyncio.sleep(2.5)
        assert job.state is JobState.SUCCEEDED


@virtually
async def test_job_that_began_before_the_session_is_polled_once() -> None:
    gateway, ledger = WebhookGateway(job_s=JOB_S), MemoryLedger()
    async with hooked(gateway, ledger=ledger) as session:
        await (await session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
        gateway.delays_s["t1"] = None
        await asyncio.sleep(1.0)
        gateway.group = None
        await session.aclose()
        await asyncio.sleep(JOB_S)  # its delivery came while no session was open
    async with hooked(gateway, ledger=ledger) as session:
        await prove(session)
        (job,) = await session.resume()
        begun = now()
        await job
        assert now() - begun < 1.0


@virtually
async def test_closed_session_answers_503() -> None:
    gateway = WebhookGateway()
    session = apimall(FakeTransport(gateway.answer))
    receiving(session, gateway)
    url = await session._callback_router.make_account_url(session.gateway.account)
    assert await gateway.call(url, delivery_body("t1")) == 503
    async with session:
        pass
    assert await gateway.call(url, delivery_body("t1")) == 503
