"""The face: a session that owns the HTTP pool, the engine and the ledger."""

import os
import secrets
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack
from urllib.parse import urlsplit

import aiohttp

from nanobanana_async.batch.batch import Batch
from nanobanana_async.batch.orders import Orders, Requests
from nanobanana_async.config import Timeouts, gateway_from_env
from nanobanana_async.engine.assembly import Parts, ledger_of
from nanobanana_async.engine.core import Engine
from nanobanana_async.engine.entry import Entry
from nanobanana_async.engine.host import Host
from nanobanana_async.errors import ConfigurationError, InvalidRequest, JobUnfinished, SessionClosed
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.gateways.settings import is_loopback
from nanobanana_async.handle import Job
from nanobanana_async.http.api import Api
from nanobanana_async.http.downloads import Downloads
from nanobanana_async.jobs import JobState
from nanobanana_async.keeping import Keeper
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest, RequestFields, wish_of
from nanobanana_async.observe import Announcer, Observer
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.credits import as_credits
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.stats import SessionStats, stats_of


class Session:
    """The session manager: buys jobs through one gateway, follows them, and fills the account's job slots.

    Constructing it needs no running event loop; opening does. It may be opened in one asyncio task and closed in
    another. `gateway` defaults to what the environment names; `ledger` is a `Ledger`, or the path of an SQLite file in
    which each job is written down before it is bought, by default memory, where finished jobs are forgotten. What this
    session buys costs no more than `max_credits` together, but for one price above its estimate: the next purchase
    raises `CreditLimitReached`. `http` is your own `aiohttp.ClientSession` (borrowed, never closed) or a fake transport
    of `nanobanana_async.testing`. `observers` are called with each event of `nanobanana_async.observe`.
    """

    def __init__(
        self,
        gateway: Gateway | None = None,
        *,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        concurrency: ConcurrencyPolicy | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        max_credits: Decimal | float | None = None,
        observers: Sequence[Observer] = (),
        http: aiohttp.ClientSession | Transport | None = None,
        proxy: str | None = None,
    ) -> None:
        self.gateway = gateway_from_env() if gateway is None else gateway
        concurrency, timeouts = concurrency or ConcurrencyPolicy(), timeouts or Timeouts()
        transport: Transport
        if http is None or isinstance(http, aiohttp.ClientSession):
            most = 2 * concurrency.max_requests
            transport = Api(self.gateway, timeouts=timeouts, http=http, proxy=proxy, max_connections=most)
        else:
            transport = http
        local = is_loopback(urlsplit(self.gateway.base_url).hostname or "")
        self._parts = Parts(
            gateway=self.gateway,
            ledger=ledger_of(ledger),
            transport=transport,
            downloads=Downloads(allow_loopback=local, proxy=proxy, connect_s=timeouts.connect_s),
            announce=Announcer(tuple(observers)),
            concurrency=concurrency,
            polling=polling or PollPolicy(),
            retry=retry or RetryPolicy(),
            timeouts=timeouts,
            max_credits=as_credits("max_credits", max_credits),
        )
        self.callbacks = self._parts.callbacks
        self._host = Host(f"<Session {self.gateway.name}>", self._parts)

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
        await self._host.open()

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
        entry = await engine.look_up(key)
        if entry is None:
            return None
        entry.kept = True
        return Job(engine, entry)

    async def attach(self, task_id: str, *, key: str | None = None, request: ImageRequest | None = None) -> Job:
        """Follow a task of this account whose id you kept; nothing is bought.

        `key` names the job in the ledger (made from the task id when None).
        """
        if not task_id or not task_id.isprintable():
            raise InvalidRequest("task_id is empty or not printable")
        engine = self._open_engine()
        known = await self._parts.ledger.find_task(self.gateway.account, task_id)
        if known is not None:
            job = await self.job(known.key)
            if job is not None:
                return job
        known_as = f"task-{task_id}" if key is None else key
        record = engine.record_of_task(task_id, known_as, JobState.RUNNING, request)
        return await self._kept(engine, engine.enter(record))

    async def resume(self, *, buy: bool = False) -> list[Job]:
        """Go on with the unfinished jobs of the ledger that nobody follows: of processes that died, of closed sessions.

        What ran is followed; what was sent and not answered is repeated under its key where that is safe, else it is
        UNCERTAIN. What was never sent is bought only with `buy=True`. Returns the jobs that are now this session's,
        oldest first; those that another living process follows are left to it.
        """
        engine = self._open_engine()
        unfinished = self._parts.ledger.unfinished(self.gateway.account)
        wanted = (record async for record in unfinished if buy or record.state is not JobState.PENDING)
        entries = await engine.take_over(wanted)
        for entry in entries:
            entry.kept = True
        return [Job(engine, entry) for entry in entries]

    async def settle(
        self, job: Job | str, *, task_id: str | None = None, refused: bool = False, buy_again: bool = False
    ) -> Job:
        """Decide an UNCERTAIN job by hand, after a look at the gateway's own list of tasks; return it.

        Exactly one of: `task_id`, it was bought under that id, and is followed; `refused`, it was not bought;
        `buy_again`, buy it anew under another idempotency key: if it was bought after all, that is a second payment.
        A FAILED job, too, can be bought again so. Raises `InvalidRequest` for any other job.
        """
        if [task_id is not None, refused, buy_again].count(True) != 1:
            raise InvalidRequest("say exactly one of task_id, refused=True, buy_again=True")
        key = job if isinstance(job, str) else job.key
        engine = self._open_engine()
        entry = await engine.look_up(key)
        if entry is None:
            raise InvalidRequest(f"the ledger knows no job {key}")
        before = entry.record.state
        entry = engine.settle(entry, task_id=task_id, buy_again=buy_again)
        while entry.record.state is before:
            await entry.change()
            if entry.stopped is not None:
                raise entry.stopped.about(key, safe_to_repeat=False)
        entry.kept = True
        return Job(engine, entry)

    def generate_many(
        self,
        requests: Requests,
        *,
        batch: str | None = None,
        ordered: bool = False,
        save_to: str | os.PathLike[str] | None = None,
        max_credits: Decimal | float | None = None,
        expected_credits: Decimal | float | None = None,
        retry_failed: bool = False,
        progress: bool = False,
    ) -> Batch:
        """Buy any number of pictures: `async for outcome in session.generate_many(prompts)`.

        `requests` is any iterable, plain or async, endless ones too, of prompts, `ImageRequest`s, or mappings with its
        fields, and with `key` and `metadata` if wanted. A bad row is an outcome, not an explosion.

        With a name, `batch`, it can be run again: what is finished is returned without a request, what runs is gone on
        with, and only what was never bought is bought (FAILED rows with `retry_failed`). A row is known by its `key`,
        or else by its request and how often that came before, never by its position. That needs a ledger on disk.

        Outcomes come as rows end; `ordered` holds them back to the order of the input. `save_to` saves the pictures in
        the background. `max_credits` caps all that was ever spent under the name; unknown prices go one at a time,
        at `expected_credits` or the example of the gateway's reference, until it is told. `progress`: a bar of tqdm.
        """
        engine = self._open_engine()
        if batch is not None and isinstance(self._parts.ledger, MemoryLedger):
            raise ConfigurationError("a named batch needs a ledger that remembers: Session(ledger='jobs.sqlite')")
        orders = Orders(
            name=batch,
            ordered=ordered,
            folder=None if save_to is None else Path(save_to),
            max_credits=as_credits("max_credits", max_credits),
            expected_credits=as_credits("expected_credits", expected_credits),
            retry_failed=retry_failed,
            progress=progress,
        )
        return Batch(requests, orders, engine, Keeper(engine, self._parts.downloads))

    async def download(self, image: GeneratedImage) -> bytes:
        """Return the bytes of a picture: verified, and asked for once more if its link has expired.

        Raises `DownloadError`.
        """
        return await Keeper(self._open_engine(), self._parts.downloads).fetch(image)

    async def save(self, result: GenerationResult, folder: str | os.PathLike[str]) -> list[Path]:
        """Save the pictures of a result in a folder, made if missing; return their paths.

        Files are named by the job's key, the picture's number and its true type, appear whole or not at all, and stand
        in the folder's `SHA256SUMS`. Saving again changes nothing, and nothing else is ever overwritten. Raises
        `DownloadError`.
        """
        return list(await Keeper(self._open_engine(), self._parts.downloads).save(result, Path(folder)))

    def stats(self) -> SessionStats:
        """Return how the session stands."""
        return stats_of(self._open_engine(closed_too=True))

    async def _enter(self, request: str | ImageRequest, key: str | None, fields: RequestFields) -> Entry:
        engine = self._open_engine()
        record = await engine.record(wish_of(request, fields), secrets.token_hex(16) if key is None else key)
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
