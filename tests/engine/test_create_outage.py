"""A job that can't be sent because the creates of its account fail ends its wait on time: `RetryPolicy.max_wait_s`."""

import asyncio
import math
from collections.abc import Iterable

import pytest

from nanobanana_async import (
    ConcurrencyPolicy,
    JobState,
    JobUncertain,
    MemoryLedger,
    RetryPolicy,
    Session,
    TransportError,
)
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.engine.test_several_accounts import A, B
from tests.support.fakes import FakeGateway, Opening, RecordingLedger, apimall, defapi, now, virtually
from tests.support.replies import refused

DOWN = TransportError("can't reach gw.example: Connection refused", possibly_sent=False)
LOST = TransportError("the connection was reset", possibly_sent=True)
UNAVAILABLE = refused(503, **{"retry-after": "110"})
MINUTE = RetryPolicy(max_wait_s=60.0)
Ends = dict[int, tuple[float, NanoBananaError | None]]


def down(gateway: FakeGateway, *, begins: float = 0.0, ends: float = math.inf, reply: Reply = DOWN) -> FakeTransport:
    """Return the transport of a gateway that answers no create from `begins` to `ends`."""

    def answer(request: HttpRequest) -> Reply:
        return reply if request.method == "POST" and begins <= now() < ends else gateway.answer(request)

    return FakeTransport(answer)


async def end_of_each(session: Session, numbers: Iterable[int], *, gap_s: float = 0.0) -> Ends:
    """Generate an image for each number; return when each ended, and the error."""
    ends: Ends = {}

    async def one(number: int) -> None:
        await asyncio.sleep(number * gap_s)
        try:
            await session.generate(f"fox {number}", idempotency_key=f"order-{number}")
            ends[number] = now(), None
        except NanoBananaError as error:
            ends[number] = now(), error

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(one(number))
    return ends


@pytest.mark.parametrize("opening", [apimall, defapi])
@pytest.mark.parametrize("jobs", [1, 20])
@virtually
async def test_jobs_at_a_dead_gateway_end_together_and_safe_to_repeat(opening: Opening, jobs: int) -> None:
    transport, ledger = down(FakeGateway()), RecordingLedger()
    async with opening(transport, ledger=ledger, retry=MINUTE) as session:
        ends = await end_of_each(session, range(jobs))
        assert session.stats().slots_held == 0
    for number, (at, error) in ends.items():
        assert 60.0 <= at <= 61.0
        assert isinstance(error, TransportError)
        assert DOWN.message in error.message
        assert (error.key, error.safe_to_repeat, error.possibly_sent) == (f"order-{number}", True, False)
    assert set(ledger.states().values()) == {JobState.PENDING}
    assert len(transport.creates) <= 20  # single probes


@virtually
async def test_wait_counts_from_when_a_job_was_ready_during_the_outage() -> None:
    async with apimall(down(FakeGateway(), begins=5.0), retry=MINUTE) as session:
        await session.generate("a fox")
        began = now()
        ends = await end_of_each(session, range(10), gap_s=25.0)
    for number, (at, error) in ends.items():
        assert isinstance(error, TransportError)
        assert 60.0 <= at - began - 25.0 * number <= 61.0


@virtually
async def test_jobs_queued_before_an_outage_wait_from_its_beginning() -> None:
    gateway = FakeGateway(job_s=20.0)
    policy = ConcurrencyPolicy(max_jobs=2, learn=False)
    async with apimall(down(gateway, begins=50.0), retry=MINUTE, concurrency=policy) as session:
        ends = await end_of_each(session, range(20))
    unsent = [at for at, error in ends.values() if error is not None]
    assert len(unsent) == 20 - gateway.sold >= 10
    assert 110.0 <= min(unsent) <= max(unsent) <= 50.0 + 20.0 + 61.0  # creates fail from the next free slot on


@virtually
async def test_gateway_that_comes_back_just_before_the_end_gets_a_last_create() -> None:
    gateway = FakeGateway()
    async with apimall(down(gateway, ends=59.9), retry=MINUTE) as session:
        ends = await end_of_each(session, range(20))
    assert [error for _, error in ends.values() if error is not None] == []
    assert gateway.sold == 20


@virtually
async def test_last_create_without_an_answer_keeps_the_others_for_seconds_only() -> None:
    async def answer(_: HttpRequest) -> Reply:
        if now() > 50.0:
            await asyncio.sleep(100.0)
        return DOWN

    async with apimall(FakeTransport(answer), retry=MINUTE) as session:
        ends = await end_of_each(session, range(20))
    times = sorted(at for at, _ in ends.values())
    assert 60.0 <= times[0] <= times[18] <= 66.0


@pytest.mark.parametrize("opening", [apimall, defapi])
@virtually
async def test_retry_after_beyond_the_wait_does_not_prolong_it(opening: Opening) -> None:
    ledger = RecordingLedger()
    async with opening(down(FakeGateway(), reply=UNAVAILABLE), ledger=ledger, retry=MINUTE) as session:
        ends = await end_of_each(session, range(20))
    unsent = {number: at for number, (at, error) in ends.items() if not isinstance(error, JobUncertain)}
    assert len(unsent) >= 16
    assert all(60.0 <= at <= 61.0 for at in unsent.values())
    for number in unsent:
        error = ends[number][1]
        assert error is not None
        assert error.safe_to_repeat
        assert "check the state" not in str(error)
        assert ledger.states()[f"order-{number}"] is JobState.PENDING
    doubtful = ledger.states().keys() - {f"order-{number}" for number in unsent}
    assert {ledger.states()[key] for key in doubtful} == {JobState.UNCERTAIN}


@virtually
async def test_create_in_doubt_is_repeated_after_a_retry_after_beyond_the_wait() -> None:
    gateway = FakeGateway()

    def answer(request: HttpRequest) -> Reply:
        reply = gateway.answer(request)  # it is bought all the same
        return UNAVAILABLE if request.method == "POST" and now() < 100.0 else reply

    async with apimall(FakeTransport(answer), retry=MINUTE) as session:
        ends = await end_of_each(session, range(20))
        bought = {f"order-{number}" for number, (_, error) in ends.items() if error is None}
        assert set(gateway.keys) == bought
        assert len(bought) >= 2
        for number, (_, error) in ends.items():
            if error is not None:
                await session.generate(f"fox {number}", idempotency_key=f"order-{number}")
    assert gateway.sold == 20


@virtually
async def test_lost_answers_of_an_outage_are_paid_for_once() -> None:
    gateway, ledger = FakeGateway(), RecordingLedger()

    def answer(request: HttpRequest) -> Reply:
        reply = gateway.answer(request)
        return LOST if request.method == "POST" and now() < 70.0 else reply

    async with apimall(FakeTransport(answer), ledger=ledger, retry=MINUTE) as session:
        ends = await end_of_each(session, range(20))
        sold = set(gateway.keys)
        for number, (at, error) in ends.items():
            if isinstance(error, TransportError):
                assert error.safe_to_repeat
                assert f"order-{number}" not in sold
                assert 60.0 <= at <= 61.0
            elif error is not None:
                assert isinstance(error, JobUncertain)
    assert gateway.sold == len(sold)


@virtually
async def test_waiting_for_a_slot_is_no_failure() -> None:
    gateway = FakeGateway(job_s=300.0, limit=1)
    async with apimall(FakeTransport(gateway.answer), retry=MINUTE) as session:
        ends = await end_of_each(session, range(4))
    assert [error for _, error in ends.values() if error is not None] == []
    assert max(at for at, _ in ends.values()) > 1200.0


@pytest.mark.parametrize("failing", [1, 3])
@virtually
async def test_failures_far_apart_are_no_outage_for_jobs_that_wait_for_a_slot(failing: int) -> None:
    gateway, left = FakeGateway(job_s=300.0, limit=1), [0.0]

    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST" and now() - left[0] > 200.0:  # the first creates after a slot was free
            left.append(now())
            if len(left) > failing:
                left[:] = [now()]
            return DOWN
        return gateway.answer(request)

    policy = ConcurrencyPolicy(max_jobs=1, learn=False)
    async with apimall(FakeTransport(answer), retry=MINUTE, concurrency=policy) as session:
        ends = await end_of_each(session, range(4))
    assert [error for _, error in ends.values() if error is not None] == []


@virtually
async def test_outage_while_jobs_hold_all_slots_ends_nothing() -> None:
    gateway = FakeGateway(job_s=300.0)
    policy = ConcurrencyPolicy(max_jobs=2, learn=False)
    async with apimall(down(gateway, begins=10.0, ends=290.0), retry=MINUTE, concurrency=policy) as session:
        ends = await end_of_each(session, range(6))
    assert [error for _, error in ends.values() if error is not None] == []


@virtually
async def test_pauses_of_429_end_nothing() -> None:
    gateway, refusals = FakeGateway(), [refused(429, "rate", "slow down", **{"retry-after": "110"})] * 3

    def answer(request: HttpRequest) -> Reply:
        return refusals.pop() if request.method == "POST" and refusals else gateway.answer(request)

    async with apimall(FakeTransport(answer), retry=MINUTE) as session:
        ends = await end_of_each(session, range(10))
    assert [error for _, error in ends.values() if error is not None] == []
    assert gateway.sold == 10


@virtually
async def test_job_generated_again_has_the_whole_wait_and_all_attempts_again() -> None:
    ledger, gateway = RecordingLedger(), FakeGateway()
    transport = down(gateway, ends=125.0)
    retry = RetryPolicy(max_wait_s=60.0, max_attempts=12)
    async with apimall(transport, ledger=ledger, retry=retry) as session:
        for began in (0.0, 60.0):
            ends = await end_of_each(session, range(3))
            for at, error in ends.values():
                assert isinstance(error, TransportError)
                assert began + 59.0 <= at <= began + 62.0
        ends = await end_of_each(session, range(3))
    assert [error for _, error in ends.values() if error is not None] == []
    assert gateway.sold == 3


@virtually
async def test_endless_wait_lasts_as_long_as_the_outage() -> None:
    gateway = FakeGateway()
    retry = RetryPolicy(max_wait_s=math.inf, max_attempts=10_000)
    async with apimall(down(gateway, ends=7200.0), retry=retry) as session:
        ends = await end_of_each(session, range(20))
    assert [error for _, error in ends.values() if error is not None] == []
    assert gateway.sold == 20


def two_accounts(*transports: FakeTransport, **settings: object) -> Session:
    return Session([A, B], http=transports, ledger=MemoryLedger(), retry=MINUTE, **settings)  # type: ignore[arg-type]


@virtually
async def test_jobs_of_a_dead_account_go_to_the_one_that_lives() -> None:
    alive = FakeGateway(job_s=100.0, limit=2)
    async with two_accounts(down(FakeGateway()), FakeTransport(alive.answer)) as session:
        ends = await end_of_each(session, range(12))
    assert [error for _, error in ends.values() if error is not None] == []
    assert alive.sold == 12


@virtually
async def test_jobs_of_two_dead_accounts_end_with_what_both_said() -> None:
    async with two_accounts(down(FakeGateway()), down(FakeGateway())) as session:
        ends = await end_of_each(session, range(20))
    for at, error in ends.values():
        assert isinstance(error, TransportError)
        assert error.safe_to_repeat
        assert "no other account buys it" in error.message
        assert 60.0 <= at <= 63.0


@virtually
async def test_wait_of_a_moved_job_goes_on_from_the_outage_of_the_other_account() -> None:
    gateways = FakeGateway(), FakeGateway()
    transports = down(gateways[0]), down(gateways[1], begins=0.0, ends=80.0)
    async with two_accounts(*transports) as session:
        ends = await end_of_each(session, range(6))
        assert all(isinstance(error, TransportError) for _, error in ends.values())
        await asyncio.sleep(30.0)
        ends = await end_of_each(session, range(6))
    assert [error for _, error in ends.values() if error is not None] == []
    assert (gateways[0].sold, gateways[1].sold) == (0, 6)
