"""Jobs that change their owner: released when polling stops, bought again, adopted by the first other session."""

import asyncio

import pytest

from nanobanana_async import (
    AuthenticationError,
    IdempotencyConflict,
    InsufficientCredits,
    JobState,
    JobUnfinished,
    LedgerError,
    RetryPolicy,
    TaskNotFound,
    Timeouts,
    TransportError,
)
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import Reply
from tests.support.fakes import FakeGateway, apimall, defapi, virtually
from tests.support.replies import json_reply, refused
from tests.support.shared_ledger import (
    KEY,
    FakeProcess,
    SharedLedger,
    found,
    fox,
    leave_pending,
    leave_running,
    two_processes,
)

UNSENT = TransportError("refused", possibly_sent=False)


@pytest.mark.parametrize("delay_s", [0.0, 0.1])
@virtually
async def test_refused_job_is_bought_again_by_one_of_two_sessions(delay_s: float) -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    poor = [True]

    def answer(request: HttpRequest) -> Reply:
        return refused(402) if poor[0] else gateway.answer(request)

    async with two_processes(shared, answer, session_of=apimall, delay_s=delay_s) as (a, b):
        with pytest.raises(InsufficientCredits):
            await fox(a.session)
        poor[0] = False
        callers = [fox(one.session) for one in (a, b, a, b)]
        assert [await caller for caller in callers] == ["t1"] * 4
        assert a.creates + b.creates == 2  # the refused one, and the one that was bought
        assert a.session.stats().refused == (0 if a.creates == 2 else 1)  # the other session may have bought it
    assert shared.record(KEY).generation == 2
    assert gateway.sold == 1


@virtually
async def test_caller_during_a_repurchase_shares_it() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    poor = [True]

    def answer(request: HttpRequest) -> Reply:
        return refused(402) if poor[0] else gateway.answer(request)

    async with FakeProcess(shared, answer, session_of=apimall, delay_s=1.0) as a:
        with pytest.raises(InsufficientCredits):
            await fox(a.session)
        poor[0] = False
        callers = [fox(a.session)]
        for _ in range(8):  # one of these moments is between the ledger's word and the new generation
            await asyncio.sleep(0.25)
            callers.append(fox(a.session))
        assert {await caller for caller in callers} == {"t1"}
    assert gateway.sold == 1


@virtually
async def test_unstored_repurchase_sends_nothing() -> None:
    gateway, shared = FakeGateway(), SharedLedger()
    answers: list[Reply] = [refused(402)]

    def answer(request: HttpRequest) -> Reply:
        return answers.pop() if answers else gateway.answer(request)

    async with FakeProcess(shared, answer, session_of=apimall) as a:
        with pytest.raises(InsufficientCredits):
            await fox(a.session)
        a.ledger.fails["advance"] = 1
        with pytest.raises(LedgerError, match="the disk is full") as caught:
            await fox(a.session)
        assert not caught.value.safe_to_repeat  # another session may have been faster
        assert a.creates == 1
        assert await fox(a.session) == "t1"


@virtually
async def test_conflict_on_an_adopted_job_releases_it() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    await leave_running(shared, gateway, KEY, session_of=apimall)
    async with two_processes(shared, gateway.answer, session_of=apimall) as (a, b):
        with pytest.raises(IdempotencyConflict):
            await a.session.generate("a wolf", idempotency_key=KEY)
        assert shared.owner(KEY) is None
        (job,) = await b.session.resume()
        assert (await job).task_id == "t1"
        assert not a.transport.requests


@pytest.mark.parametrize("why", ["the key was revoked", "the task is unknown", "it takes too long"])
@virtually
async def test_job_no_longer_polled_is_released_and_awaitable(why: str) -> None:
    gateway, shared = FakeGateway(job_s=200.0), SharedLedger()
    trouble = [True]

    def answer(request: HttpRequest) -> Reply:
        if request.method == "GET" and trouble[0] and why == "the key was revoked":
            return refused(401)
        if request.method == "GET" and trouble[0] and why == "the task is unknown":
            return refused(404)
        return gateway.answer(request)

    patience = Timeouts(job_s=150.0) if why == "it takes too long" else Timeouts()
    async with (
        FakeProcess(shared, answer, session_of=apimall, timeouts=patience) as a,
        FakeProcess(shared, gateway.answer, session_of=apimall) as b,
    ):
        job = await a.session.submit("a fox", idempotency_key=KEY)
        with pytest.raises((AuthenticationError, TaskNotFound, JobUnfinished)):
            await job
        trouble[0] = False
        await asyncio.sleep(0.1)
        assert (shared.states()[KEY], shared.owner(KEY), a.held) == (JobState.RUNNING, None, 0)
        theirs = fox(b.session)
        await asyncio.sleep(5.0)
        assert shared.owner(KEY) is b.ledger
        asked = a.queries
        again = asyncio.Task(job.result())
        assert await theirs == "t1"
        assert (await again).task_id == "t1"
        assert a.queries == asked
    assert gateway.sold == 1


@virtually
async def test_released_job_without_an_owner_is_polled_again_here() -> None:
    gateway, shared = FakeGateway(job_s=100.0), SharedLedger()
    trouble = [True]

    def answer(request: HttpRequest) -> Reply:
        return refused(401) if request.method == "GET" and trouble[0] else gateway.answer(request)

    async with FakeProcess(shared, answer, session_of=apimall) as a:
        job = await a.session.submit("a fox", idempotency_key=KEY)
        for _ in range(3):
            with pytest.raises(AuthenticationError):
                await job
        trouble[0] = False
        assert (await job).task_id == "t1"
        assert a.held == 0
    assert gateway.sold == 1


@virtually
async def test_unsent_job_given_up_is_released_and_handle_waits() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(shared, lambda _: UNSENT, session_of=apimall, retry=RetryPolicy(max_attempts=1)) as a,
        FakeProcess(shared, gateway.answer, session_of=apimall) as b,
    ):
        job = await a.session.submit("a fox", idempotency_key=KEY)
        with pytest.raises(TransportError):
            await job
        await asyncio.sleep(0.1)
        assert (shared.states()[KEY], shared.owner(KEY)) == (JobState.PENDING, None)
        with pytest.raises(TransportError):
            await job
        theirs = fox(b.session)
        await asyncio.sleep(3.0)
        assert (await job).task_id == "t1"
        assert await theirs == "t1"
        assert a.creates == 1
    assert gateway.sold == 1


@virtually
async def test_failed_release_is_ignored() -> None:
    gateway, shared = FakeGateway(job_s=50.0), SharedLedger()
    trouble = [True]

    def answer(request: HttpRequest) -> Reply:
        return refused(401) if request.method == "GET" and trouble[0] else gateway.answer(request)

    async with FakeProcess(shared, gateway.answer, session_of=apimall) as b:
        async with FakeProcess(shared, answer, session_of=apimall) as a:
            job = await a.session.submit("a fox", idempotency_key=KEY)
            a.ledger.fails["release"] = 1
            with pytest.raises(AuthenticationError):
                await job
            await asyncio.sleep(1.0)
            assert shared.owner(KEY) is a.ledger
            theirs = fox(b.session)
            await asyncio.sleep(3.0)
            assert not b.transport.requests
        assert await theirs == "t1"
    assert gateway.sold == 1


@virtually
async def test_job_with_an_unstored_task_id_is_not_released() -> None:
    gateway, shared = FakeGateway(job_s=50.0), SharedLedger()
    trouble = [True]

    def answer(request: HttpRequest) -> Reply:
        no = json_reply(401, {"code": 401, "message": "No"})
        return no if request.method == "GET" and trouble[0] else gateway.answer(request)

    async with (
        FakeProcess(shared, answer, session_of=defapi) as a,
        FakeProcess(shared, gateway.answer, session_of=defapi) as b,
    ):
        job = await a.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(0.01)
        a.ledger.fails["advance"] = 1
        with pytest.raises(LedgerError):
            await job.wait_for_task_id()
        with pytest.raises(AuthenticationError):
            await job
        theirs = fox(b.session)
        await asyncio.sleep(3.0)
        trouble[0] = False
        assert (await job).task_id == "t1"
        assert await theirs == "t1"
    assert gateway.sold == 1


@pytest.mark.slow
@virtually
async def test_generate_during_a_release_buys_the_job() -> None:
    for moment in range(40):
        gateway, shared = FakeGateway(), SharedLedger()
        await leave_pending(shared, gateway, KEY, session_of=apimall)
        async with FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=0.2) as a:
            job = await found(a.session, KEY)
            waiting = asyncio.Task(job.result())
            await asyncio.sleep(moment * 0.025)
            assert (await a.session.generate(f"a fox for {KEY}", idempotency_key=KEY)).task_id == "t1"
            await asyncio.wait([waiting])
            assert isinstance(waiting.exception(), (JobUnfinished, type(None)))
        assert gateway.sold == 1


@virtually
async def test_cancel_during_the_ledger_lookup_withdraws_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for moment in range(24):
        gateway, shared = FakeGateway(), SharedLedger()
        await leave_pending(shared, gateway, KEY, session_of=apimall)
        async with FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=0.2) as a:
            job = await found(a.session, KEY)
            waiting = asyncio.Task(job.result())
            await asyncio.sleep(moment * 0.025)
            assert await job.cancel()
            await asyncio.wait([waiting])
            assert waiting.exception() is not None
        assert shared.states() == {KEY: JobState.WITHDRAWN}
        assert gateway.sold == 0
    assert not caplog.records


@virtually
async def test_unstored_result_is_found_by_another_session() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=defapi) as (a, b):
        mine = fox(a.session)
        await asyncio.sleep(1.0)
        theirs = fox(b.session)
        a.ledger.fails["advance"] = 1
        assert await mine == "t1"
        assert shared.states() == {KEY: JobState.RUNNING}
        assert await theirs == "t1"
        assert b.creates == 0
    assert shared.states() == {KEY: JobState.SUCCEEDED}
