"""Buy very many jobs with one session, and read what the process holds: `python -m tests.soak.buying ORDERS`.

Each outcome goes into a file at once, so that this process holds none.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from nanobanana_async import ApiMall, ConcurrencyPolicy, Outcome, PollPolicy, RetryPolicy, Session, SqliteLedger
from nanobanana_async.emulator import API_KEY
from tests.soak.readings import Reading, read_now

JOB_S = 0.3
BATCH = "soak"
LIST_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What to buy, and where."""

    url: str
    jobs: int
    results: str
    """The file of the outcomes: a line with prompt and task id for each, or with the name of the error."""
    ledger: str | None
    """The file of the ledger; None: in memory."""
    slots: int = 100
    every: int = 500
    """After how many outcomes there is a reading."""


@dataclass(frozen=True, kw_only=True)
class Bought:
    """The readings of a run: before the session opened, while it bought, and after it closed."""

    before: Reading
    during: list[Reading]
    after: Reading
    seconds: float


async def buy(orders: Orders) -> Bought:
    """Buy it all."""
    path = None if orders.ledger is None else Path(orders.ledger)
    before, during = read_now(0), list[Reading]()
    began_at = time.perf_counter()
    async with _session(orders) as session, asyncio.TaskGroup() as group:
        listing = None if path is None else group.create_task(_list_again_and_again(path))
        prompts = (f"a fox, row {number}" for number in range(orders.jobs))
        done = 0
        with open(orders.results, "w", encoding="utf-8") as results:  # noqa: ASYNC230 - a line takes no time
            async with session.generate_many(prompts, batch=None if path is None else BATCH) as batch:
                async for outcome in batch:
                    results.write(f"{json.dumps(_line(outcome))}\n")
                    done += 1
                    if done % orders.every == 0:
                        during.append(read_now(done, path))
        if listing is not None:
            listing.cancel()
    seconds = time.perf_counter() - began_at
    return Bought(before=before, during=during, after=read_now(done), seconds=seconds)


def _session(orders: Orders) -> Session:
    return Session(
        ApiMall(api_key=API_KEY, base_url=orders.url, expected_job_s=JOB_S),
        ledger=orders.ledger,
        concurrency=ConcurrencyPolicy(max_jobs=orders.slots, learn=False, max_requests=32),
        polling=PollPolicy(target_delay_s=0.1, min_gap_s=0.1),
        retry=RetryPolicy(first_backoff_s=0.02, max_backoff_s=0.3),
    )


def _line(outcome: Outcome) -> tuple[str, str]:
    prompt = "?" if outcome.request is None else outcome.request.prompt
    return prompt, type(outcome.error).__name__ if outcome.result is None else outcome.result.task_id


async def _list_again_and_again(ledger: Path) -> None:
    """Read the file as `nanobanana jobs` does, beside the batch: a reader must not keep the -wal file growing."""
    while True:
        await asyncio.sleep(LIST_EVERY_S)
        reader = SqliteLedger(ledger, read_only=True)
        await reader.open()
        try:
            await reader.count_by_state()
            _ = [record.key async for record in reader.jobs(limit=50)]
        finally:
            await reader.aclose()


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(buy(Orders(**json.loads(sys.argv[1])))))))
