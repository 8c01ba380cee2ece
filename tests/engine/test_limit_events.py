"""LimitsChanged: emitted whenever the known limits of the account change."""

import asyncio
import itertools

from nanobanana_async.emulator import API_KEY, Fixed, LogNormal
from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.events import Event, LimitsChanged
from nanobanana_async.gateways.apimall import ApiMall
from nanobanana_async.session import Session
from nanobanana_async.testing import EmulatorTransport
from tests.support.fakes import now, virtually


@virtually
async def test_learned_limit_is_an_event_once_and_in_stats() -> None:
    changes: list[LimitsChanged] = []

    def listen(event: Event) -> None:
        if isinstance(event, LimitsChanged):
            changes.append(event)

    world = GatewaySimulator(EmulatorSettings(job_limit=6, duration=Fixed(5.0)))
    transport = EmulatorTransport(world, api_key=API_KEY)
    async with Session(ApiMall(api_key=API_KEY), http=transport, observers=[listen]) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(12):
                group.create_task(session.generate(f"a fox, number {number}"))
        stats = session.stats()
    assert changes[0].job_limit is None
    assert 6 in {event.job_limit for event in changes}
    assert all(one != other for one, other in itertools.pairwise(changes))
    assert (stats.job_limit, stats.limit_kind, stats.max_creates_per_s, stats.creates_paused) == (6, None, None, False)
    assert stats.throttled == changes[-1].throttled > 0


@virtually
async def test_learned_rate_is_in_creates_per_second() -> None:
    world = GatewaySimulator(EmulatorSettings(creates_per_minute=120, rate_burst=5, duration=Fixed(1.0)))
    transport = EmulatorTransport(world, api_key=API_KEY)
    async with Session(ApiMall(api_key=API_KEY), http=transport) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(session.generate(f"a fox, number {number}"))
        rate = session.stats().max_creates_per_s
    assert rate is not None
    assert 1.5 < rate < 3.0


@virtually
async def test_slots_that_others_held_at_the_start_are_filled_soon_afterwards() -> None:
    world = GatewaySimulator(EmulatorSettings(job_limit=20, duration=LogNormal(median_s=5.0), seed=5))
    ours, other = (Session(ApiMall(api_key=API_KEY), http=EmulatorTransport(world, api_key=API_KEY)) for _ in range(2))
    async with ours, other:
        for number in range(20):
            await (await other.submit(f"an owl, number {number}")).wait_for_task_id()
        began = now()
        async with asyncio.TaskGroup() as group:
            for number in range(61):
                group.create_task(ours.generate(f"a fox, number {number}"))
    alone_s = 61 / 20 * 5.5
    assert now() - began <= 2.5 * alone_s  # the limit that it met first was 1, and held for a minute
