"""`nanobanana batch --dry-run`: print what a run would buy and cost, without writing anything."""

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
from nanobanana_async.formatting import plain_number
from nanobanana_async.jobs import JobRecord

OK = 0

_STATUSES = ("finished", "failed", "uncertain", "running", "to buy")


async def show_dry_run(plan: Plan, gateway: Gateway) -> int:
    """Print the number of rows by status, and the cost of the rows to buy."""
    counts: Counter[str] = Counter()
    to_buy: Counter[str] = Counter()
    prices: Prices = {}
    old_offsets = line_offsets(plan.folder / RESULTS)
    path = plan.folder / LEDGER
    async with AsyncExitStack() as stack:
        ledger = (
            await stack.enter_async_context(open_read_only(path)) if path.is_file() and path.stat().st_size else None
        )
        if ledger is not None:
            prices = await prices_in(ledger, gateway)
        for row in plan.file.rows(gateway):
            record = None if ledger is None else await ledger.find(row.key)
            status = (
                "finished" if record is None and row.key in old_offsets else _row_status(row, record, plan, gateway)
            )
            counts[status] += 1
            if status == "to buy" and row.request is not None:
                to_buy[gateway.price_class(row.request)] += 1
    print(f"rows\t{plan.total}")
    for status in _STATUSES:
        if counts[status] or status == "to buy":
            print(f"{status}\t{counts[status]}")
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
    """Return the cost of the rows to buy, as text, from the price of each class."""
    known = {price_class: prices.get(price_class, expected) for price_class in to_buy}
    costs = [price * to_buy[price_class] for price_class, price in known.items() if price is not None]
    if not to_buy:
        return "0"
    if len(costs) < len(known):
        return "unknown: no job of a class has been bought yet; set --expected-credits"
    return f"about {plain_number(sum(costs, Decimal(0)))}"
