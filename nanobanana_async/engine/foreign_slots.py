"""Count the job slots of this account that other owners hold, until they are free."""

from collections.abc import Callable

import anyio

from nanobanana_async.engine.claimer import Claimer
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.workers import WorkerPool
from nanobanana_async.errors import LedgerError
from nanobanana_async.events import log, log_failure
from nanobanana_async.policy.shared_limits import SharedLimiter

# How often these slots are counted again.
FOREIGN_RECOUNT_S = 5.0


async def recount_foreign_slots(
    claimer: Claimer, slots: Slots, workers: WorkerPool, changed: Callable[[], None]
) -> None:
    """Count the slots of other owners from the session's start until there are none. The count only falls.

    Slots that others take later show as a lower limit, as any change of the limit does. Where all owners share the
    account (`sharing.py`) its learner counts them.
    """
    if isinstance(slots.limiter, SharedLimiter):
        return
    try:
        while held := await claimer.count_foreign_slots():
            slots.foreign = min(held, slots.foreign or held)
            changed()
            await anyio.sleep(FOREIGN_RECOUNT_S)
    except LedgerError as error:
        log.warning("ledger.failed error=%s", error.message)
    except BaseException as failure:
        if not workers.try_contain(failure):
            raise
        log_failure("ledger.failed", failure)
    slots.foreign = 0
    changed()
