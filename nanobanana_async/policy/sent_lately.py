"""Count the requests that left in the last minute, the usual period of a limit of requests."""

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
        self._groups[-1][1] += 1
        self.total += 1
        self.forget(at)

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
