"""Local reference images in a session of several accounts: each account brings them to its own gateway."""

import asyncio
import json
import random
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    DefApi,
    InvalidRequest,
    JobState,
    MemoryLedger,
    NanoBananaError,
    RetryPolicy,
    Session,
    TransportError,
)
from nanobanana_async.engine import routing
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.engine.test_several_accounts import QUICK, Account
from tests.support.fakes import REAL_TIME
from tests.support.images import make_image
from tests.support.replies import json_reply, refused

PNG = make_image()
QUICK_DEFAPI = DefApi(api_key="sk-c-0123456789abcdef", account="c", expected_job_s=0.05)


class ImageAccount(Account):
    """An account that keeps uploads under URLs of its own, and the references of each create that it sold."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(job_s=0.05, **settings)
        self.name = name
        self.uploads = 0
        self.refuses_uploads: Reply | None = None
        self.references: list[list[str]] = []

    def answer(self, request: HttpRequest) -> Reply:
        if "/files/" in request.url:
            if self.down:
                return TransportError("connection refused", possibly_sent=False)
            if self.refuses_uploads is not None:
                return self.refuses_uploads
            self.uploads += 1
            url = f"https://{self.name}.example/{self.uploads}.png"
            return json_reply(200, {"success": True, "data": {"url": url}})
        before = self.sold
        reply = super().answer(request)
        if self.sold > before:
            body = json.loads(request.body or b"")
            self.references.append(body.get("images") or body.get("image_urls") or [])
        return reply


def session_of(
    one: ImageAccount, two: ImageAccount, *, second: ApiMall | DefApi = QUICK[1], **settings: Any
) -> Session:
    transports = [FakeTransport(each.answer, latency_s=0.001) for each in (one, two)]
    return Session([QUICK[0], second], http=transports, polling=REAL_TIME, **settings)


async def test_each_account_uploads_an_image_once_and_names_its_own_upload() -> None:
    one, two = ImageAccount("a", limit=1), ImageAccount("b", limit=2)
    async with session_of(one, two) as session, asyncio.TaskGroup() as group:
        for n in range(12):
            group.create_task(session.generate(f"fox {n}", images=[PNG], timeout=20))
    assert one.sold + two.sold == 12
    assert min(one.sold, two.sold) > 0
    assert (one.uploads, two.uploads) == (1, 1)
    assert {url for urls in one.references for url in urls} == {"https://a.example/1.png"}
    assert {url for urls in two.references for url in urls} == {"https://b.example/1.png"}


@pytest.mark.parametrize("refuses", ["create", "upload", "network"])
async def test_job_that_moves_is_prepared_again_for_the_other_account(refuses: str) -> None:
    one, two, ledger = ImageAccount("a"), ImageAccount("b"), MemoryLedger()
    one.refuses = refused(402, message="no credits") if refuses == "create" else None
    one.refuses_uploads = refused(401, message="no such key") if refuses == "upload" else None
    one.down = refuses == "network"
    async with session_of(one, two, ledger=ledger) as session:
        result = await session.generate("a fox", images=[PNG], idempotency_key="order-1", timeout=20)
    assert result.images
    assert (one.sold, two.sold) == (0, 1)
    assert two.references == [["https://b.example/1.png"]]
    record = await ledger.find("order-1")
    assert record is not None
    assert record.account == QUICK[1].account


async def test_upload_that_ends_after_its_job_moved_is_not_used_by_the_other_account() -> None:
    one, two = ImageAccount("a"), ImageAccount("b")
    one.down = True
    second = make_image(seed=2)
    retry = RetryPolicy(first_backoff_s=0.05, max_backoff_s=0.05)
    async with session_of(one, two, retry=retry) as session:
        job = await session.submit("a fox", images=[PNG, second])
        await job.result(timeout=20)
        one.down = False  # its uploads are tried again, and succeed now
        await asyncio.sleep(0.2)
        await session.generate("a hare", images=[PNG, second], timeout=20)
    assert one.sold + two.sold == 2
    for account in (one, two):
        assert all(url.startswith(f"https://{account.name}.") for urls in account.references for url in urls)


async def test_image_moves_between_an_upload_and_a_data_uri() -> None:
    one, two = ImageAccount("a"), ImageAccount("c")
    one.refuses = refused(402, message="no credits")
    async with session_of(one, two, second=QUICK_DEFAPI) as session:
        await session.generate("a fox", images=[PNG], timeout=20)
    assert (one.sold, two.sold) == (0, 1)
    assert [urls[0][:15] for urls in two.references] == ["data:image/png;"]


async def test_image_that_one_gateway_does_not_take_is_refused_before_anything_is_stored() -> None:
    one, two, ledger = ImageAccount("a"), ImageAccount("c"), MemoryLedger()
    small = DefApi(api_key="sk-c-0123456789abcdef", account="c", max_inline_bytes=10)
    async with session_of(one, two, second=small, ledger=ledger) as session:
        with pytest.raises(InvalidRequest, match="more than the limit of 10 bytes"):
            await session.generate("a fox", images=[PNG], idempotency_key="order-1")
        assert await session.job("order-1") is None
    assert (one.uploads, one.sold, two.sold) == (0, 0, 0)


async def test_job_in_doubt_with_an_image_stays_with_its_account() -> None:
    one, two = ImageAccount("a"), ImageAccount("b")
    lost = iter([True])

    def loses_first(request: HttpRequest) -> Reply:
        reply = one.answer(request)
        creates = request.method == "POST" and "/files/" not in request.url
        return TransportError("reset", possibly_sent=True) if creates and next(lost, False) else reply

    transports = [FakeTransport(loses_first, latency_s=0.001), FakeTransport(two.answer, latency_s=0.001)]
    async with Session(QUICK, http=transports, polling=REAL_TIME) as session:
        await session.generate("a fox", images=[PNG], timeout=20)
    assert (one.sold, two.sold) == (1, 0)


async def test_job_from_the_ledger_without_its_image_stays_with_its_account() -> None:
    one, two, ledger = ImageAccount("a"), ImageAccount("b"), MemoryLedger()
    one.refuses_uploads = two.refuses_uploads = refused(503, "busy", "busy")
    async with session_of(one, two, ledger=ledger) as session:
        await session.submit("a fox", images=[PNG], idempotency_key="order-1")
    before = await ledger.find("order-1")
    async with session_of(one, two, ledger=ledger) as session:
        (job,) = await session.resume(buy=True)
        with pytest.raises(NanoBananaError, match="not at hand"):
            await job.result(timeout=20)
        assert job.state is JobState.PENDING
    after = await ledger.find("order-1")
    assert before is not None
    assert after is not None
    assert after.account == before.account
    assert one.sold + two.sold == 0


async def test_published_image_is_published_for_each_account() -> None:
    class Publisher:
        published = 0

        async def publish(self, content: bytes, digest: str) -> str:
            assert content == PNG
            self.published += 1
            return f"https://own.example/{digest}.png"

    one, two, publisher = ImageAccount("a", limit=1), ImageAccount("b", limit=1), Publisher()
    async with session_of(one, two, references=publisher) as session, asyncio.TaskGroup() as group:
        for n in range(6):
            group.create_task(session.generate(f"fox {n}", images=[PNG], timeout=20))
    assert one.sold + two.sold == 6
    assert (one.uploads, two.uploads) == (0, 0)
    assert publisher.published <= 2


class TroubledAccount(ImageAccount):
    """An account at which requests go wrong at random, until it calms down; it counts what each prompt was sold."""

    def __init__(self, name: str, draw: random.Random) -> None:
        super().__init__(name)
        self.draw = draw
        self.calm = False
        self.prompts: list[str] = []

    def answer(self, request: HttpRequest) -> Reply:
        if request.method != "POST" or self.calm:
            return self._sell(request)
        match self.draw.choices(("well", "lost", "unsent", "refused", "busy"), (10, 2, 2, 2, 3))[0]:
            case "lost":
                self._sell(request)
                return TransportError("reset", possibly_sent=True)
            case "unsent":
                return TransportError("connection refused", possibly_sent=False)
            case "refused":
                return refused(402, message="no credits")
            case "busy":
                return refused(503, "busy", "busy")
        return self._sell(request)

    def _sell(self, request: HttpRequest) -> Reply:
        before = self.sold
        reply = super().answer(request)
        if self.sold > before:
            self.prompts.append(json.loads(request.body or b"")["prompt"])
        return reply


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_each_job_is_bought_once_with_uploads_of_its_account_in_random_trouble(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "REST_S", 0.2)
    draw, ledger, rows = random.Random(seed), MemoryLedger(), 16
    one, two = TroubledAccount("a", draw), TroubledAccount("b", draw)
    images = [make_image(seed=n) for n in range(1, 5)]
    retry = RetryPolicy(max_attempts=40, first_backoff_s=0.005, max_backoff_s=0.02)

    async def generate(session: Session, n: int) -> bool:
        try:
            await session.generate(f"fox {n}", images=[images[n % 4]], idempotency_key=f"order-{n}", timeout=20)
        except NanoBananaError:
            return False
        return True

    async with session_of(one, two, retry=retry, ledger=ledger) as session:
        async with asyncio.TaskGroup() as group:
            for n in range(rows):
                group.create_task(generate(session, n))
        one.calm = two.calm = True
        for n in range(rows):
            assert await generate(session, n)
    assert sorted([*one.prompts, *two.prompts]) == sorted(f"fox {n}" for n in range(rows))
    for account in (one, two):
        assert all(url.startswith(f"https://{account.name}.") for urls in account.references for url in urls)
