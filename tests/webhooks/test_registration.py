"""The webhook of an account: registered once, found again, replaced, removed; and never one that is not ours."""

import asyncio
import logging

import pytest

from nanobanana_async import ConcurrencyPolicy, ConfigurationError, MemoryLedger, TransportError
from nanobanana_async.engine.account_webhook import FIRST_CHECK_GAP_S, LONGEST_CHECK_GAP_S
from nanobanana_async.engine.unlisted_registrations import MOST_UNLISTED
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.callbacks import PUBLIC, CallbackGateway, calling
from tests.support.fakes import apimall, now, virtually
from tests.support.replies import json_reply, refused
from tests.support.shared_ledger import SharedLedger
from tests.support.webhooks import WebhookGateway, hooked, process

OTHERS = [
    "https://other.example/hooks",
    f"{PUBLIC}/callbacks/account/YXBpbWFsbA/{'A' * 32}",  # the token is not ours
    f"{PUBLIC}/callbacks/account",
    f"{PUBLIC}/callbacks",
    "",
]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@virtually
async def test_session_registers_one_webhook_in_the_background() -> None:
    gateway = WebhookGateway()
    begun = now()
    session = apimall(FakeTransport(gateway.answer, latency_s=5.0))
    CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        assert now() == begun
        await asyncio.sleep(20.0)
    (webhook,) = gateway.webhooks.values()
    assert webhook["url"].startswith(f"{PUBLIC}/callbacks/account/")
    assert len(webhook["url"].rpartition("/")[2]) == 32
    assert len(webhook["secret_key"]) >= 32
    assert webhook["secret_key"] not in webhook["url"]


@virtually
async def test_session_without_a_receiver_registers_none() -> None:
    gateway = WebhookGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        await session.generate("a fox")
    assert gateway.asked == []


@virtually
async def test_gateway_with_urls_per_job_gets_no_webhook() -> None:
    gateway = CallbackGateway()
    async with calling(gateway.answer) as (session, receiver, transport):
        await session.generate("a fox")
        assert await receiver.unregister() == 0
    assert all("webhooks" not in request.url for request in transport.requests)


@pytest.mark.parametrize("changes_case", [False, True])
@virtually
async def test_restart_finds_its_webhook_again(changes_case: bool) -> None:
    gateway, ledger = WebhookGateway(), MemoryLedger()
    async with hooked(gateway, ledger=ledger):
        pass
    if changes_case:  # gateways may write the host as they like
        gateway.webhooks["wh_1"]["url"] = gateway.urls[0].replace("app.example", "App.Example")
    async with hooked(gateway, ledger=ledger):
        pass
    assert gateway.asked == ["GET", "POST", "GET", "GET"]
    assert list(gateway.webhooks) == ["wh_1"]


@virtually
async def test_another_ledger_registers_its_own_webhook() -> None:
    gateway = WebhookGateway()
    for _ in range(2):
        async with hooked(gateway):
            pass
    assert len(set(gateway.urls)) == 2


@pytest.mark.parametrize("status", ["inactive", "DISABLED"])
@virtually
async def test_inactive_webhook_is_replaced(status: str) -> None:
    gateway, ledger = WebhookGateway(), MemoryLedger()
    async with hooked(gateway, ledger=ledger):
        pass
    gateway.webhooks["wh_1"]["status"] = status
    async with hooked(gateway, ledger=ledger):
        pass
    assert list(gateway.webhooks) == ["wh_2"]


@virtually
async def test_changed_public_url_replaces_the_old_webhook() -> None:
    gateway, ledger = WebhookGateway(), MemoryLedger()
    async with hooked(gateway, ledger=ledger):
        pass
    async with hooked(gateway, ledger=ledger, public_url="https://new.example"):
        pass
    (url,) = gateway.urls
    assert url.startswith("https://new.example/callbacks/account/")


@virtually
async def test_webhooks_of_others_are_never_touched() -> None:
    gateway, ledger = WebhookGateway(), MemoryLedger()
    for url in OTHERS:
        gateway.add(url, status="inactive")
    async with hooked(gateway, ledger=ledger, public_url="https://old.example"):
        pass
    async with hooked(gateway, ledger=ledger) as session:
        assert await session._callback_router.unregister_webhooks() == 1
    assert gateway.urls == OTHERS


@pytest.mark.parametrize("count", [2, 4])
@virtually
async def test_processes_that_start_at_once_keep_one_webhook(count: int, caplog: pytest.LogCaptureFixture) -> None:
    gateway, shared = WebhookGateway(), SharedLedger()
    processes = [process(shared, gateway) for _ in range(count)]
    async with asyncio.TaskGroup() as group:
        for each in processes:
            group.create_task(each.session.open())
    await asyncio.sleep(10.0)
    for each in processes:
        await each.session.aclose()
    assert gateway.registered == min(count, MOST_UNLISTED)
    assert list(gateway.webhooks) == ["wh_1"]
    assert warnings_in(caplog) == []


@virtually
async def test_processes_that_start_one_after_the_other_register_once() -> None:
    gateway, shared = WebhookGateway(), SharedLedger()
    async with process(shared, gateway):
        await asyncio.sleep(1.0)
        async with process(shared, gateway):
            await asyncio.sleep(1.0)
    assert gateway.registered == 1


FAILURES: dict[str, Reply] = {
    "refused": refused(403, "forbidden", "webhooks are not in your plan"),
    "not there": json_reply(404, {"detail": "Not Found"}),
    "no answer": TransportError("the connection was reset", possibly_sent=True),
    "no list": json_reply(200, {"success": True, "data": {}}),
    "a bug": ValueError("in a transport of the user's own"),
}


@pytest.mark.parametrize("failure", FAILURES)
@virtually
async def test_failed_registration_warns_once_and_is_repeated(failure: str, caplog: pytest.LogCaptureFixture) -> None:
    gateway = WebhookGateway(job_s=10.0)
    gateway.troubles = [FAILURES[failure]] * 4
    async with hooked(gateway) as session:
        await session.generate("a fox")
        assert gateway.webhooks == {}
        await asyncio.sleep(100.0)
        assert list(gateway.webhooks) == ["wh_1"]
        assert gateway.asked == ["GET"] * 5 + ["POST", "GET"]
    (warning,) = warnings_in(caplog)
    assert warning.startswith("webhook.not_registered error=")
    assert "polled as without webhooks" in warning


@virtually
async def test_wait_that_the_gateway_asks_for_is_respected() -> None:
    gateway = WebhookGateway()
    gateway.troubles = [json_reply(429, {"success": False, "error": {"code": "rate_limited"}}, **{"retry-after": "60"})]
    async with hooked(gateway):
        await asyncio.sleep(55.0)
        assert gateway.asked == ["GET"]
        await asyncio.sleep(10.0)
        assert list(gateway.webhooks) == ["wh_1"]


@virtually
async def test_public_url_without_https_is_named_in_the_warning(caplog: pytest.LogCaptureFixture) -> None:
    gateway = WebhookGateway()
    async with hooked(gateway, public_url="http://app.example"):
        pass
    (warning,) = warnings_in(caplog)
    assert "let public_url begin with https://" in warning
    assert gateway.asked == ["GET"]


@virtually
async def test_lost_answer_of_a_registration_leaves_one_webhook() -> None:
    gateway = WebhookGateway()
    transport = FakeTransport(lambda request: lose_first_post(gateway, gateway.answer(request), request.method))
    session = apimall(transport)
    CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        await asyncio.sleep(10.0)
    assert gateway.asked == ["GET", "POST", "GET"]
    assert list(gateway.webhooks) == ["wh_1"]


def lose_first_post(gateway: WebhookGateway, reply: Reply, method: str) -> Reply:
    lost = TransportError("the connection was reset", possibly_sent=True)
    return lost if method == "POST" and gateway.asked.count("POST") == 1 else reply


@virtually
async def test_unregister_removes_it_and_registers_none_again() -> None:
    gateway, ledger = WebhookGateway(job_s=3.0), MemoryLedger()
    async with hooked(gateway, ledger=ledger, public_url="https://old.example"):
        pass
    session = apimall(FakeTransport(gateway.answer), ledger=ledger)
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    gateway.troubles = [FAILURES["no answer"]]
    async with session:
        await asyncio.sleep(1.0)
        assert await receiver.unregister() == 1
        await session.generate("a fox")
        await asyncio.sleep(2000.0)
    assert gateway.webhooks == {}
    assert gateway.registered == 1


@virtually
async def test_unregister_of_a_closed_session_says_to_open_it() -> None:
    receiver = CallbackReceiver(apimall(FakeTransport(WebhookGateway().answer)), public_url=PUBLIC)
    with pytest.raises(ConfigurationError, match="the session is not open"):
        await receiver.unregister()


@virtually
async def test_requests_about_webhooks_count_for_the_cap() -> None:
    gateway, times = WebhookGateway(job_s=1.0), list[float]()

    def answer(request: object) -> Reply:
        times.append(now())
        return gateway.answer(request)  # type: ignore[arg-type]

    session = apimall(FakeTransport(answer), concurrency=ConcurrencyPolicy(max_requests_per_minute=6))
    CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        for _ in range(6):
            await session.generate("a fox")
    assert gateway.asked == ["GET", "POST", "GET"]
    assert all(later - first >= 59.9 for first, later in zip(times, times[6:], strict=False))


@pytest.mark.slow
@virtually
async def test_webhook_that_is_gone_is_registered_again_after_losses() -> None:
    gateway = WebhookGateway(job_s=10.0)
    async with hooked(gateway) as session:
        for _ in range(3):
            await session.generate("a fox")
        gateway.webhooks.clear()
        while gateway.registered == 1:
            await session.generate("a fox")
            assert now() < 2 * FIRST_CHECK_GAP_S
        for _ in range(40):
            await session.generate("a fox")
        before = gateway.polled.total()
        for _ in range(5):
            await session.generate("a fox")
        assert gateway.polled.total() - before == 5


@pytest.mark.slow
@virtually
async def test_webhook_that_was_never_seen_to_work_is_checked_ever_more_rarely() -> None:
    gateway = WebhookGateway(job_s=30.0)
    gateway.delays_s = {f"t{number}": None for number in range(1, 500)}
    async with hooked(gateway) as session:
        while now() < 3 * LONGEST_CHECK_GAP_S:
            await session.generate("a fox")
        assert 3 <= len(gateway.asked) - 3 <= 6
        gateway.webhooks["wh_1"]["status"] = "disabled"  # as gateways do when deliveries fail
        begun = now()
        while gateway.registered == 1:
            await session.generate("a fox")
            assert now() < begun + 2 * LONGEST_CHECK_GAP_S
    assert list(gateway.webhooks) == ["wh_2"]


@virtually
async def test_idle_session_asks_nothing_more() -> None:
    gateway = WebhookGateway()
    async with hooked(gateway):
        await asyncio.sleep(10 * FIRST_CHECK_GAP_S)
    assert len(gateway.asked) == 3
