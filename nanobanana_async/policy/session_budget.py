"""The budget of requests of a session: what is learned, below the user's cap, and none during a long pause."""

import math

from attrs import define, field

from nanobanana_async.policy.long_pause import LongPause
from nanobanana_async.policy.request_budget import RequestBudget, RequestKind
from nanobanana_async.policy.request_cap import RequestCap


@define
class SessionBudget(RequestBudget):
    """A budget of requests with a cap and pauses, which hold for creates and polls alike."""

    cap: RequestCap | None = field(default=None, kw_only=True)
    long_pause: LongPause = field(factory=LongPause, kw_only=True)

    @property
    def cap_and_pause_end_at(self) -> float:
        """When the cap and the pause let a request leave."""
        return self.long_pause.opens_at if self.cap is None else max(self.long_pause.opens_at, self.cap.opens_at)

    def admits(self, kind: RequestKind, now: float, in_flight: int) -> bool:
        """Return whether a request may leave now while `in_flight` of its kind have no answer yet."""
        return now >= self.cap_and_pause_end_at and super().admits(kind, now, in_flight)

    def opens_at(self, kind: RequestKind) -> float:
        """Return when a request may leave by the passing of time."""
        return max(self.cap_and_pause_end_at, super().opens_at(kind))

    def on_sent(self, kind: RequestKind, now: float) -> None:
        """Record that a request left."""
        self.count_unpaced(now)
        super().on_sent(kind, now)

    def count_unpaced(self, now: float) -> None:
        """Count a request that no pace held back."""
        self.long_pause.on_sent(now)
        if self.cap is not None:
            self.cap.on_sent(now)

    def cap_wait_s(self, now: float) -> float:
        """Return how long the cap holds a request back that leaves even during a pause."""
        return -math.inf if self.cap is None else self.cap.opens_at - now

    def cap_most_requests_within(self, now: float, within_s: float) -> float:
        """Return how many requests the cap lets leave within a time, at most."""
        return math.inf if self.cap is None else self.cap.most_requests_within(now, within_s)

    def on_accepted(self, kind: RequestKind, now: float, sent_at: float) -> None:
        """Record that a request was answered, and not with a 429 for its rate."""
        self.long_pause.on_answered(sent_at)
        super().on_accepted(kind, now, sent_at)

    def on_throttled(self, kind: RequestKind, now: float, sent_at: float, wait_s: float | None = None) -> None:
        """Record a 429 for the rate; it shows that no budget of a day is used up any more."""
        self.long_pause.on_answered(sent_at)
        super().on_throttled(kind, now, sent_at, wait_s)
