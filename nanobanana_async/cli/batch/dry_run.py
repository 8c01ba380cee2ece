"""`nanobanana batch --dry-run`: what a run would find, buy and cost; it looks, and writes nothing."""

from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal

from nanobanana_async import Gateway, JobState
from nanobanana_async.cli.batch.folder import LEDGER
from nanobanana_async.cli.batch.input_file import FileRow
from nanobanana_async.cli.batch.results import RESULTS, line_offsets
from nanobanana_async.cli.batch.rows import is_over, is_same
from nanobanana_async.cli.batch.run import Plan
from nanobanana_async.cli.jobs.actions import Prices, open_read_only, prices_in
from nanobanana_async.cli.jobs.format import amount
from nanobanana_async.jobs import JobRecord

OK = 0

_STATUSES = ("finished", "failed", "uncertain", "running", "to buy")


async def show_dry_run(plan: Plan, gateway: Gateway) -> int:
    """Print how the rows stand, and what the rest would cost."""
    counts: Counter[str] = Counter()
    to_buy: Counter[str] = Counter()
    prices: Prices = {}
    old = line_offsets(plan.folder / RESULTS)
    path = plan.folder / LEDGER
    async with AsyncExitStack() as stack:
        ledger = (
            await stack.enter_async_context(open_read_only(path)) if path.is_file() and path.stat().st_size else None
        )
        if ledger is not None:
            prices = await prices_in(ledger, gateway)
        for row in plan.file.rows(gateway):
            record = None if ledger is None else await ledger.find(row.key)
            standing = "finished" if record is None and row.key in old else _row_status(row, record, plan, gateway)
            counts[standing] += 1
            if standing == "to buy" and row.request is not None:
                to_buy[gateway.price_class(row.request)] += 1
    print(f"rows\t{plan.total}")
    for standing in _STATUSES:
        if counts[standing] or standing == "to buy":
            print(f"{standing}\t{counts[standing]}")
    print(f"credits\t{_estimate(to_buy, prices, plan.expected_credits)}")
    return OK


def _row_status(row: FileRow, record: JobRecord | None, plan: Plan, gateway: Gateway) -> str:
    if record is None:
        return "to buy"
    if not is_same(row, record, gateway):
        return "failed"
    match record.state:
        case JobState.SUCCEEDED:
            return "finished"
        case JobState.UNCERTAIN:
            return "uncertain"
        case JobState.RUNNING | JobState.SUBMITTING:
            return "running"
        case _:
            return "failed" if is_over(record, retry_failed=plan.retry_failed) else "to buy"


def _estimate(to_buy: Counter[str], prices: Prices, expected: Decimal | None) -> str:
    """Return what the rows to buy cost by their kinds, in words."""
    known = {kind: prices.get(kind, expected) for kind in to_buy}
    costs = [price * to_buy[kind] for kind, price in known.items() if price is not None]
    if not to_buy:
        return "0"
    if len(costs) < len(known):
        return "unknown: none of a kind has been bought yet; --expected-credits says what a job costs"
    return f"about {amount(sum(costs, Decimal(0)))}"
