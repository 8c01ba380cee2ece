"""Charts of the results."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib.pyplot as plt
from attrs import frozen

from benchmarks.report import Table

OURS_COLOR, PEER_COLOR = "#d1495b", "#30638e"


def canvas(rows: int = 1, height: float = 5.0) -> tuple[Any, list[Any]]:
    """Return a figure, and its axes from top to bottom."""
    figure, axes = plt.subplots(rows, 1, figsize=(9, height), sharex=rows > 1, squeeze=False)
    return cast(Any, figure), [axis[0] for axis in cast(Any, axes)]


def save(figure: Any, path: Path) -> str:
    """Write a figure; return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return str(path)


@frozen(kw_only=True)
class Point:
    """What a client's polls bought."""

    name: str
    polls: float
    delay_s: float


def draw_fleet(title: str, points: Sequence[Point], mean_s: float, path: Path) -> str:
    """Draw polls against delay, ours first; on the grey line all fixed intervals cost the same."""
    figure, (axis,) = canvas()
    for number, point in enumerate(points):
        color = PEER_COLOR if number else OURS_COLOR
        axis.plot(point.polls, point.delay_s, "o", color=color, markersize=9)
        place = (point.polls, point.delay_s)
        axis.annotate(point.name, place, textcoords="offset points", xytext=(8, 4), color=color)
    ends = [0.5 * min(point.polls for point in points), 2 * max(point.polls for point in points)]
    axis.plot(ends, [mean_s / 2 / end for end in ends], color="grey", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="status requests per job", ylabel="mean delay until a job is seen, s")
    axis.set_title(f"{title}\nlower left is better; the line is what any fixed interval costs", fontsize=9)
    axis.grid(visible=True, which="both", alpha=0.2)
    return save(figure, path)


def draw_growth(table: Table, path: Path) -> str:
    """Draw what a job costs against how many there are."""
    figure, (axis,) = canvas(height=4.0)
    sizes = [int(str(row[0]).split()[0].replace(",", "")) for row in table.rows]
    costs = [row[table.columns.index("CPU us / job")] for row in table.rows]
    memory = [row[table.columns.index("peak MB")] for row in table.rows]
    axis.plot(sizes, costs, "o-", color=OURS_COLOR, label="CPU us per job")
    axis.set(xscale="log", ylim=(0, None), xlabel="jobs in the batch", ylabel="CPU us per job")
    other = axis.twinx()
    other.plot(sizes, memory, "s--", color=PEER_COLOR, label="peak MB")
    other.set(ylim=(0, None), ylabel="peak memory of the process, MB")
    axis.legend(loc="lower left")
    other.legend(loc="lower right")
    axis.set_title(table.title, fontsize=9)
    return save(figure, path)
