"""A 409 to the first send of a key: somebody may have bought under it, so nothing is bought until a human decides."""

from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async import (
    BatchStopped,
    ConcurrencyPolicy,
    IdempotencyConflict,
    JobState,
    JobUncertain,
    Outcome,
    Session,
)
from nanobanana_async.errors import GatewayError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, now, virtually, wire_key
from tests.support.replies import refused

KEY = "order-17"


class ForgetfulGateway(FakeGateway):
    """A shop that answers a repeated key with a conflict; `earlier` are keys that another ledger bought under."""

    def __init__(self, *earlier: str, job_s: float = 2.0) -> None:
        super().__init__(job_s=job_s)
        self.earlier = set(earlier)
        self.conflicts = 0

    def _sell(self, request: HttpRequest) -> Reply:
        key = wire_key(request)
        if key in self.earlier or key in self.keys:
            self.conflicts += 1
            return refused(409, "idempotency_conflict", "Idempotency-Key conflict")
        return super()._create(request)


async def conflict(session: Session, shop: ForgetfulGateway) -> IdempotencyConflict:
    posts = shop.conflicts
    with pytest.raises(IdempotencyConflict, match=r"another host may have bought.*settle the job") as caught:
        await session.generate("a fox", idempotency_key=KEY)
    assert (caught.value.key, caught.value.status, caught.value.safe_to_repeat) == (KEY, 409, False)
    assert "Idempotency-Key conflict" in str(caught.value)
    assert shop.conflicts <= posts + 1
    return caught.value


@virtually
async def test_it_is_never_bought_again_by_itself_and_asked_about_once() -> None:
    shop, ledger = ForgetfulGateway(KEY), RecordingLedger()
    for _ in range(2):  # sessions
        async with apimall(FakeTransport(shop.answer), ledger=ledger) as session:
            for _ in range(3):
                await conflict(session, shop)
            job = await session.job(KEY)
            assert job is not None
            assert job.state is JobState.UNCERTAIN
            with pytest.raises(IdempotencyConflict):
                await job
            assert await session.resume(buy=True) == []
            assert session.stats().slots_held == 0  # that create took no slot
    assert (shop.sold, shop.conflicts) == (0, 1)


@virtually
async def test_a_human_finds_its_task() -> None:
    shop = ForgetfulGateway(KEY)
    shop.tasks["t9"] = now() - 100.0
    async with apimall(FakeTransport(shop.answer)) as session:
        await conflict(session, shop)
        settled = await session.resolve(KEY, task_id="t9")
        assert (await settled).task_id == "t9"
        assert (await session.generate("a fox", idempotency_key=KEY)).task_id == "t9"
    assert shop.conflicts == 1


@virtually
async def test_a_human_says_that_it_was_not_bought() -> None:
    shop = ForgetfulGateway(KEY)
    async with apimall(FakeTransport(shop.answer)) as session:
        await conflict(session, shop)
        settled = await session.resolve(KEY, not_bought=True)
        with pytest.raises(GatewayError) as caught:
            await settled
        assert caught.value.safe_to_repeat
        assert (await session.generate("a fox", idempotency_key=KEY)).task_id == "t1"
    assert shop.sold == 1


@virtually
async def test_a_human_buys_it_again_and_a_conflict_of_that_purchase_is_one_again() -> None:
    shop, ledger = ForgetfulGateway(KEY), RecordingLedger()
    async with apimall(FakeTransport(shop.answer), ledger=ledger) as session:
        await conflict(session, shop)
        shop.earlier.add(
            ledger.record(KEY).next_generation(body=b"", created_at=ledger.record(KEY).created_at).wire_key
        )
        settled = await session.resolve(KEY, buy_again=True)
        with pytest.raises(IdempotencyConflict) as caught:
            await settled
        assert not caught.value.safe_to_repeat
        assert (await (await session.resolve(KEY, buy_again=True))).task_id == "t1"
    assert ledger.record(KEY).generation == 3 if KEY in ledger._jobs else True
    assert (shop.sold, shop.conflicts) == (1, 2)


@virtually
async def test_a_job_sent_before_whose_key_stays_in_work_is_uncertain_and_no_conflict() -> None:
    shop = ForgetfulGateway()

    def answer(request: HttpRequest) -> Reply:
        reply = shop.answer(request)
        return refused(500) if request.method == "POST" and shop.sold and not shop.conflicts else reply

    async with apimall(FakeTransport(answer)) as session:
        for _ in range(2):
            with pytest.raises(JobUncertain):
                await session.generate("a fox", idempotency_key=KEY)


@virtually
async def test_its_price_stays_set_aside_until_it_is_settled() -> None:
    shop = ForgetfulGateway(KEY)
    async with apimall(FakeTransport(shop.answer), max_credits=Decimal(16)) as session:
        await session.generate("a fox")
        await conflict(session, shop)
        rows = [outcome async for outcome in session.generate_many([{"prompt": "a fox", "key": KEY}])]
        assert isinstance(rows[0].error, IdempotencyConflict)
        with pytest.raises(BatchStopped, match="8 are reserved for jobs in doubt"):
            [outcome async for outcome in session.generate_many(["a crow"])]
        await session.resolve(KEY, not_bought=True)
        assert (await session.generate("a crow")).task_id == "t2"
    assert shop.sold == 2


@pytest.mark.parametrize("rows", [3, 60])
@virtually
async def test_a_named_batch_whose_ledger_was_lost_buys_nothing_again(rows: int) -> None:
    shop = ForgetfulGateway(job_s=0.5)
    prompts = [f"fox {number}" for number in range(rows)]
    ledgers = {name: RecordingLedger(keep_ended=True) for name in ("first", "second")}
    few = ConcurrencyPolicy(max_jobs=4, learn=False)
    stops = []
    for name in ("first", "second", "second"):
        async with apimall(FakeTransport(shop.answer), ledger=Kept(ledgers[name]), concurrency=few) as session:
            outcomes: list[Outcome] = []
            try:
                async for outcome in session.generate_many(prompts, batch="spring"):
                    outcomes.append(outcome)  # noqa: PERF401 - it may stop half-way
            except BatchStopped as stopped:
                stops.append(stopped)
            assert all(outcome.ok is (name == "first") for outcome in outcomes)
            assert all(isinstance(outcome.error, IdempotencyConflict) for outcome in outcomes if not outcome.ok)
    assert shop.sold == rows
    assert len(stops) == (2 if rows > 20 else 0)
    for stop in stops:
        assert isinstance(stop.cause, IdempotencyConflict)
        assert "ledger of this batch may be lost" in str(stop.cause)
        assert not stop.cause.safe_to_repeat
    assert shop.conflicts <= 20 + 8 + 4


class Kept:
    """A ledger in memory that is not one by its type, so that a named batch takes it."""

    def __init__(self, book: RecordingLedger) -> None:
        self._book = book

    def __getattr__(self, name: str) -> object:
        return getattr(self._book, name)


async def test_two_hosts_with_a_file_each_pay_once(tmp_path: Path) -> None:
    shop = ForgetfulGateway(job_s=0.01)
    for host in ("a", "b", "b"):
        async with apimall(FakeTransport(shop.answer, latency_s=0.001), ledger=tmp_path / host) as session:
            if host == "a":
                await session.generate("a fox", idempotency_key=KEY)
            else:
                await conflict(session, shop)
    assert (shop.sold, shop.conflicts) == (1, 1)
