"""The writer thread of a ledger: it runs all queued work in one transaction.

A durable commit costs one disk flush regardless of its size, so work that arrives during a commit shares the next one.
A write is acknowledged only after the commit. A write that conflicts with another owner's fails alone; when the commit
fails, all of its work fails and nothing is changed.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.connection import LedgerConnection, copy_error_for
from nanobanana_async.ledger.file import transaction
from nanobanana_async.ledger.statements import JobTable

T = TypeVar("T")
Result = tuple["asyncio.Future[Any]", Any, BaseException | None]

MAX_BATCH = 2000
"""Work items in one transaction; a limit, since other processes wait for the lock meanwhile."""


class WorkItem(Generic[T]):
    """A function to run in the writer's thread, and the future that gets its result."""

    __slots__ = ("future", "key", "safe", "work", "writes")

    def __init__(
        self, work: Callable[[JobTable], T], future: "asyncio.Future[T]", *, writes: bool, key: str | None, safe: bool
    ) -> None:
        self.work = work
        self.future = future
        self.writes = writes
        self.key = key
        self.safe = safe


class Writer:
    """Runs work items in a thread of its own. Call its methods in the event loop that made it only."""

    def __init__(self, open_file: Callable[[], LedgerConnection], *, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self._queued: list[WorkItem[Any]] = []
        self._batches: queue.SimpleQueue[list[WorkItem[Any]] | None] = queue.SimpleQueue()
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self._thread_done: asyncio.Future[None] = self.loop.create_future()
        self._stopping = False
        # A daemon thread: a ledger that was never closed must not keep the interpreter alive.
        self._thread = threading.Thread(target=self._run_thread, args=(open_file,), name=name, daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[[JobTable], T], *, writes: bool, key: str | None, safe: bool
    ) -> "asyncio.Future[T]":
        """Queue a function for the thread. It runs even if its caller is cancelled."""
        if not self._queued:  # work submitted in the same turn of the event loop joins the same batch
            self.loop.call_soon(self._hand_over_batch)
        item = WorkItem(work, self.loop.create_future(), writes=writes, key=key, safe=safe)
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

    def _run_thread(self, open_file: Callable[[], LedgerConnection]) -> None:
        try:
            file = open_file()
        except Exception as error:
            self._post_results([(self.opened, None, error), (self._thread_done, None, None)])
            return
        try:
            self._post_results([(self.opened, None, None)])
            while batch := self._next_batch():
                for start in range(0, len(batch), MAX_BATCH):
                    self._post_results(run_in_transaction(file, batch[start : start + MAX_BATCH]))
        finally:
            file.close()
            self._post_results([(self._thread_done, None, None)])

    def _next_batch(self) -> list[WorkItem[Any]]:
        """Wait for work and return all that is queued; return an empty list when the thread must end."""
        batch: list[WorkItem[Any]] = []
        while not self._stopping and not (batch and self._batches.empty()):
            items = self._batches.get()
            self._stopping = items is None
            batch += items or ()
        return batch

    def _post_results(self, results: list[Result]) -> None:
        with suppress(RuntimeError):  # the event loop is closed, so no caller waits
            self.loop.call_soon_threadsafe(set_results, results)


def run_in_transaction(file: LedgerConnection, batch: Sequence[WorkItem[Any]]) -> list[Result]:
    """Run work items in one transaction; return their results after the commit."""
    writes = any(item.writes for item in batch)
    try:
        if writes:
            file.check_not_replaced()
        with transaction(file.connection, "BEGIN IMMEDIATE" if writes else "BEGIN"):
            results = [_run_item(file, item) for item in batch]
        if writes:
            file.check_not_replaced()  # if a file was replaced during the commit, no other process sees these writes
        return results
    except Exception as error:
        failure = file.to_ledger_error(error)
        return [(item.future, None, copy_error_for(failure, key=item.key, safe_to_repeat=item.safe)) for item in batch]


def _run_item(file: LedgerConnection, item: WorkItem[Any]) -> "Result":
    try:
        return item.future, item.work(file.table), None
    except LedgerError as error:
        return item.future, None, error
    except (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError, ValueError, OverflowError) as error:
        # Only this item's values are at fault: the other items of the transaction continue.
        failure = LedgerError(f"the record can't be stored: {type(error).__name__}: {error}")
        return item.future, None, copy_error_for(failure, key=item.key, safe_to_repeat=item.safe)


def set_results(results: list[Result]) -> None:
    """Set the results of futures in their event loop."""
    for future, value, error in results:
        if future.done():  # its caller was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
