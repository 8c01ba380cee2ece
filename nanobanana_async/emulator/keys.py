"""Idempotency keys as API Mall may treat them; its reference names only the header and a 409."""

from collections import deque

from nanobanana_async.emulator.settings import Idempotency
from nanobanana_async.emulator.tasks import Refusal, Task

_OTHER_BODY = Refusal(409, "idempotency_conflict", "Idempotency-Key was already used with a different request")
_STILL_RUNNING = Refusal(409, "idempotency_conflict", "A request with this Idempotency-Key is still in progress")


class KeyBook:
    """Remember which key bought what."""

    def __init__(self, manner: Idempotency, forget_after_s: float) -> None:
        self._manner = manner
        self._forget_after_s = forget_after_s
        self._tasks: dict[str, Task] = {}
        self._ages: deque[Task] = deque()

    def look(self, now: float, key: str, canonical: str) -> Task | Refusal | None:
        """Return the job to answer with again, a conflict, or None for a key never seen."""
        if self._manner == "forget":
            self._forget(now)
        if (task := self._tasks.get(key)) is None:
            return None
        if task.order.canonical != canonical:
            return _OTHER_BODY
        if self._manner == "conflict" and now < task.ends_at:
            return _STILL_RUNNING
        return task

    def remember(self, key: str, task: Task) -> None:
        """Note that this key bought this job."""
        self._tasks[key] = task
        if self._manner == "forget":
            self._ages.append(task)

    def drop(self, task: Task) -> None:
        """Forget the key of a job whose record is given up."""
        if task.key is not None and self._tasks.get(task.key) is task:
            del self._tasks[task.key]

    def _forget(self, now: float) -> None:
        while self._ages and self._ages[0].created_at + self._forget_after_s <= now:
            self.drop(self._ages.popleft())
