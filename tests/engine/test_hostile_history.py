"""A history that misleads, on virtual time: other time zones, missing tasks, copies of a cache, endless errors."""

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import ApiMall, JobState, JobUncertain, RetryPolicy, Session
from nanobanana_async.candidates import MOST_CANDIDATES
from nanobanana_async.engine import history
from nanobanana_async.errors import IdempotencyConflict, NanoBananaError, TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import JobRecord
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import API_KEY, RecordingLedger, apimall, now, virtually, wire_key
from tests.support.replies import completed, created, history_page, past_task, refused, task

LOST = TransportError("the connection was reset", possibly_sent=True)
KEY = "order-1"
AT_ONCE = RetryPolicy(max_attempts=1)
QUARTERS = pytest.mark.parametrize("zone_s", [-5 * 3600.0, 5.75 * 3600.0, 8 * 3600.0])


class MisleadingGateway:
    """API Mall: each repeated key gets 409, and the history is what a test makes of it."""

    def __init__(self, **facts: Any) -> None:
        self.loses: Callable[[int], bool] = lambda number: number == 2
        """Whether the answer to a create is lost."""
        self.arrives: Callable[[int], bool] = lambda _: True
        """Whether a create reaches the gateway."""
        self.remembers_s = 1e9
        """How long a key is known."""
        self.job_s = 10.0
        self.zone_s = 0.0
        self.hides: Callable[[str], bool] = lambda _: False
        self.same_page = False
        """Whether the number of the page is ignored."""
        self.headers: dict[str, str] = {}
        self.trouble: Reply | None = None
        self.model_of: Callable[[dict[str, Any]], str] = lambda body: str(body["model"])
        self.credits_of: Callable[[float, dict[str, Any]], int] = lambda *_: 8
        self.tasks: dict[str, tuple[float, dict[str, Any]]] = {}
        self.keys: dict[str | None, float] = {}
        self.posts = 0
        self.readings = 0
        vars(self).update(facts)

    def session(self, *, key_lifetime_s: float = 1800.0, **settings: Any) -> Session:
        mall = ApiMall(api_key=API_KEY, key_lifetime_s=key_lifetime_s)
        return Session(mall, http=FakeTransport(self.answer), **settings)

    def sell(self, prompt: str, **body: Any) -> str:
        task_id = f"t{len(self.tasks) + 1}"
        self.tasks[task_id] = now(), {"model": "nano-banana-pro", "prompt": prompt, **body}
        return task_id

    def prompt_of(self, task_id: str) -> str:
        return str(self.tasks[task_id][1]["prompt"])

    def bought(self, prompt: str) -> int:
        return sum(body["prompt"] == prompt for _, body in self.tasks.values())

    def answer(self, request: HttpRequest) -> Reply:
        if request.method == "POST":
            return self._create(request)
        if "/history?" in request.url:
            self.readings += 1
            first = self.same_page or "page=1&" in request.url
            return self.trouble or self._history(first=first)
        task_id = request.url.rpartition("/")[2]
        return completed(task_id) if now() > self.tasks[task_id][0] + self.job_s else task("processing", task_id)

    def _create(self, request: HttpRequest) -> Reply:
        self.posts += 1
        if not self.arrives(self.posts):
            return LOST
        key = wire_key(request)
        if key in self.keys and now() - self.keys[key] < self.remembers_s:
            return refused(409, "idempotency_conflict", "Idempotency-Key conflict")
        self.keys[key] = now()
        task_id = self.sell(**json.loads(request.body or b"{}"))
        return LOST if self.loses(self.posts) else created(task_id)

    def _history(self, *, first: bool) -> HttpResponse:
        listed = [
            (at, task_id, body) for task_id, (at, body) in self.tasks.items() if first and not self.hides(task_id)
        ]
        tasks = (
            past_task(
                task_id,
                int(at) + self.zone_s,
                model=self.model_of(body),
                status="completed" if now() > at + self.job_s else "processing",
                credits_used=self.credits_of(at, body),
            )
            for at, task_id, body in sorted(listed, key=lambda each: -each[0])
        )
        return history_page(tasks, now(), limit=None, **self.headers)


async def left_uncertain(gateway: MisleadingGateway, ledger: RecordingLedger) -> None:
    """Lose the answer of a job; there is no history then."""
    gateway.trouble = refused(404)
    async with gateway.session(ledger=ledger, retry=AT_ONCE) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox", idempotency_key=KEY)
    gateway.trouble = None


def candidates(record: JobRecord) -> list[str]:
    return [each.task_id for each in record.candidates]


async def lose_beside_another_client(session: Session, gateway: MisleadingGateway, **fields: Any) -> None:
    """Lose the answer of a job, at whose time another client buys one: it must be uncertain."""
    job = await session.submit("a fox", idempotency_key=KEY, **fields)
    await asyncio.sleep(0.5)
    gateway.sell("of another client", foreign=True)
    with pytest.raises(JobUncertain):
        await job


@pytest.mark.parametrize("retry", [AT_ONCE, RetryPolicy(max_wait_s=60.0)], ids=["one attempt", "a minute"])
@virtually
async def test_job_whose_creates_never_arrive_ends_after_it_was_sent_again_once(retry: RetryPolicy) -> None:
    gateway = MisleadingGateway(arrives=lambda _: False)
    async with gateway.session(retry=retry, max_credits=Decimal(8)) as session:
        with pytest.raises(TransportError, match="was not bought: generate it again later") as caught:
            await session.generate("a fox", idempotency_key=KEY)
        assert caught.value.safe_to_repeat
        assert now() < 600.0
        gateway.arrives = lambda _: True
        gateway.loses = lambda _: False
        assert gateway.prompt_of((await session.generate("a fox", idempotency_key=KEY)).task_id) == "a fox"
        assert session.stats().credits_spent == 8


@QUARTERS
@pytest.mark.parametrize("jobs_before", [0, 1])
@virtually
async def test_task_whose_time_is_of_another_zone_is_not_bought_again(zone_s: float, jobs_before: int) -> None:
    gateway = MisleadingGateway(zone_s=zone_s, remembers_s=30.0)
    gateway.loses = lambda number: number == jobs_before + 1
    ledger = RecordingLedger()
    async with gateway.session(key_lifetime_s=10.0, retry=AT_ONCE, ledger=ledger) as session:
        for _ in range(jobs_before):
            await session.generate("a crow")
            await asyncio.sleep(60.0)
        with pytest.raises(JobUncertain):
            await session.generate("a fox", idempotency_key=KEY)
    assert gateway.bought("a fox") == 1
    assert [gateway.prompt_of(each) for each in candidates(ledger.record(KEY))] == ["a fox"]


@virtually
async def test_task_of_another_client_an_hour_ago_is_not_taken_for_one_of_another_zone() -> None:
    gateway = MisleadingGateway(zone_s=3600.0)
    async with gateway.session() as session:
        await session.generate("a crow")
        await asyncio.sleep(60.0)
        gateway.tasks["t0"] = now() - 3599.5, {"model": "nano-banana-pro", "prompt": "of another client"}
        with pytest.raises(JobUncertain, match="2 tasks could be it"):
            await session.generate("a fox")


@pytest.mark.parametrize("year", ["0001", "9999"])
@virtually
async def test_date_of_another_century_decides_nothing(year: str) -> None:
    gateway, ledger = MisleadingGateway(loses=lambda _: True), RecordingLedger()
    await left_uncertain(gateway, ledger)
    gateway.headers = {"date": f"Mon, 01 Jan {year} 00:00:00 GMT"}
    async with gateway.session(ledger=ledger) as session:
        assert await session.reconcile() == []
    assert ledger.record(KEY).state is JobState.UNCERTAIN


@virtually
async def test_copy_of_a_cache_is_no_proof_that_a_job_was_not_bought() -> None:
    gateway = MisleadingGateway(remembers_s=30.0, hides=lambda _: True, headers={"age": "5"})
    async with gateway.session(key_lifetime_s=10.0, retry=AT_ONCE) as session:
        await session.generate("a crow")
        with pytest.raises(JobUncertain):
            await session.generate("a fox")
    assert gateway.bought("a fox") == 1


@virtually
async def test_history_without_a_known_task_of_the_session_decides_nothing() -> None:
    for evidence in (True, False):
        gateway = MisleadingGateway(remembers_s=1e9 if evidence else 30.0)
        gateway.hides = lambda task_id: task_id in ("t1", "t2")
        retry = RetryPolicy(max_wait_s=60.0) if evidence else AT_ONCE
        async with gateway.session(key_lifetime_s=1800.0 if evidence else 10.0, retry=retry) as session:
            await session.generate("a crow")
            job = await session.submit("a fox", idempotency_key=KEY)
            await asyncio.sleep(0.5)
            gateway.sell("of another client")
            with pytest.raises(JobUncertain):
                await job
        assert gateway.bought("a fox") == 1


@virtually
async def test_known_name_of_a_model_for_texts_says_nothing_about_edits() -> None:
    def name(body: dict[str, Any]) -> str:
        return "nano-banana-pro" + ("-edit" if body.get("image_urls") else "")

    gateway, ledger = MisleadingGateway(model_of=name), RecordingLedger(keep_ended=True)
    async with gateway.session(ledger=ledger) as session:
        await session.generate("a crow")
        await lose_beside_another_client(session, gateway, images=["https://example.com/cat.png"])
    assert {gateway.prompt_of(each) for each in candidates(ledger.record(KEY))} == {"a fox", "of another client"}


@virtually
async def test_price_of_nothing_while_a_task_runs_says_nothing() -> None:
    def price(at: float, body: dict[str, Any]) -> int:
        runs = now() < at + 400.0 and not body.get("foreign") and body["prompt"] != "a crow"
        return 0 if runs else 8

    gateway, ledger = MisleadingGateway(credits_of=price, job_s=400.0), RecordingLedger(keep_ended=True)
    gateway.loses = lambda number: number == 3
    async with gateway.session(ledger=ledger) as session:
        await session.generate("a crow")
        big = await session.submit("a whale", resolution="4K")
        await lose_beside_another_client(session, gateway)
        await big
    assert {gateway.prompt_of(each) for each in candidates(ledger.record(KEY))} == {"a fox", "of another client"}


@virtually
async def test_key_that_another_host_has_used_makes_no_conflict_a_proof() -> None:
    gateway, ledger = MisleadingGateway(loses=lambda _: False), RecordingLedger()
    async with gateway.session() as other_host:
        for prompt in ("row 1", "row 2"):
            await other_host.generate(prompt, idempotency_key=prompt.replace(" ", "-"))
        await asyncio.sleep(60.0)
        gateway.arrives = lambda number: number != 4
        async with gateway.session(ledger=ledger) as session:
            with pytest.raises(IdempotencyConflict):
                await session.generate("row 1", idempotency_key="row-1")
            job = await session.submit("row 2", idempotency_key="row-2")
            await asyncio.sleep(0.5)
            third = await other_host.generate("row 3")
            with pytest.raises(JobUncertain):
                await job
    assert candidates(ledger.record("row-2")) == [third.task_id]


@virtually
async def test_page_that_is_always_the_same_is_read_twice_at_most() -> None:
    gateway, ledger = MisleadingGateway(loses=lambda _: True, same_page=True), RecordingLedger()
    await left_uncertain(gateway, ledger)
    gateway.readings = 0
    async with gateway.session(ledger=ledger) as session:
        assert await session.reconcile() == []
    assert gateway.readings == 2
    assert candidates(ledger.record(KEY)) == ["t1"]


class EndlessGateway(MisleadingGateway):
    """Lists 50 other tasks of the time on each page, for ever."""

    def _history(self, *, first: bool) -> HttpResponse:
        tasks = (past_task(f"t{self.readings}-{number}", 0.0) for number in range(50))
        return history_page(tasks, now(), limit=None)


@pytest.mark.parametrize(("most", "pages"), [(120, 3), (1_000_000, 200)])
@virtually
async def test_endless_history_is_read_to_a_limit_and_leaves_few_candidates(
    monkeypatch: pytest.MonkeyPatch, most: int, pages: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, ledger = EndlessGateway(loses=lambda _: True), RecordingLedger()
    await left_uncertain(gateway, ledger)
    gateway.readings = 0
    monkeypatch.setattr(history, "MOST_TASKS", most)
    caplog.set_level("INFO")
    async with gateway.session(ledger=ledger) as session:
        assert await session.reconcile() == []
    assert gateway.readings == pages
    assert len(candidates(ledger.record(KEY))) == MOST_CANDIDATES
    assert ("history.cut tasks=150" in caplog.text) == (pages == 3)


@pytest.mark.parametrize("wait_s", [None, "600"], ids=["at once", "in ten minutes"])
@virtually
async def test_history_that_is_always_refused_for_now_ends_the_wait(wait_s: str | None) -> None:
    gateway = MisleadingGateway()
    headers = {} if wait_s is None else {"retry-after": wait_s}
    gateway.trouble = refused(429, "rate_limited", "Too many requests", **headers)
    async with gateway.session() as session:
        await session.generate("a crow")
        with pytest.raises(JobUncertain):
            async with asyncio.timeout(3600.0):
                await session.generate("a fox")
        gateway.trouble = None
        began = now()
        (job,) = await session.reconcile()
        assert gateway.prompt_of((await job).task_id) == "a fox"
        assert now() - began < 700.0


@virtually
async def test_history_that_was_wrong_about_a_job_is_read_again_for_it() -> None:
    gateway = MisleadingGateway(hides=lambda task_id: task_id == "t2")
    async with gateway.session(retry=AT_ONCE) as session:
        await session.generate("a crow")
        with pytest.raises(JobUncertain, match="may have been bought"):
            await session.generate("a fox", idempotency_key=KEY)
        gateway.hides = lambda _: False
        (job,) = await session.reconcile()
        assert (await job).task_id == "t2"
    assert gateway.posts > 2, "it was sent again"
    assert gateway.bought("a fox") == 1


@pytest.mark.parametrize("by_hand", [False, True], ids=["reconcile", "resolve"])
@virtually
async def test_bug_of_a_transport_is_raised_to_the_caller(by_hand: bool) -> None:
    gateway, ledger = MisleadingGateway(loses=lambda _: True), RecordingLedger()
    await left_uncertain(gateway, ledger)

    def answer(_: HttpRequest) -> Reply:
        return RuntimeError("a bug of the transport")

    async with apimall(FakeTransport(answer), ledger=ledger) as session:
        call = session.resolve(KEY, task_id="t1") if by_hand else session.reconcile()
        with pytest.raises(NanoBananaError, match="a bug of the transport"):
            async with asyncio.timeout(3600.0):
                await call
    assert ledger.record(KEY).state is JobState.UNCERTAIN
