"""API Mall's webhooks over real sockets: registering, listing, removing, and deliveries."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from nanobanana_async.emulator import API_KEY, EmulatedRequest, Emulator, Fixed, faults
from tests.emulator.calling import HEADERS, Caller, body_of
from tests.emulator.hooks import Hook, serving

EVENTS = ["job.completed", "job.failed"]
HOOK = "https://example.com/hook"
SECRET = "a secret"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as session:
        yield session


async def call(
    http: aiohttp.ClientSession, emulator: Emulator, method: str, path: str = "webhooks", **fields: Any
) -> tuple[int, Any]:
    body = fields or None
    async with http.request(method, f"{emulator.url}/api/v1/{path}", json=body) as response:
        answer = await response.json()
        return response.status, answer["data"] if answer["success"] else answer["error"]["message"]


async def register(http: aiohttp.ClientSession, emulator: Emulator, url: str, **fields: Any) -> Any:
    status, webhook = await call(http, emulator, "POST", url=url, **{"events": EVENTS, "secret_key": SECRET, **fields})
    assert status == 200
    return webhook


async def buy(http: aiohttp.ClientSession, emulator: Emulator, prompt: str = "a fox") -> str:
    fields = {"model": "nano-banana-pro", "prompt": prompt}
    status, data = await call(http, emulator, "POST", "images/generate", **fields)
    assert status == 200
    return str(data["task_id"])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def signature(hook: Hook, number: int = 0) -> str:
    timestamp = hook.headers[number]["X-Nano-Timestamp"]
    return hmac.new(SECRET.encode(), f"{timestamp}.".encode() + hook.bodies[number], hashlib.sha256).hexdigest()


async def test_webhook_is_registered_listed_and_removed(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    webhook = await register(http, nanobanana_emulator, HOOK, api_key_id="key-1")
    assert set(webhook) == {"id", "url", "events", "status", "api_key_id", "created_at", "updated_at"}
    assert (webhook["url"], webhook["status"], webhook["api_key_id"]) == (HOOK, "active", "key-1")
    _, listed = await call(http, nanobanana_emulator, "GET")
    counts = {"total_sent": 0, "total_failed": 0, "last_sent_at": None, "last_error": None}
    assert listed["items"] == [{**webhook, **counts}]
    other = await register(http, nanobanana_emulator, HOOK)
    assert (await call(http, nanobanana_emulator, "DELETE", f"webhooks/{webhook['id']}"))[0] == 200
    assert (await call(http, nanobanana_emulator, "DELETE", f"webhooks/{webhook['id']}"))[0] == 404
    _, listed = await call(http, nanobanana_emulator, "GET")
    assert [item["id"] for item in listed["items"]] == [other["id"]]
    assert SECRET not in json.dumps(listed)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"url": "http://example.com/hook"}, "url must begin with https://"),
        ({"url": "hook"}, "url must be an http or https URL"),
        ({"url": None}, "url is required"),
        ({"events": []}, "events must be a non-empty array"),
        ({"events": ["job.begun"]}, "events items must be job.completed or job.failed"),
        ({"secret_key": ""}, "secret_key must not be empty"),
        ({"name": "x"}, "name is not a parameter"),
    ],
)
async def test_wrong_webhook_is_400(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession, fields: dict[str, Any], complaint: str
) -> None:
    status, message = await call(http, nanobanana_emulator, "POST", **{"url": HOOK, "events": EVENTS, **fields})
    assert status == 400
    assert message.startswith(complaint)


@pytest.mark.emulator(webhooks_to_loopback=False)
async def test_loopback_webhook_may_have_to_be_https(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    url = "http://127.0.0.1:1/hook"
    assert (await call(http, nanobanana_emulator, "POST", events=EVENTS, url=url))[0] == 400


async def test_wrong_method_or_key_is_refused(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    assert (await call(http, nanobanana_emulator, "DELETE"))[0] == 405
    assert (await call(http, nanobanana_emulator, "GET", "webhooks/wh_1"))[0] == 405
    async with http.get(f"{nanobanana_emulator.url}/api/v1/webhooks", headers={"Authorization": "x"}) as response:
        assert response.status == 401


@pytest.mark.emulator(duration=Fixed(0.05), credits=100)
async def test_each_end_is_delivered_with_a_signature(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    hook = Hook()
    async with serving(hook) as url:
        await register(http, nanobanana_emulator, url)
        task_id = await buy(http, nanobanana_emulator)
        await until(lambda: len(hook.bodies) == 1)
        failed = await buy(http, nanobanana_emulator, "a [fail] fox")
        await until(lambda: nanobanana_emulator.stats().callbacks_sent == 2)
    completed, other = (json.loads(body) for body in hook.bodies)
    image_url = completed["data"].pop("url")
    async with http.get(image_url) as response:
        assert response.status == 200
    timestamp = int(hook.headers[0]["X-Nano-Timestamp"])
    assert completed == {
        "event": "job.completed",
        "task_id": task_id,
        "task_type": "image",
        "status": "completed",
        "data": {"credits_charged": 8},
        "timestamp": timestamp,
    }
    assert (other["event"], other["task_id"], other["status"]) == ("job.failed", failed, "failed")
    assert other["data"] == {"url": None, "credits_charged": 0}
    assert hook.headers[0]["X-Nano-Signature"] == signature(hook)
    (item,) = (await call(http, nanobanana_emulator, "GET"))[1]["items"]
    assert (item["total_sent"], item["total_failed"], item["last_error"]) == (2, 0, None)
    assert item["last_sent_at"] is not None


@pytest.mark.emulator(duration=Fixed(0.02), webhook_retry_s=0.02)
async def test_failed_delivery_is_repeated_and_counted(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    hook = Hook(500, 200)
    async with serving(hook) as url:
        await register(http, nanobanana_emulator, url)
        await buy(http, nanobanana_emulator)
        await until(lambda: nanobanana_emulator.stats().callbacks_sent == 1)
    (item,) = (await call(http, nanobanana_emulator, "GET"))[1]["items"]
    assert (item["total_sent"], item["total_failed"], item["last_error"]) == (1, 1, None)


@pytest.mark.emulator(duration=Fixed(0.02), webhook_retry_s=0.02, webhook_retries=1)
async def test_delivery_is_given_up_after_the_last_retry(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    async with serving(Hook(503)) as url:
        await register(http, nanobanana_emulator, url)
        await buy(http, nanobanana_emulator)
        await until(lambda: nanobanana_emulator.stats().callbacks_failed == 2)
    (item,) = (await call(http, nanobanana_emulator, "GET"))[1]["items"]
    assert (item["total_sent"], item["total_failed"], item["last_error"]) == (0, 2, "HTTP 503")
    assert nanobanana_emulator.simulator.next_due() is None


async def test_registration_may_lose_its_answer(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    nanobanana_emulator.queue_faults("apimall.webhooks", faults.error(503), faults.reset(processed=True))
    assert (await call(http, nanobanana_emulator, "POST", url=HOOK, events=EVENTS))[0] == 503
    with pytest.raises(aiohttp.ClientConnectionError):
        await call(http, nanobanana_emulator, "POST", url=HOOK, events=EVENTS)
    assert len((await call(http, nanobanana_emulator, "GET"))[1]["items"]) == 1


def hooked(caller: Caller, *events: str, **fields: str) -> str:
    body = {"url": "http://127.0.0.1:1/hook", "events": events or EVENTS, "secret_key": SECRET, **fields}
    return str(body_of(caller.post("/api/v1/webhooks", json.dumps(body).encode()))["data"]["id"])


def test_delivery_is_due_when_any_task_of_the_account_ends() -> None:
    caller = Caller(callback_delay_s=2.0)
    caller.buy()
    hooked(caller)
    caller.buy_defapi()
    (foreign,) = caller.simulator.add_foreign_tasks(0.0, [5.0], duration_s=4.0)
    assert caller.simulator.next_due() == 9.0
    assert caller.simulator.take_due(9.0) == []
    (delivery,) = caller.simulator.take_due(11.0)
    assert (delivery.task_id, delivery.url) == (foreign, "http://127.0.0.1:1/hook")
    assert len(caller.simulator.take_due(12.0)) == 1


def test_webhook_gets_only_its_events_and_none_after_its_removal() -> None:
    caller = Caller()
    kept, removed = hooked(caller, "job.failed"), hooked(caller)
    caller.buy()
    caller.buy("a [fail] fox")
    caller.simulator.stats(10.0)
    path = f"/api/v1/webhooks/{removed}"
    assert caller.simulator.handle(10.0, EmulatedRequest("DELETE", path, {}, HEADERS)).status == 200
    (delivery,) = caller.simulator.take_due(10.0)
    assert (delivery.webhook_id, json.loads(delivery.body)["event"]) == (kept, "job.failed")


def test_deliveries_can_be_dropped_or_repeated_on_loopback_only() -> None:
    dropped, doubled = Caller(callback_drop_probability=1.0), Caller(callback_duplicate_probability=1.0)
    for caller in (dropped, doubled):
        hooked(caller)
        hooked(caller, url=HOOK)
        caller.buy()
    assert [len(caller.simulator.take_due(10.0)) for caller in (dropped, doubled)] == [0, 2]
    assert (dropped.stats().callbacks_dropped, dropped.stats().callbacks_refused) == (1, 1)


def test_signature_may_be_wrong_unknown_or_absent() -> None:
    found = {}
    for manner in ("right", "wrong", "unknown", "absent"):
        caller = Caller(webhook_signatures=manner)
        hooked(caller)
        caller.buy()
        (delivery,) = caller.simulator.take_due(10.0)
        signed = f"{delivery.headers['X-Nano-Timestamp']}.".encode() + delivery.body
        right = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        sent = delivery.headers.get("X-Nano-Signature", "")
        found[manner] = sent == right, len(sent)
    assert found == {"right": (True, 64), "wrong": (False, 64), "unknown": (False, 47), "absent": (False, 0)}
