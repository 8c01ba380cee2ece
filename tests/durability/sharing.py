"""Several processes buy one batch on one ledger file, and one of them is killed on the way."""

import os
import signal
import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanobanana_async.jobs import ACTIVE_STATES
from nanobanana_async.ledger.owners import Owners
from tests.durability.killing import Worker, started
from tests.durability.worker import Orders, Results


@dataclass
class Shared:
    """The results of the processes."""

    saved: dict[str, str | None] = field(default_factory=dict)
    creates_at_kill: int = 0
    """Creates that the killed process had sent; it had not handled the answer to the last one."""
    orphaned: int = 0
    """Active jobs of the killed process, which the others had to adopt."""
    breaches: list[str] = field(default_factory=list)


def share(orders: Orders, processes: int) -> Shared:
    """Let several processes each request the whole batch; kill the first after it sent creates for a ninth.

    It stands still then, before it handles the answer, so that the job of that create is open.
    """
    outcome = Shared()
    files = [orders.results.with_name(f"results-{number}") for number in range(processes)]
    with ExitStack() as stack:
        # Few steps each, since the pipes of the others are not read until they end. Each process has its own row order:
        # otherwise the one that is first at one row is first at all of them.
        each_orders = [
            replace(orders, reports=("saved",), results=file, shuffled_by=number) for number, file in enumerate(files)
        ]
        each_orders[0] = replace(
            each_orders[0], reports=("posted",), stop_at="posted", stop_nth=max(1, orders.rows // 9)
        )
        first = stack.enter_context(started(each_orders[0]))
        if first.read_step() == "posted":  # the others could buy all before this one has bought enough
            outcome.creates_at_kill = 1
        others = [stack.enter_context(started(each)) for each in each_orders[1:]]
        outcome.creates_at_kill += _read_until_still(first)
        for other in others:  # they would adopt the jobs before these are counted
            os.kill(other.pid, signal.SIGSTOP)
        if not first.kill():
            outcome.breaches.append("the first process ended before it was killed")
        outcome.orphaned = _orphaned(Path(orders.ledger))
        for other in others:
            os.kill(other.pid, signal.SIGCONT)
        ends = [worker.wait() for worker in others]
    for number, (end, file) in enumerate(zip(ends, files[1:], strict=True), start=1):
        rows = Results(file, lambda _: None).rows
        if end or len(rows) != orders.rows:
            outcome.breaches.append(f"process {number} ended with {end} and {len(rows)} rows of {orders.rows}")
        for key, url in rows.items():
            if outcome.saved.setdefault(key, url) != url:
                outcome.breaches.append(f"{key}: two processes got different results")
    return outcome


def _read_until_still(worker: Worker) -> int:
    steps = 0
    while (step := worker.read_step()) == "posted":
        steps += 1
    return steps if step == "stands still" else 0


def _orphaned(ledger: Path) -> int:
    states = [state.value for state in ACTIVE_STATES]
    owned = f"SELECT owner, count(*) FROM jobs WHERE state IN ({', '.join('?' * len(states))}) GROUP BY owner"
    with closing(sqlite3.connect(ledger)) as connection:
        found = connection.execute(owned, states).fetchall()
    owners = Owners(ledger)
    return sum(count for owner, count in found if owner is not None and not owners.is_alive(owner))
