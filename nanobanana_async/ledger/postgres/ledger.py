"""The ledger on PostgreSQL, which several hosts may share."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Allowance, Claim, Upload
from nanobanana_async.ledger.postgres import listing
from nanobanana_async.ledger.postgres.feeding import DrawState, FeedingCalls
from nanobanana_async.ledger.postgres.leases import Lease
from nanobanana_async.ledger.postgres.overview import Overview, read_overview
from nanobanana_async.ledger.postgres.owner import OwnerLedger
from nanobanana_async.ledger.postgres.parts import missing_parts
from nanobanana_async.ledger.postgres.pipeline import Call, Work
from nanobanana_async.ledger.postgres.sharing import exchange_of, read_account
from nanobanana_async.ledger.postgres.statements import PostgresTable
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.ledger.stored import PRUNE_BATCH, check_aware
from nanobanana_async.policy.account_state import AccountState
from nanobanana_async.policy.named_budget import Budget, BudgetState, check_same_period
from nanobanana_async.policy.prices import Price
from nanobanana_async.policy.sharing import Allotment, Report

T = TypeVar("T")


class PostgresLedger(FeedingCalls, OwnerLedger):
    """Jobs in a PostgreSQL database that several hosts share: each record is durable before the job is bought.

    `url` is `postgresql://user@host:port/database` with libpq's options; the password is better in `~/.pgpass` or
    PGPASSWORD. All tables are in one PostgreSQL schema, which is created at the first opening: one per application. A
    pooler such as pgbouncer, in transaction mode, may stand between. Needs the extra `postgres`.

    Each open ledger is an owner with a lease of ten seconds: the jobs of a process that was killed, suspended or cut
    off for longer are adopted by the others, and what it still tries to write raises `NotOurs`. When it comes back it
    is a new owner. `patience_s` is how long a call waits for a server that is away before it raises `LedgerError`;
    None: as long as it is away. `read_only` changes nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        read_only: bool = False,
        patience_s: float | None = None,
        lease: Lease | None = None,
    ) -> None:
        self._draw_state = DrawState()
        found = PostgresUrl.read(url, schema)
        del url  # it may hold a password, and some tools show the locals of a traceback
        if isinstance(found, ConfigurationError):
            raise found
        super().__init__(found, read_only=read_only, patience_s=patience_s, lease=lease)

    def __repr__(self) -> str:
        url = self.__dict__.get("_url")  # missing if __init__ raised
        mode = ", read_only=True" if self.__dict__.get("_read_only") else ""
        return f"PostgresLedger({'...' if url is None else str(url)!r}{mode})"

    @property
    def location(self) -> str:
        """The URL without its password."""
        return str(self._url)

    async def claim(self, record: JobRecord) -> Claim:
        """Insert a job as its owner, or return the stored record; an active job without an owner becomes ours."""
        return await self._write(lambda table: table.claim(record), record)

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after`; raises `NotOurs` if another owner has changed or owns the job.

        Raises `TaskTaken` if the task id belongs to another job that was sent.
        """
        await self._write(lambda table: table.advance(before, after), before)

    async def advance_and_reserve(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        """Replace `before` by `after`, which is about to be sent, and add its charges, if its caps allow it."""
        lanes = [f"batch {after.batch}"] * (after.batch is not None)
        lanes += [f"budget {after.budget}"] * (after.budget is not None)
        return await self._write(
            lambda table: table.advance_and_reserve(before, after, price, max_credits), before, lanes
        )

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
        return await self._submit(lambda table: table.known_tasks(account, task_ids))

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
        """Return the 32 random bytes, stored in the database, that sign callback URLs."""
        return await self._submit(PostgresTable.callback_secret, writes=True)

    async def notify_owner(self, key: str, task_id: str | None) -> None:
        """Leave a callback notice for the job's owner."""
        await self._submit(lambda table: table.notify_owner(key, task_id), writes=True, key=key)

    async def take_notices(self) -> Sequence[tuple[str, str | None]]:
        """Remove and return the callback notices left for us."""
        return await self._submit(PostgresTable.take_notices, writes=True)

    async def recall(self, account: str) -> str | None:
        """Return what earlier sessions learned about an account, as JSON."""
        return await self._submit(lambda table: table.recall(account))

    async def remember(self, account: str, learned: str) -> None:
        """Store what was learned about an account; the last writer wins."""
        await self._submit(lambda table: table.remember(account, learned), writes=True)

    async def exchange(self, account: str, report: Report) -> Allotment:
        """Share the limits of an account with the other owners: report, and get what this owner may do."""
        call: Any = exchange_of(account, report)
        allotment: Allotment = await self._queue_work(call, writes=True, key=None, safe=False)
        return allotment

    async def account_state(self, account: str) -> AccountState | None:
        """Return what the owners of an account learned of it together; None if none has bought yet."""
        return await self._submit(partial(read_account, account=account))

    async def find_upload(self, account: str, digest: str) -> Upload | None:
        """Return the last upload of this content by the account."""
        return await self._submit(lambda table: table.find_upload(account, digest))

    async def remember_upload(self, account: str, upload: Upload) -> None:
        """Store an upload, in place of an earlier one of the same content."""
        await self._submit(lambda table: table.remember_upload(account, upload), writes=True)

    async def adoptable_jobs(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield an account's active jobs without a living owner, oldest first; call `adopt` to take one.

        While there is an owner of whom it is not yet certain whether it lives, wait for that: a lease at most.
        """
        silent: list[int] = await self._submit(listing.silent_owners)
        if not self._read_only:
            left_s = self._lease.silence_s + 2 * self._lease.beat_s
            while silent and left_s > 0:
                await asyncio.sleep(self._lease.beat_s / 2)
                left_s -= self._lease.beat_s / 2
                silent = await self._submit(listing.silent_owners)
            silent = []
        page = partial(listing.adoptable_page, account=account, silent=silent)
        async for record in self._all_pages(page):
            yield record

    async def uncertain(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield an account's UNCERTAIN jobs, oldest first."""
        async for record in self._all_pages(partial(listing.uncertain_page, account=account)):
            yield record

    async def jobs(
        self, state: JobState | Collection[JobState] | None = None, limit: int | None = None
    ) -> AsyncIterator[JobRecord]:
        """Yield the jobs, newest first; only those in the given states, and at most `limit`."""
        async for record in self._newest_first(listing.jobs_page, state, limit):
            yield record

    async def jobs_in_key_range(self, first_key: str, last_key: str) -> Sequence[JobRecord]:
        """Return the jobs whose keys lie between two keys, these included, in the order of their keys."""
        return await self._submit(partial(listing.jobs_in_key_range, first_key=first_key, last_key=last_key))

    async def count_by_state(self) -> Counter[JobState]:
        """Count all jobs by state."""
        return await self._submit(listing.count_by_state)

    async def has_owner(self, key: str) -> bool:
        """Return whether a job is active and has a living owner: another one, or this ledger."""
        return await self._submit(partial(listing.has_owner, key=key), key=key)

    async def count_unowned(self) -> Counter[JobState]:
        """Count the active jobs of all accounts without a living owner, by state."""
        return await self._submit(listing.count_unowned)

    async def count_by_account(self) -> Counter[tuple[str, str]]:
        """Count the jobs by gateway and account. An account is `gateway:name`, or a fingerprint of the API key."""
        return await self._submit(listing.count_by_account)

    async def owners(self) -> list[listing.OwnerFacts]:
        """Return the owners of jobs, each a process that has the ledger open, or had it until a lease ago."""
        return await self._submit(listing.owners)

    async def overview(self) -> Overview:
        """Return what happens on the ledger now: owners, their shares of accounts, batches."""
        return await self._submit(read_overview)

    async def batch_prefixes(self) -> list[str]:
        """Return the prefixes of the keys of all named batches."""
        return await self._submit(listing.batch_prefixes)

    async def missing_parts(self) -> list[str]:
        """Return what the schema lacks of its tables, columns, indexes and the like, such as "table jobs"."""
        return await self._submit(missing_parts)

    async def hand_over(self, gateway: str, old: str, new: str) -> int:
        """Move all jobs of one account to another of the same gateway, after its API key changed; return how many.

        Raises `LedgerError` while an open session owns any of them; nothing is changed then.
        """
        return await self._submit(partial(listing.hand_over, gateway=gateway, old=old, new=new), writes=True)

    async def count_prunable(self, older_than: datetime) -> int:
        """Count the jobs that `prune` would delete."""
        check_aware(older_than)
        return await self._submit(partial(listing.count_prunable, older_than=older_than))

    async def prune(self, older_than: datetime) -> int:
        """Delete the jobs that ended before a time; return how many. UNCERTAIN jobs are never deleted.

        A pruned job is bought again when its key, or its row of a batch, is requested again. Its charges still count
        as spent in its batch.
        """
        check_aware(older_than)
        pruned = 0
        for start in range(0, await self._submit(listing.last_id), PRUNE_BATCH):
            batch = partial(listing.prune, older_than=older_than, after=start, until=start + PRUNE_BATCH)
            pruned += await self._submit(batch, writes=True)
        await self._submit(partial(listing.forget_old, older_than=older_than), writes=True)
        return pruned

    def _write(
        self, start: Callable[[PostgresTable], Work[T]], record: JobRecord, lanes: Sequence[str] = ()
    ) -> "asyncio.Future[T]":
        safe = not record.possibly_bought
        return self._submit(start, writes=True, key=record.key, safe=safe, lanes=lanes)

    def _submit(
        self,
        start: Callable[[PostgresTable], Work[T]],
        *,
        writes: bool = False,
        key: str | None = None,
        safe: bool = False,
        lanes: Sequence[str] = (),
    ) -> "asyncio.Future[T]":
        """Queue a call for the writer's thread; calls for one job run one after another."""
        call: Any = Call(start, lanes if key is None else (*lanes, f"job {key}"))
        return self._queue_work(call, writes=writes, key=key, safe=safe)
