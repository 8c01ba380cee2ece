"""Worker processes, started and killed with SIGKILL at chosen and at random times."""

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

from tests.durability.worker import STEPS, Orders, Results, StepReporter, work

PATIENCE_S = 30.0
STEP_WITHIN_S = 4.0
"""If the step does not come within this time, the worker is killed at its current step."""


class Worker:
    """A forked worker process. The forking process has no thread, no event loop and no open ledger."""

    def __init__(self, orders: Orders) -> None:
        self._pipe, write_end = os.pipe()
        self._buffer = b""
        self.pid = os.fork()
        if not self.pid:
            _run(orders, write_end)
        os.close(write_end)

    def read_step(self, within_s: float = PATIENCE_S) -> str | None:
        """Return the next line of the worker; None if none comes within this time or the worker has ended."""
        until = time.perf_counter() + within_s
        while b"\n" not in self._buffer:
            left_s = until - time.perf_counter()
            if left_s <= 0 or not select.select([self._pipe], [], [], left_s)[0]:
                return None
            data = os.read(self._pipe, 65536)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def kill(self) -> bool:
        """Send SIGKILL; return whether the worker died of it."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Wait until the worker ends; return its exit code, or minus the signal."""
        while self.read_step() is not None:
            pass
        os.close(self._pipe)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


@contextmanager
def started(orders: Orders) -> Iterator[Worker]:
    """Start a worker; kill it at the end of the block if it still runs."""
    worker = Worker(orders)
    try:
        yield worker
    finally:
        if worker.pid:
            worker.kill()


def _run(orders: Orders, pipe: int) -> None:
    code = 1
    logging.getLogger("nanobanana_async").setLevel(logging.ERROR)  # warnings about doubt are expected here
    try:
        asyncio.run(work(orders, StepReporter(pipe, orders)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When to kill: at the n-th occurrence of a step, while the worker stops there, or `delay_s` later."""

    step: str
    nth: int
    still: bool
    delay_s: float


@dataclass
class Toll:
    """Where the kills happened, and the states in which the next worker found active jobs."""

    at: Counter[str] = field(default_factory=Counter)
    still: int = 0
    found: Counter[str] = field(default_factory=Counter)
    met_live_work: int = 0
    crashes: int = 0
    """Workers that ended with an error instead of being killed."""


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
    """Start a worker and kill it, once for each plan; each continues the work of the one before."""
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
    """Let a worker finish all started sets and one more; return the number of that set."""
    rows = Results(orders.results, lambda _: None).rows
    last_set = 1 + max((int(key.split("-")[1]) for key in rows), default=0)
    with started(replace(orders, last_set=last_set)) as worker:
        while (step := worker.read_step()) is not None:
            _count_found(step, toll)
        toll.crashes += worker.wait() != 0
    return last_set


def _until(worker: Worker, kill: Kill, toll: Toll) -> bool:
    left = kill.nth
    awaited = "stands still" if kill.still else kill.step
    until = time.perf_counter() + STEP_WITHIN_S
    while (step := worker.read_step(until - time.perf_counter())) is not None:
        _count_found(step, toll)
        left -= step == awaited
        if step == awaited and (kill.still or not left):
            return True
    return False


def _count_found(step: str, toll: Toll) -> None:
    if step.startswith("{"):
        found: dict[str, int] = json.loads(step)
        toll.found.update({state: count for state, count in found.items() if count})
        toll.met_live_work += any(found.values())
