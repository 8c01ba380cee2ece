"""A job larger than its account's limit lets smaller ones go first, and its wait ends; a full account is waited for."""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest

from nanobanana_async import ApiMall, JobState, RateLimited, RetryPolicy, Session
from nanobanana_async.emulator import EmulatorSettings, Fixed, GatewaySimulator
from nanobanana_async.emulator.settings import LimitCounts
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.testing import EmulatorTransport
from tests.support.fakes import API_KEY, RecordingLedger, now, virtually

HOUR = 3600.0
Schedule = Sequence[tuple[float, int | None]]
"""The account's limit from these times on: what other clients leave of it, too."""


class Account:
    """An account whose limit is not known to the client, and a session on it."""

    def __init__(
        self,
        limits: Schedule,
        *,
        counts: LimitCounts = "images",
        per_image: bool = True,
        states_kind: bool = True,
        job_s: float = 5.0,
        **settings: Any,
    ) -> None:
        self.world = GatewaySimulator(
            EmulatorSettings(
                api_keys=frozenset({API_KEY}),
                job_limit=limits[0][1],
                limit_schedule=limits[1:],
                limit_counts=counts,
                states_429_kind=states_kind,
                duration=Fixed(job_s),
            )
        )
        self.gateway = ApiMall(api_key=API_KEY, slots_per_image=per_image)
        self.transport = EmulatorTransport(self.world, api_key=API_KEY)
        self.session = Session(self.gateway, http=self.transport, **settings)
        self.ends: dict[str, tuple[float, NanoBananaError | None]] = {}

    @property
    def creates(self) -> int:
        return self.world.stats(now()).creates_received

    async def buy(self, name: str, images: int, **settings: Any) -> None:
        """Generate and keep when that ended, and the error."""
        try:
            await self.session.generate(name, num_images=images, idempotency_key=name, **settings)
            self.ends[name] = now(), None
        except NanoBananaError as error:
            self.ends[name] = now(), error

    async def buy_large_and_small(self, *, large: int = 4, small: int = 4, **settings: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.buy("large", large, **settings))
            for number in range(small):
                group.create_task(self.buy(f"small-{number}", 1, **settings))

    def error_of_large(self) -> RateLimited:
        error = self.ends["large"][1]
        assert isinstance(error, RateLimited)
        return error


@pytest.mark.parametrize("states_kind", [True, False])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 3])
@virtually
async def test_larger_job_than_the_limit_ends_and_smaller_ones_go_first(
    limit: int, per_image: bool, states_kind: bool
) -> None:
    ledger = RecordingLedger()
    account = Account([(0.0, limit)], per_image=per_image, states_kind=states_kind, ledger=ledger)
    async with account.session:
        await account.buy_large_and_small()
        stats = account.session.stats()
    assert max(at for name, (at, _) in account.ends.items() if name != "large") < 60.0
    assert all(error is None for name, (_, error) in account.ends.items() if name != "large")
    assert 900.0 <= account.ends["large"][0] <= 1000.0
    error = account.error_of_large()
    assert (error.key, error.safe_to_repeat) == ("large", True)
    assert "takes 4 images" in error.message
    assert "job slots at most at a time" in error.message
    assert "num_images" in error.advice
    assert ledger.states()["large"] is JobState.PENDING
    assert account.creates <= 90
    assert (stats.slots_held, stats.max_creates_per_s) == (0, None)


@virtually
async def test_batch_goes_on_past_a_row_that_is_too_large() -> None:
    account = Account([(0.0, 2)], retry=RetryPolicy(max_wait_s=60.0))
    rows = [{"prompt": f"fox {number}", "num_images": 4 if number == 1 else 1} for number in range(8)]
    async with account.session as session:
        outcomes = {outcome.index: outcome async for outcome in session.generate_many(rows)}
    assert [index for index, outcome in outcomes.items() if not outcome.ok] == [1]
    assert isinstance(outcomes[1].error, RateLimited)
    assert now() <= 100.0


@virtually
async def test_many_rows_that_are_too_large_end_together() -> None:
    account = Account([(0.0, 2)], retry=RetryPolicy(max_wait_s=60.0))
    async with account.session, asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(account.buy(f"large-{number}", 3 + number % 2))
            group.create_task(account.buy(f"small-{number}", 1))
    failed = {name for name, (_, error) in account.ends.items() if error is not None}
    assert failed == {f"large-{number}" for number in range(200)}
    small_s = 200 / 2 * 5.0
    assert max(at for name, (at, _) in account.ends.items() if name not in failed) <= 1.6 * small_s


@virtually
async def test_only_job_that_is_too_large_ends() -> None:
    account = Account([(0.0, 2)], retry=RetryPolicy(max_wait_s=60.0))
    async with account.session:
        await account.buy("large", 4)
    assert 60.0 <= account.ends["large"][0] <= 95.0
    assert "other clients" in account.error_of_large().message


@virtually
async def test_large_job_may_wait_without_end() -> None:
    account = Account([(0.0, 2), (3 * HOUR, 4)], retry=RetryPolicy(max_wait_s=math.inf))
    async with account.session:
        await account.buy_large_and_small()
    at, error = account.ends["large"]
    assert error is None
    assert 3 * HOUR <= at <= 3 * HOUR + 60.0


@pytest.mark.parametrize(("images", "per_image"), [(1, True), (4, False)])
@virtually
async def test_account_that_others_fill_is_waited_for_and_the_log_says_so_once(
    images: int, per_image: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    account = Account([(0.0, 0), (600.0, 2)], counts="jobs", per_image=per_image, retry=RetryPolicy(max_wait_s=60.0))
    async with account.session, asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(account.buy(f"fox-{number}", images))
    assert len(account.ends) == 4
    assert all(error is None and 600.0 <= at <= 700.0 for at, error in account.ends.values())
    assert [record.message.split()[0] for record in caplog.records] == ["account.full"]


@virtually
async def test_full_account_does_not_end_a_large_job_while_it_refuses_small_ones_too() -> None:
    account = Account([(0.0, 0), (2 * HOUR, 4)])
    async with account.session:
        await account.buy_large_and_small()
    assert all(error is None for _, error in account.ends.values())


@virtually
async def test_size_that_was_accepted_before_is_waited_for() -> None:
    account = Account([(0.0, 4), (10.0, 0), (2 * HOUR, 4)])
    async with account.session:
        await account.buy("first", 4)
        await asyncio.sleep(10.0)
        await account.buy("large", 4)
    at, error = account.ends["large"]
    assert error is None
    assert 2 * HOUR <= at <= 2 * HOUR + 60.0


@virtually
async def test_large_job_that_fits_again_is_tried_beside_a_stream_of_small_ones() -> None:
    account = Account([(0.0, 3), (100.0, 8)])
    async with account.session, asyncio.TaskGroup() as group:
        group.create_task(account.buy("large", 4))
        for number in range(400):
            group.create_task(account.buy(f"small-{number}", 1))
    at, error = account.ends["large"]
    assert error is None
    assert at < 100.0 + 150.0
    assert max(at for at, _ in account.ends.values()) > at + 60.0


@virtually
async def test_job_too_large_does_not_hold_up_small_ones_after_the_account_was_full() -> None:
    account = Account([(0.0, 0), (200.0, 3)])
    async with account.session, asyncio.timeout(HOUR), asyncio.TaskGroup() as group:
        group.create_task(account.buy("small", 1))
        await asyncio.sleep(100.0)
        group.create_task(account.buy("large", 4, priority=5))
        await asyncio.sleep(200.0)
        group.create_task(account.buy("another small", 1))
    assert isinstance(account.ends["large"][1], RateLimited)
    assert max(account.ends[name][0] for name in ("small", "another small")) < 500.0


def two_accounts(*limits: int, **settings: Any) -> tuple[list[GatewaySimulator], Session]:
    keys = ["sk-a-0123456789abcdef", "sk-b-0123456789abcdef"]
    worlds = [
        GatewaySimulator(EmulatorSettings(api_keys=frozenset({key}), job_limit=limit, limit_counts="images"))
        for key, limit in zip(keys, limits, strict=True)
    ]
    accounts = [ApiMall(api_key=key, account=key[3], slots_per_image=True) for key in keys]
    transports = [EmulatorTransport(world, api_key=key) for key, world in zip(keys, worlds, strict=True)]
    return worlds, Session(accounts, http=transports, **settings)


@virtually
async def test_large_job_goes_to_an_account_that_takes_it() -> None:
    worlds, session = two_accounts(2, 8)
    async with session:
        await session.generate("a fox", num_images=4)
    assert [world.stats(now()).creates_accepted for world in worlds] == [0, 1]
    assert now() < 300.0


@virtually
async def test_job_too_large_for_its_account_is_bought_by_one_where_a_larger_job_waits() -> None:
    worlds, session = two_accounts(2, 1, retry=RetryPolicy(max_wait_s=60.0))
    async with session:
        jobs = [await session.submit(f"fox {index}", num_images=size) for index, size in enumerate((4, 2, 2, 1))]
        with pytest.raises(RateLimited, match="takes 4 images"):
            await jobs[0].result()
        for job in jobs[1:]:
            await job.result()
    assert [world.stats(now()).creates_accepted for world in worlds] == [3, 0]


@virtually
async def test_large_job_ends_where_no_account_takes_it() -> None:
    worlds, session = two_accounts(2, 2, retry=RetryPolicy(max_wait_s=60.0))
    async with session:
        with pytest.raises(RateLimited, match="takes 4 images"):
            await session.generate("a fox", num_images=4)
    assert now() <= 200.0
    assert sum(world.stats(now()).creates_received for world in worlds) <= 30


@virtually
async def test_large_job_goes_after_small_ones_of_a_lower_priority_only_while_it_is_refused() -> None:
    account = Account([(0.0, 2), (30.0, 8)])
    async with account.session, asyncio.TaskGroup() as group:
        group.create_task(account.buy("large", 4, priority=10))
        for number in range(4):
            group.create_task(account.buy(f"small-{number}", 1))
        await asyncio.sleep(60.0)
        assert set(account.ends) == {"large", *(f"small-{number}" for number in range(4))}
    assert all(error is None for _, error in account.ends.values())
