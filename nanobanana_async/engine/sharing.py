"""Exchange with the other owners of the ledger: who holds how many slots of the account, and what its requests met."""

import asyncio
from collections.abc import Callable
from functools import partial

import anyio

from nanobanana_async.engine.dispatcher import Dispatcher
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.slots import Slots
from nanobanana_async.errors import LedgerError
from nanobanana_async.events import log
from nanobanana_async.ledger.base import Ledger, SharesAccount
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.limiter import AdmissionLimiter
from nanobanana_async.policy.request_cap import RequestCap
from nanobanana_async.policy.session_budget import SessionBudget
from nanobanana_async.policy.shared_account import SharedAccount
from nanobanana_async.policy.shared_limits import SharedBudget, SharedLimiter
from nanobanana_async.policy.sharing import PROBE_S


def make_limits(ledger: Ledger, concurrency: ConcurrencyPolicy) -> tuple[AdmissionLimiter, SessionBudget]:
    """Return what admits requests: by what this session learns alone, or what the owners of its ledger share."""
    per_minute = concurrency.max_requests_per_minute
    cap = None if per_minute is None else RequestCap(per_minute)
    if isinstance(ledger, SharesAccount) and concurrency.learn:
        shared = SharedBudget(cap=cap, shared=SharedAccount(concurrency.interactive, concurrency.reserve))
        return SharedLimiter(concurrency, budget=shared), shared
    budget = SessionBudget(cap=cap)
    return AdmissionLimiter(concurrency, budget=budget), budget


def set_up_exchanges(engine: Engine) -> None:
    """Let an engine exchange with the other owners of its ledger, if that shares the account."""
    ledger, limiter, scheduler = engine.store.ledger, engine.slots.limiter, engine.scheduler
    if isinstance(ledger, SharesAccount) and isinstance(limiter, SharedLimiter):
        exchanges = Exchanges(ledger, engine.account, limiter, engine.slots, scheduler.dispatcher, engine.orphans_seen)
        scheduler.dispatcher.after_admission = exchanges.wake_if_due
        scheduler.background_tasks.append(partial(exchanges.keep_exchanging, scheduler.tick))


class Exchanges:
    """The exchanges of a session. What was allotted lasts while the ledger is slow or away."""

    def __init__(
        self,
        ledger: SharesAccount,
        account: str,
        limiter: SharedLimiter,
        slots: Slots,
        dispatcher: Dispatcher,
        orphans_seen: asyncio.Event,
    ) -> None:
        self._ledger = ledger
        self._account = account
        self._limiter = limiter
        self._shared = limiter.budget.shared
        self._slots = slots
        self._dispatcher = dispatcher
        self._clock = asyncio.get_running_loop().time
        self._due = asyncio.Event()
        self._orphans_seen = orphans_seen
        self._failure_logged = False

    def wake_if_due(self) -> None:
        """Begin an exchange if one is due; called after each step of a job."""
        if self._update_gates_and_next_at() <= self._clock():
            self._due.set()

    async def keep_exchanging(self, changed: Callable[[], None]) -> None:
        """Exchange whenever it is due, as long as the session is open; `changed` is called after each exchange."""
        while True:
            self._due.clear()
            wait_s = self._update_gates_and_next_at() - self._clock()
            if wait_s > 0:
                with anyio.move_on_after(wait_s):
                    await self._due.wait()
            else:
                await self._exchange()
                changed()

    def _update_gates_and_next_at(self) -> float:
        """Return when the next exchange is due, with the pauses that the session has met."""
        pause, breaker, shared = self._slots.request_budget.long_pause, self._slots.breaker, self._shared
        shared.gates_polls = pause.used_up
        shared.gate_until = max(pause.opens_at, breaker.paused_until + PROBE_S * breaker.is_half_open)
        shared.outage = breaker.is_half_open and not pause.used_up
        now = self._clock()
        queued = self._dispatcher.usable_slots(now)
        return shared.next_at(now, self._slots.load.taken, queued, self._dispatcher.urgent_slots(queued))

    async def _exchange(self) -> None:
        asked_at, limits = self._clock(), self._limiter.job_limit
        queued = self._dispatcher.usable_slots(asked_at)
        report = self._shared.make_report(
            self._slots.load,
            queued,
            self._dispatcher.polls_due,
            mean_job_s=limits.mean_job_s,
            notice_delay_s=limits.notice_delay_s,
            max_run_s=self._slots.max_hold_s,
            urgent=self._dispatcher.urgent_slots(queued),
        )
        try:
            allotment = await self._ledger.exchange(self._account, report)
        except LedgerError as error:
            self._shared.on_exchange_failed(self._clock())
            if not self._failure_logged:
                log.warning("ledger.failed error=%s", error.message)
            self._failure_logged = True
        else:
            self._limiter.take_allotment(allotment, asked_at, self._clock())
            self._failure_logged = False
            if allotment.orphans:
                self._orphans_seen.set()
