"""One seed from its plan to its verdict."""

import asyncio
import hashlib
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from attrs import frozen

from nanobanana_async import testing
from nanobanana_async.engine import poller as following
from nanobanana_async.engine import submitter as buying
from nanobanana_async.ledger import sqlite
from tests.simulate.life import FinalCheck, ProcessLife, Shared
from tests.simulate.network import Network
from tests.simulate.oracle import Oracle, Violation
from tests.simulate.plan import LATEST_S, Scene, plan_of
from tests.support.disk import Disk
from tests.support.machine import Machine, Process

CALM_S = 7200.0
"""How long the last look may take."""


@frozen(kw_only=True)
class Report:
    """What became of a seed."""

    seed: int
    scene: Scene
    violations: tuple[Violation, ...]
    counts: "Counter[str]"
    trace: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What must be the same each time that the seed is run."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def play(seed: int) -> Report:
    """Run a seed to its end."""
    plan = plan_of(seed)
    machine = Machine()
    with tempfile.TemporaryDirectory(dir=_quick_folder()) as folder:
        disk = Disk(machine, Path(folder) / "jobs.sqlite", random.Random(f"{seed} disk"))
        network = Network(machine, plan, disk, random.Random(f"{seed} network"))
        oracle = network.watcher = Oracle(machine, plan, disk, network)
        drama = SeedRun(Shared(machine, plan, disk, network, oracle))
        with _replaced(seed, disk), asyncio.Runner(loop_factory=lambda: machine) as runner:
            try:
                runner.run(drama.played())
            finally:
                disk.close()
    for crash in machine.crashes:
        oracle.find_fault("foreign error", repr(crash))
    return Report(
        seed=seed,
        scene=plan.scene,
        violations=tuple(oracle.violations),
        counts=drama.counts,
        trace=tuple(machine.trace),
    )


class SeedRun:
    """Trouble first, then calm, then the verdict."""

    def __init__(self, stage: Shared) -> None:
        self._stage = stage
        self._processes: list[Process] = []
        self.counts: Counter[str] = Counter()

    async def played(self) -> None:
        """Play it."""
        stage, plan = self._stage, self._stage.plan
        chance = random.Random(f"{plan.seed} lives")
        slots = [asyncio.Task(self._slot(number, chance)) for number in range(plan.slots)]
        meddling = asyncio.Task(self._meddle(random.Random(f"{plan.seed} meddling")))
        await asyncio.wait(slots)
        meddling.cancel()
        await asyncio.wait([meddling])
        for slot in slots:
            slot.result()
        stage.disk.full, stage.network.quiet = False, True
        stage.world_calms_down()
        await asyncio.sleep(LATEST_S + plan.timeouts.create_s + 20.0)  # what is on its way arrives
        stage.machine.note("-", "all is calm")
        last = FinalCheck(stage)
        self._processes.append(last.process)
        await last.run(CALM_S)
        stage.oracle.judge(last.outcomes)
        self._count()
        for process in self._processes:
            await process.bury()

    async def _slot(self, number: int, chance: random.Random) -> None:
        for turn in range(self._stage.plan.lives):
            life = ProcessLife(
                self._stage, f"p{number}.{turn}", random.Random(f"{self._stage.plan.seed} {number} {turn}")
            )
            self._processes.append(life.process)
            await life.run()
            await asyncio.sleep(chance.choice((0.0, 1.0, chance.uniform(0.0, 20.0))))

    async def _meddle(self, chance: random.Random) -> None:
        """Move the clock, fill the disk."""
        stage = self._stage
        while True:
            await asyncio.sleep(chance.uniform(3.0, 30.0))
            if stage.plan.moves_clock and chance.random() < 0.5:
                shift = timedelta(seconds=chance.choice((-3600.0, -20.0, 30.0, 3600.0)))
                stage.machine.wall_clock_offset += shift
                stage.machine.note("-", f"the clock moves by {shift.total_seconds():g} s")
            if stage.plan.fills_disk and chance.random() < 0.5:
                stage.disk.full = True
                stage.machine.note("-", "the disk is full")
                await asyncio.sleep(chance.uniform(0.1, 8.0))
                stage.disk.full = False
                stage.machine.note("-", "the disk has room again")

    def _count(self) -> None:
        stage, counts = self._stage, self.counts
        letters = stage.network.letters
        counts["jobs"] = len(stage.asked)
        counts["processes"] = len(self._processes) - 1
        counts["kills"] = sum(1 for process in self._processes if not process.alive)
        counts["creates"] = len(letters)
        counts["in doubt"] = stage.network.lost_answers
        counts["repeats"] = len(letters) - len({(letter.key, letter.generation) for letter in letters})
        counts["resolved"] = stage.resolved
        for key in stage.asked:
            charges, allowed = len(stage.oracle.charges(key)), 1 + stage.oracle.deliberate[key]
            counts["charges"] += charges
            counts["by hand"] += stage.oracle.deliberate[key]
            counts["doubles"] += max(0, charges - allowed)
            record = stage.disk.record(key)
            counts["lost" if record is None else record.state.value] += 1


@contextmanager
def _replaced(seed: int, disk: Disk) -> Iterator[None]:
    """Put what a seed decides in the place of threads and of chance."""
    numbers = itertools.count()
    chance: Any = SimpleNamespace(Random=lambda: random.Random(f"{seed} jitter {next(numbers)}"))
    # Nothing here waits for another thread: where nothing is scheduled, nothing will come.
    instead: list[tuple[Any, str, Any]] = [
        (sqlite, "Writer", disk.writer),
        (buying, "random", chance),
        (following, "random", chance),
        (testing, "DEADLOCK_S", 0.01),
    ]
    before = [getattr(module, name) for module, name, _ in instead]
    for module, name, value in instead:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(instead, before, strict=True):
            setattr(module, name, value)


def _quick_folder() -> str | None:
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None
