"""The parts of a session: how they are built, opened and closed."""

import asyncio
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from decimal import Decimal
from functools import partial
from typing import Literal
from weakref import WeakSet

import anyio
from attrs import Factory, field, frozen

from nanobanana_async.config import Timeouts, job_s_of
from nanobanana_async.engine.account_memory import AccountMemory
from nanobanana_async.engine.account_webhook import AccountWebhook, BudgetedSend, Webhooks
from nanobanana_async.engine.adoption import Adoption
from nanobanana_async.engine.callback_handler import CallbackHandler
from nanobanana_async.engine.callback_router import CallbackRouter
from nanobanana_async.engine.credit_account import CreditAccount
from nanobanana_async.engine.deliveries import DeliveryHandler
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.history import History
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.reconciler import Reconciler
from nanobanana_async.engine.references import References
from nanobanana_async.engine.sharing import make_limits, set_up_exchanges
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.submitter import Submitter
from nanobanana_async.engine.unlisted_registrations import UnlistedRegistrations
from nanobanana_async.engine.uploader import Uploader
from nanobanana_async.engine.waiting_budgets import keep_reading_budgets
from nanobanana_async.engine.wall_clock import WallClock, utcnow
from nanobanana_async.errors import ConfigurationError, NanoBananaError, SessionClosed
from nanobanana_async.events import EventEmitter
from nanobanana_async.gateways.capabilities import HasWebhooks
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.http.transport import AiohttpTransport
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.loop_guard import LoopGuard, cancel_requested
from nanobanana_async.policy.budget import Cap, MemoryCap
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.policy.session_budget import SessionBudget
from nanobanana_async.references import ReferencePublisher


def _make_loop_guard(parts: "SessionComponents") -> LoopGuard:
    return LoopGuard(f"<Session {parts.gateway.name}>")


def _make_callback_router(parts: "SessionComponents") -> CallbackRouter:
    return CallbackRouter(parts.ledger, parts.guard)


@frozen(kw_only=True)
class SessionComponents:
    """The parts that a session opens, and its settings."""

    gateway: Gateway
    ledger: Ledger
    transport: Transport
    downloads: ImageDownloader
    emit: EventEmitter
    concurrency_policy: ConcurrencyPolicy
    poll_policy: PollPolicy
    retry_policy: RetryPolicy
    timeouts: Timeouts
    max_credits: Decimal | None
    budgets: Mapping[str, Budget]  # by group
    publisher: ReferencePublisher | None
    adopt: Literal["follow", "buy"] | None
    adopt_every_s: float
    guard: LoopGuard = field(default=Factory(_make_loop_guard, takes_self=True))
    callback_router: CallbackRouter = field(default=Factory(_make_callback_router, takes_self=True))

    def leave_to_parent(self) -> None:
        """Leave the sockets to the parent process; called in a forked child."""
        if isinstance(self.transport, AiohttpTransport):
            self.transport.leave_to_parent()
        self.downloads.leave_to_parent()

    def make_engine(self, caps: tuple[Cap, ...] | None = None) -> Engine:
        """Return an engine on the running event loop, with its own or joint caps; ledger and transport must be open."""
        clock = asyncio.get_running_loop().time
        credit_account = CreditAccount(self.gateway)
        store = JobStore(self.ledger, credit_account, self.emit, WallClock(utcnow, clock))
        job_s = job_s_of(self.timeouts, self.gateway)
        estimates = JobEstimates(self.gateway, self.poll_policy, job_s=job_s, clock=clock)
        limiter, budget = make_limits(self.ledger, self.concurrency_policy)
        poller = Poller(
            self.gateway,
            self.transport,
            store,
            estimates,
            self.poll_policy,
            self.retry_policy,
            self.callback_router,
            budget,
            query_s=self.timeouts.query_s,
            job_s=job_s,
            clock=clock,
        )
        slots = Slots(limiter, self.retry_policy, estimates, budget, account=self.gateway.account)
        uploader = Uploader(
            self.gateway,
            self.transport,
            self.downloads,
            poller.outage,
            budget,
            self.retry_policy,
            create_s=self.timeouts.create_s,
            clock=clock,
        )
        references = References(self.gateway, store, uploader, self.publisher, clock=clock)
        query_s = self.timeouts.query_s
        history = History(self.gateway, self.transport, poller, store, slots.spacing, query_s=query_s, clock=clock)
        submitter = Submitter(
            self.gateway,
            self.transport,
            store,
            slots,
            poller,
            estimates,
            references,
            history,
            self.retry_policy,
            create_s=self.timeouts.create_s,
            clock=clock,
        )
        own = () if self.max_credits is None else (MemoryCap(self.max_credits, credit_account.prices),)
        engine = Engine(
            self.gateway,
            store,
            slots,
            submitter,
            poller,
            estimates,
            references,
            history,
            budgets=own if caps is None else caps,
            callbacks=self.callback_router,
            guard=self.guard,
            max_requests=self.concurrency_policy.max_requests,
        )
        set_up_exchanges(engine)
        handler = CallbackHandler(self.gateway, engine, self.callback_router)
        engine.scheduler.background_tasks += [handler.keep_fetching_notices, Reconciler(engine).keep_reconciling]
        engine.scheduler.background_tasks.append(partial(keep_reading_budgets, store, clock, engine.scheduler.tick))
        deliveries = self._make_deliveries(engine, handler, budget)
        self.callback_router.set_handlers(engine.account, handler, deliveries)
        return engine

    def _make_deliveries(
        self, engine: Engine, handler: CallbackHandler, budget: SessionBudget
    ) -> DeliveryHandler | None:
        """Return what handles deliveries, and keep a webhook registered; None if the gateway calls a URL per job."""
        gateway = self.gateway
        if gateway.supports_callbacks or not isinstance(gateway, HasWebhooks):
            return None
        send = BudgetedSend(self.transport, budget, timeout_s=self.timeouts.query_s, clock=engine.clock)
        webhooks = Webhooks(gateway, gateway.account, self.callback_router, send)
        unlisted = UnlistedRegistrations(self.ledger, gateway.account, engine.store.utcnow)
        webhook = AccountWebhook(webhooks, self.callback_router, engine.poller.fallback, unlisted)
        deliveries = DeliveryHandler(webhook, gateway, engine, self.callback_router, handler)
        engine.scheduler.background_tasks += [webhook.keep_registered, deliveries.keep_searching_early_deliveries]
        return deliveries


class SessionLifecycle:
    """The task that opens the parts of a session and its engine, and closes them in reverse order."""

    def __init__(self, name: str, parts: SessionComponents) -> None:
        self._name, self._components = name, parts
        self.parts: Sequence[SessionComponents] = (parts,)
        self._task: asyncio.Task[None] | None = None
        self.engine: Engine | None = None
        self.adoption: Adoption
        self.closed = False
        self._abandoned = False

    async def open(self) -> None:
        """Open everything."""
        if self._task is not None or self.closed:
            raise ConfigurationError("this session was opened before: use it while it is open, then make a new one")
        loop = asyncio.get_running_loop()
        self._components.guard.bind()
        self._opened: asyncio.Future[None] = loop.create_future()
        # Retrieved here too: no caller is left to do it when `open` is cancelled, and asyncio would log the error.
        self._opened.add_done_callback(asyncio.Future.exception)
        self._closing = asyncio.Event()
        # A task of its own without a parent scope, so that one task may open the session and another close it.
        self._task = loop.create_task(self._run(), name="nanobanana_async session")
        self._task.add_done_callback(lambda _: self._components.guard.release())
        _OPENED_SESSIONS.add(self)
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close everything that was opened, in the session's task. Idempotent; done when it returns or raises."""
        self._components.guard.check()
        self.closed = True
        if self._task is None:
            return
        self._closing.set()
        if not self._opened.done():  # do not wait for an opening that hangs
            self._task.cancel()
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not self._task.done():
                try:
                    await asyncio.wait([self._task])
                except asyncio.CancelledError as error:  # a native cancel does not know anyio's shield
                    cancelled = error
        if not self._opened.done():  # it was cancelled before its first step
            self._opened.set_exception(SessionClosed(_CLOSED_EARLY_MESSAGE))
        if cancelled is not None:
            raise cancelled
        if not self._task.cancelled():
            self._task.result()

    def warn_unclosed(self) -> None:
        """Warn once that the session was garbage collected without being closed."""
        if self._task is not None and not (self.closed or self._components.guard.forked):
            self.closed = True
            self._warn()

    def leave_to_parent(self) -> None:
        """Leave everything that is open to the parent process; called in a child right after the fork."""
        if self._components.guard.forked:
            for each in () if self.engine is None else self.engine.members:
                each.scheduler.stop()
            self._components.leave_to_parent()

    def _warn(self) -> None:
        warnings.warn(
            f"{self._name} was never closed: use 'async with Session(...)', or await session.aclose()",
            ResourceWarning,
            stacklevel=3,
        )

    async def _run(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                self.engine, memories = await self._open_all(stack)
                self.adoption = Adoption(self.engine, self._components.adopt, self._components.adopt_every_s)
                self.adoption.start()
                await self._run_engine(self.engine, memories)
        except BaseException as error:
            stray = isinstance(error, asyncio.CancelledError) and not cancel_requested()
            failure = NanoBananaError(_CANCELLED_MESSAGE) if stray else error
            if self._opened.done() and stray:
                raise failure from error
            if self._opened.done():
                raise
            self._opened.set_exception(SessionClosed(_CLOSED_EARLY_MESSAGE) if self._closing.is_set() else failure)
        finally:
            if self._abandoned:  # last: the user may turn warnings into errors
                self._warn()

    async def _open_all(self, stack: AsyncExitStack) -> tuple[Engine, list[AccountMemory]]:
        """Open the parts and make the engine; return it, and what saves its learning."""
        parts = self._components
        for part in (parts.ledger, parts.transport, parts.downloads):
            await part.open()
            stack.push_async_callback(part.aclose)
        engine = parts.make_engine()
        return engine, [await AccountMemory.load_and_keep_saving(parts.ledger, engine)]

    async def _run_engine(self, engine: Engine, memories: list[AccountMemory]) -> None:
        async with anyio.create_task_group() as group:
            for each in engine.members:
                each.scheduler.start(group)
            self._opened.set_result(None)
            try:
                await self._closing.wait()
            except asyncio.CancelledError:  # the event loop is shutting down
                self._abandoned, self.closed = not (self.closed or self._components.guard.forked), True
                raise
            finally:
                if not self._components.guard.forked:
                    with anyio.CancelScope(shield=True):
                        for each in engine.members:  # all, before one is waited for
                            each.scheduler.stop()
                        with anyio.move_on_after(self._components.timeouts.close_s):
                            for each in engine.members:
                                await each.scheduler.aclose(self._components.timeouts.close_s)
                        with anyio.move_on_after(self._components.timeouts.close_s):
                            for memory in memories:
                                await memory.save()
                    for each in engine.members:
                        each.scheduler.fail_all_waiters()
                group.cancel_scope.cancel()


_CLOSED_EARLY_MESSAGE = "the session was closed while it was being opened"
_CANCELLED_MESSAGE = "the session's ledger or transport was cancelled from within while it was being opened or closed"

_OPENED_SESSIONS: WeakSet[SessionLifecycle] = WeakSet()
"""The tasks of all opened sessions. A forked child has copies of them, whose sockets are its parent's."""


def _leave_all_to_parent() -> None:
    for host in list(_OPENED_SESSIONS):
        host.leave_to_parent()


if hasattr(os, "register_at_fork"):  # pragma: no branch - there is no fork on Windows
    os.register_at_fork(after_in_child=_leave_all_to_parent)
