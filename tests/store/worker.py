"""A process that saves a named batch in a store: `python -m tests.store.worker LEDGER URL ROWS`; prints each row."""

import asyncio
import sys

from nanobanana_async import PollPolicy, Session


def rows_of(count: int) -> list[dict[str, str]]:
    """Return the rows of the batch."""
    return [{"prompt": f"a lighthouse, number {number}", "key": f"row-{number}"} for number in range(count)]


async def work(ledger: str, url: str, count: int) -> int:
    """Run the batch, and return how many rows have no object."""
    failed = 0
    async with Session(ledger=ledger, polling=PollPolicy(target_delay_s=0.2)) as session:
        async for outcome in session.generate_many(rows_of(count), batch="spring", save_to=url):
            failed += not outcome.saved
            print(outcome.row_key, *outcome.saved, outcome.error or "", flush=True)
    return failed


if __name__ == "__main__":
    _, ledger, url, count = sys.argv
    sys.exit(1 if asyncio.run(work(ledger, url, int(count))) else 0)
