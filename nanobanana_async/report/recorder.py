"""What a run learned, over time: the limit, the refusals, how late ends were seen."""

import math
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from attrs import evolve, frozen

from nanobanana_async.events import Event, JobPolled, JobStateChanged, LimitsChanged, PollFailed
from nanobanana_async.jobs import TERMINAL_STATES, JobState

_BINS_PER_DECADE = 20


@frozen(kw_only=True)
class LimitSample:
    """What was known from one moment on."""

    at: datetime
    job_limit: int | None
    rate_limit: float | None
    gate_open: bool
    refusals: int
    """429s to creates so far."""


class Recorder:
    """Takes notes of a run: `Session(observers=[recorder])`. Its memory is bounded, however long the run.

    `write_report` draws them, in another thread if need be while the run goes on. What the rows themselves tell, such
    as slots held and credits spent, is not noted here.
    """

    def __init__(self, *, max_points: int = 2000, utcnow: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        if max_points < 2:
            raise ValueError("max_points must be at least 2")
        self.points: list[LimitSample] = []
        self.started_at: datetime | None = None
        self.last_at: datetime | None = None
        self._max_points = max_points
        self._utcnow = utcnow
        self._least_gap_s = 0.0
        """Points closer than this are one."""
        self._looks: dict[str, tuple[datetime, datetime]] = {}
        """The last two moments at which each running job was known to stand somewhere."""
        self._unseen: Counter[int] = Counter()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        now = self._utcnow()
        self.started_at = self.started_at or now
        self.last_at = now
        match event:
            case LimitsChanged():
                self._learned(now, event)
            case JobPolled(record=record):
                if record.key in self._looks:
                    self._looks[record.key] = (self._looks[record.key][1], now)
            case PollFailed(record=record, wait_s=None):
                self._looks.pop(record.key, None)  # nobody follows it any more
            case JobStateChanged(record=record) if record.state is JobState.RUNNING:
                self._looks[record.key] = (now, now)
            case JobStateChanged(record=record) if record.state in TERMINAL_STATES:
                self._ended(record.key)
            case _:
                pass

    @property
    def refusals(self) -> int:
        """429s to creates."""
        return self.points[-1].refusals if self.points else 0

    @property
    def job_limit(self) -> int | None:
        """The limit as it was last known."""
        return self.points[-1].job_limit if self.points else None

    def delays_s(self) -> list[float]:
        """Return, for each job, how late its end was seen at most: what lay between its last two looks, to 6 %."""
        counted = sorted(self._unseen.items())  # copied in one step: the run goes on in another thread
        return [10 ** (number / _BINS_PER_DECADE) for number, count in counted for _ in range(count)]

    def _ended(self, key: str) -> None:
        before, last = self._looks.pop(key, (None, None))
        if before is not None and last is not None and last > before:
            gap_s = (last - before).total_seconds()
            self._unseen[round(math.log10(gap_s) * _BINS_PER_DECADE)] += 1

    def _learned(self, now: datetime, event: LimitsChanged) -> None:
        point = LimitSample(
            at=now,
            job_limit=event.job_limit,
            rate_limit=event.creates_per_s,
            gate_open=event.gate_open,
            refusals=event.throttled,
        )
        if self.points and (now - self.points[-1].at).total_seconds() < self._least_gap_s:
            self.points[-1] = _joined(self.points[-1], point)
            return
        self.points.append(point)
        if len(self.points) > self._max_points:
            self._downsample()

    def _downsample(self) -> None:
        """Halve the number of points, and keep it halved."""
        span_s = (self.points[-1].at - self.points[0].at).total_seconds()
        self._least_gap_s = max(2 * self._least_gap_s, 2 * span_s / self._max_points)
        thinned: list[LimitSample] = []
        for point in self.points:
            if thinned and (point.at - thinned[-1].at).total_seconds() < self._least_gap_s:
                thinned[-1] = _joined(thinned[-1], point)
            else:
                thinned.append(point)
        # A clock that was set back leaves points that no gap can tell apart.
        self.points = thinned[-self._max_points :]


def _joined(one: LimitSample, other: LimitSample) -> LimitSample:
    return evolve(other, at=one.at, gate_open=one.gate_open and other.gate_open)
