"""The wall clock of a session, which never goes back while the session is open."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from attrs import define, field


@define
class WallClock:
    """Returns the present time. Where the wall clock is set back, the event loop's clock continues from before.

    The age of an idempotency key is measured with it. A key of this session is then never younger than it is, and a
    clock that was set back does not make its age unknown. A clock that jumps forward is believed: the machine may have
    slept, and the event loop's clock stands still then.
    """

    _utcnow: Callable[[], datetime]
    _clock: Callable[[], float]
    _last: datetime = field(init=False)
    _last_at: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._last, self._last_at = self._utcnow(), self._clock()

    def __call__(self) -> datetime:
        """Return the present time in UTC."""
        now = self._clock()
        self._last = max(self._utcnow(), self._last + timedelta(seconds=now - self._last_at))
        self._last_at = now
        return self._last


def utcnow() -> datetime:
    """Return the wall clock's time, or that of an event loop with virtual time (`nanobanana_async.testing`)."""
    clock: Callable[[], datetime] | None = getattr(asyncio.get_running_loop(), "utcnow", None)
    return datetime.now(UTC) if clock is None else clock()
