"""Batches: memory that does not grow with the input, what a row costs, and what running a batch again costs."""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.children import Child
from benchmarks.report import Cell, Check, Section, Table

PATIENCE_S = 1800.0
FEW = 1000
ALLOWED_MB = 15.0

# 100 slots and jobs of about 20 s give five outcomes a second: this one takes four.
SLOW_S = 0.25

Run = dict[str, Any]


async def _one(**orders: Any) -> Run:
    async with Child("benchmarks.batch_child", orders) as child:
        return await child.answer(PATIENCE_S)


async def _pair(many: int, **orders: Any) -> tuple[Run, Run]:
    return await _one(rows=FEW, **orders), await _one(rows=many, **orders)


async def _named(many: int, folder: Path) -> tuple[Run, Run, Run]:
    few = await _one(rows=FEW, path=str(folder / "few.sqlite"))
    path = str(folder / "many.sqlite")
    return few, await _one(rows=many, path=path), await _one(rows=many, path=path)


def _row(name: str, run: Run, few: Run) -> tuple[Cell, ...]:
    rows = run["rows"]
    return (
        f"{name}, {rows:,}",
        run["peak_mb"],
        run["peak_mb"] - few["peak_mb"],
        rows / run["wall_s"],
        1e6 * run["cpu_s"] / rows,
        run["creates"],
    )


def _table(pairs: Mapping[str, Sequence[Run]]) -> Table:
    rows = [_row(name, run, runs[0]) for name, runs in pairs.items() for run in runs]
    return Table(
        title="Batches: 100 slots, a stateless gateway in the same process",
        columns=("batch", "peak MB", "above few", "rows / s", "CPU us / row", "creates"),
        rows=rows,
        notes=("Named batches run in real time on a file, the others on the virtual clock.",),
    )


async def _measure(many: int, folder: Path) -> Section:
    few, named, again = await _named(many, folder)
    pairs: dict[str, Sequence[Run]] = {
        "unnamed": await _pair(many),
        "ordered": await _pair(many, ordered=True),
        f"a consumer who sleeps {SLOW_S} s": await _pair(many, sleep_s=SLOW_S),
        "named": (few, named),
        "named, run again": (few, again),
    }
    checks = [
        Check(what=f"{name}: MB above {FEW:,} rows", value=runs[1]["peak_mb"] - runs[0]["peak_mb"], target=ALLOWED_MB)
        for name, runs in pairs.items()
    ]
    sleeper = pairs[f"a consumer who sleeps {SLOW_S} s"][1]
    checks += [
        Check(
            what="time of a consumer that is slower than the jobs",
            value=sleeper["took_s"] / (many * SLOW_S),
            target=1.05,
        ),
        Check(what="ordered over unordered time", value=_time(pairs["ordered"]) / _time(pairs["unnamed"]), target=1.25),
        Check(what="creates of a batch that is run again", value=again["creates"], target=0),
        Check(
            what="rows that ended well, of all",
            value=min(run["well"] / run["rows"] for runs in pairs.values() for run in runs),
            target=1.0,
            at_least=True,
        ),
    ]
    return Section(name="batch", tables=[_table(pairs)], checks=checks)


def _time(runs: Sequence[Run]) -> float:
    return float(runs[1]["took_s"])


def section(*, quick: bool) -> Section:
    """Measure a few rows and very many; TMPDIR names the disk of the named ones."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(10_000 if quick else 100_000, Path(folder)))
