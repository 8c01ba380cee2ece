"""Due times: one heap, and one timer of the event loop."""

import asyncio
import heapq
from collections.abc import Iterator

from nanobanana_async.engine.image_poll import ImagePoll
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob

Timed = TrackedJob | ImagePoll

# uvloop's timers fire up to a millisecond early and in whole milliseconds: a heap that re-arms to the exact at
# then spins. A job that is due within a tick is due now.
TICK_S = 0.01


class Timers:
    """A heap of due times. A job has at most one; setting another replaces it. Ties are ordered by place."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.fired = asyncio.Event()
        """Set when the timer fires."""
        self._heap: list[tuple[float, Timed]] = []
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = NEVER

    def set_due(self, job: Timed, due: float) -> None:
        """Set the due time of a job."""
        job.due = due
        heapq.heappush(self._heap, (due, job))

    def take_due(self, now: float) -> Iterator[Timed]:
        """Take out the jobs that are due, in order."""
        heap = self._heap
        while heap and (heap[0][0] <= now + TICK_S or heap[0][1].due != heap[0][0]):
            due, job = heapq.heappop(heap)
            if job.due == due:  # else it was set again or cancelled
                job.due = NEVER
                yield job

    def set_loop_timer(self, now: float, also_at: float = NEVER) -> None:
        """Set the timer to the next due time, or to another time if that comes first."""
        at = min(self._heap[0][0] if self._heap else NEVER, also_at)
        if self._handle is not None and now < self._armed_for <= at:
            return  # it fires early enough; firing once too often costs less than setting the timer each time
        self.stop()
        if at < NEVER:
            self._armed_for = max(at, now + TICK_S)
            self._handle = self._loop.call_at(self._armed_for, self._fire)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._armed_for = None, NEVER

    def _fire(self) -> None:
        self._handle, self._armed_for = None, NEVER
        self.fired.set()
