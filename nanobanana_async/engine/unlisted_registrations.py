"""Remember in the ledger that webhooks were registered which the gateway's list does not show, so that few are made.

A list may mask URLs, or have pages that are not read: then none in it is recognised as ours. Without a bound each
start of a program would register one more, and the gateway would deliver each task to all of them.
"""

import json
from collections.abc import Callable
from datetime import datetime, timedelta

from nanobanana_async.ledger.base import Ledger

MOST_UNLISTED = 3
"""How many registrations without a usable answer are made within `COUNTED_FOR`."""

COUNTED_FOR = timedelta(days=1)


class UnlistedRegistrations:
    """Counts the account's registrations that were made, or may have been, and were not seen in the list."""

    def __init__(self, ledger: Ledger, account: str, utcnow: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._name = f"{account} webhooks"
        self._utcnow = utcnow

    async def count(self) -> int:
        """Return how many there are; none once the last one is long ago."""
        text = await self._ledger.recall(self._name)
        try:
            facts = json.loads(text or "{}")
            recent = abs(self._utcnow() - datetime.fromisoformat(facts["at"])) < COUNTED_FOR
            return int(facts["count"]) if recent else 0
        except (
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ):  # nothing is stored, or it was edited by hand
            return 0

    async def store_count(self, count: int) -> None:
        """Store how many there are from now on. Call it before a registration: its answer may be lost."""
        at = self._utcnow().isoformat()
        await self._ledger.remember(self._name, json.dumps({"at": at, "count": count}))
