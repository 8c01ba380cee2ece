"""Emit `GatewayUnreachable` while creates or polls get no usable answer: after some seconds, then once a minute."""

from collections.abc import Callable

from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import GatewayUnavailable, NanoBananaError, TransportError, UnexpectedResponse
from nanobanana_async.events import GatewayUnreachable

FIRST_S = 5.0
"""How long an outage lasts before it is reported: a short one is not worth a line."""
AGAIN_S = 60.0


class OutageReport:
    """Watches the answers of the gateway for the session's poller and submitter."""

    def __init__(self, store: JobStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._since: float | None = None
        """When the first of the requests in a row left that got no usable answer."""
        self._answered_at = clock()
        self._report_at = 0.0

    def answered(self) -> None:
        """Record that the gateway has answered, if only with an error of its own."""
        self._since, self._answered_at = None, self._clock()

    def failed(self, job: TrackedJob, error: NanoBananaError, sent_at: float) -> None:
        """Record that a request of a job failed, which left at a time; emit the event when it is due."""
        if not isinstance(error, (TransportError, GatewayUnavailable, UnexpectedResponse)):
            self.answered()
            return
        now = self._clock()
        if self._since is None:
            self._since = min(max(sent_at, self._answered_at), now)
            self._report_at = self._since + FIRST_S
        if now >= self._report_at:
            self._report_at = now + AGAIN_S
            self._store.emit(GatewayUnreachable(record=job.record, error=error, for_s=now - self._since))
