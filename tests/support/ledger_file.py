"""Shared by the tests over real sockets and files: generate keyed rows, and read the ledger's file."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from nanobanana_async import GenerationResult, Session, SqliteLedger
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import StoredLedger
from tests.support.loopback import outcome

Outcome = GenerationResult | NanoBananaError


async def all_keys(session: Session, keys: Sequence[str], prompt: str = "a fox") -> dict[str, Outcome]:
    """Generate a row for each key, all at once; return each caller's result or error."""
    async with asyncio.TaskGroup() as group:
        tasks = {key: group.create_task(outcome(session, f"{prompt}, {key}", idempotency_key=key)) for key in keys}
    return {key: task.result() for key, task in tasks.items()}


async def written(path: Path) -> dict[str, JobRecord]:
    """Return the records in the file, by key."""
    return await records_in(SqliteLedger(path, read_only=True))


async def records_in(ledger: StoredLedger) -> dict[str, JobRecord]:
    """Return the records of a ledger that is not open, by key."""
    await ledger.open()
    try:
        return {record.key: record async for record in ledger.jobs()}
    finally:
        await ledger.aclose()


def running_jobs(ledger: Path) -> int:
    """Return how many jobs run by a ledger that another process has open; 0 if it has no tables yet."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM jobs WHERE state = 'running'").fetchone()[0])
    return 0
