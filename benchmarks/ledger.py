"""What durable writing costs: transitions a second under group commit, opening a ledger of a million jobs, pruning."""

import asyncio
import os
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median

from attrs import evolve

from benchmarks.fleet_client import ON_DISK, OURS
from benchmarks.measured import Fleet, medians
from benchmarks.races import Race, run_wave
from benchmarks.report import Cell, Check, Section, Table
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.columns import identity_values, progress_values
from nanobanana_async.ledger.file import current_schema, open_writable
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.ledger.statements import INSERT_JOB
from nanobanana_async.models import ImageRequest

ACCOUNT = "mine"
WRITERS = 200
MOVES = 4
UNFINISHED = 50
NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)


def new_job(key: str) -> JobRecord:
    """Return the record of a job that was not sent."""
    return JobRecord(
        key=key,
        gateway="apimall",
        account=ACCOUNT,
        request=ImageRequest(f"a lighthouse in fog, seen from a small boat, number {key}", resolution="2K"),
        body=b'{"model":"nano-banana-pro","prompt":"a lighthouse in fog, seen from a small boat","resolution":"2K"}',
        created_at=NOON,
    )


def transitions(record: JobRecord) -> Iterator[tuple[JobRecord, JobRecord]]:
    """Yield its transitions until it has succeeded: the record before and after each."""
    for state, facts in (
        (JobState.SUBMITTING, {"first_sent_at": NOON}),
        (JobState.RUNNING, {"task_id": f"img_{record.key}", "running_since": NOON, "credits_used": Decimal("0.12")}),
        (JobState.SUCCEEDED, {"ended_at": NOON, "images": (f"https://cdn.example/{record.key}.png",)}),
    ):
        before, record = record, record.transition_to(state, **facts)
        yield before, record


async def _live(ledger: Ledger, jobs: int, prefix: str) -> None:
    for number in range(jobs):
        record = new_job(f"{prefix}-{number}")
        await ledger.claim(record)
        for before, after in transitions(record):
            await ledger.advance(before, after)


async def rate_of(ledger: Ledger, writers: int, jobs: int, name: str) -> float:
    """Return how many transitions a second so many writers make, with so many jobs each."""
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for writer in range(writers):
            group.create_task(_live(ledger, jobs, f"{name}-{writer}"))
    return writers * jobs * MOVES / (time.perf_counter() - begun)


def _fill(path: Path, jobs: int) -> None:
    """Write a ledger of finished jobs, with a few unfinished ones that have no owner."""
    connection = open_writable(path, current_schema(), busy_s=1.0)
    stride = jobs // UNFINISHED

    def rows() -> Iterator[tuple[object, ...]]:
        for number in range(jobs):
            record = new_job(os.urandom(16).hex())
            *_, (running, done) = transitions(record)
            record = running if number % stride == 0 else done
            yield (*identity_values(record), *progress_values(record), None)

    connection.execute("BEGIN")
    connection.executemany(INSERT_JOB, rows())
    connection.execute("COMMIT")
    connection.close()


async def _large(path: Path) -> dict[str, float]:
    """Open a large ledger a few times, and look for what is unfinished, for one key, and for its counts."""
    found: dict[str, list[float]] = {"open": [], "unfinished": [], "find": [], "held": [], "counts": []}
    for _ in range(5):
        ledger = SqliteLedger(path)
        begun = time.perf_counter()
        await ledger.open()
        opened_at = time.perf_counter()
        records = [record async for record in ledger.adoptable_jobs(ACCOUNT)]
        fetched = time.perf_counter()
        assert len(records) == UNFINISHED
        found["open"].append(opened_at - begun)
        found["unfinished"].append(fetched - opened_at)
        for name, work in (
            ("find", ledger.find(records[-1].key)),
            ("held", ledger.count_foreign_slots(ACCOUNT)),
            ("counts", ledger.count_by_state()),
        ):
            begun = time.perf_counter()
            await work
            found[name].append(time.perf_counter() - begun)
        await ledger.aclose()
    return {name: median(times) for name, times in found.items()}


def _bare_commits(path: Path, commits: int) -> float:
    """Return how many commits a second bare sqlite3 makes with the same settings, one row each."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE rows (row TEXT)")
    begun = time.perf_counter()
    for number in range(commits):
        connection.execute("INSERT INTO rows VALUES (?)", (f"{number:0400}",))
    rate = commits / (time.perf_counter() - begun)
    connection.close()
    return rate


async def _fleet(*, seeds: int, quick: bool) -> tuple[Table, list[Check]]:
    """Race a session with a file against one with memory: the same jobs, pair by pair at the same time."""
    fleets = (
        (Fleet(jobs=60, limit=10, median_s=4.0),) if quick else (Fleet(jobs=200, limit=20), Fleet(jobs=600, limit=60))
    )
    rows: list[tuple[Cell, ...]] = []
    checks: list[Check] = []
    for fleet in fleets:
        races = [
            Race(client=client, fleet=evolve(fleet, seed=seed)) for seed in range(seeds) for client in (OURS, ON_DISK)
        ]
        finishes = await run_wave(races)
        found = {
            client: [f.measured for f in finishes if f.race.client == client and f.measured]
            for client in (OURS, ON_DISK)
        }
        pairs = zip(found[OURS], found[ON_DISK], strict=True)
        ratios = [disk.makespan_ratio / memory.makespan_ratio for memory, disk in pairs]
        for client, runs in found.items():
            middle = medians(runs)
            rows.append((client, fleet.title, middle.makespan_ratio, middle.cpu_ms_per_job, middle.peak_mb))
        what = f"makespan on disk / in memory, {fleet.jobs}/{fleet.limit}"
        checks.append(Check(what=what, value=median(ratios), worst=max(ratios), target=1.05))
    columns = ("client", "fleet", "makespan / ideal", "CPU ms / job", "peak MB")
    return Table(
        title=f"The same fleets, written down or not: medians of {seeds} pairs", columns=columns, rows=rows
    ), checks


async def _measure(folder: Path, *, jobs: int, seeds: int) -> Section:
    bare = _bare_commits(folder / "bare.sqlite", 2000)
    async with _opened(folder / "small.sqlite") as ledger:
        alone = await rate_of(ledger, 1, 250, "alone")
        together = [await rate_of(ledger, WRITERS, 25, f"small-{seed}") for seed in range(seeds)]
    large = folder / "large.sqlite"
    _fill(large, jobs)
    times = await _large(large)
    async with _opened(large) as ledger:
        grown = [await rate_of(ledger, WRITERS, 25, f"large-{seed}") for seed in range(seeds)]
        begun = time.perf_counter()
        pruned = await ledger.prune(NOON + timedelta(days=1))
        prune_s = time.perf_counter() - begun
    rows = [
        ("bare sqlite3, one row and one flush per commit", bare, 1.0),
        ("one writer, each write awaited", alone, alone / bare),
        (f"{WRITERS} writers, empty ledger", median(together), median(together) / bare),
        (f"{WRITERS} writers, ledger of {jobs:,} jobs", median(grown), median(grown) / bare),
    ]
    milliseconds = [*((name, 1e3 * took) for name, took in times.items()), (f"prune of {pruned:,}", 1e3 * prune_s)]
    return Section(
        name="ledger",
        tables=[
            Table(title="Durable job transitions", columns=("who", "per second", "times bare"), rows=rows),
            Table(
                title=f"A ledger of {jobs:,} jobs, {UNFINISHED} of them unfinished",
                columns=("", "ms"),
                rows=milliseconds,
            ),
        ],
        checks=[
            Check(what="transitions a second", value=median(together), worst=min(together), target=1e4, at_least=True),
            Check(what="the same in a large ledger", value=median(grown), worst=min(grown), target=1e4, at_least=True),
            Check(what="s to open a large ledger", value=times["open"], target=1.0),
            Check(what="s to find what is unfinished", value=times["unfinished"], target=0.1),
        ],
    )


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = SqliteLedger(path)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


def section(*, seeds: int, quick: bool) -> Section:
    """Measure in a temporary folder; TMPDIR names the disk."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(Path(folder), jobs=100_000 if quick else 1_000_000, seeds=3 if quick else 5))
    table, checks = asyncio.run(_fleet(seeds=seeds, quick=quick))
    return evolve(found, tables=[*found.tables, table], checks=[*found.checks, *checks])
