"""Draw what polls cost on the virtual clock: `python -m benchmarks.plot_polls` writes a PNG.

Each point is a run with another wanted delay, beside fixed intervals: a poll every h seconds sees an end h/2 late in
the mean, and needs the mean duration / h polls a job.
"""

import argparse
from pathlib import Path

from benchmarks.ideal import Drawn, mean_of
from benchmarks.measured import Fleet
from benchmarks.plots import Wanted, draw_polls
from benchmarks.pool import side_by_side
from benchmarks.simulating import simulate
from nanobanana_async import PollPolicy
from nanobanana_async.emulator import EmulatorSettings

FLEET = Fleet(jobs=600, limit=60)
TARGETS_S = (0.3, None, 0.75, 1.0, 1.5, 2.0)
FIXED_S = (1.0, 1.5, 2.0, 3.0, 4.0)


def measure(target_s: float | None) -> Wanted:
    """Run the fleet with a wanted delay."""
    drawn = Drawn(FLEET.seed, FLEET.median_s, FLEET.sigma)
    settings = EmulatorSettings(seed=FLEET.seed, job_limit=FLEET.limit, duration=drawn)
    stats = simulate(settings, jobs=FLEET.jobs, polling=PollPolicy(target_delay_s=target_s)).stats
    return Wanted(target_s=target_s, polls=stats.polls_per_job_mean, delay_s=stats.notice_delay_mean_s)


def main() -> None:
    """Run the fleet with each wanted delay, and draw them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_polls", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/polls.png"))
    asked = parser.parse_args()
    found = side_by_side(measure, TARGETS_S)
    mean_s = mean_of(FLEET.median_s, FLEET.sigma)
    print(draw_polls(f"{FLEET.title}: lower left is better", found, FIXED_S, mean_s, asked.out))


if __name__ == "__main__":
    main()
