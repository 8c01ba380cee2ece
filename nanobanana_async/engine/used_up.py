"""Pause all requests while a budget of hours or of a day is used up, and emit `BudgetUsedUp` once for each pause."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta

from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import NanoBananaError, RateLimited
from nanobanana_async.events import BudgetUsedUp
from nanobanana_async.policy.session_budget import SessionBudget


class UsedUpBudgets:
    """Watches the refusals of a session for those of a long time."""

    def __init__(self, store: JobStore, budget: SessionBudget, clock: Callable[[], float]) -> None:
        self._store = store
        self._pause = budget.long_pause
        self._clock = clock
        self._unreported = False

    @property
    def until(self) -> datetime | None:
        """When the gateway takes requests again, by its own words; None while no budget is used up."""
        if not self._pause.used_up:
            return None
        return self._store.utcnow() + timedelta(seconds=self._pause.ends_at - self._clock())

    def pause_outlasts(self, max_budget_wait_s: float) -> bool:
        """Return whether there is a pause that lasts longer than this from its first refusal on."""
        return self._pause.outlasts(self._clock(), max_budget_wait_s)

    def pause_if_used_up(self, error: RateLimited, sent_at: float) -> bool:
        """Pause if the refusal says that a budget of a long time is used up; return whether it does."""
        for_s = error.used_up_for_s
        if for_s is None:
            return False
        if for_s == math.inf:  # days end at midnight UTC, unless the gateway says otherwise
            now = self._store.utcnow()
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
            for_s = (midnight - now).total_seconds()
        self._unreported = self._pause.on_refused(self._clock(), sent_at, for_s) or self._unreported
        return True

    def report(self, job: TrackedJob, error: NanoBananaError) -> None:
        """Emit the event, if the refusal of this job's request has begun a pause."""
        if self._unreported and (until := self.until) is not None:
            self._unreported = False
            self._store.emit(BudgetUsedUp(record=job.record, error=error, until=until))
