"""Start a session from what earlier ones learned about the account, and store what this one learns.

Nothing here is worth a failed session: a text that can't be read means a start without knowledge, and a ledger that
can't store what was learned is logged once.
"""

import asyncio
from typing import Self

import anyio

from nanobanana_async.engine.engine import Engine
from nanobanana_async.events import log
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.loop_guard import cancel_requested
from nanobanana_async.policy.learned import LearnedAccount, LearnedPriceClass, is_kept

SAVE_EVERY_S = 30.0
"""How much learning a `kill -9` loses at most."""


class AccountMemory:
    """What the ledger knows about the account of an engine."""

    def __init__(self, ledger: Ledger, account: str, engine: Engine) -> None:
        self._ledger = ledger
        self._account = account
        self._clock = engine.clock
        self._utcnow = engine.store.utcnow
        self._limiter = engine.slots.limiter
        self._estimates = engine.estimates
        self._prices = engine.store.credits.prices
        self._stored = LearnedAccount()
        """What the ledger has."""
        self._seen = LearnedAccount()
        """What the session knew when it was last compared with the ledger."""
        self._failure_logged = False

    async def load(self) -> None:
        """Start from what the ledger has; nothing is learned yet."""
        try:
            text = await self._ledger.recall(self._account)
        except (Exception, asyncio.CancelledError) as failure:
            _raise_if_cancelled(failure)
            log.warning("ledger.failed error=%s", failure)
            return
        try:
            self._stored = LearnedAccount() if text is None else LearnedAccount.from_json(text)
        except Exception as failure:  # edited by hand, or written by another version
            log.warning("learned.unreadable account=%s error=%s", self._account, type(failure).__name__)
        self._restore(self._stored)
        self._seen = self._export()

    @classmethod
    async def load_and_keep_saving(cls, ledger: Ledger, engine: Engine) -> Self:
        """Let an engine start from what the ledger knows of its account, and store there what it learns."""
        memory = cls(ledger, engine.account, engine)
        await memory.load()
        engine.scheduler.background_tasks.append(memory.keep_saving)
        return memory

    async def save(self) -> None:
        """Store what changed since the last time, if anything did."""
        try:
            seen = self._export()
            learned = self._stored.merge_changes(self._seen, seen)
            if learned != self._stored:
                await self._ledger.remember(self._account, learned.to_json())
                self._stored, self._seen = learned, seen
        except (Exception, asyncio.CancelledError) as failure:
            _raise_if_cancelled(failure)
            if not self._failure_logged:
                self._failure_logged = True
                log.warning("ledger.failed error=%s", failure)

    async def keep_saving(self) -> None:
        """Store what was learned from time to time, as long as the session is open."""
        while True:
            await anyio.sleep(SAVE_EVERY_S)
            await self.save()

    def _restore(self, known: LearnedAccount) -> None:
        now = self._utcnow()
        for name, facts in known.classes.items():
            if weight := facts.faded_weight(now):
                moments = {"log_mean": facts.log_mean, "log_variance": facts.log_variance}
                self._estimates.restore(name, count=weight, **moments)
            if facts.price is not None and is_kept(facts.at, now):
                self._prices.restore(name, facts.price)
        if (durations := self._estimates.best_known_durations) is not None:
            self._limiter.job_limit.mean_job_s = durations.median_s
        if known.limits is not None:
            self._limiter.restore(known.limits, now=self._clock(), at=now)

    def _export(self) -> LearnedAccount:
        at = self._utcnow()
        durations, prices = self._estimates.durations, self._prices.known
        classes = {}
        for name in sorted(durations.keys() | prices.keys()):
            facts = LearnedPriceClass(at=at, price=prices.get(name))
            if (each := durations.get(name)) is not None:
                mean, variance = each.log_moments
                facts = LearnedPriceClass(
                    at=at, count=each.count, log_mean=mean, log_variance=variance, price=facts.price
                )
            classes[name] = facts
        return LearnedAccount(limits=self._limiter.learned(now=self._clock(), at=at), classes=classes)


def _raise_if_cancelled(failure: BaseException) -> None:
    """Raise a cancellation that ends the task; one from inside the ledger is a failure like any other."""
    if isinstance(failure, asyncio.CancelledError) and cancel_requested():
        raise failure
