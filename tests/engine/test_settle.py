"""settle(): a human says what became of an uncertain job; nothing is lost of it, and nothing bought unasked."""

import asyncio
from typing import Any, Literal

import pytest

from nanobanana_async import (
    ConcurrencyPolicy,
    ConfigurationError,
    Job,
    JobFailed,
    JobState,
    JobUncertain,
    LedgerError,
    Session,
    SessionClosed,
    TransportError,
)
from nanobanana_async.errors import GatewayError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import API_KEY, RecordingLedger, apimall, defapi, now, virtually, wire_key
from tests.support.replies import completed, created, in_turn, task
from tests.support.shared_ledger import (
    KEY,
    FakeProcess,
    LosingGateway,
    SharedLedger,
    leave_submitting,
)

Way = Literal["task_id", "not_bought", "buy_again"]
WAYS: dict[Way, dict[str, Any]] = {
    "task_id": {"task_id": "t1"},
    "not_bought": {"not_bought": True},
    "buy_again": {"buy_again": True},
}
EACH_WAY = pytest.mark.parametrize("way", WAYS)


async def uncertain(process: FakeProcess, shop: LosingGateway) -> Job:
    """Buy a job whose answer is lost, where no key is taken."""
    shop.lost_answers, held = [True], process.held
    job = await process.session.submit("a fox", idempotency_key=KEY)
    with pytest.raises(JobUncertain):
        await job
    assert (process.held, process.session.stats().uncertain) == (held + 1, 1)
    return job


def a_process(book: SharedLedger, shop: LosingGateway, **settings: Any) -> FakeProcess:
    return FakeProcess(book, shop.answer, session_of=defapi, **settings)


async def _ends_as(way: Way, job: Job, process: FakeProcess, shop: LosingGateway) -> None:
    """Look at how a settled job ends: what it brings, what was sold, and that it holds nothing."""
    if way == "not_bought":
        with pytest.raises(GatewayError) as caught:
            await job
        assert job.state is JobState.REFUSED
        assert caught.value.safe_to_repeat
    else:
        assert (await job).task_id == ("t1" if way == "task_id" else "t2")
    assert shop.sold == (2 if way == "buy_again" else 1)
    assert process.held == 0


@EACH_WAY
@pytest.mark.parametrize("by", ["job", "key"])
@pytest.mark.parametrize("later_s", [0.0, 3600.0])
@virtually
async def test_an_uncertain_job_is_settled_in_its_session(way: Way, by: str, later_s: float) -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as process:
        job = await uncertain(process, shop)
        await asyncio.sleep(later_s)
        settled = await process.session.resolve(job if by == "job" else KEY, **WAYS[way])
        assert settled.key == KEY
        assert process.held == (1 if way == "task_id" else 0)
        assert process.session.stats().uncertain == 0
        await _ends_as(way, settled, process, shop)
        await _ends_as(way, job, process, shop)  # the old handle tells the same
    assert book.record(KEY).generation == (2 if way == "buy_again" else 1)


@EACH_WAY
@virtually
async def test_the_old_handle_follows_while_the_settled_job_still_runs(way: Way) -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as process:
        job = await uncertain(process, shop)
        await process.session.resolve(job, **WAYS[way])
        await _ends_as(way, job, process, shop)


@EACH_WAY
@virtually
async def test_an_uncertain_job_is_settled_by_another_session_later(way: Way) -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    await leave_submitting(book, shop, KEY, session_of=defapi)
    async with a_process(book, shop) as first:
        (job,) = await first.session.resume()
        assert job.state is JobState.UNCERTAIN
    await asyncio.sleep(86400.0)
    async with a_process(book, shop) as second:
        settled = await second.session.resolve(KEY, **WAYS[way])
        await _ends_as(way, settled, second, shop)


@EACH_WAY
@virtually
async def test_a_handle_here_sees_what_another_session_has_settled(way: Way) -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as a, a_process(book, shop) as b:
        job = await uncertain(a, shop)
        settled = await b.session.resolve(KEY, **WAYS[way])
        asked = len(a.transport.requests)
        async with asyncio.TaskGroup() as group:
            group.create_task(_ends_as(way, settled, b, shop))
            group.create_task(_settled_elsewhere(way, job))
        assert len(a.transport.requests) == asked
        await asyncio.sleep(1800.0)
        assert a.held == 0


async def _settled_elsewhere(way: Way, job: Job) -> None:
    if way == "not_bought":
        with pytest.raises(GatewayError):
            await job
    else:
        assert (await job).task_id == ("t1" if way == "task_id" else "t2")


@EACH_WAY
@virtually
async def test_the_next_generate_of_the_key_knows_what_was_settled(way: Way) -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as a:
        job = await uncertain(a, shop)
        await a.session.resolve(job, **WAYS[way])
        result = await a.session.generate("a fox", idempotency_key=KEY)
        assert result.task_id == ("t1" if way == "task_id" else "t2")
        assert a.held == 0
    assert shop.sold == (1 if way == "task_id" else 2)
    assert book.record(KEY).generation == (1 if way == "task_id" else 2)


@pytest.mark.parametrize("way", ["not_bought", "buy_again"])
@virtually
async def test_a_new_purchase_goes_under_a_wire_key_of_its_own_with_the_same_request(way: Way) -> None:
    shop, book = LosingGateway(), SharedLedger()
    await leave_submitting(book, shop, KEY, session_of=apimall)
    first = book.record(KEY)
    await asyncio.sleep(1801.0)
    async with FakeProcess(book, shop.answer, session_of=apimall) as process:
        await process.session.resume()
        job = await process.session.resolve(KEY, **WAYS[way])
        if way == "not_bought":
            job = await process.session.submit(f"a fox for {KEY}", idempotency_key=KEY)
        assert (await job).task_id == "t2"
        (create,) = process.transport.creates
    assert create.body == first.body
    assert wire_key(create) not in (None, KEY)
    assert (book.record(KEY).generation, book.record(KEY).request) == (2, first.request)


@virtually
async def test_a_failed_job_can_be_bought_again_and_in_no_other_way() -> None:
    transport = FakeTransport(in_turn([created("t1"), created("t2")], [task("failed", "t1"), completed("t2")]))
    ledger = RecordingLedger(keep_ended=True)
    async with apimall(transport, ledger=ledger) as session:
        job = await session.submit("a fox", idempotency_key=KEY)
        with pytest.raises(JobFailed):
            await job
        for way in (WAYS["task_id"], WAYS["not_bought"]):
            with pytest.raises(ConfigurationError, match="nothing to resolve"):
                await session.resolve(job, **way)
        again = await session.resolve(job, **WAYS["buy_again"])
        assert (await again).task_id == "t2"
        assert (session.stats().failed, session.stats().succeeded, session.stats().slots_held) == (0, 1, 0)
    assert [wire_key(create) == KEY for create in transport.creates] == [True, False]


@virtually
async def test_what_cannot_be_settled_is_refused_and_nothing_is_written() -> None:
    shop, book = LosingGateway(job_s=30.0), SharedLedger()
    async with a_process(book, shop) as process:
        session = process.session
        running = await session.submit("a crow", idempotency_key="running")
        await running.accepted()
        doubtful = await uncertain(process, shop)
        written = len(process.ledger.changes)
        none_or_two: list[dict[str, Any]] = [
            {},
            WAYS["not_bought"] | WAYS["buy_again"],
            WAYS["task_id"] | WAYS["not_bought"],
        ]
        for choices in none_or_two:
            with pytest.raises(ConfigurationError, match="exactly one"):
                await session.resolve(doubtful, **choices)
        for way in WAYS.values():
            with pytest.raises(ConfigurationError, match="is running and polled by this session: nothing to resolve"):
                await session.resolve(running, **way)
            with pytest.raises(ConfigurationError, match="no job nobody in the ledger"):
                await session.resolve("nobody", **way)
        assert len(process.ledger.changes) == written
        await running
        with pytest.raises(ConfigurationError, match="is succeeded"):
            await session.resolve("running", **WAYS["buy_again"])
    assert book.states() == {"running": JobState.SUCCEEDED, KEY: JobState.UNCERTAIN}


@virtually
async def test_an_attached_task_that_failed_cannot_be_bought_again_since_its_wish_is_not_known() -> None:
    ledger = RecordingLedger(keep_ended=True)
    async with apimall(FakeTransport(in_turn([created()], [task("failed", "t1")])), ledger=ledger) as session:
        job = await session.attach("t1")
        with pytest.raises(JobFailed):
            await job
        with pytest.raises(ConfigurationError, match="is not in the ledger: it cannot be bought again"):
            await session.resolve(job, buy_again=True)


@virtually
async def test_a_job_of_another_account_is_settled_by_nobody_here() -> None:
    shop, book = LosingGateway(), SharedLedger()
    async with a_process(book, shop) as process:
        await uncertain(process, shop)

    def mine(transport: Any, **settings: Any) -> Session:
        return apimall(transport, **settings)

    async with FakeProcess(book, shop.answer, session_of=mine) as other:
        for way in WAYS.values():
            with pytest.raises(ConfigurationError, match="another account"):
                await other.session.resolve(KEY, **way)
    assert book.states() == {KEY: JobState.UNCERTAIN}
    assert API_KEY not in str(book.record(KEY))


@EACH_WAY
@virtually
async def test_settling_that_cannot_be_written_down_leaves_the_job_uncertain_with_its_slot(way: Way) -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as process:
        job = await uncertain(process, shop)
        for _ in range(3):
            process.ledger.fails["advance"] = 1
            with pytest.raises(LedgerError, match="the disk is full") as caught:
                await process.session.resolve(job, **WAYS[way])
            assert (caught.value.key, caught.value.safe_to_repeat) == (KEY, False)
            assert (process.held, process.session.stats().uncertain) == (1, 1)
            assert book.states() == {KEY: JobState.UNCERTAIN}
            with pytest.raises(JobUncertain):
                await job
            assert process.held == 1
        settled = await process.session.resolve(job, **WAYS[way])
        await _ends_as(way, settled, process, shop)


@EACH_WAY
@virtually
async def test_settling_that_failed_gives_the_slot_back_when_its_time_is_over(way: Way) -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as process:
        job = await uncertain(process, shop)
        process.ledger.fails["advance"] = 1
        with pytest.raises(LedgerError):
            await process.session.resolve(job, **WAYS[way])
        assert process.held == 1
        await asyncio.sleep(1800.0)
        assert process.held == 0
        process.ledger.fails["advance"] = 1
        with pytest.raises(LedgerError):
            await process.session.resolve(job, **WAYS[way])
        assert process.held == 0


@virtually
async def test_a_generate_that_the_ledger_does_not_answer_leaves_the_slot_of_the_doubtful_job_held() -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as process:
        await uncertain(process, shop)
        process.ledger.fails["claim"] = 1
        with pytest.raises(LedgerError) as caught:
            await process.session.generate("a fox", idempotency_key=KEY)
        assert not caught.value.safe_to_repeat
        assert process.held == 1
        with pytest.raises(JobUncertain):
            await process.session.generate("a fox", idempotency_key=KEY)
        assert process.held == 1
        await asyncio.sleep(1800.0)
        assert process.held == 0


@virtually
async def test_asking_again_for_a_doubtful_job_neither_shortens_nor_stretches_the_time_of_its_slot() -> None:
    ends: list[float] = []
    for asks in (0, 3):
        shop, book = LosingGateway(job_s=20.0), SharedLedger()
        began_at = now()
        async with a_process(book, shop) as process:
            await uncertain(process, shop)
            for _ in range(asks):
                await asyncio.sleep(5.0)
                with pytest.raises(JobUncertain):
                    await process.session.generate("a fox", idempotency_key=KEY)
            while process.held:  # noqa: ASYNC110 - what is looked at has no event
                await asyncio.sleep(0.5)
            ends.append(now() - began_at)
    assert ends[0] == pytest.approx(ends[1], abs=1.0)
    assert ends[0] > 20.0


@virtually
async def test_a_refused_job_that_was_in_doubt_here_holds_no_slot_while_it_waits_to_be_bought_anew() -> None:
    shop, book = LosingGateway(job_s=60.0), SharedLedger()
    one = ConcurrencyPolicy(max_jobs=2, learn=False)
    async with a_process(book, shop, concurrency=one) as a, a_process(book, shop) as b:
        await uncertain(a, shop)
        first = await a.session.submit("a crow")
        await first.accepted()
        await b.session.resolve(KEY, not_bought=True)
        second = await a.session.submit("a hen")
        caller = asyncio.Task(a.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(5.0)
        assert (a.held, a.session.stats().queued) == (2, 1)
        assert shop.sold == 3
        assert (await caller).task_id == "t4"
        await first
        await second
        assert a.held == 0


@EACH_WAY
@pytest.mark.parametrize("delay_s", [0.0, 0.2])
@virtually
async def test_of_two_who_settle_one_job_at_one_moment_one_does_and_it_is_bought_no_further(
    way: Way, delay_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    for gap_s in (0.0, 0.05, 0.15, 0.2, 0.25, 0.3):
        shop, book = LosingGateway(job_s=20.0), SharedLedger()
        async with a_process(book, shop, delay_s=delay_s) as process:
            job = await uncertain(process, shop)
            caplog.clear()
            first = asyncio.Task(process.session.resolve(job, **WAYS[way]))
            await asyncio.sleep(gap_s)
            second = asyncio.Task(process.session.resolve(KEY, **WAYS[way]))
            await asyncio.wait([first, second])
            assert isinstance(second.exception(), ConfigurationError)
            await _ends_as(way, first.result(), process, shop)
        assert not [record for record in caplog.records if record.msg.startswith("engine")]


@virtually
async def test_of_two_sessions_that_settle_one_job_at_one_moment_one_does_and_the_other_hears_of_it() -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop, delay_s=0.1) as a, a_process(book, shop, delay_s=0.1) as b:
        await uncertain(a, shop)
        both = [asyncio.Task(one.session.resolve(KEY, buy_again=True)) for one in (a, b)]
        await asyncio.wait(both)
        errors = [settling.exception() for settling in both]
        assert sorted(type(error).__name__ for error in errors) == ["LedgerError", "NoneType"]
        (winner,) = (settling.result() for settling in both if settling.exception() is None)
        assert (await winner).task_id == "t2"
        await asyncio.sleep(1800.0)
        assert (a.held, b.held) == (0, 0)
    assert shop.sold == 2


@virtually
async def test_a_task_that_ended_long_ago_brings_its_result_at_once() -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as process:
        await uncertain(process, shop)
        await asyncio.sleep(7 * 86400.0)
        before = now()
        job = await process.session.resolve(KEY, task_id="t1")
        assert (await job).task_id == "t1"
        assert now() - before < 10.0
        assert process.held == 0
    assert shop.sold == 1


@virtually
async def test_a_caller_who_leaves_while_he_settles_does_not_undo_it() -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop, delay_s=0.5) as process:
        job = await uncertain(process, shop)
        settling = asyncio.Task(process.session.resolve(job, task_id="t1"))
        await asyncio.sleep(1.3)  # the gateway has confirmed the task, and the write is on its way
        settling.cancel()
        await asyncio.wait([settling])
        assert (await job).task_id == "t1"
        assert process.held == 0


@virtually
async def test_an_uncertain_job_says_so_also_after_the_session_was_closed() -> None:
    shop, book = LosingGateway(), SharedLedger()
    async with a_process(book, shop) as process:
        job = await uncertain(process, shop)
    with pytest.raises(JobUncertain):
        await job
    with pytest.raises(SessionClosed):
        await process.session.resolve(job, not_bought=True)


@virtually
async def test_a_settled_job_whose_next_answer_is_lost_too_is_uncertain_again_and_settled_again() -> None:
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as process:
        job = await uncertain(process, shop)
        shop.lost_answers = [True]
        again = await process.session.resolve(job, buy_again=True)
        with pytest.raises(JobUncertain):
            await again
        assert (process.held, process.session.stats().uncertain) == (1, 1)
        settled = await process.session.resolve(again, task_id="t2")
        assert (await settled).task_id == "t2"
        assert process.held == 0
    assert book.record(KEY).generation == 2


@virtually
async def test_nothing_is_settled_by_a_transport_that_fails() -> None:
    """A job that is bought again and surely not sent waits; it is not uncertain."""
    shop, book = LosingGateway(job_s=20.0), SharedLedger()
    down: list[bool] = []

    def answer(request: HttpRequest) -> Reply:
        return TransportError("refused", possibly_sent=False) if down else shop.answer(request)

    async with FakeProcess(book, answer, session_of=defapi) as process:
        job = await uncertain(process, shop)
        down.append(True)
        again = await process.session.resolve(job, buy_again=True)
        await asyncio.sleep(5.0)
        assert (again.state, process.held) == (JobState.PENDING, 0)
        down.clear()
        assert (await again).task_id == "t2"
