"""The callback URL: one for each job, of which nobody can guess another, and no part of what is wanted."""

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
from tests.support.shared_ledger import FakeProcess, SharedLedger

SECRET = "a secret of enough letters"


async def url_of(session: Session, key: str = KEY) -> str:
    """Return a job's URL; the session is open."""
    return await session._callback_urls.make_url(key)


@virtually
async def test_each_job_gets_a_url_of_its_own_below_the_public_one() -> None:
    shop = CallbackGateway()
    async with calling(shop.answer) as (session, _, transport), asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(session.generate("a fox", idempotency_key=f"order-{number}"))
    urls = [url_in(create) or "" for create in transport.creates]
    assert len(set(urls)) == 20
    assert all(url.startswith(f"{PUBLIC}/callbacks/") for url in urls)


@virtually
async def test_a_token_has_more_than_128_bits_and_nothing_of_it_is_shared_by_two_keys() -> None:
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
async def test_whatever_stands_in_a_key_its_url_leads_back_to_it(key: str) -> None:
    shop = CallbackGateway(job_s=10.0)
    async with calling(shop.answer) as (session, receiver, _):
        job = await session.submit("a fox", idempotency_key=key)
        await job.accepted()
        url = shop.url()
        assert urlsplit(url).path.count("/") == 4
        assert not set(url) - set(PUBLIC) - set("0123456789_-/ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
        await asyncio.sleep(10.0)
        assert await call(receiver, url, callback_body("t1")) == 200
        await asyncio.sleep(0.2)
        assert job.state is JobState.SUCCEEDED
        assert len(shop.polled) == 1


async def test_the_secret_is_kept_in_the_ledger_file_and_so_the_url_outlives_the_process(tmp_path: Path) -> None:
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
async def test_a_secret_of_ones_own_makes_the_same_urls_on_any_ledger() -> None:
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
def test_a_secret_that_can_be_guessed_is_refused(secret: str | bytes) -> None:
    with pytest.raises(ConfigurationError, match="16 bytes"):
        CallbackReceiver(defapi(FakeTransport(CallbackGateway().answer)), public_url=PUBLIC, secret=secret)


@pytest.mark.parametrize(
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
def test_a_public_url_that_no_gateway_could_call_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="public_url"):
        CallbackReceiver(defapi(FakeTransport(CallbackGateway().answer)), public_url=url)


@pytest.mark.parametrize("url", ["https://app.example", "https://app.example/", "http://[::1]:80/a/b/", PUBLIC + "//"])
@virtually
async def test_a_public_url_may_have_a_path_and_slashes_at_the_end(url: str) -> None:
    session = defapi(FakeTransport(CallbackGateway().answer))
    receiver = CallbackReceiver(session, public_url=url)
    async with session:
        made = await url_of(session)
        assert made.startswith(f"{url.rstrip('/')}/callbacks/")
        assert await call(receiver, made) == 200


@virtually
async def test_a_request_with_its_own_callback_url_keeps_it() -> None:
    shop = CallbackGateway()
    async with calling(shop.answer) as (session, _, transport):
        await session.generate("a fox", callback_url="https://me.example/here")
    assert url_in(transport.creates[0]) == "https://me.example/here"


@virtually
async def test_a_gateway_that_takes_no_callbacks_gets_none() -> None:
    transport = FakeTransport(CallbackGateway().answer)
    session = apimall(transport)
    CallbackReceiver(session, public_url=PUBLIC)
    async with session:
        await session.generate("a fox")
    assert url_in(transport.creates[0]) is None


@virtually
async def test_without_a_receiver_nothing_is_sent() -> None:
    transport = FakeTransport(CallbackGateway().answer)
    async with defapi(transport) as session:
        await session.generate("a fox")
    assert url_in(transport.creates[0]) is None


@virtually
async def test_a_receiver_may_be_made_while_the_session_is_open() -> None:
    shop = CallbackGateway(job_s=10.0)
    transport = FakeTransport(shop.answer)
    async with defapi(transport) as session:
        await (await session.submit("a fox")).accepted()
        receiver = CallbackReceiver(session, public_url=PUBLIC)
        job = await session.submit("a hare")
        await job.accepted()
        assert [url_in(create) is None for create in transport.creates] == [True, False]
        await asyncio.sleep(10.0)
        assert await call(receiver, shop.url(2), callback_body("t2")) == 200
        await asyncio.sleep(0.2)
        assert job.state is JobState.SUCCEEDED


@virtually
async def test_of_two_receivers_both_hear_and_the_later_ones_url_is_sent() -> None:
    shop = CallbackGateway()
    async with calling(shop.answer) as (session, first, transport):
        second = CallbackReceiver(session, public_url="https://other.example")
        await session.generate("a fox")
        url = url_in(transport.creates[0]) or ""
        assert url.startswith("https://other.example/callbacks/")
        assert await call(first, url) == 200
        assert await call(second, url) == 200


@virtually
async def test_the_url_is_no_part_of_the_request_also_when_the_app_has_moved() -> None:
    shop, ledger = CallbackGateway(), RecordingLedger(keep_ended=True)
    for public_url in (PUBLIC, "https://moved.example"):
        session = defapi(FakeTransport(shop.answer), ledger=ledger)
        CallbackReceiver(session, public_url=public_url)
        async with session:
            await session.generate("a fox", idempotency_key=KEY)
            await session.generate(ImageRequest("a fox", callback_url="https://me.example"), idempotency_key=KEY)
    async with defapi(FakeTransport(shop.answer), ledger=ledger) as session:
        await session.generate("a fox", idempotency_key=KEY)
    assert shop.sold == 1


@virtually
async def test_batches_send_it_too_and_find_their_rows_again_under_another_url() -> None:
    shop, book = CallbackGateway(), SharedLedger()
    keys = []
    for public_url in (PUBLIC, "https://moved.example", None):
        process = FakeProcess(book, shop.answer, session_of=defapi)
        if public_url is not None:
            CallbackReceiver(process.session, public_url=public_url)
        async with process:
            batch = process.session.generate_many(["a fox", "a hare"], batch="spring", ordered=True)
            outcomes = [row async for row in batch]
            assert all(row.ok for row in outcomes)
            keys.append([row.key for row in outcomes])
    assert keys[0] == keys[1] == keys[2]
    assert shop.sold == 2
    assert all(url.startswith(PUBLIC) for url in shop.urls.values())
