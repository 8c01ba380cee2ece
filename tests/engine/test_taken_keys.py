"""A 409 to the first create of a key: another host may have bought with it, so the job waits to be resolved."""

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
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, apimall_now, now, virtually, wire_key
from tests.support.replies import refused
from tests.support.rows import each_row

KEY = "order-17"


class ForgetfulGateway(FakeGateway):
    """A fake gateway that answers a repeated key with a conflict; `earlier` are keys that another ledger used."""

    def __init__(self, *earlier: str, job_s: float = 2.0) -> None:
        super().__init__(job_s=job_s)
        self.earlier = set(earlier)
        self.conflicts = 0

    def _create(self, request: HttpRequest) -> Reply:
        key = wire_key(request)
        if key in self.earlier or key in self.keys:
            self.conflicts += 1
            return refused(409, "idempotency_conflict", "Idempotency-Key conflict")
        return super()._create(request)


async def conflict(session: Session, gateway: ForgetfulGateway) -> IdempotencyConflict:
    posts = gateway.conflicts
    with pytest.raises(IdempotencyConflict, match=r"another host may have bought.*resolve the job") as caught:
        await session.generate("a fox", idempotency_key=KEY)
    assert (caught.value.key, caught.value.status, caught.value.safe_to_repeat) == (KEY, 409, False)
    assert "Idempotency-Key conflict" in str(caught.value)
    assert gateway.conflicts <= posts + 1
    return caught.value


@virtually
async def test_taken_key_is_sent_once_and_not_repeated() -> None:
    gateway, ledger = ForgetfulGateway(KEY), RecordingLedger()
    for _ in range(2):  # sessions
        async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
            for _ in range(3):
                await conflict(session, gateway)
            job = await session.job(KEY)
            assert job is not None
            assert job.state is JobState.UNCERTAIN
            with pytest.raises(IdempotencyConflict):
                await job
            assert await session.resume(buy=True) == []
            assert session.stats().slots_held == 0  # that create took no slot
    assert (gateway.sold, gateway.conflicts) == (0, 1)


@each_row(
    "said",
    [
        "Idempotency-Key was already used with a different request",
        "this key was used with a different request body",
        "Keys for idempotent requests can only be used with the same parameters they were first used with",
    ],
)
@virtually
async def test_key_of_another_request_is_advised_another_key_and_stays_in_doubt(said: str) -> None:
    replies = FakeTransport(lambda _: refused(409, "idempotency_conflict", said))
    async with apimall(replies) as session:
        with pytest.raises(IdempotencyConflict, match=r"not the one of job order-17.*: use another key") as caught:
            await session.generate("a fox", idempotency_key=KEY)
        job = await session.job(KEY)
        assert job is not None
        assert (job.state, caught.value.safe_to_repeat, said in str(caught.value)) == (JobState.UNCERTAIN, False, True)


@virtually
async def test_taken_key_is_resolved_with_its_task() -> None:
    gateway = ForgetfulGateway(KEY)
    gateway.tasks["t9"] = now() - 100.0
    async with apimall(FakeTransport(gateway.answer)) as session:
        await conflict(session, gateway)
        resolved = await session.resolve(KEY, task_id="t9")
        assert (await resolved).task_id == "t9"
        assert (await session.generate("a fox", idempotency_key=KEY)).task_id == "t9"
    assert gateway.conflicts == 1


@virtually
async def test_taken_key_is_resolved_as_not_bought() -> None:
    gateway = ForgetfulGateway(KEY)
    async with apimall(FakeTransport(gateway.answer)) as session:
        await conflict(session, gateway)
        resolved = await session.resolve(KEY, not_bought=True)
        with pytest.raises(GatewayError) as caught:
            await resolved
        assert caught.value.safe_to_repeat
        assert (await session.generate("a fox", idempotency_key=KEY)).task_id == "t1"
    assert gateway.sold == 1


@virtually
async def test_second_conflict_after_buy_again_is_uncertain_again() -> None:
    gateway, ledger = ForgetfulGateway(KEY), RecordingLedger()
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        await conflict(session, gateway)
        gateway.earlier.add(
            ledger.record(KEY).next_generation(body=b"", created_at=ledger.record(KEY).created_at).wire_key
        )
        resolved = await session.resolve(KEY, buy_again=True)
        with pytest.raises(IdempotencyConflict) as caught:
            await resolved
        assert not caught.value.safe_to_repeat
        assert (await (await session.resolve(KEY, buy_again=True))).task_id == "t1"
    assert ledger.record(KEY).generation == 3 if KEY in ledger._jobs else True
    assert (gateway.sold, gateway.conflicts) == (1, 2)


@virtually
async def test_sent_key_that_stays_in_progress_is_uncertain() -> None:
    gateway = ForgetfulGateway()

    def answer(request: HttpRequest) -> Reply:
        reply = gateway.answer(request)
        return refused(500) if request.method == "POST" and gateway.sold and not gateway.conflicts else reply

    async with apimall(FakeTransport(answer)) as session:
        for _ in range(2):
            with pytest.raises(JobUncertain):
                await session.generate("a fox", idempotency_key=KEY)


@virtually
async def test_taken_key_keeps_its_reservation_until_resolved() -> None:
    gateway = ForgetfulGateway(KEY)
    async with apimall(FakeTransport(gateway.answer), max_credits=Decimal(16)) as session:
        await session.generate("a fox")
        await conflict(session, gateway)
        rows = [outcome async for outcome in session.generate_many([{"prompt": "a fox", "key": KEY}])]
        assert isinstance(rows[0].error, IdempotencyConflict)
        with pytest.raises(BatchStopped, match="8 are reserved for jobs in doubt"):
            [outcome async for outcome in session.generate_many(["a crow"])]
        await session.resolve(KEY, not_bought=True)
        assert (await session.generate("a crow")).task_id == "t2"
    assert gateway.sold == 2


@pytest.mark.parametrize("rows", [3, 60])
@virtually
async def test_named_batch_without_its_ledger_buys_nothing_again(rows: int) -> None:
    gateway = ForgetfulGateway(job_s=0.5)
    prompts = [f"fox {number}" for number in range(rows)]
    ledgers = {name: RecordingLedger(keep_ended=True) for name in ("first", "second")}
    few = ConcurrencyPolicy(max_jobs=4, learn=False)
    stops = []
    for name in ("first", "second", "second"):
        async with apimall(FakeTransport(gateway.answer), ledger=Kept(ledgers[name]), concurrency=few) as session:
            outcomes: list[Outcome] = []
            try:
                async for outcome in session.generate_many(prompts, batch="spring"):
                    outcomes.append(outcome)  # noqa: PERF401 - it may stop half-way
            except BatchStopped as stopped:
                stops.append(stopped)
            assert all(outcome.ok is (name == "first") for outcome in outcomes)
            assert all(isinstance(outcome.error, IdempotencyConflict) for outcome in outcomes if not outcome.ok)
    assert gateway.sold == rows
    assert len(stops) == (2 if rows > 20 else 0)
    for stop in stops:
        assert isinstance(stop.cause, IdempotencyConflict)
        assert "ledger of this batch may be lost" in str(stop.cause)
        assert not stop.cause.safe_to_repeat
    assert gateway.conflicts <= 20 + 8 + 4


class Kept:
    """A ledger in memory that is not one by its type, so that a named batch takes it."""

    def __init__(self, ledger: RecordingLedger) -> None:
        # Attributes of its own: from Python 3.12 on, those that `__getattr__` finds do not make it a ledger.
        for name in dir(ledger):
            if not name.startswith("_"):
                setattr(self, name, getattr(ledger, name))


async def test_two_hosts_with_separate_ledgers_pay_once(tmp_path: Path) -> None:
    gateway = ForgetfulGateway(job_s=0.01)
    for host in ("a", "b", "b"):
        async with apimall_now(FakeTransport(gateway.answer, latency_s=0.001), ledger=tmp_path / host) as session:
            if host == "a":
                await session.generate("a fox", idempotency_key=KEY)
            else:
                await conflict(session, gateway)
    assert (gateway.sold, gateway.conflicts) == (1, 1)
