"""The emulator over real sockets, called by a plain aiohttp client."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from nanobanana_async.emulator import API_KEY, Emulator, Fault, Fixed, faults
from nanobanana_async.emulator.messages import ENDPOINTS, Endpoint
from tests.emulator.hooks import Hook, serving

KEY = {"Authorization": f"Bearer {API_KEY}"}
MALL = {"model": "nano-banana-pro", "prompt": "a fox"}
OTHER = {"model": "google/gempix2", "prompt": "a fox"}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=KEY) as session:
        yield session


async def until_ended(http: aiohttp.ClientSession, url: str, **query: str) -> Any:
    async with asyncio.timeout(10):
        while True:
            async with http.get(url, params=query) as response:
                data = (await response.json())["data"]
            if data["status"] in ("completed", "success", "failed"):
                return data
            await asyncio.sleep(0.01)


async def create(http: aiohttp.ClientSession, emulator: Emulator, **headers: str) -> tuple[int, Any]:
    async with http.post(f"{emulator.url}/api/v1/images/generate", json=MALL, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.emulator(duration=Fixed(0.05), image_scale=0.1)
async def test_apimall_job_over_a_socket(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    status, body = await create(http, nanobanana_emulator)
    task_id = body["data"]["task_id"]
    seen = await until_ended(http, f"{nanobanana_emulator.url}/api/v1/images/{task_id}")
    async with http.get(seen["primary_url"]) as response:
        assert (response.status, response.content_type) == (200, "image/png")
        assert (await response.read()).startswith(b"\x89PNG")
    assert (status, seen["status"]) == (200, "completed")
    stats = nanobanana_emulator.stats()
    assert (stats.seen, stats.requests["cdn"], stats.open_connections) == (1, 1, 1)


@pytest.mark.emulator(duration=Fixed(0.05))
async def test_defapi_job_over_a_socket(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{nanobanana_emulator.url}/api/image/gen", json=OTHER) as response:
        task_id = (await response.json())["data"]["task_id"]
    seen = await until_ended(http, f"{nanobanana_emulator.url}/api/task/query", task_id=task_id)
    assert seen["result"][0]["image"].startswith(f"{nanobanana_emulator.url}/cdn/")


@pytest.mark.parametrize("processed", [False, True])
async def test_a_reset_arrives_as_a_lost_connection(http: aiohttp.ClientSession, processed: bool) -> None:
    async with Emulator() as emulator:
        emulator.queue_faults("apimall.create", faults.reset(processed=processed))
        with pytest.raises(aiohttp.ClientConnectionError):
            await create(http, emulator)
        assert emulator.stats().creates_accepted == int(processed)
        assert (await create(http, emulator))[0] == 200


async def test_a_cut_body_arrives_as_a_payload_error(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    nanobanana_emulator.queue_faults("apimall.create", faults.cut())
    with pytest.raises(aiohttp.ClientPayloadError):
        await create(http, nanobanana_emulator)
    assert nanobanana_emulator.stats().lost_creates == 1


async def test_a_wrong_length_makes_the_body_unreadable(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    nanobanana_emulator.queue_faults("apimall.create", faults.wrong_length())
    with pytest.raises((json.JSONDecodeError, aiohttp.ClientError)):
        await create(http, nanobanana_emulator)
    assert nanobanana_emulator.stats().lost_creates == 1


@pytest.mark.parametrize(
    ("fault", "status", "start"),
    [
        (faults.html(502), 502, b"<html>"),
        (faults.html(200), 200, b"<html>"),
        (faults.garbage(), 200, b"\x00\xff"),
        (faults.error(504, envelope=False), 504, b""),
        (faults.error(500), 500, b'{"code":1,"message":"failed"'),
        (faults.answer(302, headers={"Location": "/elsewhere"}), 302, b""),
        (faults.answer(599, body=b"odd"), 599, b"odd"),
    ],
)
async def test_answer_fault_arrives_unchanged(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession, fault: Fault, status: int, start: bytes
) -> None:
    nanobanana_emulator.queue_faults("defapi.create", fault)
    url = f"{nanobanana_emulator.url}/api/image/gen"
    async with http.post(url, json=OTHER, allow_redirects=False) as response:
        assert response.status == status
        assert (await response.read()).startswith(start)


async def test_a_cut_answer_may_have_any_status(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    delivery = faults.cut().sending
    fault = Fault(name="odd", status=599, body=b"half of this", sending=delivery)
    nanobanana_emulator.queue_faults("apimall.create", fault)
    async with http.post(f"{nanobanana_emulator.url}/api/v1/images/generate", json=MALL) as response:
        assert response.status == 599
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_delay_is_waited_for(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    nanobanana_emulator.queue_faults("apimall.create", faults.delay(0.1))
    begun_at = nanobanana_emulator.now()
    assert (await create(http, nanobanana_emulator))[0] == 200
    assert nanobanana_emulator.now() - begun_at >= 0.1


async def test_a_stall_ends_in_a_lost_connection(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    nanobanana_emulator.queue_faults("apimall.create", faults.stall(0.1, processed=True))
    begun_at = nanobanana_emulator.now()
    with pytest.raises(aiohttp.ClientConnectionError):
        await create(http, nanobanana_emulator)
    assert nanobanana_emulator.now() - begun_at >= 0.1
    assert nanobanana_emulator.stats().creates_accepted == 1


async def test_late_request_is_processed_after_the_client_disconnects(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    nanobanana_emulator.queue_faults("apimall.create", faults.late(0.2))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await create(http, nanobanana_emulator)
    assert nanobanana_emulator.stats().creates_accepted == 0
    await asyncio.sleep(0.3)
    assert nanobanana_emulator.stats().creates_accepted == 1


REQUESTS: dict[Endpoint, tuple[str, str]] = {
    "apimall.create": ("POST", "/api/v1/images/generate"),
    "apimall.query": ("GET", "/api/v1/images/x"),
    "apimall.history": ("GET", "/api/v1/images/history"),
    "apimall.balance": ("GET", "/api/v1/account/balances"),
    "apimall.upload": ("POST", "/api/v1/files/base64"),
    "apimall.put": ("PUT", "/storage/x"),
    "apimall.webhooks": ("DELETE", "/api/v1/webhooks/x"),
    "defapi.create": ("POST", "/api/image/gen"),
    "defapi.query": ("GET", "/api/task/query"),
    "defapi.balance": ("GET", "/api/user"),
    "cdn": ("GET", "/cdn/x"),
}


def test_every_endpoint_has_a_request_here() -> None:
    assert list(REQUESTS) == list(ENDPOINTS)


@pytest.mark.parametrize(("endpoint", "request_line"), REQUESTS.items())
async def test_every_endpoint_can_be_cut_off(
    http: aiohttp.ClientSession, endpoint: Endpoint, request_line: tuple[str, str]
) -> None:
    method, path = request_line
    async with Emulator() as emulator:
        emulator.queue_faults(endpoint, *[faults.reset()] * 3)  # aiohttp repeats a lost GET by itself
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.request(method, emulator.url + path)
        assert emulator.stats().faults["reset"] >= 1


@pytest.mark.parametrize(("endpoint", "request_line"), REQUESTS.items())
async def test_every_endpoint_can_answer_an_error_or_garbage(
    http: aiohttp.ClientSession, endpoint: Endpoint, request_line: tuple[str, str]
) -> None:
    method, path = request_line
    async with Emulator() as emulator:
        emulator.queue_faults(endpoint, faults.error(503), faults.garbage())
        answers = []
        for _ in range(2):
            async with http.request(method, emulator.url + path) as response:
                answers.append((response.status, (await response.read())[:2]))
        assert answers[0][0] == 503
        assert answers[1] == (200, b"\x00\xff")


async def test_closing_does_not_wait_for_stalls_or_idle_connections() -> None:
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    async with aiohttp.ClientSession(headers=KEY) as http:
        async with Emulator() as emulator:
            await create(http, emulator)
            emulator.queue_faults("apimall.create", faults.stall(60))
            stalled = loop.create_task(create(http, emulator))
            await asyncio.sleep(0.05)
            begun_at = loop.time()
        assert loop.time() - begun_at < 1.0
        with pytest.raises(aiohttp.ClientConnectionError):
            await stalled
    assert emulator.stats().open_connections == 0
    assert emulator.now() == emulator.now()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(("status", "sent"), [(200, 2), (500, 0)])
async def test_each_callback_is_posted_once(http: aiohttp.ClientSession, status: int, sent: int) -> None:
    hook = Hook(status)
    async with serving(hook) as url, Emulator(duration=Fixed(0.05)) as emulator:
        for prompt in ("a fox", "a [fail] fox"):
            body = {**OTHER, "prompt": prompt, "callback_url": url}
            async with http.post(f"{emulator.url}/api/image/gen", json=body) as response:
                assert response.status == 200
        async with asyncio.timeout(5):
            while emulator.stats().callbacks_sent + emulator.stats().callbacks_failed < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (emulator.stats().callbacks_sent, emulator.stats().callbacks_failed) == (sent, 2 - sent)
    assert sorted(json.loads(body)["status"] for body in hook.bodies) == ["failed", "success"]


async def test_undelivered_callback_counts_as_failed(http: aiohttp.ClientSession) -> None:
    async with serving(Hook()) as url:
        pass
    async with Emulator(duration=Fixed(0.02)) as emulator:
        async with http.post(f"{emulator.url}/api/image/gen", json={**OTHER, "callback_url": url}) as response:
            assert response.status == 200
        async with asyncio.timeout(5):
            while not emulator.stats().callbacks_failed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert emulator.stats().callbacks_sent == 0
