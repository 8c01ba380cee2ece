"""When something is due: one heap, one timer of the event loop."""

import asyncio
import heapq
from collections.abc import Callable, Iterator

from nanobanana_async.engine.tracked_job import NEVER, TrackedJob

# uvloop's timers fire up to a millisecond early and in whole milliseconds: a heap that re-arms to the exact moment
# then spins. Whatever is due within a tick is due now.
TICK_S = 0.01


class Timers:
    """A heap of due times. An job has at most one; setting another replaces it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._heap: list[tuple[float, int, TrackedJob]] = []
        self._count = 0
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = NEVER

    def set(self, job: TrackedJob, due: float) -> None:
        """Let the job be due then."""
        job.due = due
        self._count += 1  # breaks ties: entries are not comparable
        heapq.heappush(self._heap, (due, self._count, job))

    def due(self, now: float) -> Iterator[TrackedJob]:
        """Take out what is due, in order."""
        heap = self._heap
        while heap and (heap[0][0] <= now + TICK_S or heap[0][2].due != heap[0][0]):
            due, _, job = heapq.heappop(heap)
            if job.due == due:  # else it was set again or cancelled
                job.due = NEVER
                yield job

    def arm(self, now: float, also_at: float = NEVER) -> None:
        """Set the one timer to the next due time, or to another moment if that comes first."""
        moment = min(self._heap[0][0] if self._heap else NEVER, also_at)
        if self._handle is not None and now < self._armed_for <= moment:
            return  # it fires soon enough: firing once too often is cheaper than setting the timer each time
        self.stop()
        if moment < NEVER:
            self._armed_for = max(moment, now + TICK_S)
            self._handle = self._loop.call_at(self._armed_for, self._ring)

    def stop(self) -> None:
        """Take the timer back."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._armed_for = None, NEVER

    def _ring(self) -> None:
        self._handle, self._armed_for = None, NEVER
        self._wake()
