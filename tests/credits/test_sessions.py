"""`max_credits` of a session: `generate` and `submit` are refused before they exceed it."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import (
    CreditLimitReached,
    GenerationResult,
    JobFailed,
    JobState,
    JobWithdrawn,
    MemoryLedger,
    NanoBananaError,
    Session,
)
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.prices import format_amount
from nanobanana_async.testing import FakeTransport
from tests.credits.fakes import (
    BOTH,
    ChargingGateway,
    GatewayName,
    a_session,
    budget_of,
    charging_gateway,
    foxes,
    nothing_is_left,
    outcome,
    run_batch,
)
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, now, virtually
from tests.support.shared_ledger import LedgerView, SharedLedger, leave_submitting

EACH_GATEWAY = pytest.mark.parametrize("name", BOTH)
LIMIT: dict[GatewayName, Any] = {"apimall": 80, "defapi": Decimal(5)}


async def together(session: Session, prompts: list[str]) -> list[GenerationResult | NanoBananaError]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(session, prompt)) for prompt in prompts]
    return [task.result() for task in tasks]


@EACH_GATEWAY
@virtually
async def test_two_hundred_jobs_never_exceed_the_session_cap(name: GatewayName) -> None:
    gateway = charging_gateway(name)
    async with a_session(name, gateway.transport(), max_credits=LIMIT[name]) as session:
        answers = await together(session, foxes(200))
        stats = session.stats()
        assert (stats.succeeded, stats.withdrawn, stats.queued) == (10, 190, 0)
        assert budget_of(session).reserved == 0
    refusals = [answer for answer in answers if isinstance(answer, CreditLimitReached)]
    assert (gateway.sold, len(refusals)) == (10, 190)
    assert gateway.peak == Decimal(LIMIT[name])
    assert all(refusal.safe_to_repeat and refusal.key for refusal in refusals)
    assert len({refusal.key for refusal in refusals}) == 190
    assert now() < 120


@pytest.mark.parametrize("way", ["generate", "submit"])
@virtually
async def test_job_refused_by_the_cap_can_be_bought_later(way: str) -> None:
    gateway, ledger = ChargingGateway(), RecordingLedger(keep_ended=True)
    async with a_session("apimall", gateway.transport(), ledger=ledger, max_credits=8) as session:
        await session.generate("a fox")
        if way == "generate":
            with pytest.raises(CreditLimitReached, match="max_credits is 8, 8 are spent, and a job for 8") as caught:
                await session.generate("an owl", idempotency_key="owl-1")
        else:
            job = await session.submit("an owl", idempotency_key="owl-1")
            for waiting in (job.wait_for_task_id(), job.result(), job.result()):
                with pytest.raises(CreditLimitReached) as caught:
                    await waiting
            assert job.state is JobState.WITHDRAWN
        assert (caught.value.key, caught.value.safe_to_repeat) == ("owl-1", True)
        assert ledger.record("owl-1").state is JobState.WITHDRAWN
        with pytest.raises(CreditLimitReached):
            await session.generate("an owl", idempotency_key="owl-1")
    async with a_session("apimall", gateway.transport(), ledger=ledger, max_credits=100) as richer:
        assert (await richer.generate("an owl", idempotency_key="owl-1")).credits == 8
        known = await richer.job("owl-1")
        assert known is not None
        assert known.state is JobState.SUCCEEDED
    assert gateway.sold == 2


@virtually
async def test_job_withdrawn_by_the_cap_says_why_when_found() -> None:
    ledger = RecordingLedger(keep_ended=True)
    async with a_session("apimall", ChargingGateway().transport(), ledger=ledger, max_credits=0) as session:
        assert isinstance(await outcome(session, "an owl", idempotency_key="owl-1"), CreditLimitReached)
        job = await session.job("owl-1")
        assert job is not None
        with pytest.raises(JobWithdrawn, match="job owl-1 was withdrawn: max_credits is 0, 0 are spent"):
            await job


@EACH_GATEWAY
@virtually
async def test_cap_of_zero_buys_nothing(name: GatewayName) -> None:
    gateway = charging_gateway(name)
    async with a_session(name, gateway.transport(), max_credits=0) as session:
        with pytest.raises(
            CreditLimitReached, match=r"max_credits is 0, 0 are spent, and a job estimated at [80.5]+ would pass it"
        ):
            await session.generate("a fox")
        run = await run_batch(session, foxes(5), max_credits=100)
        assert run.stopped is not None
    async with a_session(name, gateway.transport()) as session:
        run = await run_batch(session, foxes(5), max_credits=0)
        assert run.stopped is not None
    assert gateway.requests["POST"] == 0


@EACH_GATEWAY
@pytest.mark.parametrize(("of_session", "of_batch"), [(10, 20), (20, 10), (10, 10)])
@virtually
async def test_tighter_of_two_caps_holds(name: GatewayName, of_session: int, of_batch: int) -> None:
    gateway = charging_gateway(name)
    price = Decimal(8) if name == "apimall" else Decimal("0.5")
    async with a_session(name, gateway.transport(), max_credits=of_session * price) as session:
        run = await run_batch(session, foxes(40), max_credits=of_batch * price)
        assert (gateway.sold, run.results) == (10, 10)
        assert f"max_credits is {format_amount(min(of_session, of_batch) * price)}," in str(run.why)
        more = await together(session, foxes(20, word="owl"))
        assert sum(isinstance(answer, GenerationResult) for answer in more) == of_session - 10
        assert budget_of(session).reserved == 0


@virtually
async def test_several_batches_share_the_limit_of_their_session() -> None:
    gateway = ChargingGateway()
    async with a_session("apimall", gateway.transport(), max_credits=80) as session, asyncio.TaskGroup() as group:
        runs = [group.create_task(run_batch(session, foxes(30), max_credits=56)) for _ in range(3)]
        done = [await run for run in runs]
    assert sum(run.results for run in done) == gateway.sold == 10
    assert max(run.results for run in done) <= 7


@virtually
async def test_expected_credits_of_a_batch_count_for_the_session() -> None:
    gateway = charging_gateway("defapi")
    async with a_session("defapi", gateway.transport(), max_credits=5) as session:
        run = await run_batch(session, foxes(40), expected_credits=0.5)
        assert run.why.message.startswith("max_credits is 5, 5 are spent")
    assert (gateway.sold, gateway.most_at_once) == (10, 9)  # nine after the one that reported the price


@virtually
async def test_repeated_create_is_reserved_once() -> None:
    gateway = ChargingGateway()
    gateway.faults.extend([True, True, None, True])
    async with a_session("apimall", gateway.transport(), max_credits=80) as session:
        answers = await together(session, foxes(40))
        assert session.stats().credits_spent == 80
        assert budget_of(session).reserved == 0
    assert sum(isinstance(answer, GenerationResult) for answer in answers) == gateway.sold == 10
    assert gateway.requests["POST"] > 10


@virtually
async def test_create_of_a_dead_process_is_repeated_despite_the_cap() -> None:
    gateway, shared = FakeGateway(job_s=2.0), SharedLedger()
    await leave_submitting(shared, gateway, "fox-1", session_of=apimall)
    async with apimall(FakeTransport(gateway.answer), ledger=LedgerView(shared), max_credits=0) as session:
        (job,) = await session.resume()
        assert (await job).credits == 8
        assert isinstance(await outcome(session, "an owl"), CreditLimitReached)
        assert budget_of(session).reserved == 0
    assert gateway.sold == 1


@virtually
async def test_followed_job_costs_the_session_nothing() -> None:
    gateway = ChargingGateway()
    ledger = RecordingLedger()
    async with a_session("apimall", gateway.transport(), ledger=ledger) as first:
        await (await first.submit("a fox", idempotency_key="fox-1")).wait_for_task_id()
    async with a_session("apimall", gateway.transport(), ledger=ledger, max_credits=0) as second:
        (job,) = await second.resume()
        assert (await job).credits == 8
        attached = await second.attach("t1")
        await attached
        assert budget_of(second).spent == 0


@pytest.mark.parametrize("limit", [8, 8.0, Decimal(8), Decimal("8e0")])
@virtually
async def test_cap_accepts_any_number_type(limit: Any) -> None:
    gateway = ChargingGateway()
    async with a_session("apimall", gateway.transport(), max_credits=limit) as session:
        assert isinstance(await outcome(session, "a fox"), GenerationResult)
        assert isinstance(await outcome(session, "an owl"), CreditLimitReached)


@pytest.mark.parametrize(
    "bad", [-1, "8", "-0.01", True, "eight", "", float("nan"), float("inf"), "Infinity", "sNaN", [8]]
)
@virtually
async def test_invalid_cap_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_credits must be a number of at least 0"):
        a_session("apimall", ChargingGateway().transport(), max_credits=bad)
    async with a_session("apimall", ChargingGateway().transport()) as session:
        for name in ("max_credits", "expected_credits"):
            with pytest.raises(ConfigurationError, match=f"{name} must be a number of at least 0"):
                session.generate_many(["a fox"], **{name: bad})


@EACH_GATEWAY
@virtually
async def test_credits_spent_are_after_refunds(name: GatewayName) -> None:
    gateway = charging_gateway(name)
    async with a_session(name, gateway.transport()) as session:
        assert isinstance(await outcome(session, "a [fail] fox"), JobFailed)
        assert session.stats().credits_spent == 0
        await session.generate("a fox")
        assert session.stats().credits_spent == gateway.taken > 0


@virtually
async def test_paid_failure_stays_spent_when_bought_again() -> None:
    gateway, ledger = ChargingGateway(refunds=False), RecordingLedger(keep_ended=True)
    async with a_session("apimall", gateway.transport(), ledger=ledger, max_credits=100) as session:
        assert isinstance(await outcome(session, "a [fail] fox", idempotency_key="fox-1"), JobFailed)
        job = await session.resolve("fox-1", buy_again=True)
        with pytest.raises(JobFailed):
            await job
        assert session.stats().credits_spent == gateway.taken == 16
        assert budget_of(session).spent == 16
        assert budget_of(session).reserved == 0
    async with a_session("apimall", gateway.transport(), ledger=ledger) as later:
        with pytest.raises(JobFailed):
            await (await later.resolve("fox-1", buy_again=True))
        assert later.stats().credits_spent == 8


@virtually
async def test_cancelled_unsent_job_leaves_nothing_reserved() -> None:
    gateway = ChargingGateway()
    async with a_session("apimall", gateway.transport(), max_credits=8) as session:
        running = await session.submit("a fox")
        await running.wait_for_task_id()
        waiting = asyncio.Task(session.generate("an owl"))
        await asyncio.sleep(1.0)
        waiting.cancel()
        await asyncio.wait([waiting])
        job = await session.submit("a crow")
        assert await job.cancel()
        await running
        assert budget_of(session).reserved == 0
        assert budget_of(session).spent == 8
    assert gateway.sold == 1


@virtually
async def test_cap_does_not_refuse_known_jobs() -> None:
    gateway = ChargingGateway()
    async with a_session("apimall", gateway.transport(), ledger=MemoryLedger(), max_credits=8) as session:
        first = await session.submit("a fox", idempotency_key="k")
        second = await session.submit("a fox", idempotency_key="k")
        assert (await first).task_id == (await second).task_id == "t1"


@pytest.mark.slow
@virtually
async def test_ended_jobs_leave_no_reservation() -> None:
    gateway = ChargingGateway(job_s=1.0)
    async with a_session("apimall", gateway.transport(), max_credits=10_000) as session:
        run = await run_batch(session, [*foxes(300), *foxes(100, word="[fail] owl")], max_credits=9000)
        assert run.stopped is None
        budget = budget_of(session)
        assert budget.spent == 2400
        assert nothing_is_left(session)
