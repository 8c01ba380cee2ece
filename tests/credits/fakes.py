"""Fixtures for credits: a fake gateway that sells jobs at a price and counts charges, and batches read to their end."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Literal

from nanobanana_async import (
    ApiMall,
    BatchStopped,
    ConcurrencyPolicy,
    CreditLimitReached,
    DefApi,
    GenerationResult,
    NanoBananaError,
    Outcome,
    PollPolicy,
    Session,
)
from nanobanana_async.engine.engine import Engine
from nanobanana_async.errors import TransportError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.policy.budget import MemoryCap
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import API_KEY, now
from tests.support.replies import json_reply, refused, task

PriceReported = Literal["at create", "at end", "never"]
GatewayName = Literal["apimall", "defapi"]
BOTH: tuple[GatewayName, ...] = ("apimall", "defapi")

LOST = TransportError("the connection was reset", possibly_sent=True)
FIFTY = ConcurrencyPolicy(max_jobs=50, learn=False)


class Sale:
    """One job that was sold: what it cost, and when it ends."""

    def __init__(self, prompt: str, price: Decimal, ends_at: float) -> None:
        self.prompt = prompt
        self.price = price
        self.ends_at = ends_at


class ChargingGateway:
    """A gateway that takes money: API Mall where creates bring a key, else defapi. Jobs of `[fail]` prompts fail.

    What `strange` holds happens to the next creates, one each: True sells and loses the answer, a reply is the answer
    and nothing is sold, None is a normal sale.
    """

    def __init__(
        self,
        price: str | Callable[[dict[str, Any]], Decimal] = "8",
        *,
        says: PriceReported = "at create",
        job_s: float = 20.0,
        refunds: bool = True,
    ) -> None:
        self.price = price
        self.says = says
        self.job_s = job_s
        self.refunds = refunds
        self.sales: dict[str, Sale] = {}
        self.keys: dict[str, str] = {}
        self.faults: deque[Reply | bool | None] = deque()
        self.peak = Decimal(0)
        """The most that was ever taken and not given back."""
        self.most_at_once = 0
        self.requests: Counter[str] = Counter()

    @property
    def sold(self) -> int:
        return len(self.sales)

    @property
    def running(self) -> int:
        return sum(1 for sale in self.sales.values() if now() < sale.ends_at)

    @property
    def taken(self) -> Decimal:
        """What was taken and not given back."""
        return sum((sale.price for sale in self.sales.values() if not self._refunded(sale)), Decimal(0))

    def transport(self, *, latency_s: float = 0.05) -> FakeTransport:
        return FakeTransport(self.answer, latency_s=latency_s)

    def answer(self, request: HttpRequest) -> Reply:
        self.requests[request.method] += 1
        return self._create(request) if request.method == "POST" else self._poll(request)

    def _create(self, request: HttpRequest) -> Reply:
        key = request.headers.get("Idempotency-Key")
        twist = self.faults.popleft() if self.faults else None
        if twist not in (None, True):
            assert not isinstance(twist, bool)
            return twist
        task_id = self.keys.get(key or "")
        if task_id is None:
            task_id = f"t{self.sold + 1}"
            body = json.loads(request.body or b"")
            price = Decimal(self.price) if isinstance(self.price, str) else self.price(body)
            self.sales[task_id] = Sale(body["prompt"], price, now() + self.job_s)
            self.peak = max(self.peak, self.taken)
            self.most_at_once = max(self.most_at_once, self.running)
            if key is not None:
                self.keys[key] = task_id
        if twist is True:
            return LOST
        cost = {"credits_used": str(self.sales[task_id].price)} if self.says == "at create" else {}
        if key is None:
            return json_reply(200, {"code": 0, "message": "ok", "data": {"task_id": task_id}})
        return json_reply(200, {"success": True, "data": {"task_id": task_id, **cost}, "request_id": "req_1"})

    def _poll(self, request: HttpRequest) -> Reply:
        task_id = request.url.rpartition("=" if "=" in request.url else "/")[2]
        sale = self.sales[task_id]
        if now() < sale.ends_at:
            return task("processing" if "=" not in request.url else "in_progress", task_id)
        failed, back = "[fail]" in sale.prompt, self._refunded(sale)
        if "=" in request.url:
            cost = {} if self.says == "never" else {"consumed": f"{0 if back else sale.price:.6f}"}
            story = {"status": "failed", "status_reason": {"message": "no"}} if failed else {"status": "success"}
            result = [] if failed else [{"image": "https://cdn.example/a.png"}]
            return json_reply(200, {"code": 0, "data": {"task_id": task_id, "result": result, **story, **cost}})
        price = str(sale.price)
        facts = {} if self.says == "never" else {"credits_used": price, "credits_refunded": price if back else "0"}
        if failed:
            return task("failed", task_id, error_message="no", **facts)
        return task("completed", task_id, primary_url="https://cdn.example/a.png", **facts)

    def _refunded(self, sale: Sale) -> bool:
        return self.refunds and "[fail]" in sale.prompt and now() >= sale.ends_at


def charging_gateway(name: GatewayName, **settings: Any) -> ChargingGateway:
    """Return a fake gateway that reports prices as the real one does: API Mall at the create, defapi at the end."""
    usual: dict[str, Any] = {"says": "at create", "price": "8"} if name == "apimall" else {"says": "at end"}
    return ChargingGateway(**{"price": "0.5", **usual, **settings})


def a_session(name: GatewayName, transport: FakeTransport, **settings: Any) -> Session:
    gateway = ApiMall(api_key=API_KEY) if name == "apimall" else DefApi(api_key=API_KEY)
    return Session(gateway, http=transport, **{"concurrency": FIFTY, **settings})


def quick(name: GatewayName, transport: FakeTransport, **settings: Any) -> Session:
    """A session in real time that does not wait long for anything."""
    polling = PollPolicy(target_delay_s=0.01, min_gap_s=0.005, max_gap_s=0.02)
    gateways = {"apimall": ApiMall, "defapi": DefApi}
    gateway = gateways[name](api_key=API_KEY, expected_job_s=0.01)
    return Session(gateway, http=transport, concurrency=FIFTY, polling=polling, **settings)


def engine_of(session: Session) -> Engine:
    """The engine of a session, to look at its money from inside."""
    engine = session._session_task.engine
    assert engine is not None
    return engine


def budget_of(session: Session) -> MemoryCap:
    """The session's own limit."""
    (budget,) = engine_of(session)._session_caps
    assert isinstance(budget, MemoryCap)
    return budget


def nothing_is_left(session: Session) -> bool:
    """Whether nothing is set aside, and no trace of money is kept of any job."""
    budget = budget_of(session)
    left = budget.reserved or budget._reservations
    return not (left or engine_of(session).store.credits._reservations or engine_of(session).tracked)


def budgets_now(session: Session) -> list[MemoryCap]:
    """The caps, counted in memory, on which the live jobs draw."""
    live = engine_of(session).tracked.values()
    caps = dict.fromkeys(cap for job in live for cap in job.caps)
    return [cap for cap in caps if isinstance(cap, MemoryCap)]


def foxes(count: int, *, first: int = 0, word: str = "fox") -> list[str]:
    return [f"{word} {number}" for number in range(first, first + count)]


class Run:
    """A batch read to its end: its outcomes, and why the buying stopped."""

    def __init__(self, outcomes: list[Outcome], stopped: BatchStopped | None) -> None:
        self.outcomes = outcomes
        self.stopped = stopped

    @property
    def results(self) -> int:
        return sum(outcome.result is not None for outcome in self.outcomes)

    @property
    def why(self) -> CreditLimitReached:
        """The limit that stopped it."""
        assert self.stopped is not None
        assert isinstance(self.stopped.cause, CreditLimitReached)
        return self.stopped.cause


async def run_batch(session: Session, requests: Iterable[Any], **options: Any) -> Run:
    """Read a batch to its end."""
    outcomes: list[Outcome] = []
    try:
        async with session.generate_many(requests, **options) as batch:
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401 - what came before the end counts, too
    except BatchStopped as stopped:
        return Run(outcomes, stopped)
    return Run(outcomes, None)


def full(status: int = 429) -> Reply:
    """A refusal of the kind that API Mall says."""
    codes = {429: "too_many_concurrent_jobs", 402: "insufficient_credits", 400: "invalid_request"}
    return refused(status, codes.get(status, "no"))


async def outcome(session: Session, prompt: str, **options: Any) -> GenerationResult | NanoBananaError:
    """Generate, and return the error instead of raising it."""
    try:
        return await session.generate(prompt, **options)
    except NanoBananaError as error:
        return error
