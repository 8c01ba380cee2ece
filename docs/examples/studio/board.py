"""What the page shows: a card for each job, read from the ledger that all workers share."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio

from nanobanana_async import JobState, NanoBananaError, SqliteLedger
from nanobanana_async.jobs import JobRecord

log = logging.getLogger("studio")

SHOWN = 60
LOOK_S = 1.0
REST_S = 0.05
ENDINGS = {".png", ".jpg", ".webp", ".gif"}

Card = dict[str, Any]


class Board:
    """The newest jobs: looked up each second, for what other workers do, and at once when this one has news."""

    def __init__(self, ledger: SqliteLedger, pictures: Path) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._cards: dict[str, Card] | None = None
        self._news = asyncio.Event()
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Have a look soon."""
        self._news.set()

    async def read(self) -> list[Card]:
        """Return the newest cards, the newest first."""
        return [card_of(record, self._pictures) async for record in self._ledger.jobs(limit=SHOWN)]

    async def watch(self) -> None:
        """Look again and again, for as long as the worker lives."""
        while True:
            self._news.clear()
            try:
                cards = {card["key"]: card for card in await self.read()}
            except NanoBananaError:
                log.exception("the ledger can't be read")
            else:
                if cards != self._cards:
                    self._cards = cards
                    self._changed.set()
                    self._changed = asyncio.Event()
            await anyio.sleep(REST_S)  # a burst of news is worth one look
            with anyio.move_on_after(LOOK_S):
                await self._news.wait()

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


def card_of(record: JobRecord, pictures: Path) -> Card:
    """Return what the page and the API tell of a job."""
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
        "pictures": pictures_of(record.key, pictures) if record.state is JobState.SUCCEEDED else [],
        "error": None if record.failure is None else record.failure.message,
    }


def pictures_of(key: str, pictures: Path) -> list[str]:
    """Return where the pictures of a job that were saved are to be seen."""
    folder = pictures / key
    names = sorted(path.name for path in folder.glob("*-??.*") if path.suffix in ENDINGS) if folder.is_dir() else []
    return [f"/pictures/{key}/{name}" for name in names]
