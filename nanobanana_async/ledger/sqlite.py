"""The durable ledger: one SQLite file, shared by as many sessions and processes as like."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TypeVar

from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Claim
from nanobanana_async.ledger.columns import identity_values, progress_values
from nanobanana_async.ledger.connection import open_file
from nanobanana_async.ledger.statements import JobTable, update_for
from nanobanana_async.ledger.writer import Writer
from nanobanana_async.loop_guard import running_loop
from nanobanana_async.policy.prices import Price
from nanobanana_async.validators import as_count, as_number, shown

T = TypeVar("T")

BUSY_S = 10.0
LONGEST_BUSY_S = 1e6  # SQLite counts it in milliseconds, in 31 bits
PAGE = 200
PRUNED_AT_ONCE = 5000  # others wait for the lock meanwhile
_NO_ID = 2**63 - 1


class SqliteLedger:
    """Jobs in a file: each is written down, flushed to the disk, before it is bought.

    The folder must exist; the file is made, readable by this user only. It holds prompts and results, never API keys.
    Beside it stand SQLite's -wal and -shm files and a folder `...-owners`; they belong to it. It must be on a local
    disk. Several sessions and processes may use one file, each with a `SqliteLedger` of its own: each follows its own
    jobs, and takes over those whose process has died. It does not go through a fork: open it in the child.

    `read_only` looks without owning or changing anything. `busy_timeout_s` is how long a write waits for somebody
    else's before it is a `LedgerError`. Closed, it can be opened again.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, busy_timeout_s: float = BUSY_S
    ) -> None:
        self._path = path
        if os.fspath(path) in ("", ":memory:"):
            raise ConfigurationError(f"{os.fspath(path)!r} is no file: leave the ledger out, or pass MemoryLedger()")
        self._read_only = read_only
        self._busy_s = as_number("busy_timeout_s", busy_timeout_s, most=LONGEST_BUSY_S)
        self._writer: Writer | None = None
        self._process = 0

    def __repr__(self) -> str:
        mode = ", read_only=True" if self.__dict__.get("_read_only") else ""  # missing if a setting was refused
        return f"SqliteLedger({str(self.path)!r}{mode})"

    def __del__(self) -> None:
        writer: Writer | None = self.__dict__.get("_writer")  # missing if a setting was refused
        if writer is not None and self._process == os.getpid():
            writer.stop()

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self._path).expanduser()

    async def open(self) -> None:
        """Open the file, make it or bring it up to date; become an owner of jobs.

        Raises `LedgerError` when that is impossible, and says why; nothing was changed then.
        """
        if self._writer is not None:
            raise LedgerError(f"ledger {self.path} is already open: give each session a SqliteLedger of its own")
        self._process = os.getpid()
        writer = self._writer = Writer(
            partial(open_file, self.path, read_only=self._read_only, busy_s=self._busy_s),
            name=f"ledger {self.path.name}",
        )
        try:
            await writer.opened
        except BaseException:  # a cancelled opening closes what it opens as soon as it can
            writer.stop()
            self._writer = None
            raise

    async def aclose(self) -> None:
        """Finish what is queued, close the file, and let go of all jobs; idempotent."""
        writer = self._writer
        if writer is None or self._process != os.getpid():
            self._writer = None
        elif writer.loop.is_closed():  # nobody waits any more
            self._writer = None
            writer.stop()
        elif (why := self._wrong_place()) is not None:
            raise LedgerError(f"ledger {self.path} {why}")
        else:
            self._writer = None
            await writer.aclose()

    async def claim(self, record: JobRecord) -> Claim:
        """Write a job down as ours, or return what stands under its key; what nobody follows is taken over."""
        row = (*identity_values(record), *progress_values(record))
        return await self._write(lambda desk: desk.claim(record, row), record)

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after`; raises `LedgerError` if somebody else has changed or follows the job.

        Raises `TaskTaken` if another job that was bought has its task id.
        """
        statement, row = update_for(before, after)
        brings_task = after.task_id is not None and after.task_id != before.task_id

        def advance(desk: JobTable) -> None:
            if brings_task:
                desk.check_task(after)
            desk.advance(before, after, statement, row)

        await self._write(advance, before)

    async def set_aside(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        """Replace `before` by `after`, about to be sent, and note its charge, if the cap of its batch has room."""
        statement, row = update_for(before, after)
        note = partial(JobTable.set_aside, before=before, after=after, statement=statement, row=row)
        return await self._write(partial(note, price=price, max_credits=max_credits), before)

    async def adopt(self, key: str) -> Claim | None:
        """Take over an unfinished job that no living owner follows; return what stands there."""
        return await self._ask(lambda desk: desk.adopt(key), writes=True, key=key)

    async def release(self, key: str) -> None:
        """Let go of a job: anybody may adopt it."""
        await self._ask(lambda desk: desk.release(key), writes=True, key=key)

    async def find(self, key: str) -> JobRecord | None:
        """Return the job with this key."""
        return await self._ask(lambda desk: desk.find(key), key=key)

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job to which the gateway gave this task id."""
        return await self._ask(lambda desk: desk.find_task(account, task_id))

    async def count_slots_of_others(self, account: str, *, since: datetime | None = None) -> int:
        """Count the jobs of others, or of nobody, that may hold a slot: sent and not known to have ended.

        `since` leaves out those that were sent, or began to run, before it.
        """
        return await self._ask(lambda desk: desk.count_slots_of_others(account, since))

    async def spent(self, batch: str) -> Decimal:
        """Return what was ever spent, or set aside, under a name, after refunds: also for jobs that are forgotten."""
        return await self._ask(lambda desk: desk.charges.spent(batch))

    async def callback_secret(self) -> bytes:
        """Return 32 random bytes that are kept in the file, for callbacks."""
        return await self._ask(JobTable.callback_secret, writes=True)

    async def notify_owner(self, key: str, task_id: str | None) -> None:
        """Leave word for the owner who follows a job that there is news of it."""
        await self._ask(lambda desk: desk.notify_owner(key, task_id), writes=True, key=key)

    async def take_notices(self) -> Sequence[tuple[str, str | None]]:
        """Take what others have left for us."""
        return await self._ask(JobTable.take_notices, writes=True)

    async def unfinished(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield the unfinished jobs of an account that nobody follows, oldest first; `adopt` then decides."""
        living = await self._ask(lambda desk: desk.live_owners(account))
        start: int | None = 0
        while start is not None:
            page = partial(JobTable.unfinished, account=account, living=living, after=start, limit=PAGE)
            start, records = await self._ask(page)
            for record in records:
                yield record

    async def jobs(
        self, state: JobState | Collection[JobState] | None = None, limit: int | None = None
    ) -> AsyncIterator[JobRecord]:
        """Yield the jobs, those that came last first; of these states, and no more than `limit`, if that is given."""
        limit = None if limit is None else as_count("limit", limit, least=0)
        states = {state} if isinstance(state, JobState) else state if state is None else set(state)
        start: int | None = None if states == set() else _NO_ID
        left = _NO_ID if limit is None else limit
        while start is not None and left > 0:
            start, records = await self._ask(partial(JobTable.jobs, states=states, before=start, limit=min(PAGE, left)))
            left -= len(records)
            for record in records:
                yield record

    async def counts(self) -> Counter[JobState]:
        """Count all jobs by state."""
        return await self._ask(JobTable.counts)

    async def is_owned(self, key: str) -> bool:
        """Tell whether a job has not ended, and a living owner follows it: another one, or we."""
        return await self._ask(lambda desk: desk.is_owned(key), key=key)

    async def count_unowned(self) -> Counter[JobState]:
        """Count the unfinished jobs that nobody follows, of all accounts, by state."""
        return await self._ask(JobTable.count_unowned)

    async def accounts(self) -> Counter[tuple[str, str]]:
        """Count the jobs of each gateway and account; an account is a name after the gateway's, or a fingerprint."""
        return await self._ask(JobTable.accounts)

    async def hand_over(self, gateway: str, old: str, new: str) -> int:
        """Give all jobs of one account to another of the same gateway, and return how many: its API key was changed.

        Raises `LedgerError` while a living session follows any of them; then nothing was changed.
        """
        return await self._ask(partial(JobTable.hand_over, gateway=gateway, old=old, new=new), writes=True)

    async def prunable(self, older_than: datetime) -> int:
        """Count what `prune` would forget."""
        _check_moment(older_than)
        return await self._ask(partial(JobTable.prunable, older_than=older_than))

    async def prune(self, older_than: datetime) -> int:
        """Forget the jobs that ended before a moment; return how many. UNCERTAIN ones are never forgotten.

        A job that is forgotten will be bought again when its key, or its row of a batch, is asked for again; what it
        has cost stays spent under the name of its batch. The
        room is used for new jobs; the file does not become smaller.
        """
        _check_moment(older_than)
        gone = 0
        for start in range(0, await self._ask(JobTable.last_id), PRUNED_AT_ONCE):
            stretch = partial(JobTable.prune, older_than=older_than, after=start, until=start + PRUNED_AT_ONCE)
            gone += await self._ask(stretch, writes=True)
        return gone

    def _write(self, work: Callable[[JobTable], T], record: JobRecord) -> "asyncio.Future[T]":
        return self._ask(work, writes=True, key=record.key, safe=not record.possibly_bought)

    def _ask(
        self, work: Callable[[JobTable], T], *, writes: bool = False, key: str | None = None, safe: bool = False
    ) -> "asyncio.Future[T]":
        """Queue a piece of work; it is done also if the caller is cancelled meanwhile."""
        why = None
        if self._writer is None:
            why = "is not open"
        elif (wrong := self._wrong_place()) is not None:
            why = wrong
        elif writes and self._read_only:
            why = "was opened for reading only"
        if self._writer is None or why is not None:
            raise LedgerError(f"ledger {self.path} {why}", key=key, safe_to_repeat=safe)
        return self._writer.submit(work, writes=writes, key=key, safe=safe)

    def _wrong_place(self) -> str | None:
        """Say why this call can't be served here, if it comes from elsewhere than where the ledger was opened."""
        if self._process != os.getpid():
            return "was opened before this process was forked: open it again here"
        if self._writer is not None and running_loop() is not self._writer.loop:
            return f"belongs to the event loop that opened it, {self._writer.loop!r}: open another one in this loop"
        return None


def _check_moment(older_than: object) -> None:
    if not isinstance(older_than, datetime) or older_than.tzinfo is None:
        raise ConfigurationError(f"older_than must be a datetime with a time zone, not {shown(older_than)}")
