"""API Mall on the emulator, whose webhook delivers over real sockets: few queries, one registration, nothing lost."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from nanobanana_async import ApiMall, Outcome, Session
from nanobanana_async.emulator import API_KEY, Emulator, EmulatorOptions, Fixed, LogNormal
from nanobanana_async.emulator.settings import WebhookSignatures
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.callbacks import bound, received, served
from tests.support.loopback import RecordingObserver, emulated, until
from tests.support.webhooks import delivery_body

pytestmark = pytest.mark.slow

QUICK: EmulatorOptions = {"job_limit": 20, "duration": LogNormal(median_s=0.6, sigma=0.4), "seed": 1}


async def webhooks_of(emulator: Emulator) -> Sequence[dict[str, Any]]:
    """Return the webhooks of the account, as the gateway lists them."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{emulator.url}/api/v1/webhooks") as response,
    ):
        items: Sequence[dict[str, Any]] = (await response.json())["data"]["items"]
        return items


async def registered(emulator: Emulator) -> dict[str, Any]:
    """Wait until there is one webhook, and return it."""
    async with asyncio.timeout(5.0):
        while not (webhooks := await webhooks_of(emulator)):  # noqa: ASYNC110 - only the gateway knows
            await asyncio.sleep(0.01)
    (webhook,) = webhooks
    return webhook


async def buy(session: Session, count: int) -> list[Outcome]:
    return [row async for row in session.generate_many(f"fox {number}" for number in range(count))]


async def test_deliveries_leave_about_one_poll_per_job(tmp_path: Path) -> None:
    async with emulated(**QUICK) as emulator:
        session = Session(emulator.apimall(), ledger=tmp_path / "jobs.sqlite")
        async with received(session), session:
            outcomes = await buy(session, 60)
        stats = emulator.stats()
    assert all(outcome.ok for outcome in outcomes)
    assert (stats.creates_accepted, stats.double_charges, stats.callbacks_failed) == (60, 0, 0)
    assert stats.polls_per_job_mean <= 1.2  # how soon it is seen: `python -m benchmarks callbacks`


@pytest.mark.parametrize("signatures", ["right", "wrong", "unknown", "absent"])
async def test_deliveries_with_any_signature_are_hints(signatures: WebhookSignatures) -> None:
    options: EmulatorOptions = {**QUICK, "webhook_signatures": signatures}
    async with emulated(**options) as emulator:
        session = Session(emulator.apimall())
        async with received(session), session:
            outcomes = await buy(session, 40)
        stats = emulator.stats()
    assert all(outcome.ok for outcome in outcomes)
    assert stats.polls_per_job_mean <= 1.3


async def test_dropped_and_repeated_deliveries_end_all_jobs_once(tmp_path: Path) -> None:
    options: EmulatorOptions = {
        **QUICK,
        "callback_drop_probability": 1 / 3,
        "callback_duplicate_probability": 1 / 3,
    }
    async with emulated(**options) as emulator:
        session = Session(emulator.apimall(), ledger=tmp_path / "jobs.sqlite")
        async with received(session), session:
            outcomes = await buy(session, 30)
        stats = emulator.stats()
    assert all(outcome.ok for outcome in outcomes)
    assert (stats.creates_accepted, stats.double_charges) == (30, 0)
    assert stats.callbacks_dropped > 0


async def test_restarted_app_finds_its_webhook_again(tmp_path: Path) -> None:
    listener, address = bound()
    async with emulated(duration=Fixed(0.2)) as emulator:
        ids = []
        for start in range(3):
            session = Session(emulator.apimall(), ledger=tmp_path / "jobs.sqlite")
            app = web.Application()
            app.add_routes(CallbackReceiver(session, public_url=address).aiohttp_routes())
            async with session, served(app, listener.dup()):
                ids.append((await registered(emulator))["id"])
                assert all(outcome.ok for outcome in await buy(session, 5 + start))
        (webhook,) = await webhooks_of(emulator)
    listener.close()
    assert ids == [webhook["id"]] * 3
    assert (webhook["total_sent"], webhook["total_failed"]) == (18, 0)


async def test_sessions_that_open_at_once_on_one_file_keep_one_webhook(tmp_path: Path) -> None:
    async with emulated() as emulator:
        sessions = [Session(emulator.apimall(), ledger=tmp_path / "jobs.sqlite") for _ in range(4)]
        for session in sessions:
            CallbackReceiver(session, public_url="http://127.0.0.1:9/hooks")
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(session.open())
        await until(lambda: all(s._require_engine().poller.fallback._webhook_since is not None for s in sessions))
        assert len(await webhooks_of(emulator)) == 1
        for session in sessions:
            await session.aclose()


async def test_delivery_behind_a_balancer_reaches_the_owner(tmp_path: Path) -> None:
    async with emulated(duration=Fixed(0.5)) as emulator:
        observer = RecordingObserver()
        buyer = Session(emulator.apimall(), ledger=tmp_path / "jobs.sqlite")
        other = Session(emulator.apimall(), ledger=tmp_path / "jobs.sqlite", observers=[observer])
        async with received(other) as (url,), other:
            await registered(emulator)
            CallbackReceiver(buyer, public_url=url)
            async with buyer, asyncio.timeout(30.0):
                outcomes = await buy(buyer, 10)
                webhook = await registered(emulator)
        stats = emulator.stats()
    assert all(outcome.ok for outcome in outcomes)
    assert (stats.creates_accepted, stats.double_charges) == (10, 0)
    assert (webhook["total_sent"], webhook["total_failed"]) == (10, 0)
    assert observer.events == []


async def test_forged_and_replayed_deliveries_change_nothing(tmp_path: Path) -> None:
    async with emulated(duration=Fixed(4.0)) as emulator, aiohttp.ClientSession() as http:
        gateway = ApiMall(api_key=API_KEY, base_url=emulator.url)  # expects 20 s: no usual poll comes before the end
        session = Session(gateway, ledger=tmp_path / "jobs.sqlite")
        async with received(session), session:
            url = (await registered(emulator))["url"]
            job = await session.submit("a fox")
            await job.wait_for_task_id()
            begun = asyncio.get_running_loop().time()
            for number in range(200):
                body = delivery_body(job.task_id, ("job.completed", "job.failed")[number % 2])
                async with http.post(url, data=body) as response:
                    assert response.status == 200
                async with http.post(url[:-1] + "~", data=body) as response:
                    assert response.status == 404
            took = asyncio.get_running_loop().time() - begun
            assert job.state.value == "running"
            assert session.stats().polls <= took + 1
            result = await job
    assert emulator.url in (result.url or "")
    assert emulator.stats().double_charges == 0
