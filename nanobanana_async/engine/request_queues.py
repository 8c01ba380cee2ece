"""The queues of requests beside those of first creates (`policy/fair_queue.py`): repeated creates, and polls."""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice

from nanobanana_async.engine.tracked_job import TrackedJob

# How many overdue polls are compared when not all can be sent; the longest overdue are among them.
MOST_COMPARED_POLLS = 16


class RepeatQueue:
    """The creates to be repeated, in the order of their places."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, TrackedJob]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[TrackedJob]:
        return (job for _, job in self._heap)

    def add(self, job: TrackedJob) -> None:
        """Add a job at its place."""
        heapq.heappush(self._heap, (job.place, job))

    def first(self) -> TrackedJob | None:
        """Return the next job; None if there is none."""
        return self._heap[0][1] if self._heap else None

    def drop_first(self) -> TrackedJob:
        """Take out the next job."""
        return heapq.heappop(self._heap)[1]

    def serve_first(self, _: float) -> TrackedJob:
        """Take out the next job, which is sent again now: its first create was charged."""
        return self.drop_first()


class PollQueue:
    """The jobs to be polled, in the order in which they became due."""

    def __init__(self) -> None:
        self._queue: deque[TrackedJob] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def append(self, job: TrackedJob) -> None:
        """Add a job."""
        self._queue.append(job)

    def drop(self, job: TrackedJob) -> None:
        """Take out a job, if it is there."""
        with suppress(ValueError):
            self._queue.remove(job)

    def pop_best(self, room: int, gain: Callable[[TrackedJob], float]) -> TrackedJob:
        """Take out the job to poll next: the first, or the one most likely to have ended if not all can be polled."""
        if len(self._queue) <= room:
            return self._queue.popleft()
        best = max(islice(self._queue, MOST_COMPARED_POLLS), key=gain)
        self._queue.remove(best)
        return best
