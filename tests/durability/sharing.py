"""Several processes buy one batch on one ledger file, and one of them is killed half-way."""

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
    """What the processes brought home."""

    saved: dict[str, str | None] = field(default_factory=dict)
    saved_at_kill: int = 0
    orphaned: int = 0
    """Unfinished jobs that the killed process followed, and that the others had to adopt."""
    breaches: list[str] = field(default_factory=list)


def share(orders: Orders, processes: int) -> Shared:
    """Let so many processes each ask for the whole batch; the first is killed once half of it is saved there."""
    told = Shared()
    files = [orders.results.with_name(f"results-{number}") for number in range(processes)]
    with ExitStack() as stack:
        # Only a few words each: nobody listens to the others until they have ended. And each in an order of its own:
        # else whoever is first at one row is first at all of them, and the others only look on.
        theirs = [
            replace(orders, says=("saved",), results=file, shuffled_by=number) for number, file in enumerate(files)
        ]
        workers = [stack.enter_context(started(each)) for each in theirs]
        first, *others = workers
        told.saved_at_kill = _heard(first, orders.rows // 2)
        if not first.kill():
            told.breaches.append("the first process ended before it was killed")
        told.orphaned = _orphaned(orders.ledger)
        ends = [worker.ended() for worker in others]
    for number, (end, file) in enumerate(zip(ends, files[1:], strict=True), start=1):
        rows = Results(file, lambda _: None).rows
        if end or len(rows) != orders.rows:
            told.breaches.append(f"process {number} ended with {end} and {len(rows)} rows of {orders.rows}")
        for key, url in rows.items():
            if told.saved.setdefault(key, url) != url:
                told.breaches.append(f"{key}: two processes were told two results")
    return told


def _heard(worker: Worker, saves: int) -> int:
    for heard in range(saves):
        if worker.hear() is None:
            return heard
    return saves


def _orphaned(ledger: Path) -> int:
    states = [state.value for state in ACTIVE_STATES]
    owned = f"SELECT owner, count(*) FROM jobs WHERE state IN ({', '.join('?' * len(states))}) GROUP BY owner"
    with closing(sqlite3.connect(ledger)) as connection:
        found = connection.execute(owned, states).fetchall()
    owners = Owners(ledger)
    return sum(count for owner, count in found if owner is not None and not owners.alive(owner))
