"""This client beside the released peers, in real time: each on its own local server, over the same jobs.

A peer is given the true limit as a semaphore; this client gets no limit. All speak plain HTTP to loopback.
"""

import asyncio
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from attrs import evolve

from benchmarks.fleet_client import CLIENTS, OURS
from benchmarks.ideal import mean_of
from benchmarks.measured import Fleet, medians
from benchmarks.plots import Point, draw_fleet
from benchmarks.races import Finish, Race, missing, run_wave, waves
from benchmarks.report import Cell, Check, Section, Table
from benchmarks.simulated import COLUMNS, FLEETS, cells, fleet_checks

QUICK_FLEETS = (Fleet(jobs=60, limit=10, median_s=4.0),)
NOTES = (
    "429s carry no Retry-After, except to comfy-sdk, whose contract promises one (2 s) and which asks once without it.",
    "polls: status requests; the further request with which fal-client and comfy-sdk fetch the result is not counted.",
    "fal-client knows https hosts only: its QUEUE_URL_FORMAT is pointed at the local server.",
)


def _plan(fleets: Sequence[Fleet], seeds: int, peers: Sequence[str]) -> list[Race]:
    races = [Race(client=OURS, fleet=evolve(fleet, seed=seed)) for fleet in fleets for seed in range(1, seeds + 1)]
    races += [Race(client=peer, fleet=fleet, known_limit=fleet.limit) for fleet in fleets for peer in peers]
    small = fleets[0]
    races += [
        Race(client=peer, fleet=small, known_limit=known_limit)
        for known_limit in (3 * small.limit, None)
        for peer in peers
    ]
    return races


async def _run(races: Sequence[Race]) -> list[Finish]:
    finishes: list[Finish] = []
    packed = waves(races)
    for number, wave in enumerate(packed, 1):
        print(f"fleet: wave {number} of {len(packed)}, {len(wave)} clients", flush=True)
        finishes += await run_wave(wave)
    return finishes


def _named(client: str) -> str:
    try:
        return f"{client} {version(client)}"
    except PackageNotFoundError:
        return client


def _side_by_side(fleet: Fleet, finishes: Sequence[Finish], seeds: int) -> Table:
    rows: list[list[Cell]] = []
    for client in CLIENTS:
        known_limit = None if client == OURS else fleet.limit
        found = [finish for finish in finishes if finish.race.of(client, fleet, known_limit)]
        if missing(client) or not found:
            rows.append([client, "not installed", *["-"] * (len(COLUMNS) + 2)])
            continue
        runs = [finish.measured for finish in found if finish.measured is not None]
        if not runs:
            rows.append([_named(client), known_limit, *["did not finish"] * (len(COLUMNS) + 2)])
            continue
        middle = medians(runs)
        rows.append([_named(client), known_limit, *cells(middle), middle.cpu_ms_per_job, middle.peak_mb])
    return Table(
        title=f"{fleet.title}; {OURS}: median of {seeds} seeds, peers: seed 1",
        columns=("client", "known limit", *COLUMNS, "CPU ms / job", "peak MB"),
        rows=rows,
        notes=NOTES,
    )


def _let_loose(fleet: Fleet, finishes: Sequence[Finish]) -> Table:
    """Show who copes with a limit that is unknown or wrong."""
    rows: list[list[Cell]] = []
    for client in CLIENTS:
        for known_limit in (3 * fleet.limit, None):
            found = [finish for finish in finishes if finish.race.of(client, fleet, known_limit)]
            runs = [finish.measured for finish in found if finish.measured is not None]
            if runs:
                others = ", ".join(f"{count} {name}" for name, count in found[0].failures.items())
                well = min(run.ended_well for run in runs)
                rows.append([_named(client), known_limit or "nothing", well, medians(runs).refused, others or "-"])
    return Table(
        title=f"With no limit given, or three times the true one, untuned: {fleet.title}, all submitted at once",
        columns=("client", "known limit", f"ended well of {fleet.jobs}", "429s", "the others"),
        rows=rows,
    )


def _draw(fleet: Fleet, finishes: Sequence[Finish], table: Table, out: Path) -> str:
    points = []
    for client in CLIENTS:
        known_limit = None if client == OURS else fleet.limit
        runs = [finish.measured for finish in finishes if finish.race.of(client, fleet, known_limit)]
        if finished := [run for run in runs if run is not None]:
            middle = medians(finished)
            points.append(Point(name=_named(client), polls=middle.polls_per_job, delay_s=middle.delay_mean_s))
    return draw_fleet(table.title, points, mean_of(fleet.median_s, fleet.sigma), out / f"fleet-{fleet.jobs}.png")


def section(*, seeds: int, quick: bool, out: Path) -> Section:
    """Race them all."""
    fleets = QUICK_FLEETS if quick else FLEETS
    peers = [client for client in CLIENTS if client != OURS and not missing(client)]
    finishes = asyncio.run(_run(_plan(fleets, seeds, peers)))
    tables = [_side_by_side(fleet, finishes, seeds) for fleet in fleets]
    plots = [_draw(fleet, finishes, table, out) for fleet, table in zip(fleets, tables, strict=True)]
    tables.append(_let_loose(fleets[0], finishes))
    if troubles := [f"{finish.race.client}: {finish.trouble}" for finish in finishes if finish.trouble]:
        tables.append(Table(title="Did not finish", columns=("client",), rows=[(trouble,) for trouble in troubles]))
    checks: list[Check] = []
    for fleet in fleets:
        mine = [finish.measured for finish in finishes if finish.race.of(OURS, fleet, None)]
        found = fleet_checks(fleet, [run for run in mine if run is not None], f"{fleet.jobs}/{fleet.limit}")
        checks += found[-1:] if quick else found  # the other targets are for jobs of true length
    return Section(name="fleet", tables=tables, checks=checks, plots=plots)
