"""`session.balance()`: one request, retried a little, in the budget of requests, and of no harm to jobs."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    AuthenticationError,
    ConcurrencyPolicy,
    ConfigurationError,
    DefApi,
    Gateway,
    GatewayUnavailable,
    RateLimited,
    Session,
    SessionClosed,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.emulator import API_KEY, Fixed
from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import EmulatorTransport, FakeTransport, Reply
from tests.support.fakes import apimall, now, virtually
from tests.support.replies import json_reply, refused

LOST = TransportError("the connection was lost", possibly_sent=True)


def balance(amount: Any = 112) -> Reply:
    return json_reply(200, {"success": True, "data": {"credits": 500, "api_credits": amount}, "request_id": "r"})


def in_order(*replies: Reply) -> tuple[list[float], Callable[[HttpRequest], Reply]]:
    """Return the times of the requests, and a gateway that gives these replies, the last one again and again."""
    times: list[float] = []
    left = list(replies)

    def answer(request: HttpRequest) -> Reply:
        times.append(now())
        return left.pop(0) if len(left) > 1 else left[0]

    return times, answer


@virtually
async def test_balance_is_what_the_api_may_spend() -> None:
    seen: list[HttpRequest] = []

    def answer(request: HttpRequest) -> Reply:
        seen.append(request)
        return balance("112.5")

    async with apimall(FakeTransport(answer)) as session:
        assert await session.balance() == Decimal("112.5")
    assert [(request.method, request.url) for request in seen] == [
        ("GET", "https://gateway.apimall.ai/api/v1/account/balances")
    ]


@virtually
async def test_gateway_without_a_balance_is_named() -> None:
    class Plain(FakeTransport):
        """A transport that must not be used."""

    mall = ApiMall(api_key=API_KEY)
    hidden = ("build_balance", "read_balance")

    class NoBalance:
        def __getattr__(self, name: str) -> Any:
            if name in hidden:
                raise AttributeError(name)
            return getattr(mall, name)

    gateway: Any = NoBalance()
    async with Session(gateway, http=Plain(lambda _: balance())) as session:
        with pytest.raises(ConfigurationError, match="apimall has no balance that a program can read"):
            await session.balance()


@virtually
async def test_network_trouble_is_retried_a_little() -> None:
    times, answer = in_order(LOST, json_reply(502, "no json"), refused(503, "busy", "busy"), balance())
    async with apimall(FakeTransport(answer)) as session:
        assert await session.balance() == 112
    assert len(times) == 4
    assert times[-1] < 10


@virtually
async def test_trouble_that_lasts_ends_the_call() -> None:
    times, answer = in_order(LOST)
    async with apimall(FakeTransport(answer)) as session:
        with pytest.raises(TransportError, match="the connection was lost") as caught:
            await session.balance()
        assert caught.value.safe_to_repeat
        assert 2 <= len(times) <= 4
        assert now() < 30


@virtually
async def test_outage_that_stops_polls_stops_the_balance_too() -> None:
    times, answer = in_order(LOST)
    async with apimall(FakeTransport(answer)) as session:
        for _ in range(12):
            with pytest.raises((TransportError, GatewayUnavailable)):
                await session.balance()
    assert len(times) < 48


@virtually
async def test_refused_key_is_not_retried() -> None:
    times, answer = in_order(refused(401, "invalid_api_key", "Invalid API key"))
    async with apimall(FakeTransport(answer)) as session:
        with pytest.raises(AuthenticationError):
            await session.balance()
    assert len(times) == 1


@virtually
async def test_address_without_a_balance_is_a_setting() -> None:
    _, answer = in_order(refused(404, "not_found", "Not found"))
    async with apimall(FakeTransport(answer)) as session:
        with pytest.raises(ConfigurationError, match=r"gateway\.apimall\.ai does not state a balance"):
            await session.balance()


@virtually
async def test_answer_without_a_balance_is_unexpected() -> None:
    _, answer = in_order(balance(None))
    async with apimall(FakeTransport(answer)) as session:
        with pytest.raises(UnexpectedResponse, match="api_credits, the balance, is missing"):
            await session.balance()


@virtually
async def test_throttled_balance_waits_as_long_as_it_is_asked_to() -> None:
    times, answer = in_order(refused(429, "rate_limited", "slow down", **{"retry-after": "7"}), balance())
    async with apimall(FakeTransport(answer)) as session:
        assert await session.balance() == 112
    assert times[1] - times[0] >= 7


@virtually
async def test_long_wait_is_left_to_the_caller() -> None:
    times, answer = in_order(refused(429, "rate_limited", "slow down", **{"retry-after": "100"}), balance())
    async with apimall(FakeTransport(answer)) as session:
        with pytest.raises(RateLimited):
            await session.balance()
        assert now() < 1
        with pytest.raises(RateLimited, match="leaves none for the balance now"):
            await session.balance()
        assert now() < 20
    assert len(times) == 1


@virtually
async def test_calls_at_the_same_time_share_one_request() -> None:
    times, answer = in_order(balance())
    async with apimall(FakeTransport(answer, latency_s=1.0)) as session:
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(session.balance()) for _ in range(50)]
        assert {task.result() for task in asking} == {Decimal(112)}
        await session.balance()
    assert len(times) == 2


@virtually
async def test_cancelled_caller_takes_the_answer_from_no_other() -> None:
    times, answer = in_order(balance())
    async with apimall(FakeTransport(answer, latency_s=1.0)) as session:
        async with asyncio.TaskGroup() as group:
            first, second = (group.create_task(session.balance()) for _ in range(2))
            await asyncio.sleep(0.5)
            first.cancel()
        assert second.result() == 112
    assert len(times) == 1


@virtually
async def test_errors_of_callers_are_their_own() -> None:
    _, answer = in_order(refused(401, "invalid_api_key", "Invalid API key"))
    async with apimall(FakeTransport(answer, latency_s=1.0)) as session:

        async def refusal() -> AuthenticationError:
            with pytest.raises(AuthenticationError) as caught:
                await session.balance()
            return caught.value

        async with asyncio.TaskGroup() as group:
            one, other = (group.create_task(refusal()) for _ in range(2))
    assert one.result() is not other.result()


@virtually
async def test_closing_ends_the_waiting() -> None:
    _, answer = in_order(balance())
    session = apimall(FakeTransport(answer, latency_s=60.0))
    await session.open()

    async def ask() -> None:
        with pytest.raises(SessionClosed, match="before the balance was read"):
            await session.balance()

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        await asyncio.sleep(0.5)
        await session.aclose()
    with pytest.raises(SessionClosed):
        await session.balance()


@virtually
async def test_balance_counts_in_the_cap_of_requests() -> None:
    times, answer = in_order(balance())
    concurrency = ConcurrencyPolicy(max_requests_per_minute=6)
    async with apimall(FakeTransport(answer), concurrency=concurrency) as session:
        for _ in range(3):
            await session.balance()
    assert len(times) == 3
    assert times[2] - times[0] >= 10


@pytest.mark.parametrize("kind", [ApiMall, DefApi])
def test_balances_leave_the_budget_to_the_jobs(kind: type[Gateway]) -> None:
    def took(*, watched: bool) -> tuple[float, int]:
        settings = EmulatorSettings(job_limit=5, requests_per_minute=60, credits=1000, duration=Fixed(20.0))
        world = GatewaySimulator(settings)
        ended: list[float] = []

        @virtually
        async def main() -> None:
            gateway: Any = kind(api_key=API_KEY)  # type: ignore[call-arg]
            async with Session(gateway, http=EmulatorTransport(world, api_key=API_KEY)) as session:

                async def watch() -> None:
                    while True:
                        await asyncio.sleep(5.0)
                        await session.balance()

                async with asyncio.TaskGroup() as watching:
                    task = watching.create_task(watch()) if watched else None
                    async with asyncio.TaskGroup() as group:
                        for number in range(20):
                            group.create_task(session.generate(f"fox {number}"))
                    ended.append(now())
                    if task is not None:
                        task.cancel()
                left = await session.balance()
                assert left == 1000 - (8 * 20 if kind is ApiMall else 10)

        main()
        return ended[0], world.stats(ended[0]).double_charges

    alone_s, _ = took(watched=False)
    watched_s, twice = took(watched=True)
    assert twice == 0
    assert watched_s < 1.3 * alone_s
