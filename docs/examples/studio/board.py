"""Reads the ledger that all workers share, and returns a card for each job that the page shows."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio

from nanobanana_async import JobState, NanoBananaError, PostgresLedger, Session, SqliteLedger
from nanobanana_async.jobs import JobRecord

log = logging.getLogger("studio")

SHOWN = 60
READ = 500
REFRESH_S = 1.0
MIN_GAP_S = 0.05
ENDINGS = {".png", ".jpg", ".webp", ".gif"}

Card = dict[str, Any]


class Board:
    """The newest jobs: read each second for changes by other workers, and at once after a change by this one."""

    def __init__(self, session: Session, ledger: SqliteLedger | PostgresLedger, images: Path) -> None:
        self._session = session
        self._ledger = ledger
        self._images = images
        self._cards: dict[str, Card] | None = None
        self._refresh_wanted = asyncio.Event()
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Read the ledger soon."""
        self._refresh_wanted.set()

    async def read(self) -> list[Card]:
        """Return the newest cards, the newest first."""
        return [await self.card(record) for record in (await newest_orders(self._ledger))[:SHOWN]]

    async def card(self, record: JobRecord) -> Card:
        """Return the card of a job, with the progress that this worker's session estimates if it runs."""
        job = await self._session.job(record.key) if record.state is JobState.RUNNING else None
        runs = job is not None and job.state is JobState.RUNNING
        return {**card_of(record, self._images), "progress": round(job.progress, 2) if job and runs else None}

    async def watch(self) -> None:
        """Read the ledger repeatedly until cancelled."""
        while True:
            self._refresh_wanted.clear()
            try:
                cards = {card["key"]: card for card in await self.read()}
            except NanoBananaError:
                log.exception("the ledger can't be read")
            else:
                if cards != self._cards:
                    self._cards = cards
                    self._changed.set()
                    self._changed = asyncio.Event()
            await anyio.sleep(MIN_GAP_S)  # one read serves a burst of changes
            with anyio.move_on_after(REFRESH_S):
                await self._refresh_wanted.wait()

    async def changes(self) -> AsyncIterator[list[Card]]:
        """Yield all cards, then those that change, oldest first."""
        known: dict[str, Card] | None = None
        while True:
            changed, cards = self._changed, self._cards
            if cards is not None:
                fresh = [card for key, card in cards.items() if known is None or known.get(key) != card]
                if fresh or known is None:
                    yield fresh[::-1]
                known = cards
            if changed is self._changed:
                await changed.wait()


async def newest_orders(ledger: SqliteLedger | PostgresLedger, state: JobState | None = None) -> list[JobRecord]:
    """Return the orders among the newest jobs, without the rows of batches that share the ledger."""
    return [record async for record in ledger.jobs(state, limit=READ) if record.batch is None]


def card_of(record: JobRecord, images: Path) -> Card:
    """Return the fields of a job for the page and the API."""
    request, ended_at = record.request, record.ended_at
    return {
        "key": record.key,
        "status_url": f"/api/jobs/{record.key}",
        "state": record.state.value,
        "prompt": "" if request is None else request.prompt,
        "aspect_ratio": None if request is None else request.aspect_ratio,
        "resolution": None if request is None else request.resolution,
        "created_at": record.created_at.isoformat(),
        "ended_at": None if ended_at is None else ended_at.isoformat(),
        "credits": None if record.credits is None else f"{record.credits.normalize():f}",
        "images": saved_images(record.key, images) if record.state is JobState.SUCCEEDED else [],
        "error": None if record.failure is None else record.failure.message,
    }


def saved_images(key: str, images: Path) -> list[str]:
    """Return the URL paths of the saved images of a job."""
    folder = images / key
    names = sorted(path.name for path in folder.iterdir() if path.suffix in ENDINGS) if folder.is_dir() else []
    return [f"/images/{key}/{name}" for name in names]
