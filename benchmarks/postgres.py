"""Durable transitions a second on PostgreSQL: of one process with 1 and with 200 writers, and of four processes.

The server is yours: `NANOBANANA_BENCHMARK_POSTGRES=postgresql://...` names it. The tables go into a schema
`benchmark_...` of their own, which stays: drop it afterwards.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from statistics import median

from benchmarks.children import Child, orders, reply
from benchmarks.ledger import MOVES, WRITERS, rate_of
from benchmarks.report import Check, Section, Table
from nanobanana_async import PostgresLedger

VARIABLE = "NANOBANANA_BENCHMARK_POSTGRES"
PROCESSES = 4
WRITERS_EACH = 50
NEEDED_PER_S = 200
"""1,000 slots with jobs of 20 seconds make so many transitions."""


async def _rate(url: str, schema: str, writers: int, jobs: int) -> float:
    ledger = PostgresLedger(url, schema=schema)
    await ledger.open()
    try:
        return await rate_of(ledger, writers, jobs, secrets.token_hex(4))
    finally:
        await ledger.aclose()


async def _together(url: str, schema: str, jobs: int) -> float:
    """Return the transitions a second of several processes, from the first one's start to the last one's end."""
    asked = {"url": url, "schema": schema, "writers": WRITERS_EACH, "jobs": jobs}
    async with asyncio.TaskGroup() as group:
        answers = [group.create_task(_of_a_process(asked)) for _ in range(PROCESSES)]
    spans = [task.result() for task in answers]
    took_s = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return PROCESSES * WRITERS_EACH * jobs * MOVES / took_s


async def _of_a_process(asked: dict[str, object]) -> Sequence[float]:
    async with Child("benchmarks.postgres", asked) as child:
        answer = await child.answer(300.0)
        return answer["span"]  # type: ignore[no-any-return]


async def _measure(url: str, *, seeds: int, quick: bool) -> Section:
    schema, jobs = f"benchmark_{secrets.token_hex(4)}", 10 if quick else 50
    alone = [await _rate(url, schema, 1, 10 * jobs) for _ in range(seeds)]
    many = [await _rate(url, schema, WRITERS, jobs) for _ in range(seeds)]
    together = [await _together(url, schema, jobs) for _ in range(seeds)]
    rows = [
        ("one writer, each write awaited", median(alone), min(alone)),
        (f"{WRITERS} writers of one process", median(many), min(many)),
        (f"{PROCESSES} processes with {WRITERS_EACH} writers each", median(together), min(together)),
    ]
    columns = ("who", "per second", "worst")
    target = 10.0 * NEEDED_PER_S
    return Section(
        name="postgres",
        tables=[Table(title="Durable job transitions on PostgreSQL", columns=columns, rows=rows)],
        checks=[
            Check(what=f"transitions a second, {who}", value=middle, worst=worst, target=target, at_least=True)
            for who, middle, worst in rows[1:]
        ],
    )


def section(*, seeds: int, quick: bool) -> Section:
    """Measure on the server that the environment names."""
    url = os.environ.get(VARIABLE)
    if not url:
        note = f"not measured: set {VARIABLE} to the URL of a server"
        return Section(name="postgres", tables=[Table(title="PostgreSQL", columns=("",), rows=[(note,)])])
    return asyncio.run(_measure(url, seeds=seeds, quick=quick))


def main() -> None:
    """Be one of several processes: write, and answer when that began and ended."""
    asked = orders()
    begun = time.time()  # noqa: TID251 - the processes have this clock in common
    asyncio.run(_rate(asked["url"], asked["schema"], asked["writers"], asked["jobs"]))
    reply({"span": [begun, time.time()]})  # noqa: TID251


if __name__ == "__main__":
    main()
