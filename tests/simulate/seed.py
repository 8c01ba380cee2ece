"""One seed from its plan to its verdict."""

import asyncio
import hashlib
import random
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path

from attrs import frozen

from tests.simulate.accounts import AccountsNetwork, AccountsOracle, SharedAccounts, accounts_plan_of
from tests.simulate.life import FinalCheck, ProcessLife, Shared
from tests.simulate.network import Network
from tests.simulate.oracle import Oracle, Violation
from tests.simulate.plan import LATEST_S, Scene, plan_of
from tests.support.disk import Disk, deterministic, memory_folder
from tests.support.leased_disk import LeasedWriter
from tests.support.machine import Machine, Process

CALM_S = 7200.0
"""How long the final check may take."""


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


def play(seed: int, *, accounts: bool = False) -> Report:
    """Run a seed to its end, with sessions of one account or of two."""
    plan = accounts_plan_of(seed) if accounts else plan_of(seed)
    make_network = AccountsNetwork if accounts else Network
    make_oracle, make_shared = (AccountsOracle, SharedAccounts) if accounts else (Oracle, Shared)
    machine = Machine()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        disk = Disk(machine, Path(folder) / "jobs.sqlite", random.Random(f"{seed} disk"))
        network = make_network(machine, plan, disk, random.Random(f"{seed} network"))
        if plan.leases:
            disk.make_writer = LeasedWriter
        oracle = network.watcher = make_oracle(machine, plan, disk, network)
        seed_run = SeedRun(make_shared(machine, plan, disk, network, oracle))
        with deterministic(seed, disk), asyncio.Runner(loop_factory=lambda: machine) as runner:
            try:
                runner.run(seed_run.run())
            finally:
                disk.close()
    for crash in machine.crashes:
        oracle.find_fault("foreign error", repr(crash))
    return Report(
        seed=seed,
        scene=plan.scene,
        violations=tuple(oracle.violations),
        counts=seed_run.counts,
        trace=tuple(machine.trace),
    )


class SeedRun:
    """Trouble first, then calm, then the verdict."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._processes: list[Process] = []
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Play it."""
        shared, plan = self._shared, self._shared.plan
        chance = random.Random(f"{plan.seed} lives")
        slots = [asyncio.Task(self._slot(number, chance)) for number in range(plan.slots)]
        meddling = asyncio.Task(self._meddle(random.Random(f"{plan.seed} meddling")))
        silencing = asyncio.Task(self._silence(random.Random(f"{plan.seed} silence")))
        await asyncio.wait(slots)
        for task in (meddling, silencing):
            task.cancel()
        await asyncio.wait([meddling, silencing])
        for slot in slots:
            slot.result()
        shared.disk.full, shared.network.quiet = False, True
        shared.world_calms_down()
        await asyncio.sleep(LATEST_S + plan.timeouts.create_s + 20.0)  # what is on its way arrives
        shared.machine.note("-", "all is calm")
        last = FinalCheck(shared)
        self._processes.append(last.process)
        await last.run(CALM_S)
        shared.oracle.judge(last.outcomes)
        self._count()
        for process in self._processes:
            await process.bury()

    async def _slot(self, number: int, chance: random.Random) -> None:
        for turn in range(self._shared.plan.lives):
            life = ProcessLife(
                self._shared, f"p{number}.{turn}", random.Random(f"{self._shared.plan.seed} {number} {turn}")
            )
            self._processes.append(life.process)
            await life.run()
            await asyncio.sleep(chance.choice((0.0, 1.0, chance.uniform(0.0, 20.0))))

    async def _meddle(self, chance: random.Random) -> None:
        """Move the clock, fill the disk."""
        shared = self._shared
        while True:
            await asyncio.sleep(chance.uniform(3.0, 30.0))
            if shared.plan.moves_clock and chance.random() < 0.5:
                shift = timedelta(seconds=chance.choice((-3600.0, -20.0, 30.0, 3600.0)))
                shared.machine.wall_clock_offset += shift
                shared.machine.note("-", f"the clock moves by {shift.total_seconds():g} s")
            if shared.plan.fills_disk and chance.random() < 0.5:
                shared.disk.full = True
                shared.machine.note("-", "the disk is full")
                await asyncio.sleep(chance.uniform(0.1, 8.0))
                shared.disk.full = False
                shared.machine.note("-", "the disk has room again")

    async def _silence(self, chance: random.Random) -> None:
        """Suspend hosts, and cut them off from the ledger."""
        while self._shared.plan.leases:
            await asyncio.sleep(chance.uniform(0.1, 5.0))
            living = [each for each in self._processes if each.alive and not each.ended.done() and each.lease]
            sending = [sent.process for sent in self._shared.network.creates if not sent.answer.done()]
            living = [each for each in living if each in sending] or living
            if living:
                for_s = chance.choice((chance.uniform(1.0, 9.0), chance.uniform(10.0, 40.0)))
                chance.choice(living).lease.be_silent(for_s, chance, suspended=chance.random() < 0.5)

    def _count(self) -> None:
        shared, counts = self._shared, self.counts
        creates = shared.network.creates
        counts["jobs"] = len(shared.asked)
        counts["processes"] = len(self._processes) - 1
        counts["kills"] = sum(1 for process in self._processes if not process.alive)
        counts["burials"] = sum(process.lease.burials for process in self._processes if process.lease)
        counts["creates"] = len(creates)
        counts["moved"] = shared.network.moved
        counts["in doubt"] = shared.network.lost_answers
        counts["repeats"] = len(creates) - len({(sent.key, sent.generation) for sent in creates})
        counts["resolved"] = shared.resolved
        for key in shared.asked:
            charges, allowed = len(shared.oracle.charges(key)), 1 + shared.oracle.deliberate[key]
            counts["charges"] += charges
            counts["by hand"] += shared.oracle.deliberate[key]
            counts["doubles"] += max(0, charges - allowed)
            record = shared.disk.record(key)
            counts["lost" if record is None else record.state.value] += 1
