"""One thread that has the database to itself, and writes everything that is queued in one transaction.

A durable commit costs a flush of the disk, whatever it holds; so whoever comes while one is on its way shares the
next. Nobody hears of his write before it is durable. A write that does not fit (somebody else was faster) fails alone;
when the commit fails, or the disk, all of it fails and nothing was changed.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.connection import LedgerConnection, copy_for
from nanobanana_async.ledger.file import transaction
from nanobanana_async.ledger.statements import JobTable

T = TypeVar("T")
Result = tuple["asyncio.Future[Any]", Any, BaseException | None]

MAX_BATCH = 2000
"""Orders in one transaction: other processes wait for the lock meanwhile."""


class WorkItem(Generic[T]):
    """A piece of work, and who waits for it."""

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
    """Runs orders in a thread of its own. Its methods belong to the event loop that made it."""

    def __init__(self, open_file: Callable[[], LedgerConnection], *, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self._waiting: list[WorkItem[Any]] = []
        self._batches: queue.SimpleQueue[list[WorkItem[Any]] | None] = queue.SimpleQueue()
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self._thread_done: asyncio.Future[None] = self.loop.create_future()
        self._last = False
        # A daemon: a ledger that was never closed must not keep the interpreter alive.
        self._thread = threading.Thread(target=self._run, args=(open_file,), name=name, daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[[JobTable], T], *, writes: bool, key: str | None, safe: bool
    ) -> "asyncio.Future[T]":
        """Queue a piece of work. It is done also when nobody waits for it any more."""
        if not self._waiting:  # what else is ordered in this turn of the loop goes with it
            self.loop.call_soon(self._flush)
        order = WorkItem(work, self.loop.create_future(), writes=writes, key=key, safe=safe)
        self._waiting.append(order)
        return order.future

    def stop(self) -> None:
        """Let the thread end after what is queued; nothing can be ordered any more."""
        self._flush()
        self._batches.put(None)

    async def aclose(self) -> None:
        """Wait until all that is queued is done, and the thread has ended."""
        self.stop()
        await asyncio.shield(self._thread_done)
        self._thread.join()

    def _flush(self) -> None:
        if self._waiting:
            batch, self._waiting = self._waiting, []
            self._batches.put(batch)

    # From here on: the thread.

    def _run(self, open_file: Callable[[], LedgerConnection]) -> None:
        try:
            file = open_file()
        except Exception as error:
            self._post([(self.opened, None, error), (self._thread_done, None, None)])
            return
        try:
            self._post([(self.opened, None, None)])
            while batch := self._next():
                for start in range(0, len(batch), MAX_BATCH):
                    self._post(_done(file, batch[start : start + MAX_BATCH]))
        finally:
            file.close()
            self._post([(self._thread_done, None, None)])

    def _next(self) -> list[WorkItem[Any]]:
        """Wait for orders and take all there are; none when it is time to end."""
        batch: list[WorkItem[Any]] = []
        while not self._last and not (batch and self._batches.empty()):
            orders = self._batches.get()
            self._last = orders is None
            batch += orders or ()
        return batch

    def _post(self, results: list[Result]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(_deliver, results)


def _done(file: LedgerConnection, batch: Sequence[WorkItem[Any]]) -> list[Result]:
    """Do the orders in one transaction; return what became of each once it is durable."""
    writes = any(order.writes for order in batch)
    try:
        if writes:
            file.check_not_replaced()
        with transaction(file.connection, "BEGIN IMMEDIATE" if writes else "BEGIN"):
            results = [_outcome(file, order) for order in batch]
        if writes:
            file.check_not_replaced()  # a file that was taken away meanwhile holds none of it for anybody else
        return results
    except Exception as error:
        trouble = file.to_ledger_error(error)
        return [(order.future, None, copy_for(trouble, key=order.key, safe_to_repeat=order.safe)) for order in batch]


def _outcome(file: LedgerConnection, order: WorkItem[Any]) -> "Result":
    try:
        return order.future, order.work(file.desk), None
    except LedgerError as error:
        return order.future, None, error
    except (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError, ValueError, OverflowError) as error:
        # What was to be written does not fit; the others' does.
        unfit = LedgerError(f"this can't be written down: {type(error).__name__}: {error}")
        return order.future, None, copy_for(unfit, key=order.key, safe_to_repeat=order.safe)


def _deliver(results: list[Result]) -> None:
    for future, value, error in results:
        if future.done():  # whoever waited was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
