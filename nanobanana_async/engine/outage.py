"""Watch whether the gateway answers: emit `GatewayUnreachable` while it does not, and find out when trying is hopeless.

A failure that only another setting cures (an unknown name, an untrusted certificate, another server at the address) is
hopeless before the gateway's first answer. After it, the settings were right, and the failure counts as an outage.
"""

from collections.abc import Callable

from nanobanana_async.engine.store import JobStore
from nanobanana_async.errors import GatewayUnavailable, NanoBananaError, TransportError, UnexpectedResponse
from nanobanana_async.events import GatewayUnreachable
from nanobanana_async.jobs import JobRecord
from nanobanana_async.policy.retry import is_lasting

REPORT_EVERY_S = 30.0
"""An outage is reported with its first failure, then with one every so many seconds."""
HOPELESS_AFTER_S = 3.0
LONGEST_WAIT_S = 1.0
"""Between two tries that may be hopeless."""


class Outage:
    """Watches the answers of the gateway for the session's poller, submitter and resolver."""

    def __init__(self, store: JobStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self.never_answered = True
        """The gateway has never answered in this session."""
        self.error: NanoBananaError | None = None
        """Why the last request got no usable answer; None while the gateway answers."""
        self._since = clock()
        """When the first of the requests in a row left that got no usable answer."""
        self._answered_at = clock()
        self._report_at = 0.0

    def gateway_answered(self) -> None:
        """Record that the gateway has answered, if only with an error of its own."""
        self.error, self.never_answered, self._answered_at = None, False, self._clock()

    def request_failed(self, error: NanoBananaError, sent_at: float) -> None:
        """Record that a request failed, which left at a time."""
        if not isinstance(error, (TransportError, GatewayUnavailable, UnexpectedResponse)):
            self.gateway_answered()
            return
        if self.error is None:
            self._since = min(max(sent_at, self._answered_at), self._clock())
        self.error = error.for_job("", safe_to_repeat=False)  # a copy without its traceback

    @property
    def for_s(self) -> float:
        """For how long no request got a usable answer; 0 while the gateway answers."""
        return 0.0 if self.error is None else self._clock() - self._since

    def may_be_hopeless(self, error: NanoBananaError) -> bool:
        """Return whether only another setting may cure a failure."""
        return self.never_answered and is_lasting(error)

    def is_hopeless(self, error: NanoBananaError) -> bool:
        """Return whether it is time to give up after a failure, which was recorded before."""
        return self.may_be_hopeless(error) and self._clock() - self._since >= HOPELESS_AFTER_S

    def limited_wait_s(self, error: NanoBananaError, wait_s: float) -> float:
        """Return how long to wait after a failure: not as long as usual if it may be hopeless."""
        return min(wait_s, LONGEST_WAIT_S) if self.may_be_hopeless(error) else wait_s

    def report(self, record: JobRecord, *, retried: bool) -> None:
        """Emit the event if the last request failed and a report is due; `record` is the job's that met the failure."""
        now = self._clock()
        if self.error is not None and now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            self._store.emit(GatewayUnreachable(record=record, error=self.error, for_s=self.for_s, retried=retried))
