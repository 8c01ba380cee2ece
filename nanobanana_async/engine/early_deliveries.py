"""Remember deliveries about tasks that no job has yet: the webhook may be faster than the answer to the create."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from attrs import define

# How long and how many task ids are remembered. Most are never a job's: other programs may use the account.
REMEMBERED_S = 300.0
MOST_REMEMBERED = 1000

# How long after a delivery the ledger is first read again: another process may have written the task id meanwhile.
# The gap doubles each time.
FIRST_SEARCH_S = 0.5


@define
class _EarlyDelivery:
    came_at: float
    next_search_at: float


class EarlyDeliveries:
    """The task ids that deliveries named and no job has, with their accounts; the oldest first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: OrderedDict[tuple[str, str], _EarlyDelivery] = OrderedDict()
        self._added = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Wait until a task is remembered."""
        while not self._waiting:
            self._added.clear()
            await self._added.wait()

    def add(self, account: str, task_id: str) -> None:
        """Remember a task."""
        now = self._clock()
        self._waiting.setdefault((account, task_id), _EarlyDelivery(now, now + FIRST_SEARCH_S))
        self._added.set()
        if len(self._waiting) > MOST_REMEMBERED:
            self._waiting.popitem(last=False)

    def take(self, account: str, task_id: str) -> bool:
        """Forget a task; return whether it was remembered."""
        found = self._waiting.pop((account, task_id), None)
        return found is not None and self._clock() < found.came_at + REMEMBERED_S

    def due_for_search(self, limit: int) -> list[tuple[str, str]]:
        """Return the tasks to search in the ledger now, and forget those that are too old."""
        now = self._clock()
        while self._waiting and next(iter(self._waiting.values())).came_at + REMEMBERED_S <= now:
            self._waiting.popitem(last=False)
        due: list[tuple[str, str]] = []
        for task, early in self._waiting.items():
            if early.next_search_at <= now and len(due) < limit:
                early.next_search_at = now + max(FIRST_SEARCH_S, now - early.came_at)
                due.append(task)
        return due
