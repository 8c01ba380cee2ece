"""The fleets on the virtual clock, and what a session costs as its work grows."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from benchmarks.children import Child
from benchmarks.measured import Fleet, Measured, medians
from benchmarks.plots import draw_growth
from benchmarks.pool import side_by_side
from benchmarks.report import Check, Section, Table
from benchmarks.simulating import measure

FLEETS = (Fleet(jobs=200, limit=20), Fleet(jobs=600, limit=60))
LONG_FLEET = Fleet(jobs=4000, limit=100, median_s=20.0)
COLUMNS = (
    "makespan / ideal",
    "polls / job",
    "delay s",
    "p99 s",
    "polls x delay / mean",
    "429 ramp",
    "429 after",
    "ended well",
)
PATIENCE_S = 3600.0
HELD = 10_000
GROWTH_ALLOWED = 1.25


def cells(run: Measured) -> tuple[float | int, ...]:
    """Return what `COLUMNS` name."""
    return (
        run.makespan_ratio,
        run.polls_per_job,
        run.delay_mean_s,
        run.delay_p99_s,
        run.poll_delay_product,
        run.refused_in_ramp,
        run.refused_after,
        run.ended_well,
    )


def fleet_checks(fleet: Fleet, runs: Sequence[Measured], title: str) -> list[Check]:
    """Set the medians of a fleet beside their targets."""
    small = fleet.limit < 50
    middle = medians(runs)

    def check(what: str, name: str, target: float) -> Check:
        worst = max(float(getattr(run, name)) for run in runs)
        return Check(what=f"{title}: {what}", value=getattr(middle, name), worst=worst, target=target)

    checks = [
        check("makespan / ideal", "makespan_ratio", 1.055 if small else 1.045),
        check("polls x delay / mean duration", "poll_delay_product", 0.35 if small else 0.34),
    ]
    if small:
        checks += [check("polls / job", "polls_per_job", 8.5), check("mean delay s", "delay_mean_s", 0.55)]
    root = next(number for number in range(fleet.limit + 1) if number * number >= fleet.limit)
    return [
        *checks,
        check("429 in the ramp", "refused_in_ramp", root),
        check("429 after it", "refused_after", middle.allowed_after),
        Check(what=f"{title}: ended well", value=min(run.ended_well for run in runs), target=fleet.jobs, at_least=True),
    ]


def _measured(plan: tuple[Fleet, int | None]) -> Measured:
    fleet, workers = plan
    return measure(fleet, workers=workers)


def _fleets(seeds: int) -> tuple[Table, list[Check]]:
    plans: list[tuple[Fleet, int | None]] = [(fleet, None) for fleet in FLEETS]
    plans.append((LONG_FLEET, 2 * LONG_FLEET.limit))
    spread = [(evolve(fleet, seed=seed), workers) for fleet, workers in plans for seed in range(1, seeds + 1)]
    outcomes = side_by_side(_measured, spread)
    rows, checks = [], []
    for number, (fleet, _) in enumerate(plans):
        runs = outcomes[number * seeds : (number + 1) * seeds]
        rows.append((fleet.title, *cells(medians(runs))))
        if fleet is not LONG_FLEET:
            checks += fleet_checks(fleet, runs, f"{fleet.jobs}/{fleet.limit}")
            continue
        ratio = medians(runs).makespan_ratio
        worst = max(run.makespan_ratio for run in runs)
        checks.append(Check(what="4000/100: makespan / ideal", value=ratio, worst=worst, target=1.035))
    title = f"Fleets on the virtual clock, round trip 0.05 s, limit unknown: medians of {seeds} seeds"
    return Table(title=title, columns=("fleet", *COLUMNS), rows=rows), checks


async def _costs(orders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    answers = []
    for order in orders:
        async with Child("benchmarks.cost_child", order) as child:
            answers.append(await child.answer(PATIENCE_S))
    return answers


def _growth(sizes: Sequence[int]) -> tuple[Table, list[Check]]:
    runs = asyncio.run(_costs([{"what": "grow", "jobs": size} for size in sizes]))
    per_job = [1e6 * run["cpu_s"] / run["jobs"] for run in runs]
    rows = [
        (f"{run['jobs']:,} jobs", cost, cost / per_job[0], 1e6 * run["cpu_s"] / run["requests"], run["peak_mb"])
        for run, cost in zip(runs, per_job, strict=True)
    ]
    columns = ("batch", "CPU us / job", "relative", "CPU us / request", "peak MB")
    extra_bytes = max(0.0, runs[-1]["peak_mb"] - runs[0]["peak_mb"]) * 2**20 / (sizes[-1] - sizes[0])
    ended_well = min(run["well"] / run["jobs"] for run in runs)
    checks = [
        Check(what=f"{sizes[-1]:,} jobs: CPU per job over {sizes[0]:,}", value=rows[-1][2], target=GROWTH_ALLOWED),
        Check(what="peak memory per further prompt, bytes (none)", value=extra_bytes, target=16.0),
        Check(what="share that ended well", value=ended_well, target=1.0, at_least=True),
    ]
    title = "Cost as work grows: limit 100, a stateless gateway in the same process, virtual clock"
    return Table(title=title, columns=columns, rows=rows), checks


def _holding(loops: Sequence[str]) -> tuple[Table, list[Check]]:
    orders = [{"what": "hold", "jobs": HELD}, *({"what": "late", "jobs": HELD, "loop": loop} for loop in loops)]
    held, *late = asyncio.run(_costs(orders))
    rows = [
        (loop, 1000 * run["p50_s"], 1000 * run["p99_s"], 100 * run["busy"])
        for loop, run in zip(loops, late, strict=True)
    ]
    checks = [Check(what="memory per held job, bytes", value=held["bytes_per_job"], target=1024)]
    checks += [Check(what=f"lateness p99 on {row[0]}, ms", value=row[2], target=25.0) for row in rows]
    title = f"{HELD:,} held jobs, each polled every 5 s, real event loops: how late the polls are"
    return Table(title=title, columns=("loop", "p50 ms", "p99 ms", "CPU %"), rows=rows), checks


def section(*, seeds: int, quick: bool, full: bool, out: Path) -> Section:
    """Run it all."""
    sizes = (1000, 10_000) if quick else (1000, 10_000, 100_000, *((1_000_000,) if full else ()))
    parts = [_fleets(seeds), _growth(sizes), _holding(("asyncio", "uvloop"))]
    checks = [check for _, found in parts for check in found]
    plot = draw_growth(parts[1][0], out / "growth.png")
    return Section(name="simulated", tables=[table for table, _ in parts], checks=checks, plots=[plot])
