"""Callback URLs: one for each job, not guessable from another, and not part of the request."""

import asyncio
import base64
import itertools
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nanobanana_async import ConfigurationError, ImageRequest, JobState, MemoryLedger, Session
from nanobanana_async.testing import FakeTransport
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.callbacks import KEY, PUBLIC, CallbackGateway, call, callback_body, calling, url_in
from tests.support.fakes import RecordingLedger, apimall, defapi, virtually
from tests.support.rows import each_row
from tests.support.shared_ledger import FakeProcess, SharedLedger

SECRET = "a secret of enough letters"


async def url_of(session: Session, key: str = KEY) -> str:
    """Return a job's URL; the session is open."""
    return await session._callback_router.make_url(key)


@virtually
async def test_each_job_has_its_own_url() -> None:
    gateway = CallbackGateway()
    async with calling(gateway.answer) as (session, _, transport), asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(session.generate("a fox", idempotency_key=f"order-{number}"))
    urls = [url_in(create) or "" for create in transport.creates]
    assert len(set(urls)) == 20
    assert all(url.startswith(f"{PUBLIC}/callbacks/") for url in urls)


@virtually
async def test_token_has_128_bits_and_differs_by_key() -> None:
    async with calling(CallbackGateway().answer) as (session, _, _):
        tokens = [(await url_of(session, f"order-{number}")).rpartition("/")[2] for number in range(200)]
    raw = [base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)) for token in tokens]
    assert {len(token) for token in raw} == {24}
    nearest = min(
        (int.from_bytes(one) ^ int.from_bytes(two)).bit_count() for one, two in itertools.combinations(raw, 2)
    )
    assert nearest > 48  # of 192 bits half differ by chance


@pytest.mark.parametrize("key", ["a/b/../c", "spring:3", "..", "?x=1&y#z", "%2F%00", "~" * 255, "!", "a" * 254])
@virtually
async def test_url_of_any_key_leads_back_to_it(key: str) -> None:
    gateway = CallbackGateway(job_s=10.0)
    async with calling(gateway.answer) as (session, receiver, _):
        job = await session.submit("a fox", idempotency_key=key)
        await job.wait_for_task_id()
        url = gateway.url()
        assert urlsplit(url).path.count("/") == 4
        assert not set(url) - set(PUBLIC) - set("0123456789_-/ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
        await asyncio.sleep(10.0)
        assert await call(receiver, url, callback_body("t1")) == 200
        await asyncio.sleep(0.2)
        assert job.state is JobState.SUCCEEDED
        assert len(gateway.polled) == 1


async def test_secret_in_the_ledger_keeps_urls_across_processes(tmp_path: Path) -> None:
    urls = []
    for _ in range(2):
        session = defapi(FakeTransport(CallbackGateway().answer), ledger=tmp_path / "jobs.sqlite")
        receiver = CallbackReceiver(session, public_url=PUBLIC)
        async with session:
            urls.append(await url_of(session))
            assert await call(receiver, urls[0]) == 200
    assert urls[0] == urls[1]
    session = defapi(FakeTransport(CallbackGateway().answer), ledger=tmp_path / "others.sqlite")
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        assert await url_of(session) != urls[0]
        assert await call(receiver, urls[0]) == 404


@virtually
async def test_given_secret_makes_the_same_urls() -> None:
    urls = []
    for secret in (SECRET, SECRET.encode()):
        session = defapi(FakeTransport(CallbackGateway().answer), ledger=MemoryLedger())
        CallbackReceiver(session, public_url=PUBLIC, secret=secret)
        async with session:
            urls.append(await url_of(session))
    assert urls[0] == urls[1]
    async with calling(CallbackGateway().answer) as (session, receiver, _):
        assert await url_of(session) not in urls
        assert await call(receiver, urls[0]) == 404


@pytest.mark.parametrize("secret", ["", "fifteen letters", b"0123456789abcde"])
def test_weak_secret_is_refused(secret: str | bytes) -> None:
    with pytest.raises(ConfigurationError, match="16 bytes"):
        CallbackReceiver(defapi(FakeTransport(CallbackGateway().answer)), public_url=PUBLIC, secret=secret)


@each_row(
    "url",
    [
        "",
        "app.example",
        "ftp://app.example",
        "https://",
        "https://app.example?x=1",
        "https://app.example/#here",
        "https://[::1",
        "https://app.example:port",
        "https://app.example:99999",
        "https://app.example/a path",
        "https://app.example\n",
        "https://app.example/{tenant}",
    ],
)
def test_uncallable_public_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="public_url"):
        CallbackReceiver(defapi(FakeTransport(CallbackGateway().answer)), public_url=url)


@pytest.mark.parametrize("url", ["https://app.example", "https://app.example/", "http://[::1]:80/a/b/", PUBLIC + "//"])
@virtually
async def test_public_url_may_have_a_path_and_trailing_slashes(url: str) -> None:
    session = defapi(FakeTransport(CallbackGateway().answer))
    receiver = CallbackReceiver(session, public_url=url)
    async with session:
        made = await url_of(session)
        assert made.startswith(f"{url.rstrip('/')}/callbacks/")
        assert await call(receiver, made) == 200


@virtually
async def test_own_callback_url_is_kept() -> None:
    gateway = CallbackGateway()
    async with calling(gateway.answer) as (session, _, transport):
        await session.generate("a fox", callback_url="https://me.example/here")
    assert url_in(transport.creates[0]) == "https://me.example/here"


@virtually
async def test_gateway_without_callbacks_gets_no_url() -> None:
    transport = FakeTransport(CallbackGateway().answer)
    session = apimall(transport)
    CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        await session.generate("a fox")
    assert url_in(transport.creates[0]) is None


@virtually
async def test_no_receiver_sends_no_url() -> None:
    transport = FakeTransport(CallbackGateway().answer)
    async with defapi(transport) as session:
        await session.generate("a fox")
    assert url_in(transport.creates[0]) is None


@virtually
async def test_receiver_can_be_made_in_an_open_session() -> None:
    gateway = CallbackGateway(job_s=10.0)
    transport = FakeTransport(gateway.answer)
    async with defapi(transport) as session:
        await (await session.submit("a fox")).wait_for_task_id()
        receiver = CallbackReceiver(session, public_url=PUBLIC)
        job = await session.submit("a hare")
        await job.wait_for_task_id()
        assert [url_in(create) is None for create in transport.creates] == [True, False]
        await asyncio.sleep(10.0)
        assert await call(receiver, gateway.url(2), callback_body("t2")) == 200
        await asyncio.sleep(0.2)
        assert job.state is JobState.SUCCEEDED


@virtually
async def test_two_receivers_both_work_and_the_later_url_is_sent() -> None:
    gateway = CallbackGateway()
    async with calling(gateway.answer) as (session, first, transport):
        second = CallbackReceiver(session, public_url="https://other.example")
        await session.generate("a fox")
        url = url_in(transport.creates[0]) or ""
        assert url.startswith("https://other.example/callbacks/")
        assert await call(first, url) == 200
        assert await call(second, url) == 200


@virtually
async def test_moved_public_url_is_the_same_request() -> None:
    gateway, ledger = CallbackGateway(), RecordingLedger(keep_ended=True)
    for public_url in (PUBLIC, "https://moved.example"):
        session = defapi(FakeTransport(gateway.answer), ledger=ledger)
        CallbackReceiver(session, public_url=public_url)
        async with session:
            await session.generate("a fox", idempotency_key=KEY)
            await session.generate(ImageRequest("a fox", callback_url="https://me.example"), idempotency_key=KEY)
    async with defapi(FakeTransport(gateway.answer), ledger=ledger) as session:
        await session.generate("a fox", idempotency_key=KEY)
    assert gateway.sold == 1


@virtually
async def test_batch_rows_keep_their_keys_under_another_url() -> None:
    gateway, shared = CallbackGateway(), SharedLedger()
    keys = []
    for public_url in (PUBLIC, "https://moved.example", None):
        process = FakeProcess(shared, gateway.answer, session_of=defapi)
        if public_url is not None:
            CallbackReceiver(process.session, public_url=public_url)
        async with process:
            batch = process.session.generate_many(["a fox", "a hare"], batch="spring", ordered=True)
            outcomes = [row async for row in batch]
            assert all(row.ok for row in outcomes)
            keys.append([row.key for row in outcomes])
    assert keys[0] == keys[1] == keys[2]
    assert gateway.sold == 2
    assert all(url.startswith(PUBLIC) for url in gateway.urls.values())
