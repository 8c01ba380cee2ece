"""Processor time per request: the session over raw aiohttp, which makes the same requests to the same server."""

import asyncio
from statistics import median
from typing import Any

from attrs import asdict, frozen

from benchmarks.children import Child
from benchmarks.measured import Fleet
from benchmarks.report import Check, Section, Table

PATIENCE_S = 300.0
TARGET = 1.15


@frozen(kw_only=True)
class Regime:
    """How many requests are in flight."""

    title: str
    jobs: int
    held: int
    median_s: float


CALM = Regime(title="free capacity", jobs=800, held=160, median_s=2.0)
BUSY = Regime(title="nearly full capacity", jobs=2000, held=500, median_s=2.0)


async def _one(**orders: Any) -> dict[str, Any]:
    async with Child("benchmarks.cpu_child", orders) as child:
        return await child.answer(PATIENCE_S)


async def _pairs(regime: Regime, count: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    fleet = Fleet(jobs=regime.jobs, limit=100 * regime.jobs, median_s=regime.median_s)
    pairs = []
    async with Child("benchmarks.fleet_server", asdict(fleet)) as server:
        url = (await server.answer(PATIENCE_S))["url"]
        for _ in range(count):
            same: dict[str, Any] = {"url": url, "jobs": regime.jobs, "held": regime.held}
            ours = await _one(**same)
            pairs.append((ours, await _one(**same, polls=ours["polls"], paced_s=ours["wall_s"])))
    return pairs


def _measured(regime: Regime, count: int) -> tuple[Table, list[float]]:
    rows, ratios = [], []
    for ours, raw in asyncio.run(_pairs(regime, count)):
        costs = [1e6 * run["cpu_s"] / (run["well"] + run["polls"]) for run in (ours, raw)]
        ratios.append(costs[0] / costs[1])
        rows.append((ours["well"], ours["polls"], ours["wall_s"], raw["wall_s"], *costs, ratios[-1]))
    columns = ("jobs", "polls", "session s", "raw s", "session us / request", "raw us / request", "ratio")
    title = f"Processor time of the whole client, pairs of runs at the same pace, {regime.title}"
    return Table(title=title, columns=columns, rows=rows), ratios


def section(*, quick: bool) -> Section:
    """Measure in turn, session and raw, and compare each pair."""
    table, ratios = _measured(CALM, 3 if quick else 7)
    busy, _ = _measured(BUSY, 2 if quick else 3)
    check = Check(what="CPU per request over raw aiohttp", value=median(ratios), worst=max(ratios), target=TARGET)
    return Section(name="cpu", tables=[table, busy], checks=[check])
