"""A host that buys rows on a PostgreSQL ledger, and suspends itself at a chosen point of a create.

`python -m tests.durability.stop_worker ORDERS` prints one line of JSON when all rows have ended.
"""

import asyncio
import json
import logging
import random
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nanobanana_async import JobUncertain, NotOurs, PollPolicy, RetryPolicy, Session
from nanobanana_async.config import Timeouts
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.gateways.contract import Gateway, HttpRequest, HttpResponse
from nanobanana_async.http.transport import AiohttpTransport
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState
from nanobanana_async.ledger.postgres.driver import Connection
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.transactions import Transactions
from tests.durability.worker import GatewayName, gateway_at, prompt_of
from tests.support.postgres import SHORT

HOSTS = 2
"""They begin together."""
StopAt = Literal["flush", "intended", "before", "after", "random", "cut off"]
SELF_STOPS: tuple[StopAt, ...] = ("flush", "intended", "before", "after")
"""When a part of the flush with an intent was sent, and the server waits for the rest; after the intent is stored; just
before the bytes of its POST leave; just after its answer came."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a host does."""

    gateway: GatewayName
    url: str
    ledger: str
    schema: str
    rows: int
    seed: int
    first_row: int = 0
    """The rows before it are left to the other host."""
    stop_at: StopAt | None = None
    nth: int = 1


class Stop:
    """Suspends this process the n-th time that it comes to a point."""

    def __init__(self, orders: Orders) -> None:
        self._at = orders.stop_at
        self._left = orders.nth

    def __call__(self, point: StopAt) -> None:
        """Come to a point."""
        if point == self._at:
            self._left -= 1
            if not self._left:
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # a signal to the process may stop it later

    def observe(self, event: Event) -> None:
        """Come to the point at which the intent of a create is stored."""
        if isinstance(event, JobStateChanged) and event.record.state is JobState.SUBMITTING:
            self("intended")


class StoppingTransport(AiohttpTransport):
    """The real transport, with a point before a create and one after it."""

    def __init__(self, gateway: Gateway, stop: Stop) -> None:
        super().__init__(gateway, timeouts=Timeouts())
        self._stop = stop

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Send a request once."""
        if request.method != "POST":
            return await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)
        self._stop("before")
        response = await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)
        self._stop("after")
        return response


def stop_within_flush(stop: Stop) -> None:
    """Let the flush with the first intent be a point, after its first write was sent and before its commit."""
    execute = Transactions._execute

    def execute_and_stop(connection: Transactions, db: Connection, request: Any) -> Any:
        executed = execute(connection, db, request)
        if request.sql.startswith("UPDATE jobs"):
            stop("flush")
        return executed

    setattr(Transactions, "_execute", execute_and_stop)  # noqa: B010 - mypy takes no assignment to a method


class CountingLedger(PostgresLedger):
    """The real ledger; it counts the writes that it refuses."""

    refused = 0

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after`."""
        try:
            await super().advance(before, after)
        except NotOurs:
            self.refused += 1
            raise


async def work(orders: Orders) -> dict[str, Any]:
    """Buy all rows, in an order of its own, and adopt what others leave, until no row is open any more."""
    gateway, stop = gateway_at(orders.gateway, orders.url), Stop(orders)
    stop_within_flush(stop)
    ledger = CountingLedger(orders.ledger, schema=orders.schema, lease=SHORT)
    keys = [f"row-{number}" for number in range(orders.first_row, orders.rows)]
    random.Random(orders.seed).shuffle(keys)
    errors: list[str] = []
    async with Session(
        gateway,
        ledger=ledger,
        http=StoppingTransport(gateway, stop),
        observers=[stop.observe],
        polling=PollPolicy(target_delay_s=0.05, min_gap_s=0.03, max_gap_s=0.2),
        retry=RetryPolicy(first_backoff_s=0.03, max_backoff_s=0.3),
    ) as session:

        async def buy(key: str) -> None:
            try:
                await session.generate(prompt_of(key), idempotency_key=key)
            except JobUncertain:
                pass  # the owner of its create may come back and say how it ended
            except Exception as error:
                errors.append(f"{key}: {type(error).__name__}: {error}")

        async def adopt() -> None:
            while True:
                await session.resume(buy=True)
                await asyncio.sleep(0.3)

        while len(await ledger.owners()) < HOSTS:  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.05)
        async with asyncio.TaskGroup() as group:
            adopting = group.create_task(adopt())
            async with asyncio.TaskGroup() as buying:
                for key in keys:
                    buying.create_task(buy(key))
                    await asyncio.sleep(0.02)
            open_states, until = {*ACTIVE_STATES, JobState.UNCERTAIN}, time.perf_counter() + 15
            while time.perf_counter() < until:
                counts = await ledger.count_by_state()
                if not any(counts[state] for state in open_states):
                    break
                await asyncio.sleep(0.1)
            # It hears of the ends that others wrote a little later.
            while session.stats().slots_held and time.perf_counter() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            adopting.cancel()
        held = session.stats().slots_held
    return {"errors": errors, "refused": ledger.refused, "held": held}


def command(orders: Orders) -> list[str]:
    """Return the command that runs a host."""
    return [sys.executable, "-m", "tests.durability.stop_worker", json.dumps(asdict(orders))]


if __name__ == "__main__":
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    print(json.dumps(asyncio.run(work(Orders(**json.loads(sys.argv[1]))))), flush=True)
