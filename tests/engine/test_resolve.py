"""resolve(): the user decides what became of an uncertain job; nothing else is bought."""

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


async def uncertain(process: FakeProcess, gateway: LosingGateway) -> Job:
    """Buy a job whose answer is lost, where no key is taken."""
    gateway.lost_answers, held = [True], process.held
    job = await process.session.submit("a fox", idempotency_key=KEY)
    with pytest.raises(JobUncertain):
        await job
    assert (process.held, process.session.stats().uncertain) == (held + 1, 1)
    return job


def a_process(shared: SharedLedger, gateway: LosingGateway, **settings: Any) -> FakeProcess:
    return FakeProcess(shared, gateway.answer, session_of=defapi, **settings)


async def _ends_as(way: Way, job: Job, process: FakeProcess, gateway: LosingGateway) -> None:
    """Look at how a resolved job ends: what it brings, what was sold, and that it holds nothing."""
    if way == "not_bought":
        with pytest.raises(GatewayError) as caught:
            await job
        assert job.state is JobState.REFUSED
        assert caught.value.safe_to_repeat
        assert str(caught.value).startswith("resolved by hand as not bought; before that: ")
    else:
        assert (await job).task_id == ("t1" if way == "task_id" else "t2")
    assert gateway.sold == (2 if way == "buy_again" else 1)
    assert process.held == 0


@EACH_WAY
@pytest.mark.parametrize("by", ["job", "key"])
@pytest.mark.parametrize("later_s", [0.0, 3600.0])
@virtually
async def test_uncertain_job_is_resolved_in_its_session(way: Way, by: str, later_s: float) -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as process:
        job = await uncertain(process, gateway)
        await asyncio.sleep(later_s)
        resolved = await process.session.resolve(job if by == "job" else KEY, **WAYS[way])
        assert resolved.key == KEY
        assert process.held == (1 if way == "task_id" else 0)
        assert process.session.stats().uncertain == 0
        await _ends_as(way, resolved, process, gateway)
        await _ends_as(way, job, process, gateway)  # the old handle returns the same
    assert shared.record(KEY).generation == (2 if way == "buy_again" else 1)


@EACH_WAY
@virtually
async def test_old_handle_waits_while_the_resolved_job_runs(way: Way) -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as process:
        job = await uncertain(process, gateway)
        await process.session.resolve(job, **WAYS[way])
        await _ends_as(way, job, process, gateway)


@EACH_WAY
@virtually
async def test_uncertain_job_is_resolved_by_a_later_session(way: Way) -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=defapi)
    async with a_process(shared, gateway) as first:
        (job,) = await first.session.resume()
        assert job.state is JobState.UNCERTAIN
    await asyncio.sleep(86400.0)
    async with a_process(shared, gateway) as second:
        resolved = await second.session.resolve(KEY, **WAYS[way])
        await _ends_as(way, resolved, second, gateway)


@EACH_WAY
@virtually
async def test_handle_sees_the_resolution_of_another_session(way: Way) -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as a, a_process(shared, gateway) as b:
        job = await uncertain(a, gateway)
        resolved = await b.session.resolve(KEY, **WAYS[way])
        asked = len(a.transport.requests)
        async with asyncio.TaskGroup() as group:
            group.create_task(_ends_as(way, resolved, b, gateway))
            group.create_task(_resolved_by_other_session(way, job))
        assert len(a.transport.requests) == asked
        await asyncio.sleep(1800.0)
        assert a.held == 0


async def _resolved_by_other_session(way: Way, job: Job) -> None:
    if way == "not_bought":
        with pytest.raises(GatewayError):
            await job
    else:
        assert (await job).task_id == ("t1" if way == "task_id" else "t2")


@EACH_WAY
@virtually
async def test_generate_uses_the_resolution_of_its_key(way: Way) -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as a:
        job = await uncertain(a, gateway)
        await a.session.resolve(job, **WAYS[way])
        result = await a.session.generate("a fox", idempotency_key=KEY)
        assert result.task_id == ("t1" if way == "task_id" else "t2")
        assert a.held == 0
    assert gateway.sold == (1 if way == "task_id" else 2)
    assert shared.record(KEY).generation == (1 if way == "task_id" else 2)


@pytest.mark.parametrize("way", ["not_bought", "buy_again"])
@virtually
async def test_buy_again_uses_a_new_wire_key_and_same_request(way: Way) -> None:
    gateway, shared = LosingGateway(), SharedLedger()
    await leave_submitting(shared, gateway, KEY, session_of=apimall)
    first = shared.record(KEY)
    await asyncio.sleep(1801.0)
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        (left,) = await process.session.resume()
        with pytest.raises(JobUncertain):
            await left
        job = await process.session.resolve(KEY, **WAYS[way])
        if way == "not_bought":
            job = await process.session.submit(f"a fox for {KEY}", idempotency_key=KEY)
        assert (await job).task_id == "t2"
        (create,) = process.transport.creates
    assert create.body == first.body
    assert wire_key(create) not in (None, KEY)
    assert (shared.record(KEY).generation, shared.record(KEY).request) == (2, first.request)


@virtually
async def test_failed_job_can_only_be_resolved_with_buy_again() -> None:
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
async def test_invalid_resolution_is_refused_and_writes_nothing() -> None:
    gateway, shared = LosingGateway(job_s=30.0), SharedLedger()
    async with a_process(shared, gateway) as process:
        session = process.session
        running = await session.submit("a crow", idempotency_key="running")
        await running.wait_for_task_id()
        doubtful = await uncertain(process, gateway)
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
            with pytest.raises(ConfigurationError, match="no job unknown-key in the ledger: pass the key of a job"):
                await session.resolve("unknown-key", **way)
        assert len(process.ledger.changes) == written
        await running
        with pytest.raises(ConfigurationError, match="is succeeded"):
            await session.resolve("running", **WAYS["buy_again"])
    assert shared.states() == {"running": JobState.SUCCEEDED, KEY: JobState.UNCERTAIN}


@virtually
async def test_failed_attached_task_cannot_be_bought_again() -> None:
    ledger = RecordingLedger(keep_ended=True)
    async with apimall(FakeTransport(in_turn([created()], [task("failed", "t1")])), ledger=ledger) as session:
        job = await session.attach("t1")
        with pytest.raises(JobFailed):
            await job
        with pytest.raises(ConfigurationError, match="is not in the ledger: it cannot be bought again"):
            await session.resolve(job, buy_again=True)


@virtually
async def test_job_of_another_account_cannot_be_resolved() -> None:
    gateway, shared = LosingGateway(), SharedLedger()
    async with a_process(shared, gateway) as process:
        await uncertain(process, gateway)

    def mine(transport: Any, **settings: Any) -> Session:
        return apimall(transport, **settings)

    async with FakeProcess(shared, gateway.answer, session_of=mine) as other:
        for way in WAYS.values():
            with pytest.raises(ConfigurationError, match="another account"):
                await other.session.resolve(KEY, **way)
    assert shared.states() == {KEY: JobState.UNCERTAIN}
    assert API_KEY not in str(shared.record(KEY))


@EACH_WAY
@virtually
async def test_unstored_resolution_leaves_the_job_uncertain_with_its_slot(way: Way) -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as process:
        job = await uncertain(process, gateway)
        for _ in range(3):
            process.ledger.fails["advance"] = 1
            with pytest.raises(LedgerError, match="the disk is full") as caught:
                await process.session.resolve(job, **WAYS[way])
            assert (caught.value.key, caught.value.safe_to_repeat) == (KEY, False)
            assert (process.held, process.session.stats().uncertain) == (1, 1)
            assert shared.states() == {KEY: JobState.UNCERTAIN}
            with pytest.raises(JobUncertain):
                await job
            assert process.held == 1
        resolved = await process.session.resolve(job, **WAYS[way])
        await _ends_as(way, resolved, process, gateway)


@EACH_WAY
@virtually
async def test_slot_expires_after_a_failed_resolution(way: Way) -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as process:
        job = await uncertain(process, gateway)
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
async def test_failed_ledger_read_keeps_the_slot_of_an_uncertain_job() -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as process:
        await uncertain(process, gateway)
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
async def test_generate_again_does_not_change_the_slot_time() -> None:
    ends: list[float] = []
    for asks in (0, 3):
        gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
        began_at = now()
        async with a_process(shared, gateway) as process:
            await uncertain(process, gateway)
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
async def test_not_bought_job_holds_no_slot_before_its_repurchase() -> None:
    gateway, shared = LosingGateway(job_s=60.0), SharedLedger()
    one = ConcurrencyPolicy(max_jobs=2, learn=False)
    async with a_process(shared, gateway, concurrency=one) as a, a_process(shared, gateway) as b:
        await uncertain(a, gateway)
        first = await a.session.submit("a crow")
        await first.wait_for_task_id()
        await b.session.resolve(KEY, not_bought=True)
        second = await a.session.submit("a hen")
        caller = asyncio.Task(a.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(5.0)
        assert (a.held, a.session.stats().queued) == (2, 1)
        assert gateway.sold == 3
        assert (await caller).task_id == "t4"
        await first
        await second
        assert a.held == 0


@EACH_WAY
@pytest.mark.parametrize("delay_s", [0.0, 0.2])
@virtually
async def test_one_of_two_concurrent_resolves_wins(way: Way, delay_s: float, caplog: pytest.LogCaptureFixture) -> None:
    for gap_s in (0.0, 0.05, 0.15, 0.2, 0.25, 0.3):
        gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
        async with a_process(shared, gateway, delay_s=delay_s) as process:
            job = await uncertain(process, gateway)
            caplog.clear()
            first = asyncio.Task(process.session.resolve(job, **WAYS[way]))
            await asyncio.sleep(gap_s)
            second = asyncio.Task(process.session.resolve(KEY, **WAYS[way]))
            await asyncio.wait([first, second])
            assert isinstance(second.exception(), ConfigurationError)
            await _ends_as(way, first.result(), process, gateway)
        assert not [record for record in caplog.records if record.msg.startswith("engine")]


@virtually
async def test_one_of_two_sessions_resolves_and_the_other_is_refused() -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway, delay_s=0.1) as a, a_process(shared, gateway, delay_s=0.1) as b:
        await uncertain(a, gateway)
        both = [asyncio.Task(one.session.resolve(KEY, buy_again=True)) for one in (a, b)]
        await asyncio.wait(both)
        errors = [resolving.exception() for resolving in both]
        assert sorted(type(error).__name__ for error in errors) == ["ConfigurationError", "NoneType"]
        (winner,) = (resolving.result() for resolving in both if resolving.exception() is None)
        assert (await winner).task_id == "t2"
        await asyncio.sleep(1800.0)
        assert (a.held, b.held) == (0, 0)
    assert gateway.sold == 2


@pytest.mark.slow
@virtually
async def test_resolved_task_that_has_ended_returns_at_once() -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as process:
        await uncertain(process, gateway)
        await asyncio.sleep(7 * 86400.0)
        before = now()
        job = await process.session.resolve(KEY, task_id="t1")
        assert (await job).task_id == "t1"
        assert now() - before < 10.0
        assert process.held == 0
    assert gateway.sold == 1


@virtually
async def test_cancelled_resolve_is_still_carried_out() -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway, delay_s=0.5) as process:
        job = await uncertain(process, gateway)
        resolving = asyncio.Task(process.session.resolve(job, task_id="t1"))
        await asyncio.sleep(1.3)  # the gateway has confirmed the task, and the write is on its way
        resolving.cancel()
        await asyncio.wait([resolving])
        assert (await job).task_id == "t1"
        assert process.held == 0


@virtually
async def test_uncertain_job_raises_after_closing() -> None:
    gateway, shared = LosingGateway(), SharedLedger()
    async with a_process(shared, gateway) as process:
        job = await uncertain(process, gateway)
    with pytest.raises(JobUncertain):
        await job
    with pytest.raises(SessionClosed):
        await process.session.resolve(job, not_bought=True)


@virtually
async def test_job_uncertain_twice_can_be_resolved_twice() -> None:
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as process:
        job = await uncertain(process, gateway)
        gateway.lost_answers = [True]
        again = await process.session.resolve(job, buy_again=True)
        with pytest.raises(JobUncertain):
            await again
        assert (process.held, process.session.stats().uncertain) == (1, 1)
        resolved = await process.session.resolve(again, task_id="t2")
        assert (await resolved).task_id == "t2"
        assert process.held == 0
    assert shared.record(KEY).generation == 2


@virtually
async def test_transport_failure_resolves_nothing() -> None:
    """A job that is bought again and surely not sent waits; it is not uncertain."""
    gateway, shared = LosingGateway(job_s=20.0), SharedLedger()
    down: list[bool] = []

    def answer(request: HttpRequest) -> Reply:
        return TransportError("refused", possibly_sent=False) if down else gateway.answer(request)

    async with FakeProcess(shared, answer, session_of=defapi) as process:
        job = await uncertain(process, gateway)
        down.append(True)
        again = await process.session.resolve(job, buy_again=True)
        await asyncio.sleep(5.0)
        assert again.state in (JobState.PENDING, JobState.SUBMITTING)  # it waits, or is just tried again
        assert process.held == 0
        down.clear()
        assert (await again).task_id == "t2"
