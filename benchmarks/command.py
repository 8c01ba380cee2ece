"""The command line: which parts to run, how thoroughly, and where the results go."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import (
    accounts,
    accounts_real,
    batch,
    callbacks,
    cpu,
    feeding,
    fleet,
    hosts,
    hosts_simulated,
    ledger,
    limit,
    postgres,
    simulated,
)
from benchmarks.limit import Moving
from benchmarks.plot_run import draw_moving
from benchmarks.report import Section, print_section, write_section

DRAWN = {
    "doubled": Moving(seed=1, before=50, after=100),
    "halved": Moving(seed=1, before=100, after=50),
    "withdrawn": Moving(seed=1, before=20, after=0, back_after_s=60.0),
}


def _fleet(asked: argparse.Namespace) -> Section:
    return fleet.section(seeds=1 if asked.quick else asked.seeds, quick=asked.quick, out=asked.out)


def _limit(asked: argparse.Namespace) -> Section:
    found = limit.section(seeds=1 if asked.quick else asked.seeds, quick=asked.quick)
    plots = [draw_moving(plan, asked.out / f"limit-{name}.png") for name, plan in DRAWN.items()]
    return Section(name=found.name, tables=found.tables, checks=found.checks, plots=plots)


def _simulated(asked: argparse.Namespace) -> Section:
    return simulated.section(seeds=asked.seeds, quick=asked.quick, full=asked.full, out=asked.out)


def _accounts(asked: argparse.Namespace) -> Section:
    return accounts.section(seeds=1 if asked.quick else asked.seeds, quick=asked.quick, only=asked.only, out=asked.out)


def _accounts_real(asked: argparse.Namespace) -> Section:
    return accounts_real.section(quick=asked.quick)


def _batch(asked: argparse.Namespace) -> Section:
    return batch.section(quick=asked.quick)


def _callbacks(asked: argparse.Namespace) -> Section:
    return callbacks.section(seeds=1 if asked.quick else min(3, asked.seeds), quick=asked.quick)


def _cpu(asked: argparse.Namespace) -> Section:
    return cpu.section(quick=asked.quick)


def _ledger(asked: argparse.Namespace) -> Section:
    return ledger.section(seeds=1 if asked.quick else asked.seeds, quick=asked.quick)


def _postgres(asked: argparse.Namespace) -> Section:
    return postgres.section(seeds=1 if asked.quick else asked.seeds, quick=asked.quick)


def _hosts(asked: argparse.Namespace) -> Section:
    return hosts.section(quick=asked.quick, only=asked.only)


def _hosts_simulated(asked: argparse.Namespace) -> Section:
    return hosts_simulated.section(seeds=1 if asked.quick else asked.seeds, quick=asked.quick)


def _feeding(asked: argparse.Namespace) -> Section:
    return feeding.section(quick=asked.quick)


PARTS: Mapping[str, Callable[[argparse.Namespace], Section]] = {
    "simulated": _simulated,
    "limit": _limit,
    "accounts": _accounts,
    "hosts-simulated": _hosts_simulated,
    "accounts-real": _accounts_real,
    "batch": _batch,
    "callbacks": _callbacks,
    "cpu": _cpu,
    "ledger": _ledger,
    "postgres": _postgres,
    "feeding": _feeding,
    "hosts": _hosts,
    "fleet": _fleet,
}


def main() -> None:
    """Run what is asked for, show it, and write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="?", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--quick", action="store_true", help="few seeds, short jobs: minutes instead of half an hour")
    parser.add_argument("--full", action="store_true", help="simulated: a million jobs too")
    parser.add_argument("--only", help="accounts, hosts: only the runs with these words in their title")
    parser.add_argument("--seeds", type=int, default=5, help="how many fixed seeds (peers run once)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="for JSON and PNG files")
    asked = parser.parse_args()
    sections = []
    for name in PARTS if asked.part == "all" else (asked.part,):
        sections.append(PARTS[name](asked))
        write_section(sections[-1], asked.out)
        print_section(sections[-1])
    checks = [check for section in sections for check in section.checks]
    print(f"\n{sum(check.ok for check in checks)} of {len(checks)} targets met; results in {asked.out}/")
