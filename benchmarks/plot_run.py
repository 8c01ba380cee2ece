"""Draw one run on the virtual clock: `python -m benchmarks.plot_run` writes a PNG.

Above: jobs held on the server against the true limit, what the session believed, its refusals. Below: how long each
job's end went unseen.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.limit import Moving, moved
from benchmarks.plots import canvas, save
from benchmarks.simulating import Trace

Schedule = Sequence[tuple[float, int]]

LATEST = 40


def _held(trace: Trace) -> tuple[list[float], list[int]]:
    """Return the steps of how many jobs ran on the server."""
    changes = sorted([(job.created_at, 1) for job in trace.jobs] + [(job.ends_at, -1) for job in trace.jobs])
    moments, levels, level = [0.0], [0], 0
    for at, change in changes:
        if at > trace.ended_at:
            break
        level += change
        moments.append(at)
        levels.append(level)
    return moments, levels


def _rolling(values: Sequence[float]) -> list[float]:
    """Return the mean of the latest values at each place."""
    return [sum(part) / len(part) for end in range(1, len(values) + 1) if (part := values[max(0, end - LATEST) : end])]


def draw_run(trace: Trace, schedule: Schedule, title: str, path: Path) -> str:
    """Draw a run; the schedule is that of the true limit, its first moment 0."""
    figure, (slots, delays) = canvas(rows=2, height=7.0)
    moments, levels = _held(trace)
    slots.step(moments, levels, where="post", color="#30638e", linewidth=0.9, label="running on the server")
    times = [at for at, _ in schedule] + [trace.ended_at]
    limits = [limit for _, limit in schedule]
    slots.step(times, [*limits, limits[-1]], where="post", color="black", linewidth=1.4, label="true limit")
    samples = trace.samples
    believed = [math.nan if sample.cap is None else sample.cap for sample in samples]
    slots.plot([sample.at for sample in samples], believed, color="#d1495b", linewidth=1.0, label="learned cap")
    slots.plot(trace.refused_at, [0] * len(trace.refused_at), "|", color="#d1495b", markersize=14, label="429")
    stats = trace.stats
    refused = f"{len(trace.refused_at)} refusals of {stats.creates_accepted + len(trace.refused_at)} creates"
    slots.set(ylabel="jobs", title=f"{title}: {refused}, {stats.polls_per_job_mean:.1f} polls per job")
    slots.legend(loc="lower right", bbox_to_anchor=(1.0, 0.12), fontsize=8, ncols=4)
    seen = sorted((job.ends_at, job.first_seen_done_at) for job in trace.jobs if job.first_seen_done_at is not None)
    ends, waits = [end for end, _ in seen], [at - end for end, at in seen]
    delays.plot(ends, waits, ".", color="#30638e", markersize=3, alpha=0.4, label="one job")
    delays.plot(ends, _rolling(waits), color="#d1495b", linewidth=1.2, label=f"mean of the last {LATEST}")
    delays.set(xlabel="seconds", ylabel="end until seen, s", ylim=(0, None))
    delays.legend(loc="upper right", fontsize=8)
    for axis in (slots, delays):
        axis.grid(visible=True, alpha=0.2)
    return save(figure, path)


def draw_moving(plan: Moving, path: Path) -> str:
    """Run a scenario in which the limit moves, and draw it."""
    schedule = [(0.0, plan.before), *plan.schedule]
    return draw_run(moved(plan), schedule, f"limit {plan.title}", path)


def main() -> None:
    """Draw a run as asked for on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_run", description=main.__doc__)
    parser.add_argument("--before", type=int, default=50, help="the limit at the start")
    parser.add_argument("--after", type=int, default=25, help="the limit from 300 s on")
    parser.add_argument("--back-after", type=float, help="seconds until the first limit is back")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/run.png"))
    asked = parser.parse_args()
    plan = Moving(seed=asked.seed, before=asked.before, after=asked.after, back_after_s=asked.back_after)
    print(draw_moving(plan, asked.out))


if __name__ == "__main__":
    main()
