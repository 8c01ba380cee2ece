"""Several accounts in one session: which of them buys a job, and when a job goes to another."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import (
    ApiMall,
    ConcurrencyPolicy,
    ConfigurationError,
    DefApi,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidRequest,
    JobState,
    MemoryLedger,
    RetryPolicy,
    Session,
    SqliteLedger,
    TransportError,
)
from nanobanana_async.errors import LedgerError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.jobs import JobRecord
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import REAL_TIME, FakeGateway, now, virtually
from tests.support.replies import refused

A, B = ApiMall(api_key="sk-a-0123456789abcdef", account="a"), ApiMall(api_key="sk-b-0123456789abcdef", account="b")
QUICK = [ApiMall(api_key=f"sk-{name}-0123456789abcdef", account=name, expected_job_s=0.05) for name in "ab"]
C = DefApi(api_key="sk-c-0123456789abcdef", account="c")


class Account(FakeGateway):
    """A fake gateway whose creates can be refused from outside, and whose network can be down."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.refuses: Reply | None = None
        self.down = False

    def answer(self, request: HttpRequest) -> Reply:
        if self.down:
            return TransportError("connection refused", possibly_sent=False)
        if request.method == "POST" and self.refuses is not None:
            return self.refuses
        return super().answer(request)


def both(one: FakeGateway, two: FakeGateway, **settings: Any) -> Session:
    return Session([A, B], http=[FakeTransport(one.answer), FakeTransport(two.answer)], **settings)


async def run_batch(session: Session, rows: int, on_outcome: Callable[[int], None] = lambda _: None) -> float:
    began, done = now(), 0
    async for outcome in session.generate_many([f"fox {n}" for n in range(rows)]):
        assert outcome.ok, outcome.error
        done += 1
        on_outcome(done)
    assert done == rows
    return now() - began


@virtually
async def test_two_accounts_share_a_batch_and_fill_their_slots() -> None:
    one, two = Account(job_s=20.0, limit=5), Account(job_s=20.0, limit=10)
    async with both(one, two) as session:
        took_s = await run_batch(session, 300)
        stats, by_account = session.stats(), session.accounts()
    assert one.sold + two.sold == 300
    assert (one.most_running, two.most_running) == (5, 10)
    assert took_s <= 1.1 * 20 * 20
    assert stats.succeeded == 300
    assert {name: each.succeeded for name, each in by_account.items()} == {A.account: one.sold, B.account: two.sold}


@virtually
async def test_batch_goes_on_when_an_account_has_no_credits_any_more() -> None:
    one, two = Account(job_s=20.0, limit=5), Account(job_s=20.0, limit=10)
    left_at = [0.0, 0]

    def stop_first(done: int) -> None:
        if done == 150:
            one.refuses = refused(402, "insufficient_credits", "no credits")
            left_at[:] = [now(), 300 - one.sold - two.sold]

    async with both(one, two) as session:
        await run_batch(session, 300, stop_first)
        ended = now()
    assert one.sold + two.sold == 300
    assert ended - left_at[0] <= 1.1 * 20 * (left_at[1] / 10 + 1)


@virtually
async def test_batch_goes_on_when_a_gateway_is_down_and_ends_when_it_is_back() -> None:
    one, two = Account(job_s=20.0, limit=5), Account(job_s=20.0, limit=10)

    def cut(done: int) -> None:
        one.down = 100 <= done < 280

    async with both(one, two) as session:
        took_s = await run_batch(session, 300, cut)
    assert one.sold + two.sold == 300
    assert took_s <= 1.1 * 20 * (100 / 15 + 200 / 10 + 1)


@virtually
async def test_last_jobs_of_an_account_that_is_down_do_not_wait_for_their_repeats() -> None:
    one, two = Account(job_s=20.0), Account(job_s=20.0)
    one.down = True
    slow = RetryPolicy(first_backoff_s=300.0, max_backoff_s=300.0)
    async with both(one, two, retry=slow, concurrency=ConcurrencyPolicy(max_jobs=1, learn=False)) as session:
        took_s = await run_batch(session, 8)
    assert (one.sold, two.sold) == (0, 8)
    assert took_s <= 1.1 * 20 * 8


@virtually
async def test_job_in_doubt_stays_with_its_account() -> None:
    one, two = Account(), Account()
    lost = iter([True])

    def loses_first(request: HttpRequest) -> Reply:
        reply = one.answer(request)
        lose = request.method == "POST" and next(lost, False)
        return TransportError("reset", possibly_sent=True) if lose else reply

    async with Session([A, B], http=[FakeTransport(loses_first), FakeTransport(two.answer)]) as session:
        await session.generate("a fox")
    assert (one.sold, two.sold) == (1, 0)


@virtually
async def test_key_that_an_account_knows_is_answered_by_it() -> None:
    one, two, ledger = Account(), Account(), MemoryLedger()
    async with Session(B, http=FakeTransport(two.answer), ledger=ledger) as session:
        bought = await session.generate("a fox", idempotency_key="order-1")
        running = await session.submit("a hare", idempotency_key="order-2")
        await running.wait_for_task_id()
    async with both(one, two, ledger=ledger) as session:
        assert (await session.generate("a fox", idempotency_key="order-1")).task_id == bought.task_id
        await session.generate("a hare", idempotency_key="order-2")
    assert (one.sold, two.sold) == (0, 2)


@virtually
async def test_key_of_an_account_that_is_not_in_the_session_is_left_alone() -> None:
    one, two, ledger = Account(), Account(), MemoryLedger()
    other = ApiMall(api_key="sk-z-0123456789abcdef", account="z")
    async with Session(other, http=FakeTransport(Account().answer), ledger=ledger) as session:
        await session.generate("a fox", idempotency_key="order-1")
    async with both(one, two, ledger=ledger) as session:
        with pytest.raises(IdempotencyConflict, match="apimall:z"):
            await session.generate("a fox", idempotency_key="order-1")
    assert (one.sold, two.sold) == (0, 0)


@virtually
async def test_request_goes_to_the_only_gateway_that_takes_it() -> None:
    one, two, ledger = Account(), Account(), MemoryLedger()
    transports = [FakeTransport(one.answer), FakeTransport(two.answer)]
    async with Session([A, C], http=transports, ledger=ledger) as session:
        result = await session.generate("a fox", model=C.model)
        assert result.request is not None
        assert result.request.model == C.model
        with pytest.raises(InvalidRequest, match=r"no account of the session takes .*apimall:a: .*; defapi:c: "):
            await session.generate("a fox", model="of-none", idempotency_key="order-1")
        assert await session.job("order-1") is None
    assert (one.sold, two.sold) == (0, 1)


@virtually
async def test_refusals_of_all_accounts_are_one_error_that_names_each() -> None:
    one, two = Account(), Account()
    one.refuses, two.refuses = refused(402, message="no credits"), refused(403, message="no access")
    async with both(one, two) as session:
        with pytest.raises(Exception, match="no access") as caught:
            await session.generate("a fox", idempotency_key="order-1")
        assert "apimall:b" in str(caught.value)
        assert "apimall:a: no credits" in str(caught.value)
        job = await session.job("order-1")
        assert job is not None
        assert job.state is JobState.REFUSED
    assert one.sold + two.sold == 0


@pytest.mark.parametrize("status", [400, 451])
@virtually
async def test_refusal_of_the_request_moves_nothing(status: int) -> None:
    one, two = Account(), Account()
    one.refuses = refused(status)
    async with both(one, two) as session:
        with pytest.raises(Exception, match="No"):
            await session.generate("a fox")
    assert two.sold == 0


@virtually
async def test_preferred_account_gets_the_first_job() -> None:
    one, two = Account(), Account()
    async with both(one, two, prefer=["b"]) as session:
        await session.generate("a fox")
    assert (one.sold, two.sold) == (0, 1)


@pytest.mark.parametrize(
    ("accounts", "settings", "why"),
    [
        ([], {}, "empty list"),
        ([A, A], {}, "given twice"),
        ([A, C, evolve(A, account="b")], {}, "accounts apimall:a and apimall:b have the same API key"),
        ([A, B], {"prefer": ["z"]}, "not in this session"),
        ([A, B], {"prefer": 3}, "prefer must be"),
        (A, {"prefer": "wait"}, "several accounts"),
        ([A, C], {"max_credits": 5}, "accounts of one gateway"),
        ([A, B], {"ledger": "postgresql://localhost/x"}, "SQLite or in memory"),
    ],
)
def test_setting_that_can_not_work_is_refused(accounts: Any, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Session(accounts, **settings)


def test_one_api_key_at_two_addresses_belongs_to_two_accounts() -> None:
    at_another_address = ApiMall(api_key="sk-a-0123456789abcdef", account="b", base_url="https://gateway.example")
    at_another_gateway = DefApi(api_key="sk-a-0123456789abcdef", account="c")
    assert len(Session([A, at_another_address, at_another_gateway]).gateways) == 3


class KilledLedger(SqliteLedger):
    """A ledger of a process that is killed before or after its n-th write."""

    def __init__(self, path: Path, *, at: int, after: bool) -> None:
        super().__init__(path)
        self.left, self.after = at, after
        self.killed = False

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        if self.killed:
            raise LedgerError("killed")
        self.left -= 1
        self.killed = not self.left
        if self.killed and not self.after:
            raise LedgerError("killed")
        await super().advance(before, after)
        if self.killed:
            raise LedgerError("killed")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 7))
async def test_job_is_bought_once_when_a_step_of_a_move_is_killed(tmp_path: Path, at: int, *, after: bool) -> None:
    one, two, path = Account(job_s=0.05), Account(job_s=0.05), tmp_path / "jobs.sqlite"
    one.refuses = refused(402, message="no credits")
    transports = [FakeTransport(each.answer, latency_s=0.001) for each in (one, two)]
    async with Session(
        QUICK, http=transports, ledger=KilledLedger(path, at=at, after=after), polling=REAL_TIME
    ) as session:
        with suppress(LedgerError, InsufficientCredits):
            await session.generate("a fox", idempotency_key="order-1", timeout=5)
    one.refuses = None
    transports = [FakeTransport(each.answer, latency_s=0.001) for each in (one, two)]
    async with Session(QUICK, http=transports, ledger=path, polling=REAL_TIME) as session:
        await session.generate("a fox", idempotency_key="order-1", timeout=10)
    assert one.sold + two.sold == 1
