"""A job asked for under another account: bought there if it was never accepted, otherwise a conflict."""

from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    AuthenticationError,
    DefApi,
    IdempotencyConflict,
    JobState,
    MemoryLedger,
    Session,
    SqliteLedger,
)
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.models import ImageRequest
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import REAL_TIME, FakeGateway
from tests.support.records import NOON, record
from tests.support.replies import refused

OLD, NEW = ApiMall(api_key="sk-old-0123456789"), ApiMall(api_key="sk-new-0123456789", expected_job_s=0.01)

REFUSED = Failure(kind="AuthenticationError", message="bad key", status=401)
UNBOUGHT: dict[str, dict[str, Any]] = {
    "pending": {"state": JobState.PENDING},
    "withdrawn": {"state": JobState.WITHDRAWN, "ended_at": NOON},
    "refused": {"state": JobState.REFUSED, "first_sent_at": NOON, "ended_at": NOON, "failure": REFUSED},
}
BY_HAND = Failure(kind="TransportError", message="resolved by hand as not bought; before that: reset")
PERHAPS_BOUGHT: dict[str, dict[str, Any]] = {
    "sent and throttled": {"state": JobState.PENDING, "first_sent_at": NOON},
    "sent": {"state": JobState.SUBMITTING, "first_sent_at": NOON},
    "in doubt": {"state": JobState.UNCERTAIN, "first_sent_at": NOON, "in_doubt": True},
    "running": {"state": JobState.RUNNING, "first_sent_at": NOON, "running_since": NOON, "task_id": "t9", "body": b""},
    "succeeded": {"state": JobState.SUCCEEDED, "first_sent_at": NOON, "task_id": "t9", "ended_at": NOON},
    "failed": {"state": JobState.FAILED, "first_sent_at": NOON, "task_id": "t9", "ended_at": NOON},
    "refused in doubt": {**UNBOUGHT["refused"], "in_doubt": True},
    "resolved by hand": {**UNBOUGHT["refused"], "failure": BY_HAND},
    "withdrawn in doubt": {**UNBOUGHT["withdrawn"], "in_doubt": True},
}


async def put(ledger: Ledger, account: str, **facts: Any) -> JobRecord:
    """Store a job of an account under the key `order-17`, as a session that has ended leaves it."""
    prompt = ImageRequest("c", model=NEW.model)
    stored = record(key="order-17", account=account, request=prompt, **facts)
    await ledger.open()
    await ledger.claim(stored)
    await ledger.aclose()
    return stored


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("state", UNBOUGHT)
async def test_job_never_accepted_is_bought_by_another_account(tmp_path: Path, state: str, *, durable: bool) -> None:
    gateway, path = FakeGateway(job_s=0.02), tmp_path / "jobs.sqlite"
    transport = FakeTransport(gateway.answer, latency_s=0.001)
    ledger: Ledger = SqliteLedger(path) if durable else MemoryLedger()
    await put(ledger, OLD.account, **UNBOUGHT[state])
    async with Session(NEW, ledger=ledger, http=transport, polling=REAL_TIME) as session:
        assert (await session.generate("c", idempotency_key="order-17")).task_id == "t1"
        assert (await session.generate("c", idempotency_key="order-17")).task_id == "t1"
    await ledger.open()
    stored = await ledger.find("order-17")
    await ledger.aclose()
    assert stored is not None
    assert (stored.account, stored.generation, stored.state) == (NEW.account, 2, JobState.SUCCEEDED)
    assert gateway.sold == 1


@pytest.mark.parametrize("state", PERHAPS_BOUGHT)
async def test_job_that_may_have_been_bought_stays_with_its_account(tmp_path: Path, state: str) -> None:
    gateway, ledger = FakeGateway(job_s=0.02), SqliteLedger(tmp_path / "jobs.sqlite")
    transport = FakeTransport(gateway.answer, latency_s=0.001)
    stored = await put(ledger, OLD.account, **PERHAPS_BOUGHT[state])
    async with Session(NEW, ledger=ledger, http=transport, polling=REAL_TIME) as session:
        with pytest.raises(IdempotencyConflict, match="belongs to another account") as caught:
            await session.generate("c", idempotency_key="order-17")
        assert not caught.value.safe_to_repeat
        outcomes = [o async for o in session.generate_many([{"prompt": "c", "key": "order-17"}], retry_failed=True)]
        assert [type(outcome.error) for outcome in outcomes] == [IdempotencyConflict]
    await ledger.open()
    assert await ledger.find("order-17") == stored
    claim = await ledger.adopt("order-17")
    assert claim is not None
    assert claim.is_ours is (stored.state in ACTIVE_STATES)  # it was released
    await ledger.aclose()
    assert gateway.sold == 0


async def test_unsent_job_of_another_gateway_stays_with_it(tmp_path: Path) -> None:
    gateway, ledger = FakeGateway(), SqliteLedger(tmp_path / "jobs.sqlite")
    await put(ledger, OLD.account, **UNBOUGHT["withdrawn"])
    async with Session(
        DefApi(api_key="sk-new-0123456789"), ledger=ledger, http=FakeTransport(gateway.answer)
    ) as session:
        with pytest.raises(IdempotencyConflict, match="at gateway apimall and not defapi"):
            await session.generate("c", idempotency_key="order-17")
    assert gateway.sold == 0


async def test_unsent_job_that_a_session_of_its_account_owns_is_a_conflict(tmp_path: Path) -> None:
    gateway, theirs = FakeGateway(), SqliteLedger(tmp_path / "jobs.sqlite")
    stored = await put(theirs, OLD.account)
    await theirs.open()
    assert await theirs.adopt("order-17") is not None
    async with Session(NEW, ledger=tmp_path / "jobs.sqlite", http=FakeTransport(gateway.answer)) as session:
        with pytest.raises(IdempotencyConflict, match="belongs to another account"):
            await session.generate("c", idempotency_key="order-17")
    await theirs.advance(stored, stored.transition_to(JobState.SUBMITTING, first_sent_at=NOON))
    await theirs.aclose()
    assert gateway.sold == 0


@pytest.mark.parametrize("durable", [True, False])
async def test_key_refused_with_a_wrong_api_key_is_bought_with_the_right_one(tmp_path: Path, *, durable: bool) -> None:
    gateway = FakeGateway(job_s=0.02)
    ledger: Ledger = SqliteLedger(tmp_path / "jobs.sqlite") if durable else MemoryLedger()
    wrong = FakeTransport(lambda _: refused(401), latency_s=0.001)
    for _ in range(2):
        async with Session(OLD, ledger=ledger, http=wrong, polling=REAL_TIME) as session:
            with pytest.raises(AuthenticationError) as caught:
                await session.generate("c", idempotency_key="order-17")
            assert caught.value.safe_to_repeat
    right = FakeTransport(gateway.answer, latency_s=0.001)
    async with Session(NEW, ledger=ledger, http=right, polling=REAL_TIME) as session:
        assert (await session.generate("c", idempotency_key="order-17")).task_id == "t1"
        with pytest.raises(IdempotencyConflict, match="another request"):
            await session.generate("d", idempotency_key="order-17")
    async with Session(OLD, ledger=ledger, http=wrong, polling=REAL_TIME) as session:
        with pytest.raises(IdempotencyConflict, match="belongs to another account"):
            await session.generate("c", idempotency_key="order-17")
    assert gateway.sold == 1
