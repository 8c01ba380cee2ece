"""Count the requests of the last minute, the usual period of a limit of requests."""

import math
from collections import deque

from attrs import define, field

WINDOW_S = 60.0
"""The period of a window. If it is another, what is measured in a minute is about the same rate."""
RESOLUTION_S = 0.25
"""Requests so close together are counted as one group."""


@define
class SentLately:
    """Counts the requests that left in the last minute and were not refused for their rate."""

    total: int = 0
    _groups: deque[list[float]] = field(factory=deque)
    """The times of the first requests of the groups, and how many are in each."""

    def add(self, at: float) -> None:
        """Count a request that leaves."""
        if not self._groups or at - self._groups[-1][0] >= RESOLUTION_S:
            self._groups.append([at, 0])
            self.forget(at)
        self._groups[-1][1] += 1
        self.total += 1

    def remove(self, sent_at: float) -> bool:
        """Take out a request that was refused; return whether it was counted."""
        for group in reversed(self._groups):
            if group[0] <= sent_at and group[1]:
                group[1] -= 1
                self.total -= 1
                return True
        return False

    def forget(self, now: float) -> None:
        """Take out the requests that left more than a minute ago."""
        while self._groups and self.next_expiry <= now:
            self.total -= int(self._groups.popleft()[1])

    @property
    def next_expiry(self) -> float:
        """When the oldest requests will be a minute old, with a margin for the time that requests take to arrive."""
        return self._groups[0][0] + WINDOW_S + 2.0 * RESOLUTION_S if self._groups else -math.inf


@define
class AcceptedLately:
    """Counts accepted requests in each second of the last minute."""

    _counts_by_second: deque[list[int]] = field(factory=deque)
    _first_at: float = math.inf

    def add(self, at: float) -> None:
        """Count a request that was sent at a time, and accepted."""
        if at < self._first_at:
            self._first_at = at
        second = int(at)
        if self._counts_by_second and second <= self._counts_by_second[-1][0]:
            self._counts_by_second[-1][1] += 1
            return
        self._counts_by_second.append([second, 1])
        while self._counts_by_second[0][0] <= second - WINDOW_S:
            self._counts_by_second.popleft()

    def in_last_minute(self, now: float) -> int:
        """Return how many requests of the last minute were accepted."""
        return sum(count for second, count in self._counts_by_second if second > now - WINDOW_S)

    def proven_rate(self, now: float) -> float:
        """Return the rate of the minute before, or of its second half if that was lower; 0 before a full minute."""
        if now - self._first_at < WINDOW_S:
            return 0.0
        minute = self.in_last_minute(now)
        half = sum(count for second, count in self._counts_by_second if second > now - WINDOW_S / 2)
        return min(minute, 2 * half) / WINDOW_S
