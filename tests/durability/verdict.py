"""Compare the emulator's charges, the ledger's records and the saved results."""

import asyncio
import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from nanobanana_async import JobState
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.location import ledger_at
from tests.durability.emulator_process import Bought, Records
from tests.durability.worker import GatewayName, prompt_of
from tests.support.ledger_file import records_in


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The findings: rows by final state, and one sentence for each broken promise."""

    states: Counter[str] = field(default_factory=Counter)
    charged: int = 0
    charged_twice: int = 0
    lost: int = 0
    """Charged rows with neither a saved result nor an UNCERTAIN job."""
    uncertain_charged: int = 0
    breaches: list[str] = field(default_factory=list)


def judged(
    gateway: GatewayName,
    bought: Records,
    ledger: Path | str,
    saved: Mapping[str, str | None],
    images: Path | None = None,
) -> Verdict:
    """Compare them. `saved` has an image URL for each row, or None for a row in doubt; `images` is a folder."""
    records = asyncio.run(records_in(ledger_at(ledger, read_only=True)))
    rows = {key: bought.prompts.get(prompt_of(key), Bought(posts=[], task_ids=[])) for key in records}
    breaches = list(_integrity(ledger)) if isinstance(ledger, Path) else []
    unwritten = set(bought.prompts) - {prompt_of(key) for key in records}
    breaches += (f"{prompt!r} was sent and is not in the ledger" for prompt in unwritten)
    for key, record in records.items():
        breaches += (f"{key}: {why}" for why in _sent_right(gateway, rows[key]))
        breaches += (f"{key}: {why}" for why in _ended_right(gateway, record, rows[key], saved))
    if images is not None:
        breaches += _check_images(images, {key for key, url in saved.items() if url is not None})
    accounted = {key for key, record in records.items() if saved.get(key) or record.state is JobState.UNCERTAIN}
    charged = {key for key, row in rows.items() if row.task_ids}
    return Verdict(
        states=Counter(record.state.name for record in records.values()),
        charged=len(charged),
        charged_twice=sum(len(row.task_ids) > 1 for row in rows.values()),
        lost=len(charged - accounted),
        uncertain_charged=sum(records[key].state is JobState.UNCERTAIN for key in charged),
        breaches=breaches,
    )


def _sent_right(gateway: GatewayName, row: Bought) -> Iterator[str]:
    if len(row.task_ids) > 1:
        yield f"charged {len(row.task_ids)} times"
    if gateway == "apimall" and len({(post.key, post.body) for post in row.posts}) > 1:
        yield "repeated under another key, or with other bytes"
    if gateway == "defapi" and any(post.status != 429 for post in row.posts[:-1]):
        yield "sent again although it may have been bought"


def _ended_right(
    gateway: GatewayName, record: JobRecord, row: Bought, saved: Mapping[str, str | None]
) -> Iterator[str]:
    match record.state:
        case JobState.SUCCEEDED:
            if row.task_ids[:1] != [record.task_id]:
                yield "the ledger has a different task id than the charge"
            if saved.get(record.key) != record.images[0]:
                yield "its image was not saved"
        case JobState.UNCERTAIN if gateway == "defapi":
            if record.key not in saved or saved[record.key] is not None:
                yield "it is in doubt, and its caller got no JobUncertain"
        case state:
            yield f"it ended {state.name}"


def _check_images(folder: Path, keys: Set[str]) -> Iterator[str]:
    """Check the images against their manifest: one intact image for each row, and no line without its file."""
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    listed = Counter(Path(name).stem for _, name in lines)
    yield from (f"{key}: {listed[key]} images are listed" for key in keys if listed[key] != 1)
    for digest, name in lines:
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            yield f"{name} does not match the manifest"


def _integrity(ledger: Path) -> Iterator[str]:
    with closing(sqlite3.connect(ledger)) as connection:
        problems = connection.execute("PRAGMA integrity_check").fetchall()
    if problems != [("ok",)]:
        yield f"the ledger's file is damaged: {problems[:3]}"
