"""Ask the ledger about all budgets that jobs wait for together, once a second."""

from collections.abc import Callable

import anyio

from nanobanana_async.engine.credit_account import ASK_AGAIN_S
from nanobanana_async.engine.store import JobStore
from nanobanana_async.errors import LedgerError


async def keep_reading_budgets(store: JobStore, clock: Callable[[], float], tick: Callable[[], None]) -> None:
    """While jobs wait for budgets, read these in one call, and `tick` once: jobs whose budget has changed ask again.

    A job that asks is a write, under a lock on PostgreSQL. Without this each group that waits would ask by itself.
    """
    waits = store.credits.waits_for_budget
    while True:
        await waits.wait()
        await anyio.sleep(ASK_AGAIN_S)
        if names := store.credits.awaited_budgets(clock()):
            try:
                now = store.utcnow()
                store.credits.on_budgets_read(await store.ledger.budgets(now, names), now)
            except LedgerError:  # read again in a second; jobs ask by themselves in ten
                continue
        else:
            waits.clear()
        tick()
