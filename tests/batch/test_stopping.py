"""When a batch stops buying: running jobs are collected, nothing more is sent, `BatchStopped` has the cause."""

import asyncio
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async import ApiMall, JobState, Session
from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    BatchStopped,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidRequest,
    LedgerError,
    NanoBananaError,
    PromptBlocked,
)
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Claim
from nanobanana_async.testing import FakeTransport, Reply
from tests.batch.fakes import CountingInput, PromptGateway, all_of, run_batch, slots, slowly, until_stopped
from tests.support.fakes import REAL_TIME, RecordingLedger, apimall, defapi, virtually
from tests.support.loopback import charged, emulated, quick
from tests.support.replies import json_reply, refused
from tests.support.rows import each_row

IN_FLIGHT = 10


def after(count: int, gateway: PromptGateway, refusal: Callable[[], Reply]) -> None:
    """Make the fake gateway refuse everything once so many jobs are sold."""
    gateway.says = lambda prompt: refusal() if len(gateway.sold) >= count else None


@each_row("ordered", [False, True])
@each_row(("status", "kind"), [(401, AuthenticationError), (402, InsufficientCredits), (403, AccessDenied)])
def test_account_errors_stop_the_batch_at_once(status: int, kind: type[NanoBananaError], ordered: bool) -> None:
    @virtually
    async def stops() -> None:
        gateway, rows, ledger = PromptGateway(job_s=60), CountingInput(), RecordingLedger(keep_ended=True)
        after(30, gateway, lambda: refused(status, "no", "No"))
        async with apimall(FakeTransport(gateway.answer), ledger=ledger, concurrency=slots(100)) as session:
            batch = session.generate_many(rows, ordered=ordered)
            outcomes, stopped = await until_stopped(batch)
            posts, pulled = len(gateway.posts), rows.pulled
            with pytest.raises(BatchStopped):
                await anext(batch)
            await asyncio.sleep(1000)
        assert type(stopped.cause) is kind
        assert [outcome.ok for outcome in outcomes] == [True] * 30
        assert (stopped.done, stopped.unbought) == (30, pulled - 30)
        assert len(gateway.posts) == posts <= 30 + 32  # no more than what was in flight
        assert rows.pulled == pulled
        assert set(ledger.states().values()) <= {
            JobState.SUCCEEDED,
            JobState.REFUSED,
            JobState.WITHDRAWN,
        }

    stops()


@virtually
async def test_nothing_is_sent_after_the_first_account_error() -> None:
    gateway = PromptGateway(job_s=60)
    after(5, gateway, lambda: refused(402, "insufficient_credits", "No"))
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(50)) as session:
        _, stopped = await until_stopped(
            session.generate_many(slowly(CountingInput(40), 1.0))
        )  # one in flight at a time
    assert len(gateway.posts) == 6
    assert (stopped.done, stopped.unbought) == (5, 1)


@virtually
async def test_creates_refused_after_the_stop_stay_unbought() -> None:
    gateway = PromptGateway(job_s=60)

    def answer(prompt: str) -> Reply | None:
        match len(gateway.posts):
            case 1 | 2:
                return None
            case 3:
                return refused(402, "insufficient_credits", "No")
            case _:
                return refused(429, "too_many_concurrent_jobs", "No")

    async def answered(request: HttpRequest) -> Reply:
        reply = gateway.answer(request)
        if isinstance(reply, HttpResponse) and reply.status == 429:
            await asyncio.sleep(1.0)  # by then the buying has stopped
        return reply

    gateway.says = answer
    async with apimall(FakeTransport(answered), concurrency=slots(6)) as session:
        outcomes, stopped = await until_stopped(session.generate_many(CountingInput()))
        posts = len(gateway.posts)
        await asyncio.sleep(1000)
    assert len(gateway.posts) == posts == 6
    assert (len(outcomes), stopped.done) == (2, 2)
    assert stopped.unbought >= 4


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidRequest), (451, PromptBlocked)])
def test_refusal_of_one_row_ends_that_row(status: int, kind: type[NanoBananaError]) -> None:
    @virtually
    async def goes_on() -> None:
        gateway = PromptGateway(says=lambda prompt: refused(status, "no", "No") if prompt.endswith("0") else None)
        async with apimall(FakeTransport(gateway.answer)) as session:
            outcomes = await all_of(session.generate_many(CountingInput(300), ordered=True))
        assert [outcome.index for outcome in outcomes if type(outcome.error) is kind] == list(range(9, 300, 10))
        assert len(gateway.sold) == 270

    goes_on()


@virtually
async def test_row_refused_during_the_stop_is_an_outcome() -> None:
    gateway = PromptGateway(job_s=60)

    def answer(prompt: str) -> Reply | None:
        if prompt == "image 1":
            return refused(402, "insufficient_credits", "No")
        return refused(451, "blocked", "No") if prompt == "image 2" else None

    gateway.says = answer
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(3)) as session:
        outcomes, stopped = await until_stopped(session.generate_many(CountingInput(3), ordered=True))
    assert [(outcome.index, outcome.ok) for outcome in outcomes] == [(1, False), (2, True)]
    assert isinstance(outcomes[0].error, PromptBlocked)
    assert (stopped.done, stopped.unbought) == (2, 1)


@virtually
async def test_twenty_equal_refusals_in_a_row_stop_the_batch() -> None:
    gateway, rows = PromptGateway(says=lambda prompt: refused(400, "bad_model", "No")), CountingInput()
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(4)) as session:
        outcomes, stopped = await until_stopped(session.generate_many(rows))
    assert 20 <= len(gateway.posts) <= 20 + 8
    assert isinstance(stopped.cause, InvalidRequest)
    assert stopped.cause.code == "bad_model"
    assert stopped.cause.message == "20 rows in a row were not bought for the same reason: No"
    assert len(outcomes) == stopped.done >= 20
    assert stopped.done + stopped.unbought == rows.pulled


async def test_batch_of_another_account_names_the_hand_over(tmp_path: Path) -> None:
    rows, path = [f"image {number}" for number in range(30)], tmp_path / "jobs.sqlite"
    gateway = PromptGateway(job_s=0.01)
    old, new = (ApiMall(api_key=key, expected_job_s=0.01) for key in ("old", "new"))
    transport = FakeTransport(gateway.answer, latency_s=0.001)
    async with Session(old, ledger=path, http=transport, polling=REAL_TIME) as session:
        assert len(await all_of(session.generate_many(rows, batch="spring"))) == 30
    async with Session(new, ledger=path, http=transport, polling=REAL_TIME) as session:
        _, stopped = await until_stopped(session.generate_many(rows, batch="spring"))
    assert "20 rows in a row were not bought for the same reason: job " in str(stopped.cause)
    assert f"`nanobanana jobs hand-over --from {old.account} --to {new.account} --ledger {path}`" in str(stopped.cause)
    assert "may be lost" not in str(stopped.cause)
    assert not stopped.cause.safe_to_repeat
    assert len(gateway.sold) == 30


@virtually
async def test_batch_whose_rows_all_changed_says_so() -> None:
    gateway, ledger = PromptGateway(job_s=1), RecordingLedger(keep_ended=True)
    rows = [[{"prompt": f"{name} {number}", "key": f"row{number}"} for number in range(30)] for name in ("fox", "owl")]
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        assert len(await all_of(session.generate_many(rows[0]))) == 30
        outcomes, stopped = await until_stopped(session.generate_many(rows[1]))
    assert "20 rows in a row were not bought for the same reason: key row" in str(stopped.cause)
    assert "already belongs to another request" in str(outcomes[0].error)
    assert len(gateway.sold) == 30


@pytest.mark.slow
async def test_error_names_the_rows_own_key_in_a_named_batch(tmp_path: Path) -> None:
    gateway, path = PromptGateway(job_s=0.01), tmp_path / "jobs.sqlite"
    transport = FakeTransport(gateway.answer, latency_s=0.001)
    async with Session(ApiMall(api_key="k"), ledger=path, http=transport, polling=REAL_TIME) as session:
        for prompt in ("a fox", "an owl"):
            rows = [{"prompt": prompt, "key": "row2"}]
            (outcome,) = await all_of(session.generate_many(rows, batch="spring"))
        assert isinstance(outcome.error, IdempotencyConflict)
        assert f"key {outcome.key} (the row's key is row2) already belongs to another request" in str(outcome.error)
        assert await session.job(outcome.key) is not None
        assert await session.job("row2") is None
    assert len(gateway.sold) == 1


@pytest.mark.parametrize("between", [None, refused(451, "blocked", "No"), refused(400, "other", "No")])
def test_success_or_another_refusal_restarts_the_count(between: Reply | None) -> None:
    @virtually
    async def goes_on() -> None:
        gateway = PromptGateway(job_s=1)
        gateway.says = lambda prompt: between if len(gateway.posts) % 15 == 0 else refused(400, "bad", "No")
        async with apimall(FakeTransport(gateway.answer), concurrency=slots(1)) as session:
            assert len(await all_of(session.generate_many(slowly(CountingInput(100), 10.0)))) == 100

    goes_on()


@pytest.mark.parametrize("refusal", [refused(429, "rate_limit_exceeded", "No"), refused(503, "unavailable", "No")])
def test_429_and_503_only_slow_down(refusal: Reply) -> None:
    @virtually
    async def slows_down() -> None:
        gateway = PromptGateway()
        gateway.says = lambda prompt: refusal if len(gateway.posts) < 30 else None
        async with apimall(FakeTransport(gateway.answer)) as session:
            outcomes = await all_of(session.generate_many(CountingInput(100)))
        assert [outcome.ok for outcome in outcomes] == [True] * 100
        assert len(gateway.sold) == 100

    slows_down()


@pytest.mark.slow
@virtually
async def test_refusals_between_accepted_rows_do_not_stop_the_batch() -> None:
    gateway = PromptGateway(
        job_s=60, says=lambda prompt: refused(451, "blocked", "No") if prompt[-1] in "036" else None
    )
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(120)) as session:
        outcomes = await all_of(session.generate_many(CountingInput(120)))
    assert len(outcomes) == 120
    assert sum(outcome.ok for outcome in outcomes) == len(gateway.sold) == 84


class FullDisk(RecordingLedger):
    """Takes so many new jobs, then no write at all."""

    def __init__(self, room: int) -> None:
        super().__init__(keep_ended=True)
        self.room = room

    async def claim(self, record: JobRecord) -> Claim:
        if len(self._jobs) >= self.room:
            raise LedgerError("the disk is full")
        return await super().claim(record)


@virtually
async def test_unwritable_ledger_stops_the_batch() -> None:
    gateway, rows = PromptGateway(job_s=60), CountingInput()
    async with apimall(FakeTransport(gateway.answer), ledger=FullDisk(12), concurrency=slots(100)) as session:
        outcomes, stopped = await until_stopped(session.generate_many(rows))
    assert isinstance(stopped.cause, LedgerError)
    assert len(outcomes) + stopped.unbought == rows.pulled
    assert len(gateway.sold) == len(outcomes) <= 12
    assert stopped.unbought < 2 * 8


@virtually
async def test_a_batch_on_defapi_stops_as_well() -> None:
    gateway = PromptGateway(job_s=60)
    after(3, gateway, lambda: json_reply(402, {"code": 402, "message": "insufficient credits"}))
    async with defapi(FakeTransport(gateway.answer), concurrency=slots(3)) as session:
        outcomes, stopped = await until_stopped(session.generate_many(CountingInput()))
    assert isinstance(stopped.cause, InsufficientCredits)
    assert len(outcomes) == 3


@virtually
async def test_input_is_not_pulled_after_a_stop() -> None:
    gateway = PromptGateway(says=lambda prompt: refused(401, "no", "No"))
    asked_late = False

    def rows() -> Iterator[str]:
        nonlocal asked_late
        for number in range(1000):
            asked_late = asked_late or len(gateway.posts) > 8
            yield f"image {number}"

    async with apimall(FakeTransport(gateway.answer)) as session:
        _, stopped = await until_stopped(session.generate_many(rows()))
        assert stopped.done == 0
        with pytest.raises(AuthenticationError):
            await session.generate("another")
    assert not asked_late


async def test_dropped_rows_are_bought_by_the_next_run(tmp_path: Path) -> None:
    gateway = PromptGateway(job_s=0.02)
    after(10, gateway, lambda: refused(402, "insufficient_credits", "No"))
    path, rows = tmp_path / "jobs.sqlite", list(CountingInput(40))
    with pytest.raises(BatchStopped) as caught:
        await run_batch(path, gateway, rows)
    assert caught.value.done == 10
    gateway.says = lambda prompt: None
    outcomes = await run_batch(path, gateway, rows)
    assert [outcome.ok for outcome in outcomes] == [True] * 40
    assert sorted(gateway.sold) == sorted(rows)


@pytest.mark.slow
async def test_batch_buys_the_rest_after_a_top_up(tmp_path: Path) -> None:
    path, prompts = tmp_path / "jobs.sqlite", [f"image {number}" for number in range(200)]
    async with emulated(credits=Decimal(30 * 8), double_charges_by="prompt", job_limit=50) as emulator:
        async with quick(emulator, ledger=path, concurrency=slots(50)) as session:
            outcomes, stopped = await until_stopped(session.generate_many(prompts, batch="spring"))
        first = emulator.stats()
        assert [outcome.ok for outcome in outcomes] == [True] * 30
        assert isinstance(stopped.cause, InsufficientCredits)
        assert stopped.done == 30
        assert first.creates_accepted == 30
        assert 1 <= first.creates_refused[402] <= 32
        assert stopped.unbought < 32 + 8 + 1
        emulator.add_credits(10_000)
        async with quick(emulator, ledger=path, concurrency=slots(50)) as session:
            again = await all_of(session.generate_many(prompts, batch="spring"))
        assert sorted(outcome.index for outcome in again if outcome.ok) == list(range(200))
        assert charged(emulator.stats(), 200)
        assert emulator.stats().creates_received - first.creates_received == 170
