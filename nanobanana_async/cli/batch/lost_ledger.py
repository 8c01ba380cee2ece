"""Refuse a folder whose ledger is missing or older than its results: what it does not know would be bought again."""

import asyncio
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from attrs import evolve

from nanobanana_async.cli.batch.folder import LEDGER, REPORT, FolderOwner
from nanobanana_async.cli.batch.results import IMAGES, RESULTS, to_time
from nanobanana_async.cli.jobs.consent import print_note
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.formatting import credit_count, plural
from nanobanana_async.jobs import TERMINAL_STATES, JobState
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.report import ReportRow

_SENT_AT = re.compile(rb'"sent_at": ?"([^"]+)"')
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


def refuse_lost_ledger(path: Path, owner: FolderOwner, found: FolderOwner, *, new_ledger: bool) -> FolderOwner:
    """Raise `ConfigurationError` if the ledger of earlier runs in this folder is missing, or older than its results.

    Without what it had, `max_credits` counts too little, and rows whose images are missing are bought again.
    `new_ledger` is the user's consent to that, which the returned owner of the folder remembers: the rows that were
    sent until then are not asked about again. With images in a store, it may be about the ledger of another folder.
    """
    ledger, results = path / LEDGER, path / RESULTS
    exists = ledger.is_file() and ledger.stat().st_size > 0
    if not exists and not new_ledger and (written := _files_of_a_run(path)):
        raise ConfigurationError(
            f"{ledger} is missing, the record of what this batch has bought, although {path} holds {', '.join(written)}"
            " of an earlier run: without it --max-credits would count from 0, and rows that were bought but have no"
            " result would be bought again. Restore it, or pass --new-ledger to begin a new one"
        )
    unknown = _unknown_rows(results, ledger if exists else None, found)
    if not unknown:
        if exists and new_ledger and owner.store is None:
            raise ConfigurationError(
                f"{ledger} exists, and knows what {results} lists: --new-ledger is for a folder whose ledger is lost"
                " or older than its results"
            )
        return evolve(owner, unknown_until=found.unknown_until)
    rows, cost = plural(len(unknown), "row"), _cost(unknown)
    price = f", for {credit_count(cost)}" if cost else ""
    if not new_ledger:
        raise ConfigurationError(
            f"{ledger} is older than {results}, which lists {rows} bought since{price}: --max-credits would not count"
            " them, and those whose images are missing would be bought again. Put the newer ledger back, or pass"
            " --new-ledger to go on with this one"
        )
    print_note(
        f"nanobanana: {ledger} does not know {rows} of {results} that were bought{price}: --max-credits and the credits"
        " spent leave them out"
    )
    return evolve(owner, unknown_until=max(row.sent_at for row in unknown if row.sent_at is not None))


def _files_of_a_run(path: Path) -> list[str]:
    images = path / IMAGES
    written = [name for name in (RESULTS, REPORT) if (path / name).exists()]
    return written + ([IMAGES] if images.is_dir() and any(images.iterdir()) else [])


def _unknown_rows(results: Path, ledger: Path | None, owner: FolderOwner) -> list[ReportRow]:
    """Return the bought rows that were sent after all that the ledger knows.

    A run writes to the ledger before it writes to the results. So a ledger that has lost nothing has something as new
    as each of their lines: the job itself, a later purchase of it, or, if the job was pruned, jobs that ended after it,
    since the older ones are pruned first. Only where all that ended was pruned may the lines be newer: then the ledger
    has still counted what they cost. Lines of rows that cost nothing, such as refused ones, are no loss.
    """
    last = max((sent_at for sent_at, _ in _lines(results)), default=_NEVER)
    since, pruned = owner.unknown_until or _NEVER, Decimal(0)
    if ledger is not None and last > since:  # read after the results, to which another run may add
        with suppress(LedgerError):  # it can't be read: the run says why
            known, pruned = asyncio.run(_read(ledger, owner.batch))
            since = max(since, known)
    if last <= since:
        return []
    rows: dict[str, ReportRow] = {}
    for line in (line for sent_at, line in _lines(results) if sent_at > since):
        with suppress(ValueError):
            row = ReportRow.from_json(line)
            if row.sent_at is not None and (row.task_id or row.status == "uncertain") and row.credits != 0:
                rows[row.job_key] = row
    unknown = list(rows.values())
    return [] if pruned and _cost(unknown) <= pruned else unknown


def _cost(rows: Iterable[ReportRow]) -> Decimal:
    return sum((row.credits for row in rows if row.credits is not None), Decimal(0))


def _lines(results: Path) -> Iterator[tuple[datetime, bytes]]:
    """Yield the lines of rows that were sent, each with the time; parsing all of 100,000 lines would take seconds."""
    with suppress(OSError), results.open("rb") as file:
        for line in file:
            if (found := _SENT_AT.search(line)) is not None:
                with suppress(ValueError):  # what a person or a killed run has left there
                    if (sent_at := to_time(found[1].decode())) is not None:
                        yield sent_at, line


async def _read(path: Path, batch: str) -> tuple[datetime, Decimal]:
    """Return when the last thing happened that a ledger knows, and, if all that ended was pruned, what that cost."""
    ledger = SqliteLedger(path, read_only=True)
    await ledger.open()
    try:
        last = await ledger.last_time() or _NEVER
        states = await ledger.count_by_state()
        if any(states[state] for state in TERMINAL_STATES):
            return last, Decimal(0)
        stated = [record.credits or Decimal(0) async for record in ledger.jobs(JobState.RUNNING)]
        counted = await ledger.spent_or_reserved(batch)
        return last, counted - await ledger.reserved(batch) - sum(stated, Decimal(0))
    finally:
        await ledger.aclose()
