"""The face: a session that owns the HTTP pool, the engine and the ledger."""

import os
import ssl
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import aiohttp

from nanobanana_async.batch.batch import Batch
from nanobanana_async.batch.options import BatchOptions, Requests
from nanobanana_async.config import Timeouts, gateway_from_env
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.lifecycle import SessionComponents, SessionTask, to_ledger
from nanobanana_async.engine.resolver import JobResolver
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import ConfigurationError, InvalidRequest, JobUnfinished, SessionClosed
from nanobanana_async.events import EventEmitter, Observer
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.handle import Job, persistent_handle
from nanobanana_async.http.tls_and_proxies import to_proxy_secret
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.connections import make_connections
from nanobanana_async.jobs import JobState, generate_key, key_for_task, validate_task_id
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest, RequestFields, to_request
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.prices import as_credits
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.stats import SessionStats, collect_stats
from nanobanana_async.validators import as_timeout


class Session:
    """The session manager: buys jobs through one gateway, follows them, and fills the account's job slots.

    Constructing it needs no running event loop; opening does. It may be opened in one asyncio task and closed in
    another. All calls must come from that event loop: one from another loop, thread or forked child is refused with
    `ConfigurationError`, and disturbs nobody.

    `gateway` defaults to what the environment names; `ledger` is a `Ledger`, or the path of an SQLite file in which
    each job is written down before it is bought, by default memory, where a finished job is forgotten unless its key
    was the caller's own. What this session buys costs no more than `max_credits` together, but for one price above its
    estimate: the next purchase raises `CreditLimitReached`.
    `tls` is an `ssl.SSLContext` that trusts your own authorities, `proxy` the URL of a proxy, with credentials if it
    wants them; with `trust_env` proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY. All three hold for the gateway
    and for images alike. `http` is your own `aiohttp.ClientSession` (borrowed, never closed; its connector's TLS
    settings hold for images, too, and none of the three goes with it) or a fake transport of
    `nanobanana_async.testing`. `observers` are called with each event of `nanobanana_async.events`.
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
        tls: ssl.SSLContext | bool | None = None,
        proxy: str | Secret | None = None,
        trust_env: bool = False,
    ) -> None:
        hidden = to_proxy_secret(proxy)
        del proxy  # it may hold a password, which the traceback of a refused setting would show
        if isinstance(hidden, ConfigurationError):
            raise hidden
        self.gateway = gateway_from_env() if gateway is None else gateway
        concurrency, timeouts = concurrency or ConcurrencyPolicy(), timeouts or Timeouts()
        transport, downloads = make_connections(
            self.gateway, timeouts, concurrency.max_requests, http=http, tls=tls, proxy=hidden, trust_env=trust_env
        )
        self._components = SessionComponents(
            gateway=self.gateway,
            ledger=to_ledger(ledger),
            transport=transport,
            downloads=downloads,
            emit=EventEmitter(tuple(observers)),
            concurrency=concurrency,
            polling=polling or PollPolicy(),
            retry=retry or RetryPolicy(),
            timeouts=timeouts,
            max_credits=as_credits("max_credits", max_credits),
        )
        self._callback_urls = self._components.callbacks
        self._session_task = SessionTask(f"<Session {self.gateway.name}>", self._components)

    def __repr__(self) -> str:
        if "_session_task" not in self.__dict__:  # it stands in the traceback of a setting that was refused
            return "<Session not built>"
        engine = self._session_task.engine
        state = "not open" if engine is None else f"open, {engine.slots.held} jobs held"
        return f"<Session {self.gateway.name} {'closed' if self._session_task.closed else state}>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if "_session_task" in self.__dict__:  # else a setting was refused
            self._session_task.warn_unclosed()

    async def open(self) -> None:
        """Open ledger, connections and engine; for those who can't write `async with`.

        Raises `ConfigurationError` when it is open or was closed, `LedgerError` when the ledger can't be opened.
        """
        await self._session_task.open()

    async def aclose(self) -> None:
        """Close: stop buying, let POSTs on the wire be answered and written down, send the waiters away.

        Idempotent, and bounded by `Timeouts.close_s`; it runs to its end also when the caller is cancelled. Unfinished
        jobs stay in the ledger; who waits for one gets `SessionClosed`.
        """
        await self._session_task.aclose()

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
        engine = self._engine()
        timeout = as_timeout("timeout", timeout)  # before anything is bought
        entry = await self._register(request, idempotency_key, fields)
        engine.add_caller(entry)
        unfinished: JobUnfinished | None = None
        try:
            return await Job(engine, entry).result(timeout=timeout)
        except JobUnfinished as error:
            unfinished = error
            raise
        finally:
            withdrawn = engine.drop_caller(entry)
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
        engine = self._engine()
        return await persistent_handle(engine, await self._register(request, idempotency_key, fields))

    async def job(self, key: str) -> Job | None:
        """Find a job by our key; None when the ledger does not know it."""
        engine = self._engine()
        if (entry := await engine.look_up(key)) is None:
            return None
        engine.keep(entry)
        return Job(engine, entry)

    async def attach(self, task_id: str, *, key: str | None = None, request: ImageRequest | None = None) -> Job:
        """Follow a task of this account whose id you kept; nothing is bought.

        `key` names the job in the ledger (made from the task id when None). The gateway is asked about the task first:
        raises `TaskNotFound` if it knows none such, up to half a minute later since a task may be that new.
        """
        engine = self._engine()
        validate_task_id(task_id)
        known = await self._components.ledger.find_task(self.gateway.account, task_id)
        if known is not None and (job := await self.job(known.key)) is not None:
            return job
        await JobResolver(engine).check_task(task_id)
        known_as = key_for_task(task_id) if key is None else key
        record = engine.attached_record(task_id, known_as, JobState.RUNNING, request)
        return await persistent_handle(engine, engine.submit(record))

    async def resume(self, *, buy: bool = False) -> list[Job]:
        """Go on with the unfinished jobs of the ledger that nobody follows: of processes that died, of closed sessions.

        What ran is followed; what was sent and not answered is repeated under its key where that is safe, else it is
        UNCERTAIN. What was never sent is bought only with `buy=True`. Returns the jobs that are now this session's,
        oldest first; those that another living process follows are left to it.
        """
        engine = self._engine()
        unfinished = self._components.ledger.unfinished(self.gateway.account)
        wanted = (record async for record in unfinished if buy or record.state is not JobState.PENDING)
        entries = await engine.adopt_all(wanted)
        for entry in entries:
            engine.keep(entry)
        return [Job(engine, entry) for entry in entries]

    async def resolve(
        self, job: Job | str, *, task_id: str | None = None, not_bought: bool = False, buy_again: bool = False
    ) -> Job:
        """Decide an UNCERTAIN job by hand, after a look at the gateway's own list of tasks; return it.

        Exactly one of: `task_id`, it was bought under that id, and is followed; `not_bought`, it was not bought;
        `buy_again`, buy it anew under another idempotency key: if it was bought after all, that is a second payment.
        A FAILED job, too, can be bought again so. A RUNNING job whose task the gateway does not know is decided in the
        same ways. The gateway is asked about `task_id` first: `TaskNotFound`, and nothing has changed, if it knows no
        such task; up to half a minute later for a new one. Raises `InvalidRequest` for any other job, and for the task
        id of another job.
        """
        engine = self._engine()
        if [task_id is not None, not_bought, buy_again].count(True) != 1:
            raise InvalidRequest("say exactly one of task_id, not_bought=True, buy_again=True")
        key = job if isinstance(job, str) else job.key
        engine = self._engine()
        entry = await JobResolver(engine).resolve(key, task_id=task_id, buy_again=buy_again)
        engine.keep(entry)
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
        the background. `max_credits` caps all that was ever spent under the name; jobs of unknown price go one at a
        time, at `expected_credits` or the example of the gateway's reference, until it is told. `progress`: tqdm's bar.
        """
        engine = self._engine()
        if batch is not None and isinstance(self._components.ledger, MemoryLedger):
            raise ConfigurationError("a named batch needs a ledger that remembers: Session(ledger='jobs.sqlite')")
        orders = BatchOptions(
            name=batch,
            ordered=ordered,
            folder=None if save_to is None else Path(save_to),
            max_credits=as_credits("max_credits", max_credits),
            expected_credits=as_credits("expected_credits", expected_credits),
            retry_failed=retry_failed,
            progress=progress,
        )
        return Batch(requests, orders, engine, ImageSaver(engine, self._components.downloads))

    async def download(self, image: GeneratedImage) -> bytes:
        """Return the bytes of a picture: verified, and asked for once more if its link has expired.

        Raises `DownloadError`.
        """
        return await ImageSaver(self._engine(), self._components.downloads).fetch(image)

    async def save(self, result: GenerationResult, folder: str | os.PathLike[str]) -> list[Path]:
        """Save the pictures of a result in a folder, made if missing; return their paths.

        Files are named by the job's key, the picture's number and its true type, appear whole or not at all, and stand
        in the folder's `SHA256SUMS`. Saving again changes nothing, and nothing else is ever overwritten. Raises
        `DownloadError`, or `SaveError` when the folder can't be written.
        """
        return list(await ImageSaver(self._engine(), self._components.downloads).save(result, Path(folder)))

    def stats(self) -> SessionStats:
        """Return how the session stands."""
        return collect_stats(self._engine(closed_too=True))

    async def _register(self, request: str | ImageRequest, key: str | None, fields: RequestFields) -> TrackedJob:
        engine = self._engine()
        record = await engine.new_record(to_request(request, fields), generate_key() if key is None else key)
        while (entry := engine.submit(record)).leaving:  # its last caller has just left: begin again after it
            await entry.wait_for_change()
        return entry

    def _engine(self, *, closed_too: bool = False) -> Engine:
        self._components.guard.check()
        if self._session_task.closed and not closed_too:
            raise SessionClosed("the session is closed")
        if self._session_task.engine is None:
            raise ConfigurationError("the session is not open: use 'async with Session(...)', or await session.open()")
        return self._session_task.engine
