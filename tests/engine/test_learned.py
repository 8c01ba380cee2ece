"""A session starts from what an earlier one on the same ledger learned about the account."""

import asyncio
import heapq
import itertools
import json
import logging
import random
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from nanobanana_async import ApiMall, Ledger, MemoryLedger, Session, SessionStats, SqliteLedger
from nanobanana_async.emulator import API_KEY, Fixed, LogNormal
from nanobanana_async.emulator.rates import RateWindow
from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.engine.account_memory import SAVE_EVERY_S
from nanobanana_async.errors import CreditLimitReached, LedgerError
from nanobanana_async.testing import EmulatorTransport, FakeTransport, run_virtual
from tests.support.fakes import FakeGateway, apimall, virtual_loop, virtually

LIMIT = 6
SEEDS = itertools.count()
PRICES_AFTER = {"1K": Decimal(20), "2K": Decimal(20), "4K": Decimal(20)}


class Forgetful(MemoryLedger):
    """A ledger that fails to read and write what was learned, as `failure` says, and counts the attempts."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__()
        self.failure = failure
        self.attempts = 0

    async def recall(self, account: str) -> str | None:
        self.attempts += 1
        raise self.failure

    async def remember(self, account: str, learned: str) -> None:
        self.attempts += 1
        raise self.failure


async def run(ledger: Ledger, *, jobs: int = 20, idle_s: float = 0.0) -> SessionStats:
    """Run a session against a fresh emulated account."""
    world = GatewaySimulator(EmulatorSettings(job_limit=LIMIT, duration=Fixed(10.0), seed=next(SEEDS)))
    transport = EmulatorTransport(world, api_key=API_KEY)
    async with Session(ApiMall(api_key=API_KEY), http=transport, ledger=ledger) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(jobs):
                group.create_task(session.generate(f"a fox, number {number}"))
        await asyncio.sleep(idle_s)
        return session.stats()


def learned(ledger: MemoryLedger) -> dict[str, Any]:
    (text,) = ledger._learned.values()
    return dict(json.loads(text))


@virtually
async def test_second_session_holds_the_learned_limit_from_the_start() -> None:
    ledger = MemoryLedger()
    cold = await run(ledger)
    assert cold.throttled > 0
    assert learned(ledger)["limits"]["job_limit"] == LIMIT
    warm = await run(ledger, jobs=LIMIT)
    assert (warm.throttled, warm.job_limit) == (0, LIMIT)
    stats = await run(ledger, jobs=0)
    assert stats.job_duration_median_s == pytest.approx(10.0, rel=0.2)


@virtually
async def test_cap_is_kept_though_the_price_has_risen_since_the_earlier_session() -> None:
    ledger = MemoryLedger()
    await run(ledger, jobs=2)
    world = GatewaySimulator(EmulatorSettings(job_limit=LIMIT, duration=Fixed(10.0), apimall_prices=PRICES_AFTER))
    transport = EmulatorTransport(world, api_key=API_KEY)
    async with Session(ApiMall(api_key=API_KEY), http=transport, ledger=ledger, max_credits=48) as session:
        jobs = [await session.submit(f"an owl, number {number}") for number in range(6)]
        declined = 0
        for job in jobs:
            try:
                await job
            except CreditLimitReached:
                declined += 1
        assert (declined, session.stats().credits_spent) == (4, Decimal(40))


@pytest.mark.slow
@pytest.mark.usefixtures("early_polls")
def test_second_session_on_a_file_starts_warm(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "jobs.sqlite"
        world = GatewaySimulator(EmulatorSettings(job_limit=3, duration=LogNormal(median_s=0.2, sigma=0.1)))
        for number in range(2):
            transport = EmulatorTransport(world, api_key=API_KEY, latency_s=0.01)
            gateway = ApiMall(api_key=API_KEY, expected_job_s=0.2)
            async with Session(gateway, http=transport, ledger=SqliteLedger(path)) as session:
                if number:
                    assert session.stats().job_limit == 3
                async with asyncio.TaskGroup() as group:
                    for fox in range(10):
                        group.create_task(session.generate(f"a fox, number {number} {fox}"))

    asyncio.run(main())


@virtually
async def test_old_limit_is_no_limit_and_fills_half_at_once() -> None:
    ledger = MemoryLedger()
    await run(ledger)
    virtual_loop().wall_clock_offset = timedelta(days=2)
    stats = await run(ledger, jobs=0)
    assert stats.job_limit is None
    assert stats.job_duration_median_s == pytest.approx(10.0, rel=0.2)
    stats = await run(ledger, jobs=LIMIT // 2)
    assert stats.throttled == 0


@virtually
async def test_session_that_learned_nothing_writes_nothing() -> None:
    ledger = MemoryLedger()
    await run(ledger)
    before = learned(ledger)
    ledger._learned[next(iter(ledger._learned))] += " "
    await run(ledger, jobs=0, idle_s=5 * SAVE_EVERY_S)
    assert next(iter(ledger._learned.values())).endswith(" ")
    assert learned(ledger) == before


@virtually
async def test_facts_are_stored_while_the_session_runs() -> None:
    ledger = MemoryLedger()
    async with apimall(FakeTransport(FakeGateway(job_s=1.0, limit=3).answer), ledger=ledger) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(9):
                group.create_task(session.generate(f"fox {number}"))
        assert ledger._learned == {}
        await asyncio.sleep(SAVE_EVERY_S + 1)
        assert learned(ledger)["limits"]["job_limit"] == 3
        assert [facts["price"] for facts in learned(ledger)["classes"].values()] == ["8"]


@virtually
async def test_known_price_is_the_price_of_the_next_session() -> None:
    gateway, ledger = FakeGateway(job_s=5.0), MemoryLedger()
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        await session.generate("a fox")
    gateway.most_running = 0
    async with apimall(FakeTransport(gateway.answer), ledger=ledger, max_credits=80) as session:
        started = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(session.generate(f"owl {number}"))
        assert asyncio.get_running_loop().time() - started < 8.0
    assert gateway.most_running == 4


@virtually
async def test_damaged_facts_start_a_session_without_knowledge(caplog: pytest.LogCaptureFixture) -> None:
    ledger = MemoryLedger()
    await run(ledger)
    ledger._learned = dict.fromkeys(ledger._learned, '{"limits": {"job_limit": "many"}}')
    assert (await run(ledger)).succeeded == 20
    assert [record.message for record in caplog.records if "learned.unreadable" in record.message]
    assert learned(ledger)["limits"]["job_limit"] == LIMIT


@pytest.mark.parametrize("failure", [LedgerError("the disk is full"), ValueError("?"), asyncio.CancelledError()])
def test_ledger_that_fails_is_logged_once_and_the_session_goes_on(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Forgetful(failure)

    @virtually
    async def main() -> None:
        async with apimall(FakeTransport(FakeGateway().answer), ledger=ledger) as session:
            for _ in range(3):
                await session.generate("a fox")
                await asyncio.sleep(2 * SAVE_EVERY_S)

    with caplog.at_level(logging.WARNING):
        main()
    assert ledger.attempts > 3
    assert len([record for record in caplog.records if "ledger.failed" in record.message]) == 2  # reading, writing


@virtually
async def test_hanging_ledger_does_not_hold_up_the_close() -> None:
    class Hanging(MemoryLedger):
        async def remember(self, account: str, learned: str) -> None:
            await asyncio.sleep(1e6)

    async with apimall(FakeTransport(FakeGateway().answer), ledger=Hanging()) as session:
        await session.generate("a fox")
    assert asyncio.get_running_loop().time() < 60.0


JITTER_SEED = 1


def _sold(ledger: MemoryLedger, window: RateWindow, seed: int) -> tuple[float, float]:
    """Run 40 jobs on an account as sold; return makespan / ideal and the share of refused requests."""
    duration = LogNormal(median_s=45.0, sigma=0.4)
    options = EmulatorSettings(job_limit=5, requests_per_minute=60, rate_window=window, duration=duration, seed=seed)
    world = GatewaySimulator(options)

    async def main() -> float:
        transport = EmulatorTransport(world, api_key=API_KEY)
        async with Session(ApiMall(api_key=API_KEY), http=transport, ledger=ledger) as session:
            async with asyncio.TaskGroup() as group:
                for number in range(40):
                    group.create_task(session.generate(f"fox {number}"))
            return asyncio.get_running_loop().time()

    ended_at = run_virtual(main())
    free_at = [0.0] * 5
    for job in sorted(world.jobs(ended_at), key=lambda job: job.created_at):
        heapq.heapreplace(free_at, free_at[0] + job.ends_at - job.created_at)
    stats = world.stats(ended_at)
    return ended_at / max(free_at), sum(stats.refusals_429.values()) / sum(stats.requests.values())


@pytest.mark.slow
@pytest.mark.parametrize("window", ["sliding", "clock", "bucket"])
def test_second_run_on_an_account_as_sold_meets_hardly_a_refusal(
    window: RateWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The jitter of the client is fixed: it decides whether there are 3 probes of the job limit or 4.
    seeded = random.Random
    monkeypatch.setattr(random, "Random", lambda *seed: seeded(*(seed or (JITTER_SEED,))))
    runs = []
    for seed in range(3):
        ledger = MemoryLedger()
        _sold(ledger, window, 10 + seed)
        runs.append(_sold(ledger, window, seed))
    assert median(refused for _, refused in runs) <= 0.015  # probes of the job limit: 3 of some 300 requests
    assert median(ratio for ratio, _ in runs) <= 1.1
