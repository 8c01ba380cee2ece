"""Request rates of an account: token buckets, windows by the clock and sliding windows."""

from collections import deque
from typing import Literal, Protocol

RateWindow = Literal["bucket", "clock", "sliding"]
"""How requests per time are counted.

A token bucket refills all the time and holds `burst` tokens at most; a window by the clock starts again with each full
second, minute or day; a sliding window looks back from each request. Refused requests do not count.
"""


class Rate(Protocol):
    """A number of requests per time."""

    def wait_s(self, now: float) -> float:
        """Return 0 if a request may come now, otherwise the seconds until one may."""
        ...

    def take(self, now: float) -> None:
        """Count a request."""
        ...


class TokenBucket:
    """`count` tokens are added per period; a request takes one."""

    def __init__(self, count: float, period_s: float, burst: int | None) -> None:
        self._per_s = count / period_s
        self._size = float(burst) if burst is not None else max(1.0, count)
        self._tokens = self._size
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        self._tokens = min(self._size, self._tokens + max(0.0, now - self._at) * self._per_s)
        self._at = max(now, self._at)
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) / self._per_s

    def take(self, now: float) -> None:
        self._tokens -= 1


class ClockWindow:
    """`count` requests in each period, which begins at a multiple of its length."""

    def __init__(self, count: float, period_s: float) -> None:
        self._count = count
        self._period_s = period_s
        self._period = 0
        self._taken = 0

    def wait_s(self, now: float) -> float:
        if (period := int(now // self._period_s)) > self._period:
            self._period, self._taken = period, 0
        return 0.0 if self._taken < self._count else (self._period + 1) * self._period_s - now

    def take(self, now: float) -> None:
        self._taken += 1


class SlidingWindow:
    """`count` requests in any period."""

    def __init__(self, count: float, period_s: float) -> None:
        self._count = count
        self._period_s = period_s
        self._taken: deque[float] = deque()

    def wait_s(self, now: float) -> float:
        while self._taken and self._taken[0] <= now - self._period_s:
            self._taken.popleft()
        return 0.0 if len(self._taken) < self._count else self._taken[0] + self._period_s - now

    def take(self, now: float) -> None:
        self._taken.append(now)


def make_rate(window: RateWindow, count: float, period_s: float, burst: int | None) -> Rate:
    """Return the counter of such a window."""
    match window:
        case "bucket":
            return TokenBucket(count, period_s, burst)
        case "clock":
            return ClockWindow(count, period_s)
        case "sliding":
            return SlidingWindow(count, period_s)
