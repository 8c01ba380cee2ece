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


def draw_accounts(table: Table, path: Path) -> str:
    """Draw how much longer than the ideal each client takes on each account that a sliding minute counts, stated."""
    place = {name: table.columns.index(name) for name in ("account", "client", "bound", "makespan / ideal")}
    rows = [row for row in table.rows if str(row[place["account"]]).endswith("; sliding, stated")]
    names = list(dict.fromkeys(str(row[place["account"]]).partition(";")[0] for row in rows))
    clients = list(dict.fromkeys(str(row[place["client"]]) for row in rows))
    figure, (axis,) = canvas(height=0.9 * len(names) + 1.6)
    for number, row in enumerate(rows):
        which, client = divmod(number, len(clients))
        above = 100 * (float(row[place["makespan / ideal"]] or 0) - 1)
        at, color = which + 0.27 * (client - 1), (OURS_COLOR, "#edae49", PEER_COLOR)[client]
        axis.barh(at, above, height=0.25, color=color, label=clients[client] if which == 0 else None)
        axis.annotate(f"{above:.0f} %", (above, at), textcoords="offset points", xytext=(4, 0), va="center", fontsize=8)
        if client == 0 and (bound := row[place["bound"]]) is not None:
            least = 100 * (float(bound) - 1)
            axis.plot([least, least], [which - 0.42, which + 0.42], color="black", linewidth=1.4)
    axis.plot([], [], color="black", linewidth=1.4, label="the least that polls within the budget allow")
    axis.set(yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6), xlabel="time above the ideal, %")
    axis.set_xlim(0, 1.08 * axis.get_xlim()[1])
    axis.set_yticklabels([name.replace(", median", "\nmedian") for name in names], fontsize=8)
    axis.legend(loc="lower right", fontsize=8)
    axis.grid(visible=True, axis="x", alpha=0.2)
    title = (
        "a session without knowledge (cold), on the ledger of an earlier one (warm), and a loop that knows all limits"
    )
    axis.set_title(title, fontsize=9)
    return save(figure, path)


@frozen(kw_only=True)
class Wanted:
    """What polls cost when an end should be seen after so many seconds in the mean."""

    target_s: float | None
    """None: the default."""
    polls: float
    delay_s: float


def draw_polls(title: str, found: Sequence[Wanted], fixed_s: Sequence[float], mean_s: float, path: Path) -> str:
    """Draw polls against delay for several wanted delays, beside fixed intervals."""
    figure, (axis,) = canvas(height=4.6)
    fixed = [(mean_s / interval, interval / 2) for interval in fixed_s]
    axis.plot(*zip(*fixed, strict=True), "s-", color=PEER_COLOR, linewidth=1.2, label="a poll every ... s")
    for interval, at in zip(fixed_s, fixed, strict=True):
        axis.annotate(f"{interval:g} s", at, textcoords="offset points", xytext=(7, 5), color=PEER_COLOR, fontsize=8)
    ours = sorted((each.polls, each.delay_s) for each in found)
    axis.plot(*zip(*ours, strict=True), "o-", color=OURS_COLOR, linewidth=1.2, label="target_delay_s=...")
    for each in found:
        name = "default" if each.target_s is None else f"{each.target_s:g} s"
        at = (each.polls, each.delay_s)
        axis.annotate(name, at, textcoords="offset points", xytext=(-7, -11), ha="right", color=OURS_COLOR, fontsize=8)
    axis.set(xlabel="polls a job", ylabel="mean delay until an end is seen, s", xlim=(0, None))
    axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    axis.legend(loc="upper right", fontsize=8)
    axis.grid(visible=True, alpha=0.2)
    axis.set_title(title, fontsize=9)
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
