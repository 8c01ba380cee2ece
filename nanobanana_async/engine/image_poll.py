"""A poll for the images of a task that has succeeded: links expire, and the ledger does not store inline images."""

import asyncio
from typing import Any

from nanobanana_async.engine.tracked_job import NEVER
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.jobs import Observation
from nanobanana_async.keys import key_for_task


class ImagePoll:
    """A poll that belongs to no job's life, and is repeated until it is answered. Its waiters share it."""

    __slots__ = ("answer", "due", "failures", "since", "task_id")

    place = 0
    """It goes before the jobs that are due at the same time."""

    def __init__(self, task_id: str, since: float) -> None:
        self.task_id = task_id
        self.since = since
        """When the images were first asked for, in the event loop's time."""
        self.due = NEVER
        self.failures = 0
        """How many polls in a row were not answered."""
        self.answer: asyncio.Future[Observation | NanoBananaError] = asyncio.get_running_loop().create_future()

    def __lt__(self, other: Any) -> bool:
        return bool(self.place < other.place)

    @property
    def key(self) -> str:
        """The key by which the log names it."""
        return key_for_task(self.task_id)

    def finish(self, answer: Observation | NanoBananaError) -> None:
        """Give all waiters the answer, or the error that ended the polling."""
        if not self.answer.done():
            self.answer.set_result(answer)
