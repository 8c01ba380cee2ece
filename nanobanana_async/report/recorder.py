"""Record the learned limit, the refusals and the detection delays of a run."""

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
    """The limits from one moment on."""

    at: datetime
    job_limit: int | None
    max_creates_per_s: float | None
    creates_paused: bool
    throttled: int
    """429s to creates so far."""


class Recorder:
    """Record the events of a run for its report: `Session(observers=[recorder])`. Memory is bounded for any run length.

    `write_report` may read the recorder in another thread while the run continues. Slots held and credits spent come
    from the rows of the report and are not recorded here.
    """

    def __init__(self, *, max_samples: int = 2000, utcnow: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        if max_samples < 2:
            raise ValueError("max_samples must be at least 2")
        self.samples: list[LimitSample] = []
        self.started_at: datetime | None = None
        self.last_at: datetime | None = None
        self._limits: dict[str, LimitsChanged] = {}
        """The last limits of each account."""
        self._max_samples = max_samples
        self._utcnow = utcnow
        self._min_gap_s = 0.0
        """Samples closer than this are merged."""
        self._polled_at: dict[str, tuple[datetime, datetime]] = {}
        """The last two times at which the state of each running job was known."""
        self._delays: Counter[int] = Counter()
        """Histogram of delays, in bins of the logarithm."""

    def __call__(self, event: Event) -> None:
        """Record an event."""
        now = self._utcnow()
        self.started_at = self.started_at or now
        self.last_at = now
        match event:
            case LimitsChanged():
                self._limits[event.account] = event
                self._limits_changed(now, *self._limits.values())
            case JobPolled(record=record):
                if record.key in self._polled_at:
                    self._polled_at[record.key] = (self._polled_at[record.key][1], now)
            case PollFailed(record=record, wait_s=None):
                self._polled_at.pop(record.key, None)  # the job is no longer followed
            case JobStateChanged(record=record) if record.state is JobState.RUNNING:
                self._polled_at[record.key] = (now, now)
            case JobStateChanged(record=record) if record.state in TERMINAL_STATES:
                self._ended(record.key)
            case _:
                pass

    @property
    def throttled_count(self) -> int:
        """429s to creates."""
        return self.samples[-1].throttled if self.samples else 0

    @property
    def job_limit(self) -> int | None:
        """The last known job limit."""
        return self.samples[-1].job_limit if self.samples else None

    def delays_s(self) -> list[float]:
        """Return the maximum detection delay of each job: the time between its last two polls, rounded to 6 %."""
        counted = sorted(self._delays.items())  # an atomic copy: the run may continue in another thread
        return [10 ** (bin_number / _BINS_PER_DECADE) for bin_number, count in counted for _ in range(count)]

    def _ended(self, key: str) -> None:
        before, last = self._polled_at.pop(key, (None, None))
        if before is not None and last is not None and last > before:
            gap_s = (last - before).total_seconds()
            self._delays[round(math.log10(gap_s) * _BINS_PER_DECADE)] += 1

    def _limits_changed(self, now: datetime, *accounts: LimitsChanged) -> None:
        """Add a sample of the sums over the accounts. A limit is known if that of each is."""
        limits = [each.job_limit for each in accounts if each.job_limit is not None]
        rates = [each.max_creates_per_s for each in accounts if each.max_creates_per_s is not None]
        sample = LimitSample(
            at=now,
            job_limit=sum(limits) if len(limits) == len(accounts) else None,
            max_creates_per_s=sum(rates) if len(rates) == len(accounts) else None,
            creates_paused=all(each.creates_paused for each in accounts),
            throttled=sum(each.throttled for each in accounts),
        )
        if self.samples and (now - self.samples[-1].at).total_seconds() < self._min_gap_s:
            self.samples[-1] = _merged(self.samples[-1], sample)
            return
        self.samples.append(sample)
        if len(self.samples) > self._max_samples:
            self._downsample()

    def _downsample(self) -> None:
        """Halve the number of samples by doubling the minimum gap."""
        span_s = (self.samples[-1].at - self.samples[0].at).total_seconds()
        self._min_gap_s = max(2 * self._min_gap_s, 2 * span_s / self._max_samples)
        kept: list[LimitSample] = []
        for sample in self.samples:
            if kept and (sample.at - kept[-1].at).total_seconds() < self._min_gap_s:
                kept[-1] = _merged(kept[-1], sample)
            else:
                kept.append(sample)
        # After a backward jump of the clock the gaps are not positive, so cut the list too.
        self.samples = kept[-self._max_samples :]


def _merged(earlier: LimitSample, later: LimitSample) -> LimitSample:
    return evolve(later, at=earlier.at, creates_paused=earlier.creates_paused or later.creates_paused)
