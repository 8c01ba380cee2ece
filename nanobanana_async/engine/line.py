"""The line in which new jobs wait for a slot."""

import heapq
from collections.abc import Iterator

from nanobanana_async.engine.entry import Entry


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
