"""Jobs that another session on the same ledger follows: waited for through it, taken over when it goes."""

import asyncio

import pytest

from nanobanana_async import (
    ConcurrencyPolicy,
    JobState,
    JobUncertain,
    JobUnfinished,
    LedgerError,
    SessionClosed,
)
from tests.support.fakes import FakeGateway, Opening, apimall, defapi, now, virtually
from tests.support.shared_ledger import (
    KEY,
    FakeProcess,
    SharedLedger,
    found,
    fox,
)

BOTH = pytest.mark.parametrize("session_of", [apimall, defapi])
ONE = ConcurrencyPolicy(max_jobs=1, learn=False)


async def queued_behind_another(first: FakeProcess) -> None:
    """Let the key wait for the one slot of a session."""
    await (await first.session.submit("another")).accepted()
    await first.session.submit("a fox", idempotency_key=KEY)


@BOTH
@virtually
async def test_a_job_that_another_session_follows_is_waited_for_through_the_ledger(session_of: Opening) -> None:
    shop, book = FakeGateway(job_s=30.0), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=session_of) as a,
        FakeProcess(book, shop.answer, session_of=session_of) as b,
    ):
        mine = fox(a.session)
        await asyncio.sleep(1.0)
        theirs = fox(b.session)
        done_at = []
        theirs.add_done_callback(lambda _: done_at.append(now()))
        assert await mine == "t1"
        written_at = now()
        assert await theirs == "t1"
        assert done_at[0] - written_at <= 1.1
        assert not b.transport.requests
        assert b.held == 0
    assert shop.sold == 1


@BOTH
@pytest.mark.parametrize("end", ["killed", "closed"])
@virtually
async def test_a_running_job_is_taken_over_when_its_owner_goes(session_of: Opening, end: str) -> None:
    shop, book = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=session_of) as b:
        async with FakeProcess(book, shop.answer, session_of=session_of) as a:
            await (await a.session.submit("a fox", idempotency_key=KEY)).accepted()
            theirs = fox(b.session)
            await asyncio.sleep(5.0)
            assert (b.held, len(b.transport.requests)) == (0, 0)
            if end == "killed":
                a.kill()
            else:
                await a.session.aclose()
            await asyncio.sleep(1.1)
            assert b.held == 1
            assert book.owner(KEY) is b.ledger
            assert await theirs == "t1"
        assert (b.held, b.creates) == (0, 0)
    assert shop.sold == 1


@virtually
async def test_a_submitting_job_is_repeated_under_its_key_when_its_owner_dies() -> None:
    shop, book = FakeGateway(), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=apimall) as a,
        FakeProcess(book, shop.answer, session_of=apimall) as b,
    ):
        await a.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(0.03)
        theirs = fox(b.session)
        await asyncio.sleep(0)
        a.kill()
        assert await theirs == "t1"
        assert b.creates == 1
    assert shop.sold == 1


@virtually
async def test_a_submitting_job_is_uncertain_where_no_key_is_taken_when_its_owner_dies() -> None:
    shop, book = FakeGateway(), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=defapi) as a,
        FakeProcess(book, shop.answer, session_of=defapi) as b,
    ):
        await a.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(0.03)
        theirs = fox(b.session)
        await asyncio.sleep(0)
        a.kill()
        with pytest.raises(JobUncertain):
            await theirs
        assert not b.transport.requests
        assert b.held == 1
    assert shop.sold == 1


@BOTH
@pytest.mark.parametrize("end", ["killed", "closed"])
@virtually
async def test_a_pending_job_that_was_asked_for_here_too_is_bought_here_when_its_owner_goes(
    session_of: Opening, end: str
) -> None:
    shop, book = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=session_of) as b:
        a = FakeProcess(book, shop.answer, session_of=session_of, concurrency=ONE)
        async with a:
            await queued_behind_another(a)
            theirs = fox(b.session)
            await asyncio.sleep(5.0)
            assert not b.transport.requests
            if end == "killed":
                a.kill()
        assert await theirs == "t2"
    assert shop.sold == 2


@virtually
async def test_a_pending_job_that_was_only_looked_up_is_waited_for_and_not_bought_when_its_owner_dies() -> None:
    shop, book = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=apimall) as b:
        async with FakeProcess(book, shop.answer, session_of=apimall, concurrency=ONE) as a:
            await queued_behind_another(a)
            job = await found(b.session, KEY)
            waiting = asyncio.Task(job.result())
            await asyncio.sleep(5.0)
            assert not waiting.done()
            assert not await job.cancel()
            a.kill()
            with pytest.raises(JobUnfinished, match="never bought") as caught:
                await waiting
            assert caught.value.safe_to_repeat
        await asyncio.sleep(60.0)
        assert not b.transport.requests
        assert book.owner(KEY) is None
        assert await job.cancel()
    assert book.states()[KEY] is JobState.WITHDRAWN
    assert shop.sold == 1


@virtually
async def test_a_pending_job_that_was_only_looked_up_brings_its_result_when_its_owner_buys_it() -> None:
    shop, book = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=apimall, concurrency=ONE) as a,
        FakeProcess(book, shop.answer, session_of=apimall) as b,
    ):
        await queued_behind_another(a)
        job = await found(b.session, KEY)
        assert (await job).task_id == "t2"
        assert not b.transport.requests
    assert shop.sold == 2


@virtually
async def test_a_caller_who_has_left_does_not_buy_what_its_owner_leaves_unsent() -> None:
    shop, book = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=apimall) as b:
        async with FakeProcess(book, shop.answer, session_of=apimall, concurrency=ONE) as a:
            await queued_behind_another(a)
            with pytest.raises(JobUnfinished) as caught:
                await b.session.generate("a fox", idempotency_key=KEY, timeout=3.0)
            assert not caught.value.safe_to_repeat
            a.kill()
        await asyncio.sleep(60.0)
        assert b.creates == 0
        assert book.states()[KEY] is JobState.PENDING
        assert book.owner(KEY) is None
    assert shop.sold == 1


@virtually
async def test_a_caller_who_leaves_before_the_ledger_has_answered_does_not_buy_it_either() -> None:
    shop, book = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=apimall, delay_s=0.5) as b:
        async with FakeProcess(book, shop.answer, session_of=apimall, concurrency=ONE) as a:
            await queued_behind_another(a)
            await asyncio.sleep(1.0)
            caller = fox(b.session)
            await asyncio.sleep(0.1)
            caller.cancel()
            await asyncio.sleep(5.0)
            a.kill()
        await asyncio.sleep(60.0)
        assert b.creates == 0
        assert book.owner(KEY) is None
    assert shop.sold == 1


@virtually
async def test_a_job_that_nobody_waits_for_any_more_is_not_looked_at_for_ever() -> None:
    shop, book = FakeGateway(job_s=300.0), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=apimall) as a,
        FakeProcess(book, shop.answer, session_of=apimall) as b,
    ):
        await (await a.session.submit("a fox", idempotency_key=KEY)).accepted()
        with pytest.raises(JobUnfinished):
            await b.session.generate("a fox", idempotency_key=KEY, timeout=3.0)
        await asyncio.sleep(2.0)
        b.ledger.calls.clear()
        await asyncio.sleep(60.0)
        assert not b.ledger.calls["adopt"]
        assert await fox(b.session) == "t1"
    assert shop.sold == 1


@virtually
async def test_changes_are_told_across_sessions() -> None:
    shop, book = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=apimall, concurrency=ONE) as a,
        FakeProcess(book, shop.answer, session_of=apimall) as b,
    ):
        await queued_behind_another(a)
        job = await found(b.session, KEY)
        assert [state async for state in job.updates()] == [JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED]
        assert job.task_id == "t2"
        assert (await job).task_id == "t2"
        assert not b.transport.requests


@virtually
async def test_a_task_id_is_learned_through_the_ledger() -> None:
    shop, book = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=apimall, concurrency=ONE) as a,
        FakeProcess(book, shop.answer, session_of=apimall) as b,
    ):
        await queued_behind_another(a)
        job = await b.session.submit("a fox", idempotency_key=KEY)
        assert await job.accepted() == "t2"
        with pytest.raises(JobUnfinished):
            await job.result(timeout=0.5)
        assert (await job).task_id == "t2"
        assert not b.transport.requests


@virtually
async def test_a_job_that_is_pruned_meanwhile_is_a_ledger_error() -> None:
    shop, book = FakeGateway(job_s=30.0), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=apimall) as a,
        FakeProcess(book, shop.answer, session_of=apimall) as b,
    ):
        await (await a.session.submit("a fox", idempotency_key=KEY)).accepted()
        theirs = fox(b.session)
        await asyncio.sleep(1.5)
        book.forget(KEY)
        with pytest.raises(LedgerError, match="no longer in the ledger") as caught:
            await theirs
        assert caught.value.key == KEY
        assert not b.transport.requests


@virtually
async def test_a_ledger_that_fails_once_while_we_wait_is_told_and_the_job_can_be_awaited_again() -> None:
    shop, book = FakeGateway(job_s=10.0), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=apimall, concurrency=ONE) as a,
        FakeProcess(book, shop.answer, session_of=apimall) as b,
    ):
        await queued_behind_another(a)
        looked_up = await found(b.session, KEY)
        job = await b.session.submit("a fox", idempotency_key=KEY)
        for handle in (looked_up, job):
            waiting = asyncio.Task(handle.result())
            await asyncio.sleep(0.1)
            b.ledger.fails["adopt"] = 1
            with pytest.raises(LedgerError, match="the disk is full"):
                await waiting
        await asyncio.sleep(30.0)
        assert (await looked_up).task_id == "t2"
        assert (await job).task_id == "t2"
    assert shop.sold == 2


@virtually
async def test_a_session_that_closes_sends_away_who_waits_for_the_jobs_of_others() -> None:
    shop, book = FakeGateway(job_s=30.0), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=apimall, concurrency=ONE) as a:
        await queued_behind_another(a)
        async with FakeProcess(book, shop.answer, session_of=apimall) as b:
            waiting = [fox(b.session), asyncio.Task((await found(b.session, KEY)).result())]
            await asyncio.sleep(3.0)
        await asyncio.wait(waiting)
        assert all(isinstance(waiter.exception(), SessionClosed) for waiter in waiting)
        assert book.owner(KEY) is a.ledger
        assert await fox(a.session) == "t2"
