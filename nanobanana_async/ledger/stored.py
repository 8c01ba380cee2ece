"""What the ledgers on SQLite and on PostgreSQL share: a writer thread that is opened, closed and given work.

Also what is said of one that lacks some of its tables, columns and the like (`StoredLedger.missing_parts`).
"""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.writer import Writer
from nanobanana_async.loop_guard import running_loop_or_none
from nanobanana_async.validators import as_count, shown

PAGE_SIZE = 200
_MAX_ID = 2**63 - 1
PRUNE_BATCH = 5000
"""Jobs deleted in one transaction: other processes wait meanwhile."""

MOST_PARTS_NAMED = 5
MISSING_PARTS_ADVICE = (
    "it was changed by hand, or made by another state of the library: restore a backup, or name another ledger"
)


class WriterLedger(ABC):
    """A ledger whose calls are run by a writer thread, in the process and the event loop that opened it."""

    _read_only: bool

    def __init__(self) -> None:
        self._writer: Writer | None = None
        self._process = 0

    def __del__(self) -> None:
        writer: Writer | None = self.__dict__.get("_writer")  # missing if __init__ raised
        if writer is not None and self._process == os.getpid():
            writer.stop()

    @property
    @abstractmethod
    def location(self) -> str:
        """Where the jobs are, without a password."""

    @abstractmethod
    def _start_writer(self) -> Writer:
        """Start the thread, which then opens the ledger."""

    async def open(self) -> None:
        """Open the ledger, creating or migrating it if needed, and become an owner of jobs.

        Raises `LedgerError` when that fails; nothing is changed then.
        """
        if self._writer is not None:
            kind = type(self).__name__
            raise LedgerError(f"ledger {self.location} is already open: give each session a {kind} of its own")
        self._process = os.getpid()
        writer = self._writer = self._start_writer()
        try:
            await writer.opened
        except BaseException:  # also when cancelled: the thread then closes the ledger once it is open
            writer.stop()
            self._writer = None
            raise

    async def aclose(self) -> None:
        """Finish the queued work, close the ledger, and release all jobs; idempotent."""
        writer = self._writer
        if writer is None or self._process != os.getpid():
            self._writer = None
        elif writer.loop.is_closed():  # no caller waits, and the loop can't run `aclose`
            self._writer = None
            writer.stop()
        elif (reason := self._why_unusable()) is not None:
            raise LedgerError(f"ledger {self.location} {reason}")
        else:
            self._writer = None
            await writer.aclose()

    def _queue_work(
        self, work: Callable[[Any], Any], *, writes: bool, key: str | None, safe: bool
    ) -> "asyncio.Future[Any]":
        """Queue work for the writer's thread; it runs even if the caller is cancelled."""
        reason = None
        if self._writer is None:
            reason = "is not open"
        elif (wrong := self._why_unusable()) is not None:
            reason = wrong
        elif writes and self._read_only:
            reason = "was opened read-only"
        if self._writer is None or reason is not None:
            raise LedgerError(f"ledger {self.location} {reason}", key=key, safe_to_repeat=safe)
        return self._writer.submit(work, writes=writes, key=key, safe=safe)

    async def _all_pages(self, page: Callable[..., Any]) -> AsyncIterator[JobRecord]:
        """Yield the records of all pages, oldest first, each page read by a call of its own."""
        start: int | None = 0
        while start is not None:
            start, records = await self._submit(partial(page, after=start, limit=PAGE_SIZE))
            for record in records:
                yield record

    async def _newest_first(
        self, page: Callable[..., Any], state: JobState | Collection[JobState] | None, limit: int | None
    ) -> AsyncIterator[JobRecord]:
        """Yield the jobs in the given states, at most `limit`, each page read by a call of its own."""
        limit = None if limit is None else as_count("limit", limit, least=0)
        states = {state} if isinstance(state, JobState) else state if state is None else set(state)
        start: int | None = None if states == set() else _MAX_ID
        left = _MAX_ID if limit is None else limit
        while start is not None and left > 0:
            start, records = await self._submit(partial(page, states=states, before=start, limit=min(PAGE_SIZE, left)))
            left -= len(records)
            for record in records:
                yield record

    @abstractmethod
    def _submit(self, work: Callable[[Any], Any], /) -> "asyncio.Future[Any]":
        """Queue a call that only reads, for the writer's thread."""

    def _why_unusable(self) -> str | None:
        """Return why a call can't be served: it comes from another process or event loop than the opening."""
        if self._process != os.getpid():
            return "was opened before this process was forked: open another one in this process"
        if self._writer is not None and running_loop_or_none() is not self._writer.loop:
            return "belongs to the event loop that opened it: open another one in this loop"
        return None


def describe_missing(location: object, missing: Sequence[str]) -> str:
    """Say which parts a ledger lacks; a missing table stands for its columns."""
    tables = {part.split()[1] for part in missing if part.startswith("table ")}
    named = [part for part in missing if not (part.startswith("column ") and part.split()[1].split(".")[0] in tables)]
    more = f" and {len(named) - MOST_PARTS_NAMED} more" if len(named) > MOST_PARTS_NAMED else ""
    return f"{location} lacks {', '.join(named[:MOST_PARTS_NAMED])}{more}"


def check_aware(older_than: object) -> None:
    """Raise `ConfigurationError` for anything but a time with a time zone."""
    if not isinstance(older_than, datetime) or older_than.tzinfo is None:
        raise ConfigurationError(f"older_than must be a datetime with a time zone, not {shown(older_than)}")
