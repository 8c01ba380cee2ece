"""Stop a batch when a budget of the account is used up for longer than the batch may wait."""

from collections.abc import Callable, Sequence

import anyio

from nanobanana_async.engine.used_up import UsedUpBudgets
from nanobanana_async.errors import NanoBananaError, RateLimited
from nanobanana_async.formatting import moment

CHECK_S = 1.0


async def watch_budget(
    used_up: Sequence[UsedUpBudgets],
    most_s: float,
    is_over: Callable[[], bool],
    give_up: Callable[[NanoBananaError], None],
) -> None:
    """Call `give_up` with the reason once the wait would be too long for all accounts; return after the batch."""
    while not is_over():
        until = min((each.until for each in used_up if each.until is not None), default=None)
        if until is not None and all(each.pause_outlasts(most_s) for each in used_up):
            why = (
                f"the account's daily budget of requests is used up until {moment(until)}; what runs stays in the"
                " ledger: run the batch again then"
            )
            give_up(RateLimited(why, kind="rate"))
            return
        await anyio.sleep(CHECK_S)
