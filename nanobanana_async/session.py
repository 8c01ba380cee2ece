"""The face: a session that owns the HTTP pool, the engine and the ledger."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self, Unpack

import aiohttp

from nanobanana_async.config import Timeouts, gateway_from_env
from nanobanana_async.engine.books import Books
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.core import Engine
from nanobanana_async.engine.entry import Entry
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.host import Host
from nanobanana_async.engine.slots import Slots
from nanobanana_async.errors import ConfigurationError, InvalidRequest, JobUnfinished, SessionClosed
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.handle import Job
from nanobanana_async.http.api import Api
from nanobanana_async.jobs import JobRecord, JobState, check_key
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.models import GenerationResult, ImageRequest, RequestFields
from nanobanana_async.observe import Announcer, Observer
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.stats import SessionStats, stats_of


class Session:
    """The session manager: buys jobs through one gateway, follows them, and fills the account's job slots.

    Constructing it needs no running event loop; opening does. It may be opened in one asyncio task and closed in
    another. `gateway` defaults to what the environment names, `ledger` to memory, where finished jobs are forgotten.
    `http` is your own `aiohttp.ClientSession` (borrowed, never closed) or a fake transport of
    `nanobanana_async.testing`. `observers` are called with each event of `nanobanana_async.observe`.
    """

    def __init__(
        self,
        gateway: Gateway | None = None,
        *,
        ledger: Ledger | None = None,
        concurrency: ConcurrencyPolicy | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        observers: Sequence[Observer] = (),
        http: aiohttp.ClientSession | Transport | None = None,
        proxy: str | None = None,
    ) -> None:
        self.gateway = gateway_from_env() if gateway is None else gateway
        self._ledger: Ledger = MemoryLedger() if ledger is None else ledger
        self._concurrency = concurrency or ConcurrencyPolicy()
        self._polling = polling or PollPolicy()
        self._retry = retry or RetryPolicy()
        self._timeouts = timeouts or Timeouts()
        self._announce = Announcer(tuple(observers))
        if http is None or isinstance(http, aiohttp.ClientSession):
            self._transport: Transport = Api(
                self.gateway,
                timeouts=self._timeouts,
                http=http,
                proxy=proxy,
                max_connections=2 * self._concurrency.max_requests,
            )
        else:
            self._transport = http
        self._host = Host(
            f"<Session {self.gateway.name}>", self._ledger, self._transport, close_s=self._timeouts.close_s
        )

    def __repr__(self) -> str:
        if self._host.closed:
            state = "closed"
        elif self._host.engine is None:
            state = "not open"
        else:
            state = f"open, {self._host.engine.slots.held} jobs held"
        return f"<Session {self.gateway.name} {state}>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if "_host" in self.__dict__:  # else a setting was refused
            self._host.lost()

    async def open(self) -> None:
        """Open ledger, connections and engine; for those who can't write `async with`.

        Raises `ConfigurationError` when it is open or was closed, `LedgerError` when the ledger can't be opened.
        """
        await self._host.open(self._build_engine)

    async def aclose(self) -> None:
        """Close: stop buying, let POSTs on the wire be answered and written down, send the waiters away.

        Idempotent, and bounded by `Timeouts.close_s`; it runs to its end also when the caller is cancelled. Unfinished
        jobs stay in the ledger; who waits for one gets `SessionClosed`.
        """
        await self._host.aclose()

    async def generate(
        self,
        request: str | ImageRequest,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        **fields: Unpack[RequestFields],
    ) -> GenerationResult:
        """Buy a picture and wait for it.

        `fields` are those of `ImageRequest`. The key becomes the job's `key`; the same key again is the same job and
        the same payment, another request under it an `IdempotencyConflict`. When the caller is cancelled, or `timeout`
        seconds are over, a job that was not yet sent is withdrawn; one that was sent goes on and can be found by its
        key. Raises `JobUnfinished` on timeout, a `GatewayError` when the gateway says no, `JobFailed` when the task
        failed, `JobUncertain` when nobody can know whether it was bought.
        """
        engine = self._open_engine()
        entry = await self._enter(request, idempotency_key, fields)
        entry.callers += 1
        unfinished: JobUnfinished | None = None
        try:
            return await Job(engine, entry).result(timeout=timeout)
        except JobUnfinished as error:
            unfinished = error
            raise
        finally:
            withdrawn = engine.leave(entry)
            if unfinished is not None:
                unfinished.safe_to_repeat = withdrawn

    async def submit(
        self,
        request: str | ImageRequest,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[RequestFields],
    ) -> Job:
        """Return the job as soon as it is written down; it is bought when a slot is free.

        `await job.accepted()` waits for the gateway's task id, `await job` for the pictures.
        """
        engine = self._open_engine()
        return await self._kept(engine, await self._enter(request, idempotency_key, fields))

    async def job(self, key: str) -> Job | None:
        """Find a job by our key; None when the ledger does not know it."""
        engine = self._open_engine()
        entry = engine.live.get(key)
        if entry is None:
            record = await self._ledger.find(key)
            if record is None:
                return None
            entry = engine.entry_for(record)
            entry.written = True
        entry.kept = True
        return Job(engine, entry)

    async def attach(self, task_id: str, *, key: str | None = None, request: ImageRequest | None = None) -> Job:
        """Follow a task of this account whose id you kept; nothing is bought.

        `key` names the job in the ledger (made from the task id when None).
        """
        if not task_id or not task_id.isprintable():
            raise InvalidRequest("task_id is empty or not printable")
        engine = self._open_engine()
        known = await self._ledger.find_task(self.gateway.account, task_id)
        if known is not None:
            job = await self.job(known.key)
            if job is not None:
                return job
        now = self._utcnow()
        record = JobRecord(
            key=check_key(f"task-{task_id}" if key is None else key),
            gateway=self.gateway.name,
            account=self.gateway.account,
            request=request,
            body=b"",
            created_at=now,
            state=JobState.RUNNING,
            task_id=task_id,
            running_since=now,
        )
        return await self._kept(engine, engine.enter(record))

    def stats(self) -> SessionStats:
        """Return how the session stands."""
        return stats_of(self._open_engine(closed_too=True), self._books)

    async def _enter(self, request: str | ImageRequest, key: str | None, fields: RequestFields) -> Entry:
        engine = self._open_engine()
        wish = _wish(request, fields)
        self.gateway.check(wish)
        record = JobRecord(
            key=secrets.token_hex(16) if key is None else check_key(key),
            gateway=self.gateway.name,
            account=self.gateway.account,
            request=wish,
            body=self.gateway.encode(wish),
            created_at=self._utcnow(),
        )
        while (entry := engine.enter(record)).leaving:  # its last caller has just left: begin again after it
            await entry.change()
        return entry

    @staticmethod
    async def _kept(engine: Engine, entry: Entry) -> Job:
        """Return the handle of a job once it is written down; then it outlives its callers."""
        job = Job(engine, entry)
        entry.callers += 1
        try:
            await job.written()
            entry.kept = True
        finally:
            engine.leave(entry)
        return job

    def _open_engine(self, *, closed_too: bool = False) -> Engine:
        if self._host.closed and not closed_too:
            raise SessionClosed("the session is closed")
        if self._host.engine is None:
            raise ConfigurationError("the session is not open: use 'async with Session(...)', or await session.open()")
        return self._host.engine

    def _build_engine(self) -> Engine:
        clock = asyncio.get_running_loop().time
        gateway, timeouts = self.gateway, self._timeouts
        self._books = books = Books(self._ledger, self._announce, self._utcnow)
        follower = Follower(
            gateway,
            self._transport,
            books,
            self._polling,
            self._retry,
            query_s=timeouts.query_s,
            job_s=timeouts.job_s,
            clock=clock,
        )
        slots = Slots(
            self._concurrency,
            self._retry,
            target_delay_s=self._polling.target_delay_s,
            likely_ends=follower.likely_ends,
        )
        buyer = Buyer(
            gateway,
            self._transport,
            books,
            slots,
            self._retry,
            create_s=timeouts.create_s,
            begin=follower.begin,
            lingers_s=follower.lingers_s,
            clock=clock,
        )
        return Engine(self.gateway, books, slots, buyer, follower, max_requests=self._concurrency.max_requests)

    @staticmethod
    def _utcnow() -> datetime:
        # A loop of virtual time brings its own calendar: see nanobanana_async.testing.
        calendar: Callable[[], datetime] | None = getattr(asyncio.get_running_loop(), "utcnow", None)
        return datetime.now(UTC) if calendar is None else calendar()


def _wish(request: str | ImageRequest, fields: RequestFields) -> ImageRequest:
    if isinstance(request, ImageRequest):
        if fields:
            raise InvalidRequest(f"{', '.join(fields)}: put it into the ImageRequest, or pass the prompt as text")
        return request
    return ImageRequest(request, **fields)
