"""`python -m tests.fuzz`: many executions of each target, each in a process; what fails goes into the corpus."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

from attrs import define, field

from tests.fuzz.table import TARGETS
from tests.fuzz.target import Target, kept, reduced

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 if an input failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--executions", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="these targets alone")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices")
    parser.add_argument("--rounds", type=int, default=10, help="over all targets, so that a run can be ended early")
    parser.add_argument("--progress", type=Path, help="a file that has the totals after each lane")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--random", action="store_true", help="hypothesis alone, also where atheris is installed")
    chosen = parser.parse_args(arguments)
    guided = not chosen.random and importlib.util.find_spec("atheris") is not None
    print(f"engine: {'atheris, guided by coverage' if guided else 'hypothesis, not guided'}", flush=True)
    targets = [TARGETS[name] for name in chosen.target or TARGETS]
    lanes = [
        (lane, target, count, chosen.seed + number)
        for number, executions in enumerate(parts(chosen.executions, chosen.rounds))
        for target, share in zip(targets, shares(targets, executions), strict=True)
        for lane, count in lanes_of(target, share, guided=guided)
        if count
    ]
    totals = Totals()
    with tempfile.TemporaryDirectory(prefix="nanobanana-lanes-") as folder:
        _run(
            lanes,
            ["atheris" if guided else "hypothesis", str(chosen.jobs), folder],
            Path(folder),
            totals,
            chosen.progress,
        )
    print(totals.text())
    return 1 if totals.found or totals.broken else 0


@define
class Totals:
    """What a run comes to."""

    executions: Counter[str] = field(factory=Counter)
    accepted: Counter[str] = field(factory=Counter)
    slowest_s: dict[str, float] = field(factory=dict)
    peak_kib: dict[str, int] = field(factory=dict)
    found: dict[str, set[str]] = field(factory=dict)
    """By target: the places in the code where inputs failed."""
    broken: list[str] = field(factory=list)
    """Lanes that ended without a report."""

    def add(self, report: Mapping[str, Any]) -> list[str]:
        """Add the report of a lane; return the places that are new."""
        name = report["target"]
        self.executions[name] += report["executions"]
        self.accepted[name] += report["accepted"]
        self.slowest_s[name] = max(self.slowest_s.get(name, 0.0), report["slowest_s"])
        self.peak_kib[name] = max(self.peak_kib.get(name, 0), report["peak_kib"])
        new = [where for where in report["found"] if where not in self.found.get(name, ())]
        if new:
            self.found.setdefault(name, set()).update(new)
        return new

    def text(self) -> str:
        """Return a line for each target, and one for all."""
        lines = [
            f"{name:<24} {count:>8} executions, {self.accepted[name]:>7} accepted,"
            f" {len(self.found.get(name, ()))} found, slowest {1000 * self.slowest_s[name]:.0f} ms,"
            f" peak {self.peak_kib[name] >> 10} MiB"
            for name, count in self.executions.items()
        ]
        found = sum(map(len, self.found.values()))
        total = f"{self.executions.total()} executions of {len(self.executions)} targets: {found} found"
        return "\n".join([*lines, f"{total}, {len(self.broken)} lanes broke off"])


def parts(count: int, rounds: int) -> list[int]:
    """Return how many executions each round has."""
    return [count // rounds + (number < count % rounds) for number in range(rounds)]


def shares(targets: Sequence[Target], executions: int) -> list[int]:
    """Return how many executions each target gets: all together as many as asked for."""
    weights = [1 / target.cost for target in targets]
    counts = [int(executions * weight / sum(weights)) for weight in weights]
    counts[0] += executions - sum(counts)
    return counts


def lanes_of(target: Target, executions: int, *, guided: bool) -> list[tuple[str, int]]:
    """Return the lanes of a target, with their executions."""
    if not guided:
        return [("random", executions)]
    if target.shapes is None:
        return [("bytes", executions)]
    return [("bytes", executions - executions // 8), ("shapes", executions // 8)]  # these take ten times as long


def _run(
    lanes: Sequence[tuple[str, Target, int, int]],
    arguments: Sequence[str],
    folder: Path,
    totals: Totals,
    progress: Path | None,
) -> None:
    """Run lanes, and add what each found as it ends."""
    command = [sys.executable, "-m", "tests.fuzz.lane", *arguments]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    wanted = "".join(f"{lane} {target.name} {count} {seed}\n" for lane, target, count, seed in lanes)
    with subprocess.Popen(
        command, cwd=folder, env=environ, text=True, stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(wanted)
        process.stdin.close()
        for line in process.stdout:
            _report(folder / line.strip(), totals)
            if progress is not None:
                progress.write_text(f"{totals.text()}\n")


def _report(lane: Path, totals: Totals) -> None:
    """Print what a lane found, and keep its inputs."""
    output = lane.with_name(f"{lane.name}.json")
    if not output.exists():
        totals.broken.append(lane.name)
        print(f"{lane.name} broke off:\n{lane.with_name(f'{lane.name}.log').read_text()[-3000:]}", flush=True)
        return
    report: dict[str, Any] = json.loads(output.read_text())
    target = TARGETS[report["target"]]
    for where in totals.add(report):
        text, trace = report["found"][where]
        data = reduced(target, bytes.fromhex(text))
        print(f"{lane.name}: {where}: {kept(target, data)}: {data[:300]!r}\n{trace}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
