"""The lines in which jobs wait: new ones for a slot, running ones to be looked at."""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from nanobanana_async.engine.entry import Entry

# How many overdue looks are compared when the wire can't carry all: the longest overdue are among them.
CHOICE = 16


class Line:
    """First come, first served: who was sent back takes his old place."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Entry]] = []

    def __bool__(self) -> bool:
        return bool(self._heap)

    def __iter__(self) -> Iterator[Entry]:
        return (entry for _, entry in self._heap)

    def append(self, entry: Entry) -> None:
        """Let a job wait at the place that its number gives it."""
        heapq.heappush(self._heap, (entry.number, entry))

    def first(self) -> Entry:
        """Return whose turn it is."""
        return self._heap[0][1]

    def popleft(self) -> Entry:
        """Take out whose turn it is."""
        return heapq.heappop(self._heap)[1]


class Overdue:
    """Looks that are due, in the order in which they fell due."""

    def __init__(self) -> None:
        self._queue: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def append(self, entry: Entry) -> None:
        """Let a job wait to be looked at."""
        self._queue.append(entry)

    def take(self, room: int, gain: Callable[[Entry], float]) -> Entry:
        """Take out the job to look at next: the first, or when there is no room for all the one with most to gain."""
        if len(self._queue) <= room:
            return self._queue.popleft()
        best = max(islice(self._queue, CHOICE), key=gain)
        self._queue.remove(best)
        return best
