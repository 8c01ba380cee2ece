"""The public API: `Session`, which owns the HTTP pool, the engine and the ledger."""

import os
import ssl
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Never, Self, overload
from uuid import UUID

import aiohttp

from nanobanana_async.batch.rows import job_key_of_row
from nanobanana_async.config import Timeouts
from nanobanana_async.engine.adoption import Adopt
from nanobanana_async.engine.balance import BalanceReader
from nanobanana_async.engine.engine import Engine
from nanobanana_async.errors import ConfigurationError, SessionClosed
from nanobanana_async.events import Observer
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.handle import Job
from nanobanana_async.http.tls_and_proxies import to_proxy_secret
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.names import NameFacts, NameTemplate, default_name
from nanobanana_async.images.target import SaveTarget, as_target
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.location import read_url
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.loop_guard import NoPlainWith, not_open_error
from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.purchases import Purchases
from nanobanana_async.recovery import attach_task, reconcile_jobs, resolve_job, resume_jobs
from nanobanana_async.references import ReferencePublisher
from nanobanana_async.session_accounts import (
    Prefer,
    account_named,
    make_session_parts,
    to_gateways,
    unknown_setting_error,
)
from nanobanana_async.stats import SessionStats, stats_by_account, sum_stats
from nanobanana_async.validators import check_kind, check_switch
from nanobanana_async.values import as_key_text, validate_row_key


class Session(Purchases, NoPlainWith):
    """Buys jobs through one gateway, polls them, and keeps the account's job slots full.

    The constructor needs no running event loop; opening does. One task may open the session and another close it. A
    call from another event loop, thread or forked child raises `ConfigurationError` and has no other effect.

    `gateway` defaults to the one named by the environment. `ledger` is a `Ledger`, the path of an SQLite file or a URL
    of PostgreSQL, which stores each job before it is bought; the default is memory, which forgets a finished job unless
    the caller chose its key. `max_credits` caps the credits of this session: the purchase that would exceed it raises
    `CreditLimitReached` (a price above its estimate can exceed it, by one job); `budgets` gives groups a `Budget` each.
    `tls` is an `ssl.SSLContext` for your own certificate authorities, `proxy` the URL of a proxy, with credentials if
    needed; with `trust_env` proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY. `http` is your own
    `aiohttp.ClientSession` (never closed; its connector makes all connections; it excludes the other three) or a fake
    transport. `allow_networks`, such as `["10.0.0.5/32"]`, allows images from private networks.
    `references` publishes local reference images for gateways that neither store them nor take them inside requests, as
    `nanobanana_async.webhooks.ReferenceHost` does.
    `adopt` takes over jobs of dead processes by itself, every `adopt_every_s`, as `resume` does: "follow" those that
    may be bought already, "buy" also those that were never sent, None nothing; "auto" is "follow" on PostgreSQL.
    With several gateways, a list, each job is bought by one of them (`docs/accounts.md`); `prefer` is `"wait"` or a
    list of those that get jobs first.
    """

    def __init__(
        self,
        gateway: Gateway | Sequence[Gateway] | None = None,
        *,
        ledger: Ledger | str | os.PathLike[str] | PostgresUrl | None = None,
        concurrency: ConcurrencyPolicy | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        max_credits: Decimal | float | None = None,
        budgets: Mapping[str, Budget] | None = None,
        observers: Sequence[Observer] = (),
        http: aiohttp.ClientSession | Transport | Sequence[Transport] | None = None,
        tls: ssl.SSLContext | bool | None = None,
        proxy: str | Secret | None = None,
        trust_env: bool = False,
        allow_networks: Iterable[str] | None = None,
        download_headers: Mapping[str, str] | None = None,
        references: ReferencePublisher | None = None,
        adopt: Adopt | None = "auto",
        adopt_every_s: float = 30.0,
        prefer: Prefer | None = None,
        **misspelt: Never,
    ) -> None:
        if unknown := list(misspelt):
            del gateway, ledger, proxy, misspelt  # they may hold an API key, or a password
            raise unknown_setting_error(unknown, Session)
        hidden = to_proxy_secret(proxy)
        del proxy  # it may hold a password, which the traceback of a ConfigurationError would show
        if isinstance(hidden, ConfigurationError):
            raise hidden
        gateways = to_gateways(gateway)
        if isinstance(gateways, ConfigurationError):
            del gateway  # it may be an API key
            raise gateways
        where = read_url(ledger)
        del ledger  # a URL may hold a password
        if isinstance(where, ConfigurationError):
            raise where
        self.gateway, self.gateways = gateways[0], gateways
        self._components, self._session_task = make_session_parts(
            gateways,
            prefer,
            ledger=where,
            concurrency=concurrency,
            polling=polling,
            retry=retry,
            timeouts=timeouts,
            max_credits=max_credits,
            budgets=budgets,
            observers=observers,
            http=http,
            tls=tls,
            proxy=hidden,
            trust_env=trust_env,
            allow_networks=allow_networks,
            download_headers=download_headers,
            references=references,
            adopt=adopt,
            adopt_every_s=adopt_every_s,
        )
        self._callback_router = self._components.callback_router
        self._balances: dict[str, BalanceReader] = {}

    def __repr__(self) -> str:
        if "_session_task" not in self.__dict__:  # a traceback or debugger may show a session whose constructor raised
            return "<Session not built>"
        engine = self._session_task.engine
        held = 0 if engine is None else sum(each.slots.held for each in engine.members)
        state = "not open" if engine is None else f"open, {held} jobs held"
        return f"<Session {self.gateway.name} {'closed' if self._session_task.closed else state}>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if "_session_task" in self.__dict__:  # missing when the constructor raised
            self._session_task.warn_unclosed()

    async def open(self) -> None:
        """Open the ledger, the connections and the engine; for code that cannot use `async with`.

        Raises `ConfigurationError` if the session is open or was closed, `LedgerError` if the ledger cannot be opened.
        """
        await self._session_task.open()

    async def aclose(self) -> None:
        """Stop buying, wait for the answers of creates in flight and store them, then close everything.

        Idempotent, takes at most `Timeouts.close_s`, and completes even if the caller is cancelled. Unfinished jobs
        stay in the ledger; their waiters get `SessionClosed`.
        """
        await self._session_task.aclose()

    async def job(self, key: str, *, batch: str | None = None) -> Job | None:
        """Return the job with this key; None if it is not in the ledger.

        With `batch`, `key` is the key of a row in the batch of that name.
        """
        engine = self._require_engine()
        check_kind("key", key, (str, int, UUID), "the key of a job, as text")
        key = str(as_key_text(key)) if batch is None else validate_row_key(key)
        if batch is not None:
            key = job_key_of_row(batch_key_prefix(batch), key)
        if (tracked := await engine.find(key)) is None:
            return None
        engine.keep_for_handle(tracked)
        return Job(engine, tracked)

    async def attach(self, task_id: str, *, key: str | None = None, request: ImageRequest | None = None) -> Job:
        """Poll a task of this account by its task id. Nothing is bought.

        `key` is the job's key in the ledger; by default it is derived from the task id. A task that the ledger knows
        already keeps its key: another one raises `ConfigurationError`, another `request` `IdempotencyConflict`. A task
        that it does not know is polled once first: raises `TaskNotFound` if the gateway does not know it, after up to
        40 seconds because a new task may not be visible yet.
        """
        return await attach_task(self._require_engine(), task_id, key, request)

    async def resume(self, *, buy: bool = False) -> list[Job]:
        """Adopt the unfinished jobs of the ledger that have no live owner: of dead processes and of closed sessions.

        RUNNING jobs are polled. A create without an answer is repeated with its key where that is safe; otherwise the
        gateway's history decides, or the job becomes UNCERTAIN. Jobs that were never sent are bought only with
        `buy=True`. Returns the adopted jobs, oldest first, with those that the session has adopted by itself (`adopt=`)
        since the last call and that run. Jobs of other live processes are left alone.
        """
        engine = self._require_engine()
        check_switch("buy", buy)
        return await resume_jobs(engine, self._session_task.adoption, buy=buy)

    async def resolve(
        self, job: Job | str, *, task_id: str | None = None, not_bought: bool = False, buy_again: bool = False
    ) -> Job:
        """Resolve an UNCERTAIN job by hand, if `reconcile` can't. Check the gateway's own list of tasks first.

        Pass exactly one of `task_id` (the job was bought as this task, which is polled), `not_bought`, or `buy_again`
        (buy it with a new idempotency key: a second payment if it was bought after all). `buy_again` also works for a
        FAILED job, and all three for a RUNNING job whose task the gateway does not know. `task_id` is polled first:
        raises `TaskNotFound`, and changes nothing, if the gateway does not know it, after up to 40 seconds for a new
        task. Raises `ConfigurationError` for any other job, and for the task id of another job.
        """
        engine = self._require_engine()
        return await resolve_job(engine, job, task_id=task_id, not_bought=not_bought, buy_again=buy_again)

    async def reconcile(self) -> list[Job]:
        """Find out by the gateway's history which UNCERTAIN jobs were bought; return those with an answer.

        It reads the history once for all UNCERTAIN jobs of the account in the ledger, of earlier sessions too. A job
        gets a task, and is polled, if only that task can be its own. It becomes PENDING if no task can be its own: then
        generate it again, or call `resume(buy=True)`, to buy it. Any other job stays UNCERTAIN, and `nanobanana jobs
        show` lists the tasks that could be it. A session does the same by itself before a job becomes UNCERTAIN.

        Soon after a create it waits until the history can show it: with API Mall for up to 2 minutes. Raises
        `ConfigurationError` if the gateway has no history.
        """
        engine = self._require_engine()
        return await reconcile_jobs(engine)

    async def download(self, image: GeneratedImage, *, verify: bool = True) -> bytes:
        """Return the bytes of an image. An expired link is refreshed once. Raises `DownloadError`.

        `verify=False` returns what the link holds, for example an image in a format that is not recognised.
        """
        saver = ImageSaver(self._require_engine(), self._components.downloads)
        check_kind("image", image, GeneratedImage, "a GeneratedImage, such as result.images[0]")
        check_switch("verify", verify)
        return await saver.fetch(image, verified=verify)

    @overload
    async def save(
        self, result: GenerationResult, target: os.PathLike[str], *, name: str | None = None, sidecar: bool = False
    ) -> list[Path]: ...
    @overload
    async def save(
        self, result: GenerationResult, target: SaveTarget, *, name: str | None = None, sidecar: bool = False
    ) -> list[Path | str]: ...
    async def save(
        self, result: GenerationResult, target: SaveTarget, *, name: str | None = None, sidecar: bool = False
    ) -> list[Path] | list[Path | str]:
        """Save the images of a result in a folder, created if missing, or in an object store; return paths or URLs.

        A store is an obstore store, one with a prefix, or a URL such as `s3://bucket/prefix`. `name` is the images'
        name without an extension, and may have the fields `{key}` and `{slug}` (of the prompt). By default it is the
        `idempotency_key` that was given, else the slug. Several images of a job get -1, -2 and so on. Images appear
        complete or not at all, and overwrite nothing; in a folder they are listed in `SHA256SUMS` and `metadata.jsonl`.
        An image that was saved there before keeps its name and is not downloaded again. `sidecar` writes prompt,
        settings, key and price of each image into `NAME.json` beside it. Raises `DownloadError` or `SaveError`.
        """
        saver = ImageSaver(self._require_engine(), self._components.downloads)
        check_kind("result", result, GenerationResult, "the GenerationResult of a job, such as await job")
        check_switch("sidecar", sidecar)
        template = None if name is None else NameTemplate("name", name, fields=("key", "slug"))
        facts = NameFacts(key=result.key, prompt=None if result.request is None else result.request.prompt)
        stem = default_name(result.key, facts) if template is None else template.stem(facts)
        saved: list[Path | str] = list(await saver.save(result, as_target("target", target), stem, sidecar=sidecar))
        return saved

    async def balance(self, account: str | None = None) -> Decimal:
        """Return the credits that the API may spend, as the gateway states them now.

        `account` names one of several, by its own name or as in `accounts`. One request, which counts in the account's
        budget of requests; network trouble is retried for some seconds. Raises `ConfigurationError` for a gateway that
        states no balance, and errors as a poll does.
        """
        engine = self._require_engine()
        gateway = account_named(self.gateways, account)
        if (reader := self._balances.get(gateway.account)) is None:
            at = self.gateways.index(gateway)
            parts, home = self._session_task.parts[at], engine.members[at]
            query_s = parts.timeouts.query_s
            reader = BalanceReader(gateway, parts.transport, home, parts.retry_policy, query_s=query_s)
            self._balances[gateway.account] = reader
        return await reader.read()

    def stats(self) -> SessionStats:
        """Return a snapshot of limits, requests, jobs and credits; with several accounts, their sums."""
        return sum_stats(list(self.accounts().values()))

    def accounts(self) -> dict[str, SessionStats]:
        """Return the `stats` of each account, by its identifier in ledgers."""
        return stats_by_account(self._require_engine(closed_too=True))

    def _require_engine(self, *, closed_too: bool = False) -> Engine:
        self._components.guard.check()
        if self._session_task.closed and not closed_too:
            raise SessionClosed(f"the session is closed{self._components.guard.why_closed()}")
        if self._session_task.engine is None:
            raise not_open_error()
        return self._session_task.engine


def engine_of(session: Session) -> Engine:
    """Return the engine of an open session, for the parts of this package that stand on a session."""
    return session._require_engine()


def budget_of_call(session: Session, budget: Budget | None, group: str) -> Budget | None:
    """Return the budget of a call in a group: its own, or the one that the session gives the group."""
    return session._budget_of(budget, group)
