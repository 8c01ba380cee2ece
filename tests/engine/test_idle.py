"""A session without jobs sleeps: it wakes a few times a minute, to save what it learned and to find jobs to adopt."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from nanobanana_async import ApiMall, Session
from nanobanana_async.testing import FakeTransport, VirtualLoop
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.callbacks import PUBLIC, CallbackGateway
from tests.support.fakes import API_KEY, FakeGateway, apimall, defapi, virtually
from tests.support.webhooks import WebhookGateway, hooked

HOUR_S = 3600.0
ALLOWED = 300
"""How often a session may wake in an hour."""


def plain(**settings: Any) -> Session:
    return apimall(FakeTransport(FakeGateway().answer), **settings)


def adopting() -> Session:
    return plain(adopt="follow", adopt_every_s=30.0)


def with_callbacks() -> Session:
    session = defapi(FakeTransport(CallbackGateway(job_s=2.0).answer))
    CallbackReceiver(session, public_url=PUBLIC)
    return session


@asynccontextmanager
async def with_webhook() -> AsyncIterator[Session]:
    gateway = WebhookGateway()
    async with hooked(gateway) as session:
        yield session


def of_two_accounts() -> Session:
    keys = (API_KEY, f"{API_KEY}-2")
    return Session([ApiMall(api_key=key) for key in keys], http=FakeTransport(FakeGateway().answer))


async def wakes_in_an_hour(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often the clock of the virtual loop moves on: so often an event loop wakes."""
    jump, jumps = VirtualLoop.jump, []

    def counted(loop: VirtualLoop, seconds: float) -> None:
        jumps.append(seconds)
        jump(loop, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(VirtualLoop, "jump", counted)
        await asyncio.sleep(HOUR_S)
    return len(jumps)


@pytest.mark.parametrize("opened", [plain, adopting, with_callbacks, with_webhook, of_two_accounts])
@virtually
async def test_session_without_jobs_wakes_rarely(
    opened: Callable[[], AbstractAsyncContextManager[Session]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as session:
        assert 0 < await wakes_in_an_hour(monkeypatch) <= ALLOWED
        await session.generate("a fox")
        assert 0 < await wakes_in_an_hour(monkeypatch) <= ALLOWED


@virtually
async def test_task_of_another_program_keeps_the_session_awake_until_it_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = WebhookGateway()
    async with hooked(gateway):
        assert await gateway.deliver("foreign") == 200
        assert await wakes_in_an_hour(monkeypatch) > ALLOWED
        assert await wakes_in_an_hour(monkeypatch) <= ALLOWED
