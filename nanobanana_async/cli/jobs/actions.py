"""What the commands of `nanobanana jobs` do: look into a ledger that must exist, go on with jobs, settle one."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from attrs import frozen
from rich.console import Console

from nanobanana_async import (
    ConfigurationError,
    Gateway,
    GenerationResult,
    Job,
    JobState,
    LedgerError,
    NanoBananaError,
    Session,
    SqliteLedger,
)
from nanobanana_async.cli.display import JobsDisplay
from nanobanana_async.cli.generate import Interrupted, link_of, missing_images
from nanobanana_async.cli.jobs.format import amount, pluralize
from nanobanana_async.escaping import exact, one_line
from nanobanana_async.gateways.base import validate_account
from nanobanana_async.jobs import JobRecord, account_conflict, named_account

LOOKED_BACK = 1000
"""How many finished jobs are looked at for what a job costs."""

Prices = Mapping[str, Decimal]
"""What the last job of each kind cost."""


def require_ledger(path: Path) -> None:
    """Raise `ConfigurationError` if there is nothing: a slip of the pen shall not make an empty ledger."""
    file = path.expanduser()
    if not file.is_file():
        raise ConfigurationError(f"ledger {path}: there is no such file: name yours with --ledger or NANOBANANA_LEDGER")
    if not file.stat().st_size:
        raise ConfigurationError(f"ledger {path}: the file is empty, and no ledger")


@asynccontextmanager
async def open_read_only(path: Path) -> AsyncIterator[SqliteLedger]:
    """Open a ledger that must exist, for a look only; one that can't be read is a `ConfigurationError`."""
    require_ledger(path)
    ledger = SqliteLedger(path, read_only=True)
    try:
        await ledger.open()
        try:
            yield ledger
        finally:
            await ledger.aclose()
    except LedgerError as error:
        raise ConfigurationError(str(error)) from error


async def find_job(ledger: SqliteLedger, key: str) -> JobRecord:
    """Return the job with this key, which must be there."""
    record = await ledger.find(key)
    if record is None:
        raise ConfigurationError(f"ledger {ledger.path} knows no job {key!r}")
    return record


@frozen
class Unfinished:
    """What a gateway's account has left unfinished in a ledger, and nobody follows."""

    records: Sequence[JobRecord]
    elsewhere: int
    """Such jobs of other accounts."""
    price: str
    """What the unsent ones will cost, in words."""

    @property
    def unsent(self) -> int:
        """How many were never sent."""
        return sum(record.state is JobState.PENDING for record in self.records)


async def left_over(path: Path, gateway: Gateway) -> Unfinished:
    """Look what there is to go on with."""
    async with open_read_only(path) as ledger:
        records = [record async for record in ledger.unfinished(gateway.account)]
        elsewhere = (await ledger.count_unowned()).total() - len(records)
        prices = await prices_in(ledger, gateway)
    costs = [_price(gateway, prices, record) for record in records if record.state is JobState.PENDING]
    amounts = [cost for cost in costs if cost is not None]
    price = "what they cost is unknown, none of their kind has ended in this ledger"
    if len(amounts) == len(costs):
        price = f"about {amount(sum(amounts, Decimal(0)))} credits, by what their kind cost before"
    return Unfinished(records, max(0, elsewhere), price)


async def resume(path: Path, gateway: Gateway, left: Unfinished, *, buy: bool, console: Console) -> int:
    """Go on with what is left over, and tell each job's end; return 0, or 1 when one of them did not succeed."""
    wanted = [record for record in left.records if buy or record.state is not JobState.PENDING]
    board = JobsDisplay(len(wanted), console)
    board.records = {record.key: record for record in wanted}
    teller = ResultPrinter(board)
    try:
        async with Session(gateway, ledger=path, observers=[board], trust_env=True) as session:
            with board:
                jobs = await session.resume(buy=buy)
                keys = {job.key for job in jobs}  # others may have been faster
                board.total = len(jobs)
                board.records = {key: record for key, record in board.records.items() if key in keys}
                async with asyncio.TaskGroup() as group:
                    for job in jobs:
                        group.create_task(teller.follow(job))
    except asyncio.CancelledError:
        raise Interrupted("interrupted; `nanobanana jobs resume` goes on with what is unfinished") from None
    except ExceptionGroup as troubles:  # who reads our output has gone, for one
        raise troubles.exceptions[0] from None
    if not jobs:
        teller.note("nothing to go on with")
    if left.unsent and not buy:
        teller.note(f"{pluralize(left.unsent)} never sent: --buy buys them")
    if left.elsewhere:
        why = "go on with them under their API keys, or after a change of key: `nanobanana jobs hand-over`"
        teller.note(f"{pluralize(left.elsewhere)} of other accounts left: {why}")
    return teller.code


async def to_resolve(path: Path, key: str, *, again: bool) -> JobRecord:
    """Return a job that can be settled; else say why it can't."""
    async with open_read_only(path) as ledger:
        record = await find_job(ledger, key)
        followed = await ledger.is_owned(key)
        if record.state is JobState.UNCERTAIN or (again and record.state is JobState.FAILED):
            return record
        if record.state is JobState.RUNNING and not followed:  # the session asks whether the gateway knows its task
            return record
        why = "there is nothing to settle"
        if followed:
            why = "a session that lives follows it: there is nothing to settle"
        elif record.state in (JobState.PENDING, JobState.SUBMITTING):
            why = "it can be gone on with: `nanobanana jobs resume`"
    raise ConfigurationError(f"job {key} is {record.state.value}: {why}")


async def describe_effect(path: Path, gateway: Gateway, record: JobRecord, decided: str, task_id: str | None) -> str:
    """Say what settling the job so means, and what it costs."""
    if record.account != gateway.account:
        raise ConfigurationError(account_conflict(record, gateway.name, gateway.account), key=record.key)
    if decided == "refused":
        return f"Job {record.key} was not bought, you say. If it was, its pictures are given up."
    if decided == "task-id":
        return f"Job {record.key} was bought as task {task_id}, you say. It is followed; nothing is bought."
    async with open_read_only(path) as ledger:
        cost = _price(gateway, await prices_in(ledger, gateway), record)
    price = "What it costs is unknown: none of its kind has ended in this ledger."
    if cost is not None:
        price = f"The last one of its kind cost {amount(cost)} credits."
    risk = "" if record.state is JobState.FAILED else " If it was bought after all, that is a second payment."
    return f"Job {record.key} will be bought anew, under another idempotency key.{risk} {price}"


@frozen(kw_only=True)
class Decision:
    """What a human says of a job: bought as this task, to be bought again, or neither: it was not bought."""

    key: str
    task_id: str | None
    buy_again: bool


async def resolve(path: Path, gateway: Gateway, decision: Decision, *, wait: bool, console: Console) -> int:
    """Settle a job and, unless it was refused, follow it to its end, or without `wait` until the gateway has it."""
    refused = decision.task_id is None and not decision.buy_again
    board = JobsDisplay(1, console)
    teller = ResultPrinter(board, one=True)
    try:
        async with Session(gateway, ledger=path, observers=[board], trust_env=True) as session:
            with board:
                job = await session.resolve(
                    decision.key, task_id=decision.task_id, buy_again=decision.buy_again, not_bought=refused
                )
                if wait and not refused:
                    await teller.follow(job)
                elif not refused:
                    await teller.accepted(job)
    except asyncio.CancelledError:
        raise Interrupted("interrupted; `nanobanana jobs` tells how it stands") from None
    if refused:
        teller.note(f"job {job.key} is {job.state.value}")
    return teller.code


@frozen(kw_only=True)
class Move:
    """All jobs of one account that go to another."""

    gateway: str
    old: str
    new: str
    count: int


async def to_hand_over(path: Path, gateway: Gateway, old: str | None, new: str | None) -> Move:
    """Return which jobs go where; else say why that is not clear."""
    async with open_read_only(path) as ledger:
        counts = await ledger.accounts()
    target = gateway.account if new is None else _account(gateway, new)
    ours = {account: count for (name, account), count in counts.items() if name == gateway.name}
    others = {account: count for account, count in ours.items() if account != target}
    there = ", ".join(f"{account} ({pluralize(count)})" for account, count in others.items()) or "none"
    if old is not None:
        source = _account(gateway, old)
    elif len(others) == 1:
        source = next(iter(others))
    else:
        raise ConfigurationError(f"say --from: other accounts of {gateway.name} in ledger {path}: {there}")
    if source not in others:
        raise ConfigurationError(f"ledger {path}: account {source} has no jobs to give to {target}; others: {there}")
    return Move(gateway=gateway.name, old=source, new=target, count=others[source])


def _account(gateway: Gateway, said: str) -> str:
    """Return an account as ledgers have it: what `jobs show` shows, or the plain name."""
    if re.fullmatch("[0-9a-f]{24}", said):  # a fingerprint
        return said
    name = validate_account(said.removeprefix(f"{gateway.name}:"), gateway.api_key)
    if not name:
        raise ConfigurationError("an account's name is empty")
    return named_account(gateway.name, name)


async def hand_over(path: Path, move: Move) -> int:
    """Give the jobs of one account to another; return how many."""
    ledger = SqliteLedger(path)
    await ledger.open()
    try:
        return await ledger.hand_over(move.gateway, move.old, move.new)
    finally:
        await ledger.aclose()


async def prunable(path: Path, before: datetime) -> int:
    """Count what ended before a moment."""
    async with open_read_only(path) as ledger:
        return await ledger.prunable(before)


async def prune(path: Path, before: datetime) -> int:
    """Forget what ended before a moment; return how many."""
    ledger = SqliteLedger(path)
    await ledger.open()
    try:
        return await ledger.prune(before)
    finally:
        await ledger.aclose()


class ResultPrinter:
    """Tells how jobs end, each as it comes: pictures on stdout, the rest on stderr, above the board where one is shown.

    Told of `one` job only, it leaves the key out of its lines.
    """

    def __init__(self, board: JobsDisplay, *, one: bool = False) -> None:
        self.code = 0
        self._board = board
        self._one = one
        # The live board, while it is shown, puts a stdout of its own in place, which leads to stderr.
        self._out = sys.stdout

    async def follow(self, job: Job) -> None:
        """Wait for the job's end and tell it."""
        try:
            self._show(await job)
        except NanoBananaError as error:
            self._complain(job, error)

    async def accepted(self, job: Job) -> None:
        """Wait until the gateway has the job, and tell its task id."""
        try:
            self.note(f"task {await job.accepted()}: `nanobanana jobs resume` follows it")
        except NanoBananaError as error:
            self._complain(job, error)

    def note(self, sentence: str) -> None:
        """Tell something that is no result."""
        self._board.console.print(one_line(sentence), markup=False, highlight=False, soft_wrap=True, emoji=False)

    def _complain(self, job: Job, error: NanoBananaError) -> None:
        self.code = 1
        whose = "" if self._one else f"{job.key}: "
        self.note(f"nanobanana: {whose}{' '.join(str(error).split())}")

    def _show(self, result: GenerationResult) -> None:
        terminal = self._out.isatty()
        for image in result.images:
            url = link_of(image, terminal=terminal)
            cells = [url] if self._one else [result.key, url]
            if terminal and self._board.console.is_terminal:
                self.note("  ".join(cells))
            else:
                print("\t".join(map(exact, cells)), file=self._out, flush=True)
        if result.missing:
            self.note(f"nanobanana: {'' if self._one else f'{result.key}: '}{missing_images(result)}")


async def prices_in(ledger: SqliteLedger, gateway: Gateway) -> Prices:
    """Return what the last job of each kind cost, by `Gateway.price_class`."""
    prices: dict[str, Decimal] = {}
    async for record in ledger.jobs(JobState.SUCCEEDED, LOOKED_BACK):
        if record.request is not None and record.gateway == gateway.name and record.credits is not None:
            prices.setdefault(gateway.price_class(record.request), record.credits)
    return prices


def _price(gateway: Gateway, prices: Prices, record: JobRecord) -> Decimal | None:
    return None if record.request is None else prices.get(gateway.price_class(record.request))
