"""Durable transitions a second on PostgreSQL, beside bare commits to it and the ledger on SQLite in the same run.

The server is yours: `NANOBANANA_BENCHMARK_POSTGRES=postgresql://...` names it. The tables go into a schema
`benchmark_...` of their own, which stays: drop it afterwards.
"""

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from statistics import median

import psycopg
from attrs import evolve

from benchmarks.children import Child, dismissed, orders, reply
from benchmarks.ledger import MOVES, WRITERS, new_job, rate_of, transitions
from benchmarks.report import Check, Section, Table
from nanobanana_async import PostgresLedger, SqliteLedger
from nanobanana_async.jobs import JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.policy.prices import Price

VARIABLE = "NANOBANANA_BENCHMARK_POSTGRES"
PROCESSES = 4
WRITERS_EACH = 50
TARGETS_PER_S = (8_000, 12_000)
"""For one process and for several. 1,000 slots with jobs of 20 seconds make 200."""

PRICE = Price("2K", Decimal("0.12"))
CAP = Decimal(10**6)


def _bare_commits(url: str, schema: str, commits: int) -> float:
    """Return how many commits a second one connection makes, one row each."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"CREATE TABLE {schema}.bare (row text)".encode())
        begun = time.perf_counter()
        for number in range(commits):
            db.execute(f"INSERT INTO {schema}.bare VALUES (%s)".encode(), (f"{number:0400}",))
        return commits / (time.perf_counter() - begun)


@asynccontextmanager
async def _opened(ledger: StoredLedger) -> AsyncIterator[StoredLedger]:
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


async def _rate(ledger: StoredLedger, writers: int, jobs: int) -> float:
    async with _opened(ledger):
        return await rate_of(ledger, writers, jobs, secrets.token_hex(4))


async def _rate_of_batch(ledger: StoredLedger, writers: int, jobs: int) -> float:
    """Return the rate of writers that buy the rows of one named batch under a cap."""
    name = secrets.token_hex(4)

    async def live(writer: int) -> None:
        for number in range(jobs):
            record = evolve(new_job(f"{name}-{writer}-{number}"), batch=batch_key_prefix(name))
            await ledger.claim(record)
            for before, after in transitions(record):
                if after.state is JobState.SUBMITTING:
                    await ledger.advance_and_reserve(before, after, PRICE, CAP)
                else:
                    await ledger.advance(before, after)

    async with _opened(ledger):
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for writer in range(writers):
                group.create_task(live(writer))
        return writers * jobs * MOVES / (time.perf_counter() - begun)


async def _together(url: str, schema: str, jobs: int) -> float:
    """Return the transitions a second of several processes, from the first one's start to the last one's end."""
    asked = {"url": url, "schema": schema, "writers": WRITERS_EACH, "jobs": jobs}
    async with AsyncExitStack() as stack:
        children = [await stack.enter_async_context(Child("benchmarks.postgres", asked)) for _ in range(PROCESSES)]
        for child in children:
            await child.answer(300.0)  # its ledger is open
        for child in children:
            child.send({})
        spans = [(await child.answer(300.0))["span"] for child in children]
    took_s = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return float(PROCESSES * WRITERS_EACH * jobs * MOVES / took_s)


async def _measure(url: str, folder: Path, *, seeds: int, quick: bool) -> Section:
    schema, jobs = f"benchmark_{secrets.token_hex(4)}", 10 if quick else 50
    found: dict[str, list[float]] = {}

    def note(who: str, rate: float) -> None:
        found.setdefault(who, []).append(rate)

    many, batch = f"{WRITERS} writers of one process", f"{WRITERS} writers of one batch with a cap"
    together = f"{PROCESSES} processes with {WRITERS_EACH} writers each"
    ledger = PostgresLedger(url, schema=schema)
    async with _opened(ledger):  # creates the schema
        bare = _bare_commits(url, schema, 2000)
    for seed in range(seeds):
        note("one writer, each write awaited", await _rate(ledger, 1, 10 * jobs))
        note(many, await _rate(ledger, WRITERS, jobs))
        note(together, await _together(url, schema, jobs))
        note(batch, await _rate_of_batch(ledger, WRITERS, jobs // 5))
        note(f"SQLite: {many}", await _rate(SqliteLedger(folder / f"{seed}.sqlite"), WRITERS, jobs))
    rows = [("one connection, one row per commit", bare, bare, 1.0)]
    rows += [(who, median(rates), min(rates), median(rates) / bare) for who, rates in found.items()]
    return Section(
        name="postgres",
        tables=[
            Table(
                title="Durable job transitions on PostgreSQL",
                columns=("who", "per second", "worst", "times bare"),
                rows=rows,
            )
        ],
        checks=[
            Check(
                what=f"transitions a second, {who}",
                value=median(found[who]),
                worst=min(found[who]),
                target=target,
                at_least=True,
            )
            for who, target in zip((many, together), TARGETS_PER_S, strict=True)
        ],
    )


def section(*, seeds: int, quick: bool) -> Section:
    """Measure on the server that the environment names."""
    url = os.environ.get(VARIABLE)
    if not url:
        note = f"not measured: set {VARIABLE} to the URL of a server"
        return Section(name="postgres", tables=[Table(title="PostgreSQL", columns=("",), rows=[(note,)])])
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(url, Path(folder), seeds=seeds, quick=quick))


async def _write(url: str, schema: str, writers: int, jobs: int) -> Sequence[float]:
    """Open a ledger, wait for a line, write; return when that began and ended."""
    async with _opened(PostgresLedger(url, schema=schema)) as ledger:
        reply({})
        await dismissed()
        begun = time.time()  # noqa: TID251 - the processes have this clock in common
        await rate_of(ledger, writers, jobs, secrets.token_hex(4))
        return begun, time.time()  # noqa: TID251


def main() -> None:
    """Be one of several processes that write at once."""
    reply({"span": asyncio.run(_write(**orders()))})


if __name__ == "__main__":
    main()
