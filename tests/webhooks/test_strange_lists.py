"""The account's webhook where lists and answers are not as documented: few are made, no other's is removed."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from nanobanana_async import MemoryLedger, TransportError
from nanobanana_async.engine.account_webhook import FIRST_CHECK_GAP_S, LONGEST_CHECK_GAP_S, MOST_PAGES
from nanobanana_async.engine.unlisted_registrations import COUNTED_FOR, MOST_UNLISTED
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import Reply
from tests.support.callbacks import PUBLIC
from tests.support.fakes import now, virtually
from tests.support.replies import json_reply
from tests.support.webhooks import WebhookGateway, hooked

OTHERS = "https://other.example/hooks"


class StrangeGateway(WebhookGateway):
    """Shows each webhook in its own way, or answers a registration with another id."""

    def __init__(self, shown: Callable[[dict[str, Any]], Any] = dict, *, answered_id: str | None = None) -> None:
        super().__init__(job_s=10.0)
        self.shown = shown
        self.answered_id = answered_id
        self.add(OTHERS)

    def _answer_about_webhooks(self, request: HttpRequest, path: str) -> Reply:
        reply = super()._answer_about_webhooks(request, path)
        if request.method == "GET":
            items = [item for each in self.webhooks.values() if (item := self.shown(each)) is not None]
            return json_reply(200, {"success": True, "data": {"items": items}})
        if request.method == "POST" and self.answered_id is not None:
            return json_reply(200, {"success": True, "data": {"id": self.answered_id, "status": "active"}})
        return reply


class PagedGateway(WebhookGateway):
    """Lists one webhook on a page, and says in its own words that more follow."""

    def __init__(self, words: Callable[[int, int], dict[str, Any]], *, knows_pages: bool = True) -> None:
        super().__init__()
        self.words = words
        self.knows_pages = knows_pages
        self.add(OTHERS)
        self.add("https://another.example/")

    def _answer_about_webhooks(self, request: HttpRequest, path: str) -> Reply:
        if request.method != "GET":
            return super()._answer_about_webhooks(request, path)
        query = parse_qs(urlsplit(request.url).query)
        page = int((query.get("cursor") or query.get("page") or ["1"])[0]) if self.knows_pages else 1
        items = list(self.webhooks.values())
        data = {"items": items[page - 1 : page], **self.words(page, len(items))}
        return json_reply(200, {"success": True, "data": data})


def hidden(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def rewritten(old: str, new: str) -> Callable[[dict[str, Any]], Any]:
    return lambda webhook: {**webhook, "url": webhook["url"].replace(old, new)}


@pytest.mark.parametrize("answered_id", ["wh_1", "12345"])
@virtually
async def test_id_in_the_answer_to_a_registration_is_not_trusted(answered_id: str) -> None:
    gateway, ledger = StrangeGateway(answered_id=answered_id), MemoryLedger()
    for _ in range(3):
        async with hooked(gateway, ledger=ledger):
            pass
    assert list(gateway.webhooks) == ["wh_1", "wh_2"]
    assert "DELETE" not in gateway.asked
    assert gateway.registered == 2


@virtually
async def test_id_that_also_stands_beside_another_url_is_not_removed() -> None:
    gateway, ledger = StrangeGateway(lambda webhook: {**webhook, "id": "wh_1"}), MemoryLedger()
    async with hooked(gateway, ledger=ledger) as session:
        assert await session._callback_router.unregister_webhooks() == 0
    assert gateway.webhooks["wh_1"]["url"] == OTHERS


@pytest.mark.parametrize(
    "shown",
    [
        rewritten("app.example", "app.example:443"),
        rewritten("app.example", "APP.Example"),
        rewritten("https://", "HTTPS://"),
        lambda webhook: {**webhook, "url": f" {webhook['url']}/"},
    ],
)
@virtually
async def test_listed_url_is_recognised_however_it_is_written(shown: Callable[[dict[str, Any]], Any]) -> None:
    gateway, ledger = StrangeGateway(shown), MemoryLedger()
    for _ in range(3):
        async with hooked(gateway, ledger=ledger, public_url=f"{PUBLIC}/"):
            pass
    assert (list(gateway.webhooks), gateway.registered) == (["wh_1", "wh_2"], 2)


@pytest.mark.parametrize(
    "shown", [rewritten("https://app.example", "https://10.0.0.1"), lambda webhook: {**webhook, "status": "paused"}]
)
@virtually
async def test_webhook_just_made_is_kept_though_the_list_changes_it(shown: Callable[[dict[str, Any]], Any]) -> None:
    gateway, ledger = StrangeGateway(shown), MemoryLedger()
    for _ in range(3):
        async with hooked(gateway, ledger=ledger):
            pass
    assert len(gateway.webhooks) == 2
    assert gateway.webhooks["wh_1"]["url"] == OTHERS


@pytest.mark.parametrize(
    "url",
    [
        "https://proxy.example/?to={}",
        "https://proxy.example/#{}",
        "{}?copy=1",
        "https://[::1{}",
        "{}" + "/" * 5000 + "x",
    ],
)
@virtually
async def test_url_that_only_contains_ours_is_not_removed(url: str) -> None:
    gateway, ledger = WebhookGateway(), MemoryLedger()
    async with hooked(gateway, ledger=ledger) as session:
        gateway.add(url.format(gateway.urls[0]), status="inactive")
        assert await session._callback_router.unregister_webhooks() == 1
    assert list(gateway.webhooks) == ["wh_2"]


@pytest.mark.parametrize(
    "shown",
    [
        lambda webhook: {**webhook, "url": f"{webhook['url'][:30]}***"},
        lambda webhook: webhook if webhook["url"] == OTHERS else None,
    ],
)
@virtually
async def test_hidden_webhook_is_registered_once_a_day(
    shown: Callable[[dict[str, Any]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    gateway, ledger = StrangeGateway(shown), MemoryLedger()
    for _ in range(3):
        caplog.clear()
        async with hooked(gateway, ledger=ledger) as session:
            begun = now()
            while now() < begun + 3 * FIRST_CHECK_GAP_S:
                await session.generate("a fox")
        (warning,) = hidden(caplog)
        assert warning.startswith("webhook.hidden ")
        assert "`nanobanana webhooks`" in warning
    assert gateway.registered == 2


@virtually
async def test_day_after_a_hidden_webhook_one_more_is_registered() -> None:
    gateway, ledger = StrangeGateway(lambda webhook: None), MemoryLedger()
    async with hooked(gateway, ledger=ledger):
        await asyncio.sleep(COUNTED_FOR / timedelta(seconds=1))
    async with hooked(gateway, ledger=ledger):
        pass
    assert gateway.registered == 3


@virtually
async def test_webhook_that_is_shown_again_ends_the_pause() -> None:
    gateway, ledger = StrangeGateway(lambda webhook: None), MemoryLedger()
    async with hooked(gateway, ledger=ledger):
        pass
    gateway.shown = dict
    async with hooked(gateway, ledger=ledger):
        pass
    del gateway.webhooks["wh_2"]
    async with hooked(gateway, ledger=ledger):
        pass
    assert gateway.registered == 3


@virtually
async def test_hidden_webhook_delays_no_job_and_still_delivers() -> None:
    ends = []
    for shown in (dict, lambda webhook: None):
        gateway = StrangeGateway(shown)
        async with hooked(gateway) as session:
            begun = now()
            await session.generate("a fox")
            ends.append(now() - begun)
            await session.generate("a fox")
            before = gateway.polled.total()
            await session.generate("a fox")
            assert gateway.polled.total() == before + 1
    assert ends[0] == pytest.approx(ends[1])


class LosingGateway(StrangeGateway):
    """Registers webhooks whose answers are lost."""

    def answer(self, request: HttpRequest) -> Reply:
        reply = super().answer(request)
        lost = request.method == "POST" and "webhooks" in request.url
        return TransportError("the connection was reset", possibly_sent=True) if lost else reply


@virtually
async def test_lost_answers_of_hidden_webhooks_are_few(caplog: pytest.LogCaptureFixture) -> None:
    gateway, ledger = LosingGateway(lambda webhook: None), MemoryLedger()
    for _ in range(3):
        async with hooked(gateway, ledger=ledger):
            await asyncio.sleep(2 * LONGEST_CHECK_GAP_S)
    assert gateway.registered == 1 + MOST_UNLISTED
    assert sum(text.startswith("webhook.hidden") for text in hidden(caplog)) == 3


@pytest.mark.parametrize("status", [403, 429])
@virtually
async def test_refused_registration_does_not_count_as_hidden(status: int) -> None:
    gateway = WebhookGateway()
    no = json_reply(status, {"success": False, "error": {"code": "forbidden", "message": "no"}})
    empty = json_reply(200, {"success": True, "data": []})
    gateway.troubles = [empty, no] * (MOST_UNLISTED + 2)
    async with hooked(gateway):
        await asyncio.sleep(1000.0)
    assert list(gateway.webhooks) == ["wh_1"]


def unsent(gateway: WebhookGateway) -> list[Reply]:
    return [json_reply(200, {"success": True, "data": []}), TransportError("no route", possibly_sent=False)]


@virtually
async def test_registration_that_never_left_does_not_count_as_hidden() -> None:
    gateway = WebhookGateway()
    gateway.troubles = unsent(gateway) * (MOST_UNLISTED + 1)
    async with hooked(gateway):
        await asyncio.sleep(1000.0)
    assert list(gateway.webhooks) == ["wh_1"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"at": 5, "count": 3}', '{"at": "2026-01-01T00:00:00", "count": 3}'])
@virtually
async def test_unreadable_memory_of_registrations_is_none(text: str) -> None:
    gateway, ledger = WebhookGateway(), MemoryLedger()
    async with hooked(WebhookGateway(), ledger=ledger) as session:
        account = session._components.gateway.account
    await ledger.remember(f"{account} webhooks", text)
    async with hooked(gateway, ledger=ledger):
        pass
    assert list(gateway.webhooks) == ["wh_1"]


PAGES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "total": lambda page, count: {"total": count},
    "has_more": lambda page, count: {"has_more": page < count},
    "pages": lambda page, count: {"pagination": {"page": page, "total_pages": count}},
    "limit": lambda page, count: {"page": page, "limit": 1},
    "cursor": lambda page, count: {"next_cursor": str(page + 1) if page < count else None},
}


@pytest.mark.parametrize("words", PAGES)
@virtually
async def test_further_pages_of_the_list_are_read(words: str) -> None:
    gateway, ledger = PagedGateway(PAGES[words]), MemoryLedger()
    for _ in range(2):
        async with hooked(gateway, ledger=ledger):
            await asyncio.sleep(1.0)
    assert (list(gateway.webhooks), gateway.registered) == (["wh_1", "wh_2", "wh_3"], 3)


@pytest.mark.parametrize("stated", [lambda page: {"has_more": True}, lambda page: {"next_cursor": str(page + 1)}])
@virtually
async def test_list_that_never_ends_is_read_to_a_bound(stated: Callable[[int], dict[str, Any]]) -> None:
    gateway = PagedGateway(lambda page, count: stated(page))
    for number in range(100):
        gateway.add(f"https://other.example/{number}")
    async with hooked(gateway):
        await asyncio.sleep(10.0)
    assert gateway.asked.count("GET") == 2 * MOST_PAGES
    assert gateway.asked.count("POST") == 1


@pytest.mark.parametrize("words", ["total", "cursor"])
@virtually
async def test_first_page_again_ends_the_reading(words: str) -> None:
    gateway = PagedGateway(PAGES[words], knows_pages=False)
    async with hooked(gateway):
        await asyncio.sleep(10.0)
    assert gateway.asked == ["GET", "GET", "POST", "GET", "GET"]
