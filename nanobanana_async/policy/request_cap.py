"""Keep all requests of a session below a number per minute that the user states.

The bound holds from the first request on and needs no refusal: in any minute at most `per_minute` requests leave. They
leave in about even gaps, since a burst may use up a token bucket, or the minute, and then nothing leaves for long. Gaps
in which nothing left are made up for, up to `MAKE_UP_S`: polls come in groups, and a strictly even pace delays them.
"""

import math
from collections import deque

from attrs import define, field

CAP_WINDOW_S = 61.0
"""A minute and a second: a gateway counts when requests arrive, and one may be on its way longer than the next."""
MAKE_UP_S = 6.0
"""The requests of a tenth of a minute may leave at once; in simulation more did not shorten the makespan."""


@define
class RequestCap:
    """A bound of requests per minute."""

    per_minute: int
    _next_at: float = -math.inf
    _last_minute: deque[float] = field(init=False, repr=False)
    """When the last `per_minute` requests left."""

    def __attrs_post_init__(self) -> None:
        self._last_minute = deque(maxlen=self.per_minute)

    @property
    def opens_at(self) -> float:
        """When the next request may leave."""
        if len(self._last_minute) < self.per_minute:
            return self._next_at
        return max(self._next_at, self._last_minute[0] + CAP_WINDOW_S)

    def most_requests_within(self, now: float, within_s: float) -> int:
        """Return how many requests may leave within a time, at most."""
        until, gap_s = now + within_s, CAP_WINDOW_S / self.per_minute
        if until < self.opens_at:
            return 0
        return min(self.per_minute, 1 + int((until - max(self._next_at, now - MAKE_UP_S)) / gap_s))

    def on_sent(self, now: float) -> None:
        """Count a request."""
        self._next_at = max(self._next_at, now - MAKE_UP_S) + CAP_WINDOW_S / self.per_minute
        self._last_minute.append(now)
