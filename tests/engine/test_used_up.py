"""A daily budget that is used up: few refusals, nothing is lost, and the reason is stated."""

import asyncio
import logging
import math
from datetime import timedelta

import pytest

from nanobanana_async import ApiMall, BatchStopped, ConfigurationError, JobState, RateLimited, Session
from nanobanana_async.emulator import API_KEY, Fixed
from nanobanana_async.emulator.settings import EmulatorSettings, RetryAfter
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.events import BudgetUsedUp, Event
from nanobanana_async.testing import EPOCH, EmulatorTransport, FakeTransport
from tests.support.fakes import FakeGateway, apimall, now, virtually
from tests.support.replies import in_turn, refused
from tests.support.shared_ledger import LedgerView, SharedLedger

DAY_S = 86_400.0
MIDNIGHT = EPOCH + timedelta(days=1)


def an_account(per_day: int, *, retry_after: RetryAfter = "seconds", stated: bool = True) -> GatewaySimulator:
    return GatewaySimulator(
        EmulatorSettings(
            job_limit=5,
            requests_per_day=per_day,
            rate_window="clock",
            retry_after=retry_after,
            states_429_kind=stated,
            duration=Fixed(45.0),
        )
    )


def a_session(world: GatewaySimulator, **settings: object) -> Session:
    transport = EmulatorTransport(world, api_key=API_KEY)
    return Session(ApiMall(api_key=API_KEY), http=transport, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("retry_after", "stated"), [("seconds", True), ("seconds", False), ("absent", True)])
def test_jobs_wait_for_midnight_with_few_refusals(
    retry_after: RetryAfter, stated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = an_account(30, retry_after=retry_after, stated=stated)
    events: list[BudgetUsedUp] = []

    def observe(event: Event) -> None:
        if isinstance(event, BudgetUsedUp):
            events.append(event)

    @virtually
    async def main() -> None:
        async with a_session(world, observers=[observe]) as session:
            async with asyncio.TaskGroup() as group:
                jobs = [group.create_task(session.generate(f"fox {number}")) for number in range(8)]
                await asyncio.sleep(1000.0)
                stats = session.stats()
                assert stats.paused_until is not None
                assert abs(stats.paused_until - MIDNIGHT) < timedelta(seconds=3)
                assert stats.creates_paused
                await asyncio.wait(jobs)
                assert DAY_S < now() < DAY_S + 300.0
            stats = session.stats()
            assert (stats.succeeded, stats.paused_until) == (8, None)

    with caplog.at_level(logging.WARNING):
        main()
    counted = world.stats(DAY_S + 300.0)
    daily = sum(counted.refusals_429.values()) - counted.refusals_429.get("jobs", 0)
    assert 2 <= daily <= 5
    assert counted.creates_accepted == 8
    (event,) = events
    assert abs(event.until - MIDNIGHT) < timedelta(seconds=3)
    assert any("budget.used_up" in record.message and "until=2026-01-0" in record.message for record in caplog.records)


@virtually
async def test_wrong_word_pauses_for_two_minutes_only() -> None:
    gateway = FakeGateway(job_s=5.0)
    too_long = refused(429, "rate_limited", "Too many requests", **{"retry-after": "36000"})
    transport = FakeTransport(in_turn([too_long, gateway.answer], [gateway.answer]))
    async with apimall(transport) as session:
        await session.generate("a fox")
    assert 120.0 < now() < 150.0


@virtually
async def test_polls_go_on_when_the_day_has_passed() -> None:
    gateway = FakeGateway(job_s=5.0)
    daily = refused(429, "daily_limit_exceeded", "Daily limit reached")
    transport = FakeTransport(in_turn([gateway.answer], [daily, daily, gateway.answer]))
    async with apimall(transport) as session:
        job = await session.submit("a fox")
        await job
        assert job.state is JobState.SUCCEEDED
        assert session.stats().paused_until is None
    assert len(transport.polls) == 3
    assert DAY_S < now() < DAY_S + 120.0


@virtually
async def test_batch_stops_when_the_wait_would_be_too_long() -> None:
    world, shared = an_account(20), SharedLedger()
    async with a_session(world, ledger=LedgerView(shared)) as session:
        done = 0

        async def buy() -> None:
            nonlocal done
            async for outcome in session.generate_many(
                (f"fox {number}" for number in range(12)), max_budget_wait_s=600
            ):
                done += outcome.ok

        with pytest.raises(BatchStopped, match="budget of requests is used up until 2 Jan 2026, 00:00 UTC") as why:
            await buy()
        assert isinstance(why.value.cause, RateLimited)
        assert why.value.unbought > 0
        assert now() < 600.0
    left = [state for state in shared.states().values() if state is JobState.RUNNING]
    assert done + len(left) == world.stats(now()).creates_accepted


@pytest.mark.parametrize("wait_s", [0, 5, 60])
@virtually
async def test_batch_ends_about_its_wait_after_the_first_refusal(wait_s: int) -> None:
    gateway = FakeGateway(job_s=5.0)
    daily = refused(429, "daily_limit_exceeded", "Daily limit reached")
    async with apimall(FakeTransport(in_turn([daily], [gateway.answer]))) as session:
        with pytest.raises(BatchStopped, match="budget of requests is used up until"):
            async for _ in session.generate_many(["a fox", "an owl"], max_budget_wait_s=wait_s):
                pass
        assert wait_s <= now() <= wait_s + 3.0


@pytest.mark.slow
@virtually
async def test_batch_waits_as_long_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanobanana_async.batch.budget_watch.CHECK_S", 60.0)  # of two days
    world = an_account(40)
    async with a_session(world) as session:
        outcomes = session.generate_many((f"fox {number}" for number in range(8)), max_budget_wait_s=2 * DAY_S)
        assert [outcome.ok async for outcome in outcomes] == [True] * 8
        patient = session.generate_many([f"owl {number}" for number in range(2)])
        assert [outcome.ok async for outcome in patient] == [True] * 2


@virtually
async def test_wait_of_a_batch_is_checked() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        for bad in (-1, "long", math.nan):
            with pytest.raises(ConfigurationError, match="max_budget_wait_s must be a number"):
                session.generate_many(["a fox"], max_budget_wait_s=bad)  # type: ignore[arg-type]
