"""Whether the server of a ledger can be reached, and the lines in the log that say so."""

from collections.abc import Callable

from nanobanana_async.events import log

SAY_AFTER_S = 2.0
SAY_EVERY_S = 30.0
"""A server is reported that is away for a short time, longer than a pooler restarts; then every so many seconds."""


class ServerOutage:
    """The server is away, or is not. The writer's thread writes it, and the event loop reads `reason`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        self._say_at = 0.0
        self.reason: str | None = None
        """Why the server can't be reached, once it was away for a while; None if it can."""

    def on_failure(self, why: str) -> None:
        """Record that a try has failed; say so in the log from time to time."""
        now = self._clock()
        if self._since is None:
            self._since, self._say_at = now, now + SAY_AFTER_S
        if now >= self._say_at:
            self._say_at = now + SAY_EVERY_S
            # The line first: who sees a reason finds it in the log.
            log.warning("ledger.away %s: calls wait, and nothing is bought until it is back", why)
            self.reason = why

    def on_answer(self) -> None:
        """Record that the server has answered."""
        if self._since is None:
            return
        away_s, self._since = self._clock() - self._since, None
        if self.reason is not None:
            log.warning("ledger.back the ledger's server answers again after %.0f s", away_s)
            self.reason = None
