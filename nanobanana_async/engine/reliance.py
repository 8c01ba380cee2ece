"""How far callbacks can be relied on, and when a job is looked at all the same."""

from collections.abc import Callable

from nanobanana_async.engine.entry import NEVER, NOT_YET, Entry
from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.jobs import JobRecord

# A job of which a callback will tell is looked at once when nearly all others have ended, in case the call is lost:
# planned anew as durations are learned, and never later than a minute after it began or was seen.
REPLAN_S = 5.0
SHORTEST_FALLBACK_S = 5.0
LONGEST_FALLBACK_S = 60.0

# Where calls are lost, a job that waits for its own sits on a slot: then jobs are looked at as if there were none.
LOST_SHARE = 0.2
FOUND_SHARE = 0.05
LOST_MEMORY = 0.1


class Reliance:
    """Plans the looks at jobs that will be called back, and counts the calls that never came."""

    def __init__(self, is_called_back: Callable[[JobRecord], bool], clock: Callable[[], float]) -> None:
        self._is_called_back = is_called_back
        self._clock = clock
        self._opened_at = clock()
        self._relies = True
        self._lost = 0.0
        """The share of callbacks that never came, of late."""

    def applies_to(self, entry: Entry) -> bool:
        """Tell whether a callback is waited for, rather than asking."""
        # Of a job that began before this session the call may have come when nobody was there.
        missed = entry.looked_at == NOT_YET and entry.running_at < self._opened_at
        return not missed and self._relies and self._is_called_back(entry.record)

    def next_look(self, entry: Entry) -> float:
        """Return when to look at such a job, or to plan that anew."""
        return min(self._fallback(entry), self._clock() + REPLAN_S)

    def is_early(self, entry: Entry) -> bool:
        """Whether a job that is due need not be looked at yet: a call will tell of it."""
        in_trouble = entry.failures > 0 or entry.imageless_at < NEVER
        waits = self.applies_to(entry) and not entry.news and not in_trouble
        return waits and self._fallback(entry) > self._clock() + TICK_S

    def ended(self, record: JobRecord, *, called: bool) -> None:
        """Note that a job was seen to have ended, and whether a call had told of it."""
        if self._is_called_back(record):
            self._lost += LOST_MEMORY * ((not called) - self._lost)
            self._relies = self._lost < (LOST_SHARE if self._relies else FOUND_SHARE)

    def _fallback(self, entry: Entry) -> float:
        late_s = 0.0
        if entry.schedule is not None:
            entry.schedule.learn()
            late_s = entry.schedule.late_s
        if entry.looked_at < entry.running_at:
            return entry.running_at + min(late_s, LONGEST_FALLBACK_S)
        return entry.looked_at + min(max(late_s / 2, SHORTEST_FALLBACK_S), LONGEST_FALLBACK_S)
