"""The yardstick: how long jobs take, and how soon all of them could have been done."""

import heapq
import math
import random
from collections.abc import Iterable, Sequence


class Drawn:
    """Log-normal durations of a seed: the k-th accepted job takes the k-th duration, for every client."""

    def __init__(self, seed: int, median_s: float, sigma: float) -> None:
        self._rng = random.Random(f"{seed} durations")
        self._mu = math.log(median_s)
        self._sigma = sigma

    def __call__(self, _: random.Random) -> float:
        """Return the seconds of the next job."""
        return math.exp(self._rng.gauss(self._mu, self._sigma))

    def take(self, count: int) -> list[float]:
        """Return the next so many durations."""
        return [self(self._rng) for _ in range(count)]


def mean_of(median_s: float, sigma: float) -> float:
    """Return the mean of a log-normal distribution."""
    return median_s * math.exp(sigma * sigma / 2)


def list_schedule_s(durations: Iterable[float], limit: int) -> float:
    """Return the makespan of who knows the limit, needs no time to ask, and sees each end at once."""
    ends: list[float] = []
    for duration in durations:
        start = heapq.heappop(ends) if len(ends) == limit else 0.0
        heapq.heappush(ends, start + duration)
    return max(ends)


def bucket_schedule_s(durations: Sequence[float], limit: int, per_minute: float, burst: int) -> float:
    """Return the same under a rate too: a bucket of tokens, full at the start, that is never asked in vain."""
    ends: list[float] = []
    for number, duration in enumerate(durations):
        token_at = max(0.0, (number + 1 - burst) * 60 / per_minute)
        start = max(token_at, heapq.heappop(ends)) if len(ends) == limit else token_at
        heapq.heappush(ends, start + duration)
    return max(ends)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all does not exceed, or 0 without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
