"""`nanobanana batch --dry-run`: print what a run would buy and cost, without writing anything."""

import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from decimal import Decimal

from nanobanana_async import Gateway, JobState, SqliteLedger
from nanobanana_async.cli.batch.changed import ChangedRows
from nanobanana_async.cli.batch.folder import LEDGER
from nanobanana_async.cli.batch.input_file import FileRow
from nanobanana_async.cli.batch.other_accounts import OtherAccounts
from nanobanana_async.cli.batch.plan import Plan
from nanobanana_async.cli.batch.results import RESULTS, line_offsets
from nanobanana_async.cli.batch.rows import is_over, is_same
from nanobanana_async.cli.jobs.actions import Prices, open_read_only, prices_in
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import plain_number
from nanobanana_async.gateways.capabilities import HasUploads
from nanobanana_async.jobs import JobRecord
from nanobanana_async.references import local_digests

OK = 0
MAX_ERRORS = 20  # changed rows that are printed one by one

_STATUSES = ("finished", "changed", "failed", "uncertain", "running", "of another account", "to buy")


async def show_dry_run(plan: Plan, gateway: Gateway) -> int:
    """Print the number of rows by status, and the cost of the rows to buy."""
    counts: Counter[str] = Counter()
    to_buy: Counter[str] = Counter()
    examples: dict[str, Decimal] = {}
    prices: Prices = {}
    digests: set[str] = set()
    others = OtherAccounts(gateway, plan.folder / LEDGER)
    old_offsets = line_offsets(plan.folder / RESULTS)
    path = plan.folder / LEDGER
    async with AsyncExitStack() as stack:
        ledger = (
            await stack.enter_async_context(open_read_only(path)) if path.is_file() and path.stat().st_size else None
        )
        if ledger is not None:
            prices = await prices_in(ledger, gateway)
        for row in plan.file.rows(gateway):
            why = None
            if ledger is not None:
                row, why = await ChangedRows(plan.file, gateway, ledger.find, buy=plan.buy_changed).current(row)
            record = None if ledger is None else await ledger.find(row.key)
            status = (
                "finished" if record is None and row.key in old_offsets else _row_status(row, record, plan, gateway)
            )
            if why is not None:
                status = "changed"
                if counts[status] < MAX_ERRORS:
                    print(f"nanobanana: {one_line(why)}", file=sys.stderr)
            unsaved = status in ("running", "to buy") or (status == "finished" and row.key not in old_offsets)
            if unsaved and record is not None and others.add(record):
                status = "of another account"
            counts[status] += 1
            if status == "to buy" and row.request is not None:
                price_class = gateway.price_class(row.request)
                examples[price_class] = gateway.example_credits(row.request)
                to_buy[price_class] += 1
                digests.update(local_digests(row.request.images))
        uploads = await _count_uploads(digests, gateway, ledger)
    print(f"rows\t{plan.total}")
    for status in _STATUSES:
        if counts[status] or status == "to buy":
            print(f"{status}\t{counts[status]}")
    print(f"credits\t{_estimate(to_buy, prices, plan.expected_credits, examples)}")
    if digests:
        print(f"local images\t{len(digests)}")
        print(f"uploads\t{uploads}")
    if others.message:
        print(f"nanobanana: this run would buy nothing: {others.message}", file=sys.stderr)
    return OK


async def _count_uploads(digests: set[str], gateway: Gateway, ledger: SqliteLedger | None) -> int:
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


def _estimate(to_buy: Counter[str], prices: Prices, expected: Decimal | None, examples: Mapping[str, Decimal]) -> str:
    """Return the cost of the rows to buy, as text: by known prices, or else estimates.

    An estimate is `expected`, or the example of the gateway's reference.
    """
    if not to_buy:
        return "0"
    estimates = {price_class: example if expected is None else expected for price_class, example in examples.items()}
    known = {price_class: prices.get(price_class, estimates[price_class]) for price_class in to_buy}
    total = sum((price * to_buy[price_class] for price_class, price in known.items()), Decimal(0))
    estimated = "" if to_buy.keys() <= prices.keys() else " (estimate)"
    return f"about {plain_number(total)}{estimated}"
