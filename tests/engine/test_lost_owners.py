"""A session whose owner was buried while it lives: its jobs go to other owners, and what it still knows is written."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import JobState, JobUncertain, NotOurs, Session
from nanobanana_async.engine.claimer import Claimer
from nanobanana_async.engine.ownership import LEASE_CHECK_S
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.engine.wall_clock import utcnow
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.jobs import JobRecord
from nanobanana_async.testing import Reply
from tests.support.fakes import FakeGateway, Opening, apimall, defapi, now, virtually
from tests.support.mutations import patched
from tests.support.replies import refused
from tests.support.shared_ledger import KEY, LOST, FakeProcess, LedgerView, SharedLedger, fox, two_processes

BOTH = pytest.mark.parametrize("session_of", [apimall, defapi])


class SlowGateway(FakeGateway):
    """A gateway that takes its time for the answer to the first create, which may be a refusal."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__(job_s=20.0)
        self.answers_after_s = 30.0
        self.refuses = refuses
        self.creates = 0

    async def answer_slowly(self, request: HttpRequest) -> Reply:
        if request.method != "POST":
            return self.answer(request)
        self.creates += 1
        first = self.creates == 1
        reply = refused(429, "rate", "too many") if first and self.refuses else self.answer(request)
        if first:
            await asyncio.sleep(self.answers_after_s)
        return reply


def tracked(session: Session, key: str = KEY) -> Any:
    engine = session._session_task.engine
    assert engine is not None
    return engine.tracked[key]


@BOTH
@virtually
async def test_running_job_of_a_buried_owner_is_followed_and_its_slot_let_go(session_of: Opening) -> None:
    shared, gateway = SharedLedger(), FakeGateway(job_s=60.0)
    async with two_processes(shared, gateway.answer, session_of=session_of) as (first, second):
        waiting = fox(first.session)
        await asyncio.sleep(5.0)
        assert first.held == 1
        first.ledger.bury(unnoticed=True)
        assert [job.key for job in await second.session.resume()] == [KEY]
        first.ledger.come_back()
        assert (tracked(first.session).phase, first.held) == (Phase.FOREIGN, 0)
        assert second.held == 1
        assert await waiting == "t1"
        assert shared.owner(KEY) is None
        assert (first.session.stats().succeeded, second.session.stats().succeeded) == (0, 1)
    assert gateway.sold == 1


@virtually
async def test_slot_of_an_uncertain_job_counts_once_after_a_burial() -> None:
    shared = SharedLedger()
    async with FakeProcess(shared, lambda _: LOST, session_of=defapi) as process:
        with pytest.raises(JobUncertain):
            await process.session.generate("a fox")
        await asyncio.sleep(2.0)
        (account,) = {row.record.account for row in shared.rows.values()}
        begun = utcnow() - timedelta(hours=1)
        assert (process.held, shared.owned(account, begun).get(None, 0)) == (1, 0)
        process.ledger.bury(unnoticed=True)
        process.ledger.come_back()
        assert (process.held, shared.owned(account, begun).get(None, 0)) == (0, 1)


@BOTH
@virtually
async def test_buried_owner_takes_back_what_was_not_adopted(session_of: Opening) -> None:
    shared, gateway = SharedLedger(), FakeGateway(job_s=60.0)
    async with FakeProcess(shared, gateway.answer, session_of=session_of) as process:
        waiting = fox(process.session)
        await asyncio.sleep(5.0)
        process.ledger.bury()
        assert process.held == 0
        await asyncio.sleep(0.1)
        assert (shared.owner(KEY), process.held) == (process.ledger, 1)
        assert await waiting == "t1"
        assert process.session.stats().succeeded == 1
    assert gateway.sold == 1


@virtually
async def test_answer_that_comes_to_a_buried_owner_ends_the_doubt_of_the_heir() -> None:
    shared, gateway = SharedLedger(), SlowGateway()
    async with two_processes(shared, gateway.answer_slowly, session_of=defapi) as (first, second):
        waiting = fox(first.session)
        await asyncio.sleep(5.0)
        first.ledger.bury(unnoticed=True)
        await second.session.resume()
        assert shared.states() == {KEY: JobState.UNCERTAIN}
        assert await waiting == "t1"
        assert shared.record(KEY).task_id == "t1"
        assert first.session.stats().uncertain == 0
        assert (first.held, first.creates, second.creates) == (0, 1, 0)
    assert gateway.sold == 1


@virtually
async def test_dropped_late_answer_leaves_the_doubt_of_the_heir() -> None:
    async def dropped(self: Claimer, job: TrackedJob, late: object, claim: object) -> bool:
        job.rare = evolve(job.rare, late_answer=None)
        return False

    shared, gateway = SharedLedger(), SlowGateway()
    with patched([(Claimer, "_write_late_answer", dropped)]):  # a deliberate bug
        async with two_processes(shared, gateway.answer_slowly, session_of=defapi) as (first, second):
            waiting = fox(first.session)
            await asyncio.sleep(5.0)
            first.ledger.bury(unnoticed=True)
            await second.session.resume()
            await asyncio.wait([waiting])
            assert isinstance(waiting.exception(), JobUncertain)
    assert shared.states() == {KEY: JobState.UNCERTAIN}


@virtually
async def test_heir_repeats_under_the_key_and_the_late_answer_changes_nothing() -> None:
    shared, gateway = SharedLedger(), SlowGateway()
    async with two_processes(shared, gateway.answer_slowly, session_of=apimall) as (first, second):
        waiting = fox(first.session)
        await asyncio.sleep(5.0)
        first.ledger.bury(unnoticed=True)
        (job,) = await second.session.resume()
        assert (await job).task_id == await waiting == "t1"
        assert (first.creates, second.creates) == (1, 1)
    assert gateway.sold == 1


@virtually
async def test_late_refusal_ends_the_doubt_of_the_heir_and_the_job_is_bought_once() -> None:
    shared, gateway = SharedLedger(), SlowGateway(refuses=True)
    async with two_processes(shared, gateway.answer_slowly, session_of=defapi) as (first, second):
        waiting = fox(first.session)
        await asyncio.sleep(5.0)
        first.ledger.bury(unnoticed=True)
        await second.session.resume()
        assert shared.states() == {KEY: JobState.UNCERTAIN}
        assert await waiting == "t1"
        assert (first.creates, second.creates) == (2, 0)
    assert gateway.sold == 1


@virtually
async def test_late_refusal_says_nothing_about_the_repeats_of_the_heir() -> None:
    shared, gateway = SharedLedger(), SlowGateway(refuses=True)
    async with two_processes(shared, gateway.answer_slowly, session_of=apimall) as (first, second):
        waiting = fox(first.session)
        await asyncio.sleep(5.0)
        first.ledger.bury(unnoticed=True)
        await second.session.resume()
        assert await waiting == "t1"
        assert (first.creates, second.creates) == (1, 1)
    assert gateway.sold == 1


@virtually
async def test_late_answer_to_an_adopted_and_released_job_is_written() -> None:
    shared, gateway = SharedLedger(), SlowGateway()
    async with FakeProcess(shared, gateway.answer_slowly, session_of=defapi) as process:
        waiting = fox(process.session)
        await asyncio.sleep(5.0)
        process.ledger.bury()
        assert await waiting == "t1"
        assert shared.record(KEY).task_id == "t1"
    assert gateway.sold == 1


@virtually
async def test_unused_late_answer_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    shared, gateway = SharedLedger(), SlowGateway()
    async with two_processes(shared, gateway.answer_slowly, session_of=defapi) as (first, second):
        waiting = fox(first.session)
        await asyncio.sleep(5.0)
        first.ledger.bury(unnoticed=True)
        await second.session.resume()
        await second.session.resolve(KEY, not_bought=True)
        await asyncio.wait([waiting])
        assert "not bought" in str(waiting.exception())
    assert f"answer.unused job={KEY} task=t1 state=refused" in caplog.text


@BOTH
@virtually
async def test_create_waits_while_its_owner_may_be_buried(session_of: Opening) -> None:
    shared, gateway = SharedLedger(), FakeGateway()
    async with FakeProcess(shared, gateway.answer, session_of=session_of) as process:
        process.ledger.surely_owns = False
        waiting = fox(process.session)
        await asyncio.sleep(5.0)
        assert (process.creates, shared.states()) == (0, {KEY: JobState.SUBMITTING})
        process.ledger.come_back()
        assert await waiting == "t1"
        assert process.creates == 1


@virtually
async def test_create_that_waited_until_its_owner_was_buried_is_not_sent() -> None:
    shared, gateway = SharedLedger(), FakeGateway()
    async with two_processes(shared, gateway.answer, session_of=defapi) as (first, second):
        first.ledger.surely_owns = False
        waiting = fox(first.session)
        await asyncio.sleep(1.0)
        first.ledger.bury(unnoticed=True)
        await second.session.resume()
        assert shared.states() == {KEY: JobState.UNCERTAIN}  # the heir can't know that nothing was sent
        first.ledger.come_back()
        assert await waiting == "t1"
        assert (first.creates, second.creates) == (1, 0)
    assert gateway.sold == 1


@BOTH
@virtually
async def test_create_of_a_living_owner_does_not_wait(session_of: Opening) -> None:
    gateway = FakeGateway()
    async with FakeProcess(SharedLedger(), gateway.answer, session_of=session_of) as process:
        began = now()
        await fox(process.session)
    assert gateway.tasks["t1"] - began < LEASE_CHECK_S


@BOTH
@pytest.mark.parametrize("unnoticed", [False, True])
@virtually
async def test_batch_goes_on_through_burials(session_of: Opening, unnoticed: bool) -> None:
    shared, gateway = SharedLedger(), FakeGateway(job_s=3.0, limit=3)
    async with two_processes(shared, gateway.answer, session_of=session_of) as (first, second):

        async def bury() -> None:
            for _ in range(8):
                await asyncio.sleep(2.1)
                first.ledger.bury(unnoticed=unnoticed)
                await second.session.resume()

        burying = asyncio.Task(bury())
        batch = first.session.generate_many([f"fox {number}" for number in range(20)])
        outcomes = [outcome async for outcome in batch]
        await burying
        assert [outcome.error for outcome in outcomes] == [None] * 20
        assert first.held == second.held == 0
    assert gateway.sold == 20


@virtually
async def test_withdrawn_job_of_a_buried_owner_is_withdrawn() -> None:
    shared, gateway = SharedLedger(), FakeGateway(job_s=1e4, limit=1)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        await process.session.submit("an owl")
        job = await process.session.submit("a fox", idempotency_key=KEY)
        await asyncio.sleep(5.0)
        process.ledger.delay_s = 1.0
        cancelling = asyncio.Task(job.cancel())
        await asyncio.sleep(0.1)
        assert tracked(process.session).phase is Phase.WITHDRAWING
        process.ledger.bury()
        assert await cancelling
        await asyncio.sleep(5.0)
        assert shared.states()[KEY] is JobState.WITHDRAWN


@virtually
async def test_lost_job_that_waits_in_doubt_is_repeated_by_its_heir() -> None:
    shared, gateway = SharedLedger(), FakeGateway()
    answers: list[Reply] = [LOST, LOST]

    def lose(request: HttpRequest) -> Reply:
        reply = gateway.answer(request)
        return answers.pop() if answers and request.method == "POST" else reply

    async with two_processes(shared, lose, session_of=apimall) as (first, second):
        waiting = fox(first.session)
        await asyncio.sleep(0.1)
        assert (tracked(first.session).phase, first.held) == (Phase.SCHEDULED, 1)
        first.ledger.bury()
        assert (tracked(first.session).phase, first.held) == (Phase.FOREIGN, 0)
        await second.session.resume()
        assert await waiting == "t1"
    assert gateway.sold == 1


@virtually
async def test_jobs_of_others_are_read_at_the_same_times() -> None:
    shared, gateway, times = SharedLedger(), FakeGateway(job_s=10.0), set[float]()
    adopt = LedgerView.adopt

    async def timed(self: LedgerView, key: str) -> Any:
        times.add(now())
        return await adopt(self, key)

    async with two_processes(shared, gateway.answer, session_of=apimall) as (first, second):
        keys = [f"key-{number}" for number in range(100)]
        for key in keys:
            await first.session.submit("a fox", idempotency_key=key)
        with patched([(LedgerView, "adopt", timed)]):
            async with asyncio.TaskGroup() as group:
                for key in keys:
                    group.create_task(second.session.generate("a fox", idempotency_key=key))
                    await asyncio.sleep(0.01)
    assert len(times) <= 14
    assert gateway.sold == 100


@virtually
async def test_write_of_a_stale_owner_is_refused_for_its_job_alone() -> None:
    shared, gateway = SharedLedger(), FakeGateway(job_s=60.0)
    async with two_processes(shared, gateway.answer, session_of=apimall) as (first, second):
        waiting = fox(first.session)
        await asyncio.sleep(5.0)
        record = shared.record(KEY)
        first.ledger.bury()
        with pytest.raises(NotOurs):
            await first.ledger.advance(record, record.transition_to(JobState.SUCCEEDED))
        assert (await second.session.generate("a crow")).task_id == "t2"
        assert await waiting == "t1"


@virtually
async def test_batch_waits_while_the_ledger_is_away_and_the_stats_say_why() -> None:
    shared, gateway = SharedLedger(), FakeGateway(job_s=3.0)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        batch = process.session.generate_many([f"fox {number}" for number in range(10)])
        first = await anext(aiter(batch))
        creates = process.creates
        async with process.ledger._turn:
            process.ledger.surely_owns, process.ledger.outage = False, "the server can't be reached"
            await asyncio.sleep(600.0)
            assert process.session.stats().outage == "the server can't be reached"
            assert process.creates == creates
        process.ledger.outage = None
        process.ledger.come_back()
        assert [first.error, *[outcome.error async for outcome in batch]] == [None] * 10
        assert process.session.stats().outage is None
    assert gateway.sold == 10


@virtually
async def test_create_whose_intent_was_stored_without_an_answer_is_known_as_unsent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, gateway = SharedLedger(), FakeGateway()
    advance = LedgerView.advance
    lost: list[JobRecord] = []

    async def advance_and_lose_the_answer(view: LedgerView, before: JobRecord, after: JobRecord) -> None:
        await advance(view, before, after)
        if after.state is JobState.SUBMITTING and not lost:
            lost.append(after)
            view.bury(unnoticed=True)
            await second.session.resume(buy=True)
            view.come_back()
            raise NotOurs("it was written by a number that is buried now", key=after.key)

    monkeypatch.setattr(LedgerView, "advance", advance_and_lose_the_answer)
    async with two_processes(shared, gateway.answer, session_of=defapi) as (first, second):
        assert await fox(first.session) == "t1"
        assert (len(lost), gateway.sold, shared.states()[KEY]) == (1, 1, JobState.SUCCEEDED)
