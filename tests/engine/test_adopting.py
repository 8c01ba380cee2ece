"""Session(adopt=...): a session takes over the jobs of dead processes by itself, and each is bought once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nanobanana_async import ApiMall, ConfigurationError, JobState, MemoryLedger, PostgresLedger, Session
from nanobanana_async.engine.adoption import adopt_mode
from nanobanana_async.engine.wall_clock import utcnow
from nanobanana_async.errors import LedgerError, NanoBananaError
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Upload
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.support.fakes import API_KEY, FakeGateway, Opening, apimall, defapi, virtually
from tests.support.images import make_image
from tests.support.references import sha256
from tests.support.shared_ledger import (
    KEY,
    FakeProcess,
    LedgerView,
    SharedLedger,
    killed_process,
    leave_pending,
    leave_running,
    leave_submitting,
    two_processes,
)

BOTH = pytest.mark.parametrize("session_of", [apimall, defapi])


@BOTH
@virtually
async def test_jobs_that_may_be_bought_are_followed_without_a_call(session_of: Opening) -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    await leave_running(shared, gateway, "a", session_of=session_of)
    await leave_pending(shared, gateway, "b", session_of=session_of)
    async with FakeProcess(shared, gateway.answer, session_of=session_of, adopt="auto") as process:
        await asyncio.sleep(1.0)
        assert (process.held, shared.owner("a")) == (1, process.ledger)
        await asyncio.sleep(100.0)
        assert shared.states() == {"a": JobState.SUCCEEDED, "b": JobState.PENDING}
        assert (process.held, process.creates, shared.owner("b")) == (0, 0, None)
    assert gateway.sold == 1


@virtually
async def test_unanswered_create_of_a_dead_process_is_repeated_under_its_key() -> None:
    gateway, shared = FakeGateway(job_s=5.0), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall, adopt="follow") as process:
        await asyncio.sleep(30.0)
        assert (process.creates, shared.states()) == (1, {KEY: JobState.SUCCEEDED})
    assert gateway.sold == 1


@BOTH
@virtually
async def test_jobs_that_were_never_sent_are_bought_with_buy(session_of: Opening) -> None:
    gateway, shared = FakeGateway(job_s=5.0), SharedLedger()
    await leave_pending(shared, gateway, "a", "b", session_of=session_of)
    async with FakeProcess(shared, gateway.answer, session_of=session_of, adopt="buy"):
        await asyncio.sleep(60.0)
        assert set(shared.states().values()) == {JobState.SUCCEEDED}
    assert gateway.sold == 2


@virtually
async def test_process_that_dies_later_is_noticed_within_the_interval() -> None:
    gateway, shared = FakeGateway(job_s=300.0), SharedLedger()
    settings: dict[str, Any] = {"session_of": apimall, "adopt": "follow", "adopt_every_s": 5.0}
    async with two_processes(shared, gateway.answer, **settings) as (first, second):
        await (await first.session.submit("a fox", idempotency_key=KEY)).wait_for_task_id()
        await asyncio.sleep(20.0)
        assert second.held == 0
        first.kill()
        await asyncio.sleep(6.0)
        assert (second.held, shared.owner(KEY)) == (1, second.ledger)


@virtually
async def test_resume_returns_what_the_session_has_adopted_by_itself() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    await leave_running(shared, gateway, "a", "b", session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall, adopt="follow", delay_s=0.1) as process:
        jobs = await process.session.resume()  # the first round of the session itself is still under way
        assert [job.key for job in jobs] == ["a", "b"]
        assert await process.session.resume() == []
        assert [(await job).task_id for job in jobs] == ["t1", "t2"]


@virtually
async def test_of_two_sessions_that_adopt_one_follows_each_job() -> None:
    gateway, shared = FakeGateway(job_s=300.0), SharedLedger()
    await leave_running(shared, gateway, "a", "b", "c", session_of=apimall)
    settings: dict[str, Any] = {"session_of": apimall, "adopt": "follow", "delay_s": 0.1}
    async with two_processes(shared, gateway.answer, **settings) as (first, second):
        await asyncio.sleep(60.0)
        assert first.held + second.held == 3
        followed = [len(each.session._session_task.engine.tracked) for each in (first, second)]  # type: ignore[union-attr]
        assert sum(followed) == 3  # who was slower follows nothing through the ledger either
        assert gateway.sold == 3


@virtually
async def test_jobs_of_a_resume_that_ends_early_are_returned_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanobanana_async.engine.adoption.ADOPT_BATCH", 1)
    gateway, shared = FakeGateway(job_s=300.0), SharedLedger()
    await leave_running(shared, gateway, "a", "b", "c", session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall, adopt=None, delay_s=1.0) as process:
        session = process.session
        resuming = asyncio.Task(session.resume())
        await asyncio.sleep(2.5)  # the first is ours by now, the second is being adopted
        assert process.ledger.calls["adopt"] == 2
        resuming.cancel()
        await asyncio.wait([resuming])
        listing = LedgerView.adoptable_jobs

        async def one_and_then_an_error(ledger: LedgerView, account: str) -> AsyncIterator[JobRecord]:
            async for record in listing(ledger, account):
                yield record
                raise LedgerError("the disk is full")

        with monkeypatch.context() as failing:
            failing.setattr(LedgerView, "adoptable_jobs", one_and_then_an_error)
            with pytest.raises(LedgerError, match="the disk is full"):
                await session.resume()
        assert [job.key for job in await session.resume()] == ["a", "b", "c"]
        assert await session.resume() == []
        assert process.held == 3


@BOTH
@virtually
async def test_job_that_was_put_back_before_it_is_adopted_is_not_bought_with_follow(session_of: Opening) -> None:
    gateway, shared = FakeGateway(job_s=5.0), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=session_of)
    async with FakeProcess(shared, gateway.answer, session_of=session_of, adopt="follow", delay_s=1.0) as process:
        await asyncio.sleep(1.2)
        assert process.ledger.calls["adopt"] == 1  # the session has found it as SUBMITTING
        row = shared.rows[KEY]  # the answer of its create comes too late, and is a refusal
        row.record = row.record.transition_to(JobState.PENDING, sent_at=None, attempts=0)
        await asyncio.sleep(100.0)
        assert (process.creates, shared.states(), shared.owner(KEY)) == (0, {KEY: JobState.PENDING}, None)
        assert await process.session.resume() == []


@virtually
async def test_ledger_that_fails_is_asked_again_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    gateway, shared = FakeGateway(job_s=300.0), SharedLedger()
    await leave_running(shared, gateway, KEY, session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall, adopt="follow") as process:
        process.ledger.fails["adoptable_jobs"] = 1000
        await asyncio.sleep(61.0)
        assert process.ledger.fails["adoptable_jobs"] <= 998
        process.ledger.fails.clear()
        assert (process.held, caplog.text.count("ledger.failed")) == (0, 1)
        await asyncio.sleep(31.0)
        assert process.held == 1


@virtually
async def test_nothing_is_adopted_with_none() -> None:
    gateway, shared = FakeGateway(job_s=30.0), SharedLedger()
    await leave_running(shared, gateway, KEY, session_of=apimall)
    async with FakeProcess(shared, gateway.answer, session_of=apimall, adopt=None) as process:
        await asyncio.sleep(100.0)
        assert (process.held, process.ledger.calls["adoptable_jobs"]) == (0, 0)


def test_only_sessions_of_a_shared_ledger_adopt_by_default() -> None:
    assert adopt_mode("auto", PostgresLedger("postgresql://localhost/studio")) == "follow"
    for ledger in (MemoryLedger(), SqliteLedger("jobs.sqlite")):
        assert adopt_mode("auto", ledger) is None
        assert adopt_mode("buy", ledger) == "buy"


@pytest.mark.parametrize("adopt", ["BUY", "", True, 1, ["buy"]])
def test_wrong_way_to_adopt_is_refused_with_those_that_there_are(adopt: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"adopt must be 'follow' \(.*, 'buy' \(.*, None, or 'auto'"):
        Session(ApiMall(api_key=API_KEY), adopt=adopt)


@pytest.mark.parametrize("seconds", [0, -1, "30", float("inf")])
def test_wrong_interval_of_adopting_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="adopt_every_s must be a number above 0"):
        Session(ApiMall(api_key=API_KEY), adopt="buy", adopt_every_s=seconds)


@virtually
async def test_job_whose_image_died_with_its_process_is_left_alone() -> None:
    gateway, shared, image = FakeGateway(job_s=5.0), SharedLedger(), make_image()
    async with killed_process(shared, gateway.answer, session_of=defapi, delay_s=1.0) as process:
        submitting = asyncio.Task(process.session.submit("a fox", images=[image], idempotency_key=KEY))
        while KEY not in shared.rows:  # noqa: ASYNC110 - it reads the image in a thread
            await asyncio.sleep(0.1)
    submitting.cancel()
    await asyncio.wait([submitting])
    async with FakeProcess(shared, gateway.answer, session_of=defapi, adopt="buy") as process:
        await asyncio.sleep(200.0)
        assert (process.ledger.calls["adopt"], shared.states()) == (0, {KEY: JobState.PENDING})
        (job,) = await process.session.resume(buy=True)
        with pytest.raises(NanoBananaError, match="is not at hand"):
            await job
        assert (await process.session.generate("a fox", images=[image], idempotency_key=KEY)).url
    assert gateway.sold == 1


@virtually
async def test_job_whose_image_was_uploaded_before_is_bought_without_a_caller() -> None:
    gateway, shared, image = FakeGateway(job_s=5.0), SharedLedger(), make_image()
    async with killed_process(shared, gateway.answer, session_of=apimall, delay_s=1.0) as process:
        submitting = asyncio.Task(process.session.submit("a fox", images=[image], idempotency_key=KEY))
        while KEY not in shared.rows:  # noqa: ASYNC110 - it reads the image in a thread
            await asyncio.sleep(0.1)
        account = process.session._components.gateway.account
    submitting.cancel()
    await asyncio.wait([submitting])
    assert shared.states() == {KEY: JobState.PENDING}
    known = Upload(digest=sha256(image), url="https://files.example/a.png", size=len(image), uploaded_at=utcnow())
    async with FakeProcess(shared, gateway.answer, session_of=apimall, adopt="buy") as process:
        await asyncio.sleep(100.0)
        assert (process.ledger.calls["adopt"], gateway.sold) == (0, 0)
        shared.uploads[account, known.digest] = known
        await asyncio.sleep(60.0)
    assert (gateway.sold, shared.states()) == (1, {KEY: JobState.SUCCEEDED})
