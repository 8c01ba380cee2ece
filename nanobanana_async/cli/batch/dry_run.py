"""`nanobanana batch --dry-run`: print what a run would buy and cost, without writing anything."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from nanobanana_async import Gateway, JobState, NanoBananaError
from nanobanana_async.cli.balance import read_balances
from nanobanana_async.cli.batch.changed import RowChangeDetector, changed_sentence
from nanobanana_async.cli.batch.costs import Costs
from nanobanana_async.cli.batch.edited import Edits, find_edits
from nanobanana_async.cli.batch.folder import LEDGER
from nanobanana_async.cli.batch.input_file import FileRow
from nanobanana_async.cli.batch.other_accounts import OtherAccounts
from nanobanana_async.cli.batch.rehearsal import LOST_STATES
from nanobanana_async.cli.batch.results import RESULTS, OldResults
from nanobanana_async.cli.batch.rows import is_not_bought_again, is_record_of_row
from nanobanana_async.cli.batch.run_options import RunOptions
from nanobanana_async.cli.jobs.actions import Prices, open_read_only, prices_in
from nanobanana_async.cli.options import in_cli_words
from nanobanana_async.escaping import one_line
from nanobanana_async.extra import ExtraFields
from nanobanana_async.formatting import plain_number, plural
from nanobanana_async.gateways.capabilities import HasBalance, HasUploads
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.references import local_digests

OK = 0
BALANCE_S = 4.0  # how long the gateway may take to state the balance
MAX_VALUES = 3  # of a setting that are listed

_ALWAYS = ("model", "num_images", "aspect_ratio", "resolution", "output_format")

_STATUSES = ("finished", "changed", "failed", "uncertain", "running", "of another account", "to buy")


async def show_dry_run(options: RunOptions, gateway: Gateway, *, asks_balance: bool = True) -> int:
    """Print the rows by status, what those to buy cost, the balance for it, what the cap buys, and the settings."""
    counts: Counter[str] = Counter()
    prices: Prices = {}
    spent = Decimal(0)
    changed: list[tuple[int, str, tuple[str, ...]]] = []
    settings = _Settings(options, gateway)
    digests: set[str] = set()
    others = OtherAccounts(gateway, options.folder / LEDGER, options.ours)
    old = OldResults.read(options.folder / RESULTS)
    path, edits = options.ledger or options.folder / LEDGER, Edits(options.file)
    async with AsyncExitStack() as stack:
        exists = not isinstance(path, Path) or (path.is_file() and path.stat().st_size > 0)
        ledger = await stack.enter_async_context(open_read_only(path)) if exists else None
        if ledger is not None:
            prices, spent = await prices_in(ledger, gateway), await ledger.spent_or_reserved(options.file.batch)
            edits = await find_edits(options.file, gateway, ledger, old)
            for sentence in filter(None, (edits.note, "" if options.buy_changed else edits.why)):
                print(f"nanobanana: {one_line(sentence)}", file=sys.stderr)
        costs = Costs(gateway, prices, options.expected_credits)
        costs.left = None if options.max_credits is None else options.max_credits - spent
        detector = None
        if ledger is not None:
            detector = RowChangeDetector(options.file, gateway, ledger, old, buy=options.buy_changed, ours=options.ours)
        for row in options.file.rows(gateway):
            change = None
            if detector is not None:
                row, change = await detector.current(row)
            record = None if ledger is None else await ledger.find(row.key)
            status = (
                "finished" if record is None and row.key in old.offsets else _row_status(row, record, options, gateway)
            )
            if change is not None:
                status = "changed"
                changed.append((change.number, change.why, change.names))
            elif row.key in edits.changed and not options.buy_changed:
                status = "changed"
            unsaved = status in ("running", "to buy") or (status == "finished" and row.key not in old.offsets)
            if unsaved and record is not None and others.add(record):
                status = "of another account"
            counts[status] += 1
            settings.add(row)
            if status == "to buy" and row.request is not None:
                costs.add(row.request)
                digests.update(local_digests(row.request.images))
        uploads = await _count_uploads(digests, gateway, ledger)
        budget = await _budget_sentence(options.turn.budget, ledger)
    if changed:
        print(f"nanobanana: {one_line(changed_sentence(changed, options.file.unit))}", file=sys.stderr)
    _show("rows", options.total)
    for status in _STATUSES:
        if counts[status] or status == "to buy":
            _show(status, counts[status])
    _show("credits", costs)
    if asks_balance and counts["to buy"] and not others.message and isinstance(gateway, HasBalance):
        await _show_balances(options.accounts or [gateway])
    if options.max_credits is not None:
        _show("max_credits", _cap_sentence(options, spent, costs, counts["to buy"]))
    if budget:
        _show("budget", budget)
    if digests:
        _show("local images", len(digests))
        _show("uploads", uploads)
    for name, value in settings.values():
        _show(name, value)
    if others.message:
        print(f"nanobanana: this run would buy nothing: {others.message}", file=sys.stderr)
    return OK


def _show(name: str, value: object) -> None:
    """Print a fact: in columns on a terminal, after a tab in a pipe."""
    print(f"{name:<15} {value}" if sys.stdout.isatty() else f"{name}\t{value}")


async def _show_balances(gateways: Sequence[Gateway]) -> None:
    """Print the balance of each account, or why it can't be read: a dry run works without a network, too."""
    try:
        async with asyncio.timeout(BALANCE_S):
            balances = await read_balances(gateways)
    except TimeoutError:
        print(f"nanobanana: the balance is unknown: no answer in {BALANCE_S:g} s", file=sys.stderr)
        return
    for gateway, balance in zip(gateways, balances, strict=True):
        name = "balance" if len(gateways) == 1 else f"balance of {gateway.account}"
        if isinstance(balance, NanoBananaError):
            print(f"nanobanana: the {name} is unknown: {one_line(in_cli_words(balance))}", file=sys.stderr)
        else:
            _show(name, plain_number(balance))


async def _count_uploads(digests: set[str], gateway: Gateway, ledger: StoredLedger | None) -> int:
    """Count the images that a run would upload: those of which no upload is remembered, or only an old one."""
    if not isinstance(gateway, HasUploads):
        return 0
    if ledger is None:
        return len(digests)
    now, known = datetime.now(UTC), 0
    for digest in digests:
        upload = await ledger.find_upload(gateway.account, digest)
        known += upload is not None and upload.left_s(now, gateway.upload_lifetime_s) > 0
    return len(digests) - known


async def _budget_sentence(budget: Budget | None, ledger: StoredLedger | None) -> str:
    """Return what a budget would have left, with the cap that this run gives it; empty without a budget."""
    if budget is None:
        return ""
    now = datetime.now(UTC)
    counted = [state.spent + state.reserved for state in await ledger.budgets(now, [budget.name])] if ledger else []
    left = plain_number(budget.left_after(sum(counted, Decimal(0))))
    day = " of this day in UTC" if budget.per == "day" else ""
    return one_line(f"{budget.name} has {left} of {plain_number(budget.max_credits)} left{day}")


def _row_status(row: FileRow, record: JobRecord | None, options: RunOptions, gateway: Gateway) -> str:
    if record is None:
        return "to buy"
    if not is_record_of_row(row, record, gateway):
        return "failed"
    match record.state:
        case state if options.emulated and state in LOST_STATES:
            return "to buy"
        case JobState.SUCCEEDED:
            return "finished"
        case JobState.UNCERTAIN:
            return "uncertain"
        case JobState.RUNNING | JobState.SUBMITTING:
            return "running"
        case _:
            return "failed" if is_not_bought_again(record, retry_failed=options.retry_failed) else "to buy"


class _Settings:
    """The settings of all rows, and in how many rows the file has its own."""

    def __init__(self, options: RunOptions, gateway: Gateway) -> None:
        self._options = options
        self._model = gateway.model
        self._given: Counter[str] = Counter()
        self._values: dict[str, dict[str, None]] = {}

    def add(self, row: FileRow) -> None:
        """Take the settings that the file gives for a row."""
        for name in row.own_fields - {"prompt"}:
            self._given[name] += 1
            values = self._values.setdefault(name, {})
            if len(values) <= MAX_VALUES and isinstance(value := getattr(row.request, name), (str, int, ExtraFields)):
                values.setdefault(str(value))

    def values(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the value of each setting, and which column sets another one."""
        defaults = {"model": self._model, "num_images": "1", **self._options.file.options.defaults}
        for name in dict.fromkeys((*_ALWAYS, *self._options.file.options.defaults, *self._given)):
            parts = [str(defaults.get(name, "none" if name in ("images", "extra") else "the gateway's default"))]
            if rows := self._given[name]:
                values = list(self._values[name])
                shown = ", ".join(values[:MAX_VALUES]) + (", ..." if len(values) > MAX_VALUES else "")
                what = "column" if self._options.file.is_table else "field"
                where = f"{what} {name} sets it in {rows:,} of {plural(self._options.total, 'row')}"
                parts.append(f"{where}: {shown}" if shown else where)
            yield name, one_line("; ".join(parts))


def _cap_sentence(options: RunOptions, spent: Decimal, costs: Costs, rows: int) -> str:
    """Return whether the cap suffices, and if not, how many rows it buys and which one would."""
    cap = options.max_credits or Decimal(0)
    before = f", since earlier runs used {plain_number(spent)}" if spent else ""
    if costs.affordable == rows:
        return f"{plain_number(cap)} is enough{before and f', although earlier runs used {plain_number(spent)}'}"
    enough = plain_number(spent + costs.total)
    return f"{plain_number(cap)} buys about {costs.affordable} of {plural(rows, 'row')}{before}; {enough} would buy all"
