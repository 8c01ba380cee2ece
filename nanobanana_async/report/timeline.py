"""Map times to the width of a chart: idle time is cut out, and nearby points are merged."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from attrs import frozen

COLUMNS = 480
"""Horizontal resolution of a chart."""

_CUT_SHARE = 0.05  # of the busy time: a shorter gap is not worth a cut
_CUT_WIDTH = 0.025

Span = tuple[float, float]
Step = tuple[float, float]
"""A place on the axis from 0 to 1, and the value from this place on."""


@frozen
class IdleCut:
    """A place where idle time was cut out, and its length."""

    place: float
    seconds: float


class BusyTimeAxis:
    """The busy time of a run as places from 0 to 1, so that a batch resumed after a week has no week of empty chart.

    `spans` are busy times. A gap of more than `idle_s` between two spans is idle time, which is cut out.
    """

    def __init__(self, spans: Iterable[Span], idle_s: float) -> None:
        busy = _merged(spans, idle_s)
        pieces = _merged(busy, max(idle_s, _CUT_SHARE * sum(end - start for start, end in busy)))
        self.busy_s = sum(end - start for start, end in pieces)
        cut_s = self.busy_s * _CUT_WIDTH
        self.length_s = max(self.busy_s + cut_s * max(0, len(pieces) - 1), 1e-9)
        self._starts = [start for start, _ in pieces]
        self._pieces: list[tuple[float, float, float]] = []
        offset_s = 0.0
        for start, end in pieces:
            self._pieces.append((start, end, offset_s))
            offset_s += end - start + cut_s
        self.cuts = tuple(
            IdleCut((offset_s - cut_s / 2) / self.length_s, start - end)
            for (_, end, _), (start, _, offset_s) in pairwise(self._pieces)
        )

    @property
    def empty(self) -> bool:
        """Whether there is no busy time."""
        return not self._pieces

    def place(self, at: float) -> float:
        """Return the place of a time; times in a cut are placed at its start."""
        number = bisect_right(self._starts, at) - 1
        if number < 0:
            return 0.0
        start, end, offset_s = self._pieces[number]
        return min(1.0, (offset_s + min(at, end) - start) / self.length_s)


def levels(spans: Sequence[tuple[float, float, int]], axis: BusyTimeAxis) -> list[Step]:
    """Return the maximum number of held slots in each column, from spans of start, end and number."""
    changes = [(start, held) for start, _, held in spans] + [(end, -held) for _, end, held in spans]
    changes.sort()
    columns = [0.0] * COLUMNS
    level, since = 0, 0.0
    for at, change in changes:
        place = axis.place(at)
        if level and place > since:
            last = max(int(since * COLUMNS) + 1, math.ceil(place * COLUMNS))
            for column in range(int(since * COLUMNS), min(last, COLUMNS)):
                columns[column] = max(columns[column], level)
        level, since = level + change, place
    return _steps([(column / COLUMNS, value) for column, value in enumerate(columns)])


def sums(parts: Iterable[tuple[float, float]], axis: BusyTimeAxis) -> list[Step]:
    """Return the cumulative sum of amounts, given as time and amount."""
    total, found = 0.0, {0: 0.0}
    for at, amount in sorted(parts):
        total += amount
        found[min(int(axis.place(at) * COLUMNS), COLUMNS - 1)] = total
    return _steps([(column / COLUMNS, value) for column, value in sorted(found.items())])


def _merged(spans: Iterable[Span], gap_s: float) -> list[Span]:
    """Return sorted spans, merged where the gap between them is at most `gap_s`."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= gap_s:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, max(start, end)))
    return merged


def _steps(points: Iterable[Step]) -> list[Step]:
    """Drop the points at which the value does not change."""
    kept: list[Step] = []
    for place, value in points:
        if not kept or kept[-1][1] != value:
            kept.append((place, value))
    return kept
