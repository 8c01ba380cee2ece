"""Workers in processes of their own, started and killed with SIGKILL at chosen and at random moments."""

import asyncio
import json
import logging
import os
import random
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.durability.worker import STEPS, Orders, Results, Teller, work

PATIENCE_S = 30.0
STEP_WITHIN_S = 4.0
"""A step that does not come in this time is not waited for: the worker is killed wherever it is."""


class Worker:
    """A forked process at work. The one that forks has no thread and no event loop, and holds no ledger open."""

    def __init__(self, orders: Orders) -> None:
        self._pipe, ours = os.pipe()
        self._heard = b""
        self.pid = os.fork()
        if not self.pid:
            _live(orders, ours)
        os.close(ours)

    def hear(self, within_s: float = PATIENCE_S) -> str | None:
        """Return the next thing that it says; None when it says nothing more in this time, or for ever."""
        until = time.perf_counter() + within_s
        while b"\n" not in self._heard:
            left_s = until - time.perf_counter()
            if left_s <= 0 or not select.select([self._pipe], [], [], left_s)[0]:
                return None
            piece = os.read(self._pipe, 65536)
            if not piece:
                return None
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def kill(self) -> bool:
        """Kill it with SIGKILL; say whether it was that of which it died."""
        os.kill(self.pid, signal.SIGKILL)
        return self.ended() == -signal.SIGKILL

    def ended(self) -> int:
        """Wait for its end; return its exit code, or minus the signal."""
        while self.hear() is not None:
            pass
        os.close(self._pipe)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


@contextmanager
def started(orders: Orders) -> Iterator[Worker]:
    """Start a worker that does not outlive the block."""
    worker = Worker(orders)
    try:
        yield worker
    finally:
        if worker.pid:
            worker.kill()


def _live(orders: Orders, pipe: int) -> None:
    code = 1
    logging.getLogger("nanobanana_async").setLevel(logging.ERROR)  # doubt is what is expected here
    try:
        asyncio.run(work(orders, Teller(pipe, orders)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When to kill: at the n-th time a step is said, standing still at it or so many seconds later."""

    step: str
    nth: int
    still: bool
    delay_s: float


@dataclass
class Toll:
    """How the kills fell, and in which states the next worker found jobs that were at work."""

    at: Counter[str] = field(default_factory=Counter)
    still: int = 0
    found: Counter[str] = field(default_factory=Counter)
    met_live_work: int = 0
    crashes: int = 0
    """Workers that ended by themselves, and not well."""


def plans(kills: int, rng: random.Random) -> Iterator[Kill]:
    """Yield kills spread evenly over all steps, in random order."""
    steps = ["opening", *(step for steps in STEPS.values() for step in steps)]
    rounds: list[str] = []
    for _ in range(kills):
        rounds = rounds or rng.sample(steps, len(steps))
        step = rounds.pop()
        still = step != "opening" and rng.random() < 0.5
        nth = 1 if step == "opening" else rng.randint(1, 8)
        yield Kill(step=step, nth=nth, still=still, delay_s=rng.choice((0.0, rng.uniform(0.0, 0.06))))


def kill_again_and_again(orders: Orders, kills: Sequence[Kill], toll: Toll) -> None:
    """Start a worker and kill it, once for each plan; each begins where the last one was ended."""
    for kill in kills:
        with started(replace(orders, stop_at=kill.step if kill.still else None, stop_nth=kill.nth)) as worker:
            seen = _until(worker, kill, toll)
            if seen and not kill.still:
                time.sleep(kill.delay_s)
            if worker.kill():
                toll.at[kill.step if seen else "step did not come"] += 1
                toll.still += seen and kill.still
            else:
                toll.crashes += 1


def finish(orders: Orders, toll: Toll) -> int:
    """Let a worker finish what is begun, and one set more; return the number of that set."""
    rows = Results(orders.results, lambda _: None).rows
    last_set = 1 + max((int(key.split("-")[1]) for key in rows), default=0)
    with started(replace(orders, last_set=last_set)) as worker:
        while (said := worker.hear()) is not None:
            _note(said, toll)
        toll.crashes += worker.ended() != 0
    return last_set


def _until(worker: Worker, kill: Kill, toll: Toll) -> bool:
    left = kill.nth
    awaited = "stands still" if kill.still else kill.step
    until = time.perf_counter() + STEP_WITHIN_S
    while (said := worker.hear(until - time.perf_counter())) is not None:
        _note(said, toll)
        left -= said == awaited
        if said == awaited and (kill.still or not left):
            return True
    return False


def _note(said: str, toll: Toll) -> None:
    if said.startswith("{"):
        found: dict[str, int] = json.loads(said)
        toll.found.update({state: count for state, count in found.items() if count})
        toll.met_live_work += any(found.values())
