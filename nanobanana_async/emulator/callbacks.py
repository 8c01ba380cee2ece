"""The callbacks that are due when jobs end: defapi's, and the deliveries of API Mall's webhooks."""

import heapq
import random

from attrs import define, evolve, frozen

from nanobanana_async.emulator.accounts import Task
from nanobanana_async.emulator.addresses import is_loopback
from nanobanana_async.emulator.settings import EmulatorSettings

EVENTS = ("job.completed", "job.failed")


@define(eq=False)
class Webhook:
    """A webhook of the account at API Mall, and the counts of its deliveries."""

    id: str
    url: str
    events: tuple[str, ...]
    secret_key: str | None
    api_key_id: str | None
    created_at: float
    total_sent: int = 0
    total_failed: int = 0
    last_sent_at: float | None = None
    last_error: str | None = None


@frozen(order=True)
class DueCallback:
    """A POST about a task to its own callback URL or to a webhook."""

    due_at: float
    order: int
    task: Task
    url: str
    webhook_id: str | None = None
    attempt: int = 1


class CallbackSchedule:
    """The callbacks of running jobs, ordered by due time."""

    def __init__(self, settings: EmulatorSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._heap: list[DueCallback] = []
        self._order = 0

    def plan(self, task: Task, url: str, webhook_id: str | None = None) -> str:
        """Schedule a callback of a job. Return "planned", "dropped" or "refused" (not a loopback URL)."""
        if not is_loopback(url):
            return "refused"
        if self._rng.random() < self._settings.callback_drop_probability:
            return "dropped"
        twice = self._rng.random() < self._settings.callback_duplicate_probability
        for _ in range(2 if twice else 1):
            due_at = task.ends_at + self._settings.callback_delay_s
            self._push(DueCallback(due_at, 0, task, url, webhook_id))
        return "planned"

    def plan_again(self, now: float, task: Task, webhook: Webhook, attempt: int) -> None:
        """Schedule the next attempt of a delivery that failed, unless it was the last."""
        if attempt <= self._settings.webhook_retries:
            due_at = now + self._settings.webhook_retry_s
            self._push(DueCallback(due_at, 0, task, webhook.url, webhook.id, attempt + 1))

    def next_due(self) -> float | None:
        """Return when the next callback is due, or None."""
        return self._heap[0].due_at if self._heap else None

    def take_due(self, now: float) -> list[DueCallback]:
        """Remove and return the callbacks that are due."""
        due: list[DueCallback] = []
        while self._heap and self._heap[0].due_at <= now:
            due.append(heapq.heappop(self._heap))
        return due

    def _push(self, callback: DueCallback) -> None:
        self._order += 1
        heapq.heappush(self._heap, evolve(callback, order=self._order))
