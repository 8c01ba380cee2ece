"""A callback may reach any process that shares the ledger: it notifies the job's owner, or adopts the job."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import DefApi, JobState, Session
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.callbacks import KEY, PUBLIC, CallbackGateway, call, callback_body
from tests.support.fakes import Opening, defapi, now, virtually
from tests.support.shared_ledger import LOST, FakeProcess, SharedLedger, found, killed_process


def process(
    shared: SharedLedger, gateway: CallbackGateway, session_of: Opening = defapi
) -> tuple[FakeProcess, CallbackReceiver]:
    """Return a process with a receiver, not yet begun."""
    made = FakeProcess(shared, gateway.answer, session_of=session_of)
    return made, CallbackReceiver(made.session, public_url=PUBLIC)


class LosingCallbackGateway(CallbackGateway):
    def answer(self, request: HttpRequest) -> Reply:
        reply = super().answer(request)
        return LOST if request.method == "POST" else reply


@virtually
async def test_callback_in_another_process_notifies_the_owner() -> None:
    gateway, shared = CallbackGateway(job_s=10.0), SharedLedger()
    mine, _ = process(shared, gateway)
    theirs, receiver = process(shared, gateway)
    async with mine, theirs:
        job = await mine.session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        await asyncio.sleep(10.0)
        assert await call(receiver, gateway.url(), callback_body("t1")) == 200
        await asyncio.sleep(1.0)
        assert job.state is JobState.SUCCEEDED
        assert (mine.queries, theirs.queries) == (1, 0)


@virtually
async def test_callback_in_a_waiting_process_notifies_the_owner() -> None:
    gateway, shared = CallbackGateway(job_s=0.1), SharedLedger()
    mine = FakeProcess(shared, gateway.answer, session_of=defapi, delay_s=0.2)
    CallbackReceiver(mine.session, public_url=PUBLIC)
    theirs, receiver = process(shared, gateway)
    async with mine, theirs:
        await asyncio.sleep(0.65)  # the other process reads the ledger at each full second
        submitting = asyncio.Task(mine.session.submit("a fox", idempotency_key=KEY))
        while KEY not in shared.states():  # noqa: ASYNC110 - the ledger has no event
            await asyncio.sleep(0.01)
        waiting = asyncio.Task(theirs.session.generate("a fox", idempotency_key=KEY))
        job = await submitting
        await job.wait_for_task_id()
        await asyncio.sleep(0.1)
        assert (await found(theirs.session, KEY)).state is JobState.PENDING
        await call(receiver, gateway.url(), callback_body("t1"))
        await asyncio.sleep(1.2)
        assert job.state is JobState.SUCCEEDED
        assert (await waiting).task_id == "t1"


@virtually
async def test_callback_for_a_dead_owners_job_adopts_it() -> None:
    gateway, shared = CallbackGateway(job_s=5.0), SharedLedger()
    dead = killed_process(shared, gateway.answer, session_of=defapi)
    async with dead as one:
        CallbackReceiver(one.session, public_url=PUBLIC)
        await (await one.session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
    theirs, receiver = process(shared, gateway)
    async with theirs:
        await asyncio.sleep(5.0)
        assert shared.states() == {KEY: JobState.RUNNING}
        await call(receiver, gateway.url(), callback_body("t1"))
        await asyncio.sleep(0.2)
        assert shared.states() == {KEY: JobState.SUCCEEDED}
        assert (theirs.creates, theirs.queries, theirs.held) == (0, 1, 0)


@virtually
async def test_callback_for_a_dead_owners_submitting_job_adopts_it() -> None:
    gateway, shared = CallbackGateway(job_s=5.0), SharedLedger()
    async with killed_process(shared, gateway.answer, session_of=defapi) as one:
        CallbackReceiver(one.session, public_url=PUBLIC)
        await one.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(0.03)
        assert shared.states() == {KEY: JobState.SUBMITTING}
    theirs, receiver = process(shared, gateway)
    async with theirs:
        await asyncio.sleep(5.0)
        await call(receiver, gateway.url(), callback_body("t1"))
        await asyncio.sleep(2.0)
        assert shared.states() == {KEY: JobState.SUCCEEDED}
        assert theirs.creates == 0


@virtually
async def test_callback_during_another_process_create_reaches_it() -> None:
    gateway, shared = LosingCallbackGateway(job_s=0.5), SharedLedger()
    theirs, receiver = process(shared, gateway)
    mine = FakeProcess(shared, gateway.answer, session_of=defapi)
    mine.transport._latency_s = 4.0
    CallbackReceiver(mine.session, public_url=PUBLIC)
    async with mine, theirs:
        job = await mine.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(3.0)
        assert shared.states() == {KEY: JobState.SUBMITTING}
        await call(receiver, gateway.url(), callback_body("t1"))
        await asyncio.sleep(10.0)
        assert job.state is JobState.SUCCEEDED
        assert (mine.creates, theirs.creates) == (1, 0)


@virtually
async def test_receiver_resolves_an_uncertain_job_of_another_process() -> None:
    gateway, shared = LosingCallbackGateway(), SharedLedger()
    mine, _ = process(shared, gateway)
    theirs, receiver = process(shared, gateway)
    async with mine, theirs:
        await mine.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(2.0)
        assert shared.states() == {KEY: JobState.UNCERTAIN}
        await call(receiver, gateway.url(), callback_body("t1"))
        await asyncio.sleep(2.0)
        assert shared.states() == {KEY: JobState.SUCCEEDED}
        assert (await mine.session.generate("a fox", idempotency_key=KEY)).task_id == "t1"
        assert mine.creates + theirs.creates == 1


@virtually
async def test_callbacks_to_two_processes_resolve_once() -> None:
    gateway, shared = LosingCallbackGateway(), SharedLedger()
    mine, one = process(shared, gateway)
    theirs, other = process(shared, gateway)
    async with mine, theirs:
        await mine.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(2.0)
        for receiver in (one, other):
            await call(receiver, gateway.url(), callback_body("t1"))
        await asyncio.sleep(5.0)
        assert shared.states() == {KEY: JobState.SUCCEEDED}
        assert (mine.held, theirs.held) == (0, 0)


def of_another_account(transport: FakeTransport, **settings: Any) -> Session:
    return Session(DefApi(api_key="another-accounts-key"), http=transport, **settings)


@virtually
async def test_callback_for_another_account_notifies_its_owner() -> None:
    gateway, shared = CallbackGateway(job_s=5.0), SharedLedger()
    mine, _ = process(shared, gateway)
    theirs, receiver = process(shared, gateway, of_another_account)
    async with theirs:
        async with mine:
            job = await mine.session.submit("a fox", idempotency_key=KEY)
            await job.wait_for_task_id()
            await asyncio.sleep(5.0)
            assert await call(receiver, gateway.url(), callback_body("t1")) == 200
            await asyncio.sleep(1.0)
            assert job.state is JobState.SUCCEEDED
        again, _ = process(shared, gateway)
        async with again:
            await (await again.session.submit("a hare", idempotency_key="order-2")).wait_for_task_id()
            again.kill()
        assert await call(receiver, gateway.url(2), callback_body("t2")) == 200
        assert shared.owner("order-2") is None
        assert shared.states()["order-2"] is JobState.RUNNING


@pytest.mark.parametrize("method", ["find", "adopt", "notify_owner"])
@virtually
async def test_ledger_failure_answers_503_and_next_call_works(method: str) -> None:
    gateway, shared = CallbackGateway(job_s=5.0), SharedLedger()
    mine, _ = process(shared, gateway)
    theirs, receiver = process(shared, gateway)
    async with mine, theirs:
        job = await mine.session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        await asyncio.sleep(5.0)
        theirs.ledger.fails[method] = 1
        assert await call(receiver, gateway.url(), callback_body("t1")) == 503
        assert await call(receiver, gateway.url(), callback_body("t1")) == 200
        await asyncio.sleep(1.0)
        assert job.state is JobState.SUCCEEDED


@virtually
async def test_unread_notice_is_read_later() -> None:
    gateway, shared = CallbackGateway(job_s=5.0), SharedLedger()
    mine, _ = process(shared, gateway)
    theirs, receiver = process(shared, gateway)
    async with mine, theirs:
        job = await mine.session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        await asyncio.sleep(5.0)
        mine.ledger.fails["take_notices"] = 3
        await call(receiver, gateway.url(), callback_body("t1"))
        begun = now()
        await job
        assert now() - begun < 3.0


@pytest.mark.slow
async def test_sessions_on_one_file_notify_within_a_second(tmp_path: Path) -> None:
    gateway = CallbackGateway(job_s=0.3)
    sessions = [
        defapi(FakeTransport(gateway.answer, latency_s=0.01), ledger=tmp_path / "jobs.sqlite") for _ in range(2)
    ]
    mine, theirs = sessions
    _, receiver = [CallbackReceiver(session, public_url=PUBLIC) for session in sessions]
    async with mine, theirs:
        job = await mine.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        await asyncio.sleep(0.3)
        assert await call(receiver, gateway.url(), callback_body("t1")) == 200
        async with asyncio.timeout(1.5):
            assert (await job).task_id == "t1"
    assert gateway.polled == ["t1"]
    assert await call(receiver, gateway.url(), callback_body("t1")) == 503
