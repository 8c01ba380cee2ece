"""Which job a request is: a new one, or the one that an earlier request ordered and whose answer was lost.

A request with an `Idempotency-Key` is the job of that key. Without one, a retry of OpenAI's client is known by its
`x-stainless-retry-count`: it continues an order of the same token for the same images, made by an earlier attempt.
"""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from attrs import define, field, frozen

from nanobanana_async import Job, JobState, Session
from nanobanana_async.callers import handle_once_stored
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.models import ImageRequest, with_model
from nanobanana_async.references import local_digests
from nanobanana_async.serve.bearer_tokens import Token
from nanobanana_async.session import budget_of_call, engine_of

REMEMBERED_S = 900.0
"""How long after its last attempt an order can be continued by a retry: OpenAI's clients wait for up to 600 s."""
_MOST_REMEMBERED_S = 86400.0
_RETRY_DELAY_S = 180.0
_NOT_ENDED = datetime.max.replace(tzinfo=UTC)
_FORGET_EVERY_S = 60.0


@frozen
class Attempt:
    """What the headers of a request say about it."""

    idempotency_key: str | None = None
    retry_count: int = 0
    read_timeout_s: float = 0.0

    @property
    def remembered_s(self) -> float:
        """How long after this attempt another one may still come: when the client's own timeout ends it."""
        return max(REMEMBERED_S, self.read_timeout_s + _RETRY_DELAY_S)

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Attempt":
        """Return what the headers of a request say; what is no number counts as left out."""

        def number(name: str) -> float:
            text = headers.get(name, "")
            return float(text) if text.replace(".", "", 1).isdecimal() and len(text) < 10 else 0.0

        return cls(
            headers.get("idempotency-key") or None,
            int(number("x-stainless-retry-count")),
            number("x-stainless-read-timeout"),
        )


@define(eq=False)
class Order:
    """A job that requests have ordered; a retry without `Idempotency-Key` may continue it."""

    key: str
    last_retry_count: int
    """Of its last request."""
    waiting: int = 0
    """How many requests wait for it now."""
    last_request_at: float = 0.0
    """When its last request came."""
    answered_after_s: float | None = None
    """How long the request waited that was answered for good; that answer may have been lost."""
    kept_until: float = 0.0


@define
class Orders:
    """The orders of an application, in memory; what an earlier process ordered is found in the ledger."""

    session: Session
    tokens: Sequence[Token]
    _orders_by_prefix: dict[str, list[Order]] = field(factory=dict)
    _forgot_old_at: float = 0.0

    async def submit(self, token: Token, wanted: ImageRequest, attempt: Attempt) -> tuple[Job, Order]:
        """Store or find the job of a request; return it with its order. Call `end_request` once it is answered."""
        engine = engine_of(self.session)
        request, sources = await engine.references.digest_images(wanted)
        models = {gateway.model for gateway in self.session.gateways}
        if len(models) == 1:  # else the account that buys it chooses the model
            request = with_model(request, models.pop())
        if attempt.idempotency_key is not None:
            order = Order(f"{token.batch}{_digest('key', attempt.idempotency_key)}", attempt.retry_count)
        else:
            order = await self._order_of(token, request, attempt)
        order.waiting, order.last_request_at = order.waiting + 1, _loop_time()
        try:
            record = await engine.new_record(
                request,
                order.key,
                batch=token.batch,
                budget=budget_of_call(self.session, token.budget, token.turn_group),
                priority=token.priority,
                group=token.turn_group,
            )
            while (tracked := engine.submit(record, sources=sources)).is_being_withdrawn:
                await tracked.wait_for_change()
            return await handle_once_stored(engine, tracked), order
        except BaseException:
            self.end_request(order, attempt, answered=False)
            raise

    async def store_budgets(self) -> None:
        """Store the budgets of the tokens, so that their values hold, and a wrong one is found before any request."""
        for budget in [token.budget for token in self.tokens if token.budget is not None]:
            await engine_of(self.session).store.set_budget(budget)

    async def resume(self) -> None:
        """Follow unfinished jobs that have no owner; buy those of our tokens that no request may come back for."""
        await self.session.resume()
        engine = engine_of(self.session)
        batches = {token.batch for token in self.tokens}
        for member in engine.members:
            async for record in engine.store.ledger.adoptable_jobs(member.account):
                # The content of a local image came with its request: only a retry has it again.
                if record.batch not in batches or record.request is None or local_digests(record.request.images):
                    continue
                if record.state is JobState.PENDING and record.key not in engine.tracked:
                    await handle_once_stored(engine, engine.submit(record))

    def end_request(self, order: Order, attempt: Attempt, *, answered: bool) -> None:
        """Record that a request is over; `answered` if it has an answer after which no retry should come."""
        order.waiting -= 1
        if answered:
            order.answered_after_s = _loop_time() - order.last_request_at
        order.kept_until = _loop_time() + min(attempt.remembered_s, _MOST_REMEMBERED_S)

    async def _order_of(self, token: Token, request: ImageRequest, attempt: Attempt) -> Order:
        """Return the order that a request continues, or a new one."""
        self._forget_old()
        prefix = f"{token.batch}{_digest('body', json.dumps(request.to_dict(), sort_keys=True))}-"
        if attempt.retry_count > 0:
            if (order := _continued(self._orders_by_prefix.get(prefix, ()), attempt.retry_count)) is not None:
                order.last_retry_count = attempt.retry_count
                return order
            stored = await self._stored(prefix, attempt)
            taken = {
                order.key for order in self._orders_by_prefix.get(prefix, ())
            }  # read now: other requests ran meanwhile
            # No client has the images of one that runs; those that ended last may not have been delivered.
            for record in sorted(stored, key=lambda record: record.ended_at or _NOT_ENDED, reverse=True):
                if record.key not in taken:
                    return self._remember(prefix, record.key, attempt)
        return self._remember(prefix, f"{self._key_prefix_at(prefix)}{secrets.token_hex(8)}", attempt)

    def _remember(self, prefix: str, key: str, attempt: Attempt) -> Order:
        order = Order(key, attempt.retry_count, kept_until=_loop_time() + REMEMBERED_S)
        self._orders_by_prefix.setdefault(prefix, []).append(order)
        return order

    async def _stored(self, prefix: str, attempt: Attempt) -> Sequence[JobRecord]:
        """Return the jobs of other processes on this ledger that a retry may continue, the newest first."""
        ledger = engine_of(self.session).store.ledger
        if not isinstance(ledger, (SqliteLedger, PostgresLedger)):
            return ()
        back_s = min(attempt.retry_count * attempt.remembered_s, _MOST_REMEMBERED_S)  # to the first attempt
        return (await ledger.jobs_in_key_range(self._key_prefix_at(prefix, back_s), f"{prefix}~"))[::-1]

    def _key_prefix_at(self, prefix: str, back_s: float = 0.0) -> str:
        """Return what the keys of orders begin with that were made at a time. They sort by it."""
        when = engine_of(self.session).store.utcnow() - timedelta(seconds=back_s)
        return f"{prefix}{int(when.timestamp() * 1000):012x}-"

    def _forget_old(self) -> None:
        """Forget orders that no retry will continue."""
        now = _loop_time()
        if now < self._forgot_old_at + _FORGET_EVERY_S:
            return
        self._forgot_old_at = now
        for prefix, orders in list(self._orders_by_prefix.items()):
            orders[:] = [order for order in orders if order.waiting or order.kept_until > now]
            if not orders:
                del self._orders_by_prefix[prefix]


def _continued(orders: Sequence[Order], retry_count: int) -> Order | None:
    """Return the order that a retry most likely made: one that its request has left without an answer.

    Else its answer was lost: most likely the one that took longest, since clients and proxies give up then. If it is
    another's, two clients get one image; buying once more would be the worse mistake.
    """

    def likelihood(order: Order) -> tuple[bool, bool, bool, float]:
        left = not order.waiting and order.answered_after_s is None
        return left, not order.waiting, order.last_retry_count == retry_count - 1, order.answered_after_s or 0.0

    return max((order for order in orders if order.last_retry_count < retry_count), key=likelihood, default=None)


def _digest(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind} {text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
