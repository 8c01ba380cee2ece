"""The writer thread of a ledger: its connection runs all queued work in one transaction.

A durable commit costs one disk flush regardless of its size, so work that arrives during a commit shares the next one.
A write is acknowledged only after the commit. A write that conflicts with another owner's fails alone; when the commit
fails, all of its work fails and nothing is changed.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from nanobanana_async.errors import LedgerError

T = TypeVar("T")
Result = tuple["asyncio.Future[Any]", Any, BaseException | None]

MAX_BATCH = 2000
"""Work items in one transaction; a limit, since other processes wait for the lock meanwhile."""


class WorkItem(Generic[T]):
    """Work for the writer's thread in the form that its connection runs, and the future that gets its result."""

    __slots__ = ("future", "key", "queued_at", "safe", "work", "writes")

    def __init__(
        self,
        work: Callable[[Any], Any],
        future: "asyncio.Future[T]",
        *,
        writes: bool,
        key: str | None,
        safe: bool,
        queued_at: float = 0.0,
    ) -> None:
        self.work = work
        self.future = future
        self.writes = writes
        self.key = key
        self.safe = safe
        self.queued_at = queued_at

    def failed(self, error: LedgerError) -> Result:
        """Return a copy of an error as the result: each caller raises a separate exception."""
        copied = type(error)(error.message, key=self.key, safe_to_repeat=self.safe)
        return self.future, None, copied


class WriterConnection(Protocol):
    """An open ledger, used by the writer's thread alone."""

    def run(self, batch: Sequence[WorkItem[Any]]) -> Iterable[list[Result]]:
        """Run work items in one transaction; yield results as they become final."""
        ...

    def wait_s(self) -> float | None:
        """Return after how long `tend` is to be called if there is no work; None: never."""
        ...

    def tend(self) -> None:
        """Do what the connection needs without any work."""
        ...

    def close(self) -> None: ...


class Writer:
    """Runs work items in a thread of its own. Call its methods in the event loop that made it only."""

    def __init__(self, connect: Callable[[], WriterConnection], *, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self._queued: list[WorkItem[Any]] = []
        self._batches: queue.SimpleQueue[list[WorkItem[Any]] | None] = queue.SimpleQueue()
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self._thread_done: asyncio.Future[None] = self.loop.create_future()
        self._stopping = False
        # A daemon thread: a ledger that was never closed must not keep the interpreter alive.
        self._thread = threading.Thread(target=self._run_thread, args=(connect,), name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Any], Any], *, writes: bool, key: str | None, safe: bool) -> "asyncio.Future[Any]":
        """Queue work for the thread. It runs even if its caller is cancelled."""
        if not self._queued:  # work submitted in the same turn of the event loop joins the same batch
            self.loop.call_soon(self._hand_over_batch)
        item: WorkItem[Any] = WorkItem(
            work, self.loop.create_future(), writes=writes, key=key, safe=safe, queued_at=self.loop.time()
        )
        self._queued.append(item)
        return item.future

    def stop(self) -> None:
        """End the thread after the queued work; nothing can be submitted afterwards."""
        self._hand_over_batch()
        self._batches.put(None)

    async def aclose(self) -> None:
        """Stop, and wait until the queued work is done and the thread has ended."""
        self.stop()
        await asyncio.shield(self._thread_done)
        self._thread.join()

    def _hand_over_batch(self) -> None:
        if self._queued:
            batch, self._queued = self._queued, []
            self._batches.put(batch)

    # The methods below run in the thread.

    def _run_thread(self, connect: Callable[[], WriterConnection]) -> None:
        try:
            connection = connect()
        except Exception as error:
            self._post_results([(self.opened, None, error), (self._thread_done, None, None)])
            return
        try:
            self._post_results([(self.opened, None, None)])
            while batch := self._next_batch(connection):
                for start in range(0, len(batch), MAX_BATCH):
                    self._run_items(connection, batch[start : start + MAX_BATCH])
        finally:
            connection.close()
            self._post_results([(self._thread_done, None, None)])

    def _run_items(self, connection: WriterConnection, items: list[WorkItem[Any]]) -> None:
        try:
            for results in connection.run(items):
                self._post_results(results)
        except Exception as error:  # a bug: the thread goes on, since callers would wait for it for ever
            failure = LedgerError(f"the ledger failed: {type(error).__name__}: {error}")
            self._post_results([item.failed(failure) for item in items])

    def _next_batch(self, connection: WriterConnection) -> list[WorkItem[Any]]:
        """Wait for work and return all that is queued; return an empty list when the thread must end."""
        batch: list[WorkItem[Any]] = []
        while not self._stopping and not (batch and self._batches.empty()):
            try:
                items = self._batches.get(timeout=connection.wait_s())
            except queue.Empty:
                connection.tend()
                continue
            self._stopping = items is None
            batch += items or ()
        return batch

    def _post_results(self, results: list[Result]) -> None:
        with suppress(RuntimeError):  # the event loop is closed, so no caller waits
            self.loop.call_soon_threadsafe(set_results, results)


def set_results(results: list[Result]) -> None:
    """Set the results of futures in their event loop."""
    for future, value, error in results:
        if future.done():  # its caller was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
