"""The disk: the real SQLite ledger without its thread, and a reader that sees the file independently."""

import asyncio
import itertools
import random
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from nanobanana_async.engine import poller, submitter
from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger import sqlite, writer
from nanobanana_async.ledger.columns import record_of
from nanobanana_async.ledger.connection import LedgerConnection, run_in_transaction
from nanobanana_async.ledger.statements import SELECT_BY_KEY, JobTable
from nanobanana_async.testing import virtual_time
from tests.support.machine import Machine, Process, this_process
from tests.support.mutations import patched

T = TypeVar("T")

SLOW = 0.03
"""How many of the commits meet a busy disk."""


class Disk:
    """One ledger file and the time that its commits take; `full` lets every write fail."""

    def __init__(self, machine: Machine, path: Path, chance: random.Random) -> None:
        self.machine = machine
        self.path = path
        self.full = False
        self.failed_keys: set[str] = set()
        """Jobs of which a write has failed: the ledger may know less of them than their process."""
        self.buried: set[str] = set()
        """The owners that were buried."""
        self.make_writer: Callable[[Disk, Callable[[], LedgerConnection]], InlineWriter] = InlineWriter
        self._chance = chance
        self._reader: sqlite3.Connection | None = None

    def takes_s(self) -> float:
        """Return how long half a commit takes."""
        return self._chance.uniform(0.05, 0.6) if self._chance.random() < SLOW else self._chance.uniform(0.0005, 0.003)

    def writer(self, open_file: Callable[[], LedgerConnection], *, name: str) -> "InlineWriter":
        """Stand in for the ledger's `Writer`."""
        del name
        return self.make_writer(self, open_file)

    def execute(self, statement: str, *values: str) -> None:
        """Write to the file as another host does."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(statement, values)

    def find(self, key: str) -> tuple[JobRecord, str | None] | None:
        """Return what durably stands under a key, and who owns it."""
        if self._reader is None:
            if not self.path.exists():
                return None
            self._reader = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            row = self._reader.execute(SELECT_BY_KEY, (key,)).fetchone()
        except sqlite3.OperationalError:  # the file is being made
            return None
        return None if row is None else (record_of(row[:-1]), row[-1])

    def record(self, key: str) -> JobRecord | None:
        """Return what durably stands under a key."""
        found = self.find(key)
        return None if found is None else found[0]

    def close(self) -> None:
        """Let the auditor go."""
        if self._reader is not None:
            self._reader.close()


class InlineWriter:
    """`ledger.writer.Writer` on virtual time: the same transactions, in callbacks instead of a thread.

    A commit takes what is queued when it begins, is durable half-way, and returns at its end: its process can be
    killed before it, and between the write and the return.
    """

    def __init__(self, disk: Disk, open_file: Callable[[], LedgerConnection]) -> None:
        self.loop = disk.machine
        self._disk = disk
        self._process: Process = this_process()
        self._open_file = open_file
        self._file: LedgerConnection | None = None
        self._waiting: list[writer.WorkItem[Any]] = []
        self._busy = True
        self._stopping = False
        self.opened: asyncio.Future[None] = disk.machine.create_future()
        self._ended: asyncio.Future[None] = disk.machine.create_future()
        disk.machine.after(disk.takes_s(), self._open)

    def submit(
        self, work: Callable[[JobTable], T], *, writes: bool, key: str | None, safe: bool
    ) -> "asyncio.Future[T]":
        """Queue a piece of work. It is done also when its caller was cancelled."""
        future: asyncio.Future[T] = self._disk.machine.create_future()
        if self._process.lives_past("order"):
            self._waiting.append(writer.WorkItem(work, future, writes=writes, key=key, safe=safe))
            self._begin()
        return future

    def stop(self) -> None:
        """End after what is queued."""
        self._stopping = True
        self._begin()

    async def aclose(self) -> None:
        """Wait until all that is queued is done, and the file is closed."""
        self.stop()
        await asyncio.shield(self._ended)

    def _open(self) -> None:
        if not self._process.alive:
            return
        try:
            self._file = self._open_file()
        except LedgerError as error:
            self._ended.set_result(None)
            if not self.opened.done():
                self.opened.set_exception(error)
            return
        self._file.connection.execute("PRAGMA synchronous = OFF")  # power loss is not simulated
        self._process.owner = self._file.table._owner or ""
        self._process.at_death.append(self._die)
        self._busy = False
        if not self.opened.done():
            self.opened.set_result(None)
        self._begin()

    def _die(self) -> None:
        """Do what the operating system does for a process that was killed: close its files, which drops its lock."""
        self._waiting.clear()
        if self._file is not None:
            self._file.connection.close()
            if self._file._owner is not None:
                self._file._owner.close_lock()

    def _begin(self) -> None:
        if self._busy or not self._process.alive or self._file is None:
            return
        if self._waiting:
            self._busy = True
            batch, self._waiting = self._waiting, []
            self._disk.machine.after(self._disk.takes_s(), lambda: self._commit(batch))
        elif self._stopping:
            file, self._file = self._file, None
            file.close()
            self._ended.set_result(None)

    def _is_held_up(self, again: Callable[[], None]) -> bool:
        """Return whether the disk can't be reached now; `again` is then called later."""
        del again
        return False

    def _commit(self, batch: list[writer.WorkItem[Any]]) -> None:
        if self._is_held_up(lambda: self._commit(batch)):
            return
        if not self._process.lives_past("before commit") or self._file is None:
            return
        if self._disk.full and any(order.writes for order in batch):
            full = LedgerError("there is no room left")
            results = [order.failed(full) for order in batch]
            self._disk.failed_keys.update(order.key for order in batch if order.key is not None)
        else:
            results = run_in_transaction(self._file, batch)
        if self._process.lives_past("after commit"):
            self._disk.machine.after(self._disk.takes_s(), lambda: self._deliver(results))

    def _deliver(self, results: list[writer.Result]) -> None:
        if self._is_held_up(lambda: self._deliver(results)):
            return
        self._busy = False
        if self._process.alive:
            writer.set_results(results)
            self._begin()


def deterministic(seed: int, disk: Disk) -> AbstractContextManager[None]:
    """Replace the library's threads and random numbers by what the seed decides, until the end of the block."""
    numbers = itertools.count()
    chance: Any = SimpleNamespace(Random=lambda: random.Random(f"{seed} jitter {next(numbers)}"))
    return patched(
        [
            (sqlite, "Writer", disk.writer),
            (submitter, "random", chance),
            (poller, "random", chance),
            (virtual_time, "DEADLOCK_S", 0.01),  # no other thread is waited for: without a timer nothing can happen
        ]
    )


def memory_folder() -> str | None:
    """Return a folder in memory for files that are written often, if the system has one."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None
