"""The actions of `nanobanana jobs` that need no session: read a ledger, hand jobs over, prune."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal

from attrs import frozen

from nanobanana_async import (
    ConfigurationError,
    Gateway,
    JobState,
    LedgerError,
)
from nanobanana_async.accounts import account_conflict, named_account
from nanobanana_async.batch.rows import job_key_of_row
from nanobanana_async.cli.jobs.format import resume_command
from nanobanana_async.commands import jobs_command
from nanobanana_async.formatting import credit_count, plural
from nanobanana_async.gateways.base import validate_account
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.ledger.location import Location, ledger_at
from nanobanana_async.ledger.postgres.url import PostgresUrl

PRICE_SAMPLE = 1000
"""Number of finished jobs that are read to find what a job costs."""

Prices = Mapping[str, Decimal]
"""The cost of the last job of each price class."""


def require_ledger(path: Location) -> None:
    """Raise `ConfigurationError` if the file is missing or empty, so that a typo does not create an empty ledger."""
    if isinstance(path, PostgresUrl):  # opened read-only, nothing is created there
        return
    file = path.expanduser()
    if not file.is_file():
        if (file / "jobs.sqlite").is_file():
            raise ConfigurationError(f"ledger {path} is the folder of a batch: pass {path / 'jobs.sqlite'}")
        advice = "set --ledger or NANOBANANA_LEDGER (a batch has a ledger of its own, jobs.sqlite in its folder)"
        why = "no such file: nothing was bought with it; rehearsals with --gateway emulator are not kept"
        raise ConfigurationError(f"ledger {path}: {why}; {advice}")
    if not file.stat().st_size:
        raise ConfigurationError(f"ledger {path}: the file is empty, not a ledger")


@asynccontextmanager
async def open_read_only(path: Location) -> AsyncIterator[StoredLedger]:
    """Open an existing ledger read-only; raises `ConfigurationError` if it can't be read."""
    require_ledger(path)
    ledger = ledger_at(path, read_only=True)
    try:
        await ledger.open()
        try:
            yield ledger
        finally:
            await ledger.aclose()
    except LedgerError as error:
        raise ConfigurationError(str(error)) from error


async def find_job(ledger: StoredLedger, key: str) -> JobRecord:
    """Return the job with this key, or of the row with this key in a named batch.

    Raises `ConfigurationError` if there is none, or if several batches have such a row.
    """
    if (record := await ledger.find(key)) is not None:
        return record
    of_rows = [await ledger.find(job_key_of_row(batch, key)) for batch in await ledger.batch_prefixes()]
    records = [record for record in of_rows if record is not None]
    if not records:
        listed = f"`{jobs_command(ledger=ledger.location)}` lists the jobs, --ledger names another one"
        raise ConfigurationError(f"no job and no row {key!r} in ledger {ledger.location}: {listed}")
    if len(records) > 1:
        keys = ", ".join(record.key for record in records)
        raise ConfigurationError(f"{len(records)} batches have a row {key!r}: pass the key of its job: {keys}")
    return records[0]


@frozen
class ResumableJobs:
    """The unfinished jobs of a gateway's account that no session follows."""

    records: Sequence[JobRecord]
    other_accounts: int
    """Number of such jobs of other accounts."""
    price: str
    """The expected cost of the unsent jobs, as text."""

    @property
    def unsent(self) -> int:
        """Number of jobs that were never sent."""
        return sum(record.state is JobState.PENDING for record in self.records)


async def find_resumable(path: Location, gateway: Gateway) -> ResumableJobs:
    """Return the jobs that can be resumed."""
    async with open_read_only(path) as ledger:
        records = [record async for record in ledger.adoptable_jobs(gateway.account)]
        other_accounts = (await ledger.count_unowned()).total() - len(records)
        prices = await prices_in(ledger, gateway)
    costs = [_price(gateway, prices, record) for record in records if record.state is JobState.PENDING]
    amounts = [cost for cost in costs if cost is not None]
    price = "their price is unknown: no job of their class has ended in this ledger"
    if len(amounts) == len(costs):
        price = f"about {credit_count(sum(amounts, Decimal(0)))}, at the last price of their class"
    return ResumableJobs(records, max(0, other_accounts), price)


async def find_resolvable(path: Location, key: str, *, buy_again: bool) -> JobRecord:
    """Return a job that can be resolved by hand; raises `ConfigurationError` if it can't."""
    async with open_read_only(path) as ledger:
        record = await find_job(ledger, key)
        followed = await ledger.has_owner(record.key)
        if record.state is JobState.UNCERTAIN or (buy_again and record.state is JobState.FAILED):
            return record
        if record.state is JobState.RUNNING and not followed:  # the session checks whether the gateway knows its task
            return record
        why = "there is nothing to resolve"
        if followed:
            why = "a running session follows it: there is nothing to resolve"
        elif record.state in (JobState.PENDING, JobState.SUBMITTING):
            why = f"`{resume_command(record, path)}` continues it"
    raise ConfigurationError(f"job {key} is {record.state.value}: {why}")


async def describe_effect(
    path: Location, gateway: Gateway, record: JobRecord, decision: str, task_id: str | None
) -> str:
    """Return what resolving the job in this way means, and what it costs."""
    if record.account != gateway.account:
        raise ConfigurationError(account_conflict(record, gateway.name, gateway.account, path), key=record.key)
    if decision == "not-bought":
        return f"Job {record.key} will be recorded as not bought. If it was bought, its images are lost."
    if decision == "task-id":
        return f"Job {record.key} will be recorded as bought as task {task_id}, and followed. Nothing is bought."
    async with open_read_only(path) as ledger:
        cost = _price(gateway, await prices_in(ledger, gateway), record)
    price = "Its price is unknown: no job of its class has ended in this ledger."
    if cost is not None:
        price = f"The last job of its class cost {credit_count(cost)}."
    risk = "" if record.state is JobState.FAILED else " If it was already bought, this is a second payment."
    return f"Job {record.key} will be bought again, under another idempotency key.{risk} {price}"


@frozen(kw_only=True)
class HandOverPlan:
    """All jobs of one account that are given to another."""

    gateway: str
    old_account: str
    new_account: str
    count: int


async def plan_hand_over(path: Location, gateway: Gateway, old: str | None, new: str | None) -> HandOverPlan:
    """Return the jobs to hand over; raises `ConfigurationError` if the accounts are unclear."""
    async with open_read_only(path) as ledger:
        counts = await ledger.count_by_account()
    target = gateway.account if new is None else _to_ledger_account(gateway, new)
    others = {other: jobs for (name, other), jobs in counts.items() if name == gateway.name and other != target}
    listed = ", ".join(f"{account} ({plural(jobs, 'job')})" for account, jobs in others.items()) or "none"
    if old is not None:
        source = _to_ledger_account(gateway, old)
    elif len(others) == 1:
        source = next(iter(others))
    else:
        raise ConfigurationError(f"pass --from: other accounts of {gateway.name} in ledger {path}: {listed}")
    if source not in others:
        raise ConfigurationError(f"ledger {path}: account {source} has no jobs for {target}; other accounts: {listed}")
    return HandOverPlan(gateway=gateway.name, old_account=source, new_account=target, count=others[source])


def _to_ledger_account(gateway: Gateway, text: str) -> str:
    """Return the ledger's form of an account, from that form or the plain name."""
    if re.fullmatch("[0-9a-f]{24}", text):  # a fingerprint
        return text
    if name := validate_account(text, gateway.name, gateway.api_key):
        return named_account(gateway.name, name)
    raise ConfigurationError("the account's name is empty")


async def hand_over(path: Location, plan: HandOverPlan) -> int:
    """Give the jobs of one account to another and return their number."""
    ledger = ledger_at(path)
    await ledger.open()
    try:
        return await ledger.hand_over(plan.gateway, plan.old_account, plan.new_account)
    finally:
        await ledger.aclose()


async def count_prunable(path: Location, before: datetime) -> int:
    """Return the number of jobs that ended before a moment."""
    async with open_read_only(path) as ledger:
        return await ledger.count_prunable(before)


async def prune(path: Location, before: datetime) -> int:
    """Delete jobs that ended before a moment and return their number."""
    ledger = ledger_at(path)
    await ledger.open()
    try:
        return await ledger.prune(before)
    finally:
        await ledger.aclose()


async def prices_in(ledger: StoredLedger, gateway: Gateway) -> Prices:
    """Return the cost of the last job of each price class (`Gateway.price_class`)."""
    prices: dict[str, Decimal] = {}
    async for record in ledger.jobs(JobState.SUCCEEDED, PRICE_SAMPLE):
        if record.request is not None and record.gateway == gateway.name and record.credits is not None:
            prices.setdefault(gateway.price_class(record.request), record.credits)
    return prices


def _price(gateway: Gateway, prices: Prices, record: JobRecord) -> Decimal | None:
    return None if record.request is None else prices.get(gateway.price_class(record.request))
