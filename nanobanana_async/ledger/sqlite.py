"""The durable ledger: one SQLite file that several sessions and processes may share."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TypeVar

from attrs import frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import TERMINAL_STATES, JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Allowance, Claim, Upload
from nanobanana_async.ledger.columns import READERS, identity_values, progress_values, sql_list
from nanobanana_async.ledger.connection import open_file
from nanobanana_async.ledger.file import current_schema, missing_parts
from nanobanana_async.ledger.statements import JobTable, update_statement_for
from nanobanana_async.ledger.stored import PRUNE_BATCH, WriterLedger, check_aware
from nanobanana_async.ledger.uploads import find_upload, prune_uploads, remember_upload
from nanobanana_async.ledger.writer import Writer
from nanobanana_async.policy.named_budget import Budget, BudgetState, check_same_period
from nanobanana_async.policy.prices import Price, from_billionths
from nanobanana_async.validators import as_file, as_number, check_kind

T = TypeVar("T")

BUSY_S = 10.0
MAX_BUSY_S = 1e6  # SQLite stores it in milliseconds, in 31 bits

_SELECT_TIMES = "SELECT key, max(coalesce(running_since, first_sent_at, created_at), coalesce(ended_at, '')) FROM jobs"
_SELECT_PRUNED = f"""
    SELECT (SELECT min(ended_at) FROM jobs WHERE state IN ({sql_list(TERMINAL_STATES)})),
        coalesce((SELECT credits FROM spending WHERE batch = ?), 0)
            - coalesce((SELECT sum(credits) FROM charges WHERE batch = ?), 0)
"""


@frozen
class KnownPurchases:
    """What a ledger knows of purchases."""

    times: Mapping[str, str]
    """When the last thing happened to each job, by its key: it was requested, sent, accepted or ended."""
    first_end: datetime | None
    """When the first of the jobs ended that have ended: what ended later was never pruned."""
    pruned: Decimal
    """The credits of a batch that its pruned jobs cost, each as far as a price was known."""

    def has(self, key: str, since: str = "") -> bool:
        """Return whether the ledger has a job, and knows something of it from that time (ISO 8601, UTC) or later."""
        last = self.times.get(key)
        return last is not None and last >= since


class SqliteLedger(WriterLedger):
    """Jobs in a file: each record is flushed to the disk before the job is bought.

    The folder must exist and be on a local disk. The file is created readable by this user only; it holds prompts and
    results, never API keys. SQLite's -wal and -shm files and a folder `...-owners` beside it are part of the ledger.
    Several sessions and processes may use one file, each with its own `SqliteLedger`: each owns its own jobs, and
    adopts those whose process has died. An open ledger does not work in a forked child: open another one there.

    `read_only` opens the file without owning jobs or changing anything. `busy_timeout_s` is how long a write waits for
    another process's write before it raises `LedgerError`. A closed ledger can be opened again.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, busy_timeout_s: float = BUSY_S
    ) -> None:
        check_kind("path", path, (str, os.PathLike), "the path of a file, such as 'jobs.sqlite'")
        if os.fspath(path) in ("", ":memory:"):
            raise ConfigurationError(f"{os.fspath(path)!r} is not a file: omit ledger=, or pass MemoryLedger()")
        self._path = as_file("the ledger", path)
        self._read_only = read_only
        self._busy_s = as_number("busy_timeout_s", busy_timeout_s, most=MAX_BUSY_S)
        super().__init__()

    def __repr__(self) -> str:
        mode = ", read_only=True" if self.__dict__.get("_read_only") else ""  # missing if __init__ raised
        return f"SqliteLedger({str(self.__dict__.get('_path', '...'))!r}{mode})"

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self._path

    @property
    def location(self) -> str:
        """The path of the file, as text."""
        return str(self._path)

    def _start_writer(self) -> Writer:
        connect = partial(open_file, self.path, read_only=self._read_only, busy_s=self._busy_s)
        return Writer(connect, name=f"ledger {self.path.name}")

    async def claim(self, record: JobRecord) -> Claim:
        """Insert a job as its owner, or return the stored record; an active job without an owner becomes ours."""
        row = (*identity_values(record), *progress_values(record))
        return await self._write(lambda table: table.claim(record, row), record)

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after`; raises `LedgerError` if another owner has changed or owns the job.

        Raises `TaskTaken` if the task id belongs to another job that was sent.
        """
        statement, row = update_statement_for(before, after)
        adds_task_id = after.task_id is not None and after.task_id != before.task_id

        def advance(table: JobTable) -> None:
            if adds_task_id:
                table.check_task_free(after)
            table.advance(before, after, statement, row)

        await self._write(advance, before)

    async def advance_and_reserve(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        """Replace `before` by `after`, which is about to be sent, and add its charges, if its caps allow it."""
        statement, row = update_statement_for(before, after)
        advance_and_reserve = partial(
            JobTable.advance_and_reserve, before=before, after=after, statement=statement, row=row
        )
        return await self._write(partial(advance_and_reserve, price=price, max_credits=max_credits), before)

    async def adopt(self, key: str) -> Claim | None:
        """Take ownership of an active job without a living owner; return the stored record."""
        return await self._submit(lambda table: table.adopt(key), writes=True, key=key)

    async def release(self, key: str) -> None:
        """Give up ownership of a job: any owner may adopt it afterwards."""
        await self._submit(lambda table: table.release(key), writes=True, key=key)

    async def find(self, key: str) -> JobRecord | None:
        """Return the job with this key."""
        return await self._submit(lambda table: table.find(key), key=key)

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job to which the gateway gave this task id."""
        return await self._submit(lambda table: table.find_task(account, task_id))

    async def known_tasks(self, account: str, task_ids: Sequence[str]) -> Mapping[str, JobRecord | None]:
        """Return those of the tasks that a job of the account has, with the job."""

        def find(table: JobTable) -> dict[str, JobRecord | None]:
            found = {task_id: table.find_task(account, task_id) for task_id in task_ids}
            return {task_id: record for task_id, record in found.items() if record is not None}

        return await self._submit(find)

    async def count_foreign_slots(self, account: str, *, since: datetime | None = None) -> int:
        """Count the slots of jobs of other owners, or of none, that were sent and are not known to have ended.

        `since` leaves out those that were sent, or began to run, before it.
        """
        return await self._submit(lambda table: table.count_foreign_slots(account, since))

    async def spent_or_reserved(self, batch: str) -> Decimal:
        """Return the credits of the batch with this name: charged after refunds, and reserved; pruned jobs count.

        `batch` is the name that was passed to `generate_many`; 0 for a name that has bought nothing here.
        """
        return await self._submit(lambda table: table.charges.spent_or_reserved(batch_key_prefix(batch)))

    async def reserved(self, batch: str) -> Decimal:
        """Return the part of `spent` that is reserved: for jobs in doubt, and running ones without a stated price."""
        return await self._submit(lambda table: table.charges.reserved(batch_key_prefix(batch)))

    async def set_budget(self, budget: Budget) -> None:
        """Store a budget, in place of an earlier one of the name; raises `ConfigurationError` for another `per`."""
        check_same_period(await self._submit(lambda table: table.charges.set_budget(budget), writes=True), budget)

    async def budgets(self, now: datetime, names: Collection[str] | None = None) -> Sequence[BudgetState]:
        """Return the state of each budget at a time, or of those of these names, by name."""
        return await self._submit(lambda table: table.charges.budgets(now, names))

    async def callback_secret(self) -> bytes:
        """Return the 32 random bytes, stored in the file, that sign callback URLs."""
        return await self._submit(JobTable.callback_secret, writes=True)

    async def notify_owner(self, key: str, task_id: str | None) -> None:
        """Leave a callback notice for the job's owner."""
        await self._submit(lambda table: table.notify_owner(key, task_id), writes=True, key=key)

    async def take_notices(self) -> Sequence[tuple[str, str | None]]:
        """Remove and return the callback notices left for us."""
        return await self._submit(JobTable.take_notices, writes=True)

    async def recall(self, account: str) -> str | None:
        """Return what earlier sessions learned about an account, as JSON."""
        return await self._submit(lambda table: table.recall(account))

    async def remember(self, account: str, learned: str) -> None:
        """Store what was learned about an account; the last writer wins."""
        await self._submit(lambda table: table.remember(account, learned), writes=True)

    async def find_upload(self, account: str, digest: str) -> Upload | None:
        """Return the last upload of this content by the account."""
        return await self._submit(lambda table: find_upload(table.connection, account, digest))

    async def remember_upload(self, account: str, upload: Upload) -> None:
        """Store an upload, in place of an earlier one of the same content."""
        await self._submit(lambda table: remember_upload(table.connection, account, upload), writes=True)

    async def adoptable_jobs(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield an account's active jobs without a living owner, oldest first; call `adopt` to take one."""
        owners = await self._submit(lambda table: table.live_owners(account))
        page = partial(JobTable.adoptable_page, account=account, live_owners=owners)
        async for record in self._all_pages(page):
            yield record

    async def uncertain(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield an account's UNCERTAIN jobs, oldest first."""
        async for record in self._all_pages(partial(JobTable.uncertain_page, account=account)):
            yield record

    async def jobs(
        self, state: JobState | Collection[JobState] | None = None, limit: int | None = None
    ) -> AsyncIterator[JobRecord]:
        """Yield the jobs, newest first; only those in the given states, and at most `limit`."""
        async for record in self._newest_first(JobTable.jobs_page, state, limit):
            yield record

    async def jobs_in_key_range(self, first_key: str, last_key: str) -> Sequence[JobRecord]:
        """Return the jobs whose keys lie between two keys, these included, in the order of their keys."""
        return await self._submit(lambda table: table.jobs_in_key_range(first_key, last_key))

    async def count_by_state(self) -> Counter[JobState]:
        """Count all jobs by state."""
        return await self._submit(JobTable.count_by_state)

    async def known_purchases(self, batch: str) -> KnownPurchases:
        """Return what the ledger knows of purchases; `pruned` is of the batch with this name."""

        def read(table: JobTable) -> KnownPurchases:
            # The jobs first: a job that is pruned between both statements is known, or was counted.
            times = dict(table.connection.execute(_SELECT_TIMES))
            prefix = batch_key_prefix(batch)
            first_end, pruned = table.connection.execute(_SELECT_PRUNED, (prefix, prefix)).fetchone()
            return KnownPurchases(times, first_end and READERS["ended_at"](first_end), from_billionths(max(0, pruned)))

        return await self._submit(read)

    async def has_owner(self, key: str) -> bool:
        """Return whether a job is active and has a living owner: another one, or this ledger."""
        return await self._submit(lambda table: table.has_owner(key), key=key)

    async def count_unowned(self) -> Counter[JobState]:
        """Count the active jobs of all accounts without a living owner, by state."""
        return await self._submit(JobTable.count_unowned)

    async def count_by_account(self) -> Counter[tuple[str, str]]:
        """Count the jobs by gateway and account. An account is `gateway:name`, or a fingerprint of the API key."""
        return await self._submit(JobTable.count_by_account)

    async def batch_prefixes(self) -> list[str]:
        """Return the prefixes of the keys of all named batches."""
        return await self._submit(JobTable.batch_prefixes)

    async def missing_parts(self) -> list[str]:
        """Return what the file lacks of its tables, columns, indexes and triggers, such as "table jobs"."""
        return await self._submit(lambda table: missing_parts(table.connection, current_schema()))

    async def hand_over(self, gateway: str, old: str, new: str) -> int:
        """Move all jobs of one account to another of the same gateway, after its API key changed; return how many.

        Raises `LedgerError` while an open session owns any of them; nothing is changed then.
        """
        return await self._submit(partial(JobTable.hand_over, gateway=gateway, old=old, new=new), writes=True)

    async def count_prunable(self, older_than: datetime) -> int:
        """Count the jobs that `prune` would delete."""
        check_aware(older_than)
        return await self._submit(partial(JobTable.count_prunable, older_than=older_than))

    async def prune(self, older_than: datetime) -> int:
        """Delete the jobs that ended before a time; return how many. UNCERTAIN jobs are never deleted.

        A pruned job is bought again when its key, or its row of a batch, is requested again. Its charges still count
        as spent in its batch. The file does not shrink: the freed space is used for new jobs.
        """
        check_aware(older_than)
        pruned = 0
        for start in range(0, await self._submit(JobTable.last_id), PRUNE_BATCH):
            batch = partial(JobTable.prune, older_than=older_than, after=start, until=start + PRUNE_BATCH)
            pruned += await self._submit(batch, writes=True)
        await self._submit(lambda table: prune_uploads(table.connection, older_than), writes=True)
        return pruned

    def _write(self, work: Callable[[JobTable], T], record: JobRecord) -> "asyncio.Future[T]":
        return self._submit(work, writes=True, key=record.key, safe=not record.possibly_bought)

    def _submit(
        self, work: Callable[[JobTable], T], *, writes: bool = False, key: str | None = None, safe: bool = False
    ) -> "asyncio.Future[T]":
        return self._queue_work(work, writes=writes, key=key, safe=safe)
