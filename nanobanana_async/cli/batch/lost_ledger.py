"""Refuse a folder whose ledger is missing or older than its results: what it does not know would be bought again."""

import asyncio
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

from attrs import evolve

from nanobanana_async.cli.batch.folder import LEDGER, REPORT, FolderOwner
from nanobanana_async.cli.batch.results import IMAGES, RESULTS
from nanobanana_async.cli.jobs.consent import print_note
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.formatting import credit_count, plural
from nanobanana_async.ledger.sqlite import KnownPurchases, SqliteLedger
from nanobanana_async.report import ReportRow

_SENT_AT = re.compile(rb'"sent_at": ?"([^"]+)"')
_KEY = re.compile(rb'"job_key": ?"([^"]+)"')
_ROUNDING = Decimal("1e-9")
"""To how much the ledger rounds a charge."""
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
    """Return the bought rows that the ledger has lost.

    A run writes to the ledger before it writes to the results. So the ledger has the job of each of their lines, unless
    it was pruned. What pruned jobs cost stays counted: if the lines of unknown jobs cost more, the newest of them are
    lost, since the oldest are pruned first. For lines whose cost is not final, such as of a job in doubt, the times
    decide: no job was pruned that ended after one that is still there. Lines that cost nothing are no loss.
    """
    try:
        with results.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # what another run adds is written after the ledger is read here
            known = KnownPurchases({}, None, Decimal(0)) if ledger is None else asyncio.run(_read(ledger, owner.batch))
            rows = _unknown_of(file, size, known, owner.unknown_until or _NEVER)
    except (OSError, LedgerError):  # the run says why the ledger can't be read
        return []
    bought = [row for row in rows.values() if (row.task_id or row.status == "uncertain") and row.credits != 0]
    if ledger is None:
        return bought
    priced = [row for row in bought if _has_final_cost(row)]
    ended = known.first_end
    unpriced = [row for row in bought if not _has_final_cost(row) and not known.has(row.job_key)]
    lost = [row for row in unpriced if ended is not None and (row.sent_at or _NEVER) > ended]
    left = _cost(priced) - known.pruned
    for row in sorted(priced, key=lambda row: row.sent_at or _NEVER, reverse=True):
        if left <= len(priced) * _ROUNDING:
            break
        lost.append(row)
        left -= row.credits or 0
    return lost


def _has_final_cost(row: ReportRow) -> bool:
    return row.status in ("succeeded", "failed") and row.credits is not None


def _cost(rows: Iterable[ReportRow]) -> Decimal:
    return sum((row.credits for row in rows if row.credits is not None), Decimal(0))


def _unknown_of(file: BinaryIO, size: int, known: KnownPurchases, since: datetime) -> dict[str, ReportRow]:
    """Return the rows that were sent after a time and that a ledger does not know, by the keys of their jobs.

    Only their lines are parsed: for all of 100,000 that would take seconds. An older copy of a ledger may have a job of
    a line as it was before: withdrawn, or with an earlier purchase.
    """
    rows: dict[str, ReportRow] = {}
    for text in file:
        sent, key = _SENT_AT.search(text), _KEY.search(text)
        if (
            sent is not None
            and key is not None
            and not known.has(key[1].decode(errors="replace"), sent[1].decode(errors="replace"))
        ):
            with suppress(ValueError):  # what a person or a killed run has left there
                row = ReportRow.from_json(text)
                if row.sent_at is not None and row.sent_at > since:
                    rows[row.job_key] = row
        size -= len(text)
        if size <= 0:
            break
    return rows


async def _read(path: Path, batch: str) -> KnownPurchases:
    ledger = SqliteLedger(path, read_only=True)
    await ledger.open()
    try:
        return await ledger.known_purchases(batch)
    finally:
        await ledger.aclose()
