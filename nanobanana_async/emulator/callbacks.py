"""The callbacks that defapi owes, and when."""

import heapq
import ipaddress
import random
from urllib.parse import urlsplit

from nanobanana_async.emulator.settings import WorldSettings
from nanobanana_async.emulator.tasks import Task


def is_loopback(url: str) -> bool:
    """Tell whether a URL stays on this machine; names other than localhost are not looked up."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class CallbackBook:
    """Keep the callbacks of running jobs in the order they are due."""

    def __init__(self, settings: WorldSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._heap: list[tuple[float, int, Task]] = []
        self._order = 0

    def promise(self, task: Task) -> str:
        """Plan the callback of a job; return what becomes of it: planned, dropped or refused."""
        if not is_loopback(task.order.callback_url or ""):
            return "refused"
        if self._rng.random() < self._settings.callback_drop_probability:
            return "dropped"
        twice = self._rng.random() < self._settings.callback_duplicate_probability
        for _ in range(2 if twice else 1):
            self._order += 1
            due_at = task.ends_at + self._settings.callback_delay_s
            heapq.heappush(self._heap, (due_at, self._order, task))
        return "planned"

    def next_due(self) -> float | None:
        """Return when the next callback is due, or None when none is planned."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Task]:
        """Take out the jobs whose callback is due."""
        tasks: list[Task] = []
        while self._heap and self._heap[0][0] <= now:
            tasks.append(heapq.heappop(self._heap)[2])
        return tasks
