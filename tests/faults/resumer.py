"""A process that buys rows until it is killed, or resumes those of another: `python -m tests.faults.resumer ORDERS`."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

from nanobanana_async import JobUncertain, PollPolicy, RetryPolicy, Session
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.jobs import ACTIVE_STATES
from tests.durability.worker import GatewayName, gateway_at, prompt_of


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What the process does."""

    gateway: GatewayName
    url: str
    ledger: str
    keys: list[str]
    dies_at: int | None = None
    """The transition at which it kills itself; None: it resumes instead of buying."""


def _session(orders: Orders, **settings: Any) -> Session:
    return Session(
        gateway_at(orders.gateway, orders.url),
        ledger=orders.ledger,
        polling=PollPolicy(target_delay_s=0.02, min_gap_s=0.01, max_gap_s=0.05),
        retry=RetryPolicy(first_backoff_s=0.01, max_backoff_s=0.1),
        **settings,
    )


async def buy(orders: Orders) -> None:
    """Buy the rows, and die on the way."""
    left = orders.dies_at

    def observe(event: Event) -> None:
        nonlocal left
        if isinstance(event, JobStateChanged) and left is not None:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    async with _session(orders, observers=[observe]) as session, asyncio.TaskGroup() as group:
        for key in orders.keys:
            group.create_task(session.generate(prompt_of(key), idempotency_key=key))


async def resume(orders: Orders) -> list[str]:
    """Resume at the same moment as another process; return the keys of the jobs that this one follows."""
    async with _session(orders) as session:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        jobs = await session.resume(buy=True)
        # One that the other process has brought to its end since it was listed is returned, and not followed.
        followed = [job.key for job in jobs if job.state in ACTIVE_STATES]
        for job in jobs:
            with contextlib.suppress(JobUncertain):
                await job
        return followed


def command(orders: Orders) -> list[str]:
    """Return the command that runs such a process."""
    return [sys.executable, "-m", "tests.faults.resumer", json.dumps(asdict(orders))]


if __name__ == "__main__":
    given = Orders(**json.loads(sys.argv[1]))
    if given.dies_at is None:
        print(json.dumps(asyncio.run(resume(given))), flush=True)
    else:
        asyncio.run(buy(given))
