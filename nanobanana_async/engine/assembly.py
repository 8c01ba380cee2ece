"""What a session is made of, and how its engine is put together once it opens."""

import asyncio
import os
from decimal import Decimal

from attrs import Factory, field, frozen

from nanobanana_async.config import Timeouts
from nanobanana_async.engine.books import Books, utcnow
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.callbacks import Callbacks
from nanobanana_async.engine.core import Engine
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.hearing import Hearing
from nanobanana_async.engine.purse import Purse
from nanobanana_async.engine.slots import Slots
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.http.api import Api
from nanobanana_async.http.downloads import Downloads
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.loops import LoopGuard
from nanobanana_async.observe import Announcer
from nanobanana_async.policy.caps import Budget
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import RetryPolicy


def _guard_of(parts: "Parts") -> LoopGuard:
    return LoopGuard(f"<Session {parts.gateway.name}>")


def _callbacks_of(parts: "Parts") -> Callbacks:
    return Callbacks(parts.ledger, parts.guard)


@frozen(kw_only=True)
class Parts:
    """Everything that a session opens, and the settings it works by."""

    gateway: Gateway
    ledger: Ledger
    transport: Transport
    downloads: Downloads
    announce: Announcer
    concurrency: ConcurrencyPolicy
    polling: PollPolicy
    retry: RetryPolicy
    timeouts: Timeouts
    max_credits: Decimal | None
    guard: LoopGuard = field(init=False, default=Factory(_guard_of, takes_self=True))
    callbacks: Callbacks = field(init=False, default=Factory(_callbacks_of, takes_self=True))

    def disown(self) -> None:
        """Leave the sockets to the parent process; called in a forked child."""
        if isinstance(self.transport, Api):
            self.transport.disown()
        self.downloads.disown()

    def engine(self) -> Engine:
        """Return an engine on the running event loop; ledger and transport must be open."""
        clock = asyncio.get_running_loop().time
        purse = Purse(self.gateway)
        books = Books(self.ledger, purse, self.announce, utcnow)
        follower = Follower(
            self.gateway,
            self.transport,
            books,
            self.polling,
            self.retry,
            query_s=self.timeouts.query_s,
            job_s=self.timeouts.job_s,
            clock=clock,
            is_called_back=self.callbacks.expected_for,
        )
        slots = Slots(
            self.concurrency,
            self.retry,
            target_delay_s=self.polling.target_delay_s,
            likely_ends=follower.likely_ends,
        )
        buyer = Buyer(
            self.gateway,
            self.transport,
            books,
            slots,
            self.retry,
            create_s=self.timeouts.create_s,
            begin=follower.begin,
            lingers_s=follower.lingers_s,
            clock=clock,
        )
        budgets = () if self.max_credits is None else (Budget(self.max_credits, purse.prices),)
        engine = Engine(
            self.gateway,
            books,
            slots,
            buyer,
            follower,
            budgets=budgets,
            callbacks=self.callbacks,
            guard=self.guard,
            max_requests=self.concurrency.max_requests,
        )
        hearing = Hearing(self.gateway, engine, self.callbacks)
        self.callbacks.connect(hearing.heard)
        engine.runner.beside.append(hearing.fetch_nudges)
        return engine


def ledger_of(ledger: Ledger | str | os.PathLike[str] | None) -> Ledger:
    """Return the ledger that a user means: by itself, by its path, or none that lasts."""
    match ledger:
        case None:
            return MemoryLedger()
        case str() | os.PathLike():
            return SqliteLedger(ledger)
        case _:
            return ledger
