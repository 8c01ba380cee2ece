"""Emit what is known about the account's limits when it has changed."""

from attrs import evolve

from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore


class LimitEvents:
    """Emits `LimitsChanged` after creates."""

    def __init__(self, slots: Slots, store: JobStore, account: str) -> None:
        self._account = account
        self._slots = slots
        self._store = store
        self._last: tuple[object, ...] = ()

    def emit_changes(self, now: float) -> None:
        """Emit the learned limits if they have changed."""
        standing = self._slots.snapshot(now)
        known = (
            standing.job_limit,
            standing.max_creates_per_s,
            standing.limit_kind,
            standing.creates_paused,
            standing.throttled,
        )
        if known != self._last:
            self._last = known
            self._store.emit(evolve(standing, account=self._account))
