"""How an engine is put together from a session's settings."""

import asyncio

from nanobanana_async.config import Timeouts
from nanobanana_async.engine.books import Books
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.core import Engine
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.slots import Slots
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import RetryPolicy


def assembled(
    gateway: Gateway,
    transport: Transport,
    books: Books,
    *,
    concurrency: ConcurrencyPolicy,
    polling: PollPolicy,
    retry: RetryPolicy,
    timeouts: Timeouts,
) -> Engine:
    """Return an engine on the running event loop; ledger and transport must be open."""
    clock = asyncio.get_running_loop().time
    follower = Follower(
        gateway, transport, books, polling, retry, query_s=timeouts.query_s, job_s=timeouts.job_s, clock=clock
    )
    slots = Slots(concurrency, retry, target_delay_s=polling.target_delay_s, likely_ends=follower.likely_ends)
    buyer = Buyer(
        gateway,
        transport,
        books,
        slots,
        retry,
        create_s=timeouts.create_s,
        begin=follower.begin,
        lingers_s=follower.lingers_s,
        clock=clock,
    )
    return Engine(gateway, books, slots, buyer, follower, max_requests=concurrency.max_requests)
