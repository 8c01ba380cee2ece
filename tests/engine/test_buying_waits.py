"""How long a purchase is tried: unsent requests, slots, Retry-After, and the lifetime of a key."""

import re
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise

import pytest

from nanobanana_async import (
    ApiMall,
    ConcurrencyPolicy,
    JobState,
    JobUncertain,
    RetryPolicy,
    Session,
    TransportError,
)
from nanobanana_async.errors import ConfigurationError, NanoBananaError, SessionClosed
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import (
    API_KEY,
    FakeGateway,
    Opening,
    RecordingLedger,
    apimall,
    defapi,
    now,
    virtual_loop,
    virtually,
    wire_key,
)
from tests.support.replies import Step, completed, created, in_turn, refused, scripted_creates

LOST = TransportError("the connection was reset", possibly_sent=True)
UNSENT = TransportError("connection refused", possibly_sent=False)


class Clocked(FakeTransport):
    """Notes when each request left."""

    def __init__(self, *creates: Step) -> None:
        answer = in_turn([*creates], [completed()])
        self.left_at: dict[str, list[float]] = {"POST": [], "GET": []}

        def clocked(request: HttpRequest) -> Reply:
            self.left_at[request.method].append(now())
            return answer(request)

        super().__init__(clocked, latency_s=0.0)


@pytest.mark.parametrize("session_of", [apimall, defapi])
@pytest.mark.parametrize(
    ("failure", "tries"),
    [
        (UNSENT, 3),
        (SessionClosed("the transport is not open"), 3),
        (ConfigurationError("the request must use https"), 1),
    ],
)
@virtually
async def test_unsent_create_is_retried_then_given_up(
    session_of: Opening, failure: NanoBananaError, tries: int
) -> None:
    gateway, ledger = FakeGateway(), RecordingLedger(keep_ended=True)
    works: list[bool] = []
    transport = FakeTransport(lambda request: gateway.answer(request) if works else failure)
    async with session_of(transport, ledger=ledger, retry=RetryPolicy(max_attempts=3)) as session:
        for _ in range(2):
            tried = len(transport.creates)
            with pytest.raises(NanoBananaError, match=re.escape(str(failure))) as caught:
                await session.generate("a fox", idempotency_key="order-1")
            assert type(caught.value) is type(failure)
            assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", True)
            assert len(transport.creates) == tried + tries
            assert ledger.states() == {"order-1": JobState.PENDING}
            assert session.stats().slots_held == 0
        works.append(True)
        assert (await session.generate("a fox", idempotency_key="order-1")).key == "order-1"
    assert gateway.sold == 1


@virtually
async def test_backoff_grows_until_max_wait_s() -> None:
    transport = Clocked(UNSENT)
    async with apimall(transport, retry=RetryPolicy(max_attempts=99, max_wait_s=60.0)) as session:
        with pytest.raises(TransportError):
            await session.generate("a fox")
        assert 60.0 <= now() <= 60.0 + 30.0
    moments = transport.left_at["POST"]
    gaps = [later - sooner for sooner, later in pairwise(moments)]
    assert 5 <= len(moments) <= 12
    assert gaps[0] <= 0.6
    assert max(gaps) > 8.0


@virtually
async def test_doubt_beyond_max_wait_s_is_uncertain() -> None:
    transport = scripted_creates(LOST)
    async with apimall(transport, retry=RetryPolicy(max_attempts=99, max_wait_s=20.0)) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
        assert 20.0 <= now() <= 52.0


@virtually
async def test_expired_key_is_not_repeated() -> None:
    transport = Clocked(LOST)
    gateway = ApiMall(api_key=API_KEY, key_lifetime_s=30.0)
    retry = RetryPolicy(max_attempts=99, max_wait_s=9000.0)
    async with Session(gateway, http=transport, retry=retry) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
    assert len(transport.creates) >= 3
    assert max(transport.left_at["POST"]) < 30.0 + 30.0


def lost_while_the_clock_is_set(shift: timedelta) -> Callable[[HttpRequest], Reply]:
    def lost(_: HttpRequest) -> Reply:
        virtual_loop().wall_clock_offset += shift
        return LOST

    return lost


@virtually
async def test_clock_that_jumps_forward_ends_trust_in_the_key() -> None:
    transport = scripted_creates(lost_while_the_clock_is_set(timedelta(hours=1)), created())
    async with apimall(transport) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
    assert len(transport.creates) == 1


@pytest.mark.parametrize("shift", [timedelta(seconds=-1), timedelta(hours=-1)])
@virtually
async def test_create_is_repeated_after_the_clock_was_set_back(shift: timedelta) -> None:
    transport = scripted_creates(lost_while_the_clock_is_set(shift), created())
    async with apimall(transport) as session:
        result = await session.generate("a fox")
    assert len(transport.creates) == 2
    assert result.created_at is not None
    assert result.completed_at is not None
    assert result.created_at <= result.completed_at


@virtually
async def test_key_expires_although_the_clock_is_set_back_again_and_again() -> None:
    transport = Clocked(lost_while_the_clock_is_set(timedelta(minutes=-10)))
    gateway = ApiMall(api_key=API_KEY, key_lifetime_s=30.0)
    retry = RetryPolicy(max_attempts=99, max_wait_s=9000.0)
    async with Session(gateway, http=transport, retry=retry) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
    assert max(transport.left_at["POST"]) < 30.0 + 30.0


@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_429_uses_no_attempt_and_adds_no_doubt(session_of: Opening) -> None:
    gateway, ledger = FakeGateway(job_s=30.0, limit=1), RecordingLedger()
    retry = RetryPolicy(max_attempts=1, max_wait_s=5.0)
    transport = FakeTransport(gateway.answer)
    async with session_of(transport, ledger=ledger, retry=retry) as session:
        jobs = [await session.submit(f"fox {number}", idempotency_key=f"order-{number}") for number in range(3)]
        for job in jobs:
            await job
        assert session.stats().throttled >= 1
        assert session.stats().slots_held == 0
    assert (gateway.sold, gateway.most_running) == (3, 1)
    assert "SUBMITTING -> PENDING" in ledger.log
    assert not any("UNCERTAIN" in line for line in ledger.log)


@virtually
async def test_job_refused_by_429_keeps_its_place() -> None:
    gateway = FakeGateway(job_s=5.0, limit=2)
    sold: list[str | None] = []

    def answer(request: HttpRequest) -> Reply:
        known = gateway.sold
        reply = gateway.answer(request)
        if gateway.sold > known:
            sold.append(wire_key(request))
        return reply

    transport = FakeTransport(answer, latency_s=0.0)  # what leaves first arrives first
    async with apimall(transport, concurrency=ConcurrencyPolicy(max_jobs=8)) as session:
        jobs = [await session.submit("a fox", idempotency_key=f"order-{number:02}") for number in range(20)]
        for job in jobs:
            await job
    assert len(sold) == 20
    assert sold == sorted(key for key in sold if key)


@virtually
async def test_retry_after_pauses_all_creates() -> None:
    slow_down = refused(429, "rate_limit", "too many requests", **{"retry-after": "40"})
    transport = Clocked(slow_down, created("img_1"))
    async with apimall(transport) as session:
        first = await session.submit("a fox")
        await first.wait_for_task_id()
        assert transport.left_at["POST"] == [0.0, pytest.approx(40.0, abs=0.1)]


@virtually
async def test_retry_after_is_capped_at_two_minutes() -> None:
    transport = Clocked(refused(429, **{"retry-after": "86400"}), created())
    async with apimall(transport) as session:
        await session.generate("a fox")
    assert transport.left_at["POST"] == [0.0, pytest.approx(120.0, abs=0.1)]


@virtually
async def test_repeat_waits_for_the_retry_after_of_a_503() -> None:
    transport = Clocked(refused(503, **{"retry-after": "25"}), created())
    async with apimall(transport) as session:
        await session.generate("a fox")
    assert transport.left_at["POST"] == [0.0, pytest.approx(25.0, abs=0.1)]


@virtually
async def test_429_with_no_slot_held_backs_off() -> None:
    transport = Clocked(*[refused(429)] * 6, created())
    async with apimall(transport) as session:
        await session.generate("a fox")
    moments = transport.left_at["POST"]
    gaps = [later - sooner for sooner, later in pairwise(moments)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 0.5
    assert gaps[-1] <= 30.1
