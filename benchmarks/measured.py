"""What one fleet of jobs cost, in numbers that mean the same on any machine."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from attrs import asdict, frozen

from nanobanana_async.emulator import EmulatorStats

RAMP_S = 2.0
ROUND_S = 1.0
PROBE_EVERY_MEANS = 3.0


def utilisation(jobs: Iterable[tuple[float, float]], begin: float, end: float, limit: int) -> float:
    """Return the share of the slots that was in use in a stretch of time; each job has a begin and an end."""
    used = sum(max(0.0, min(end, ended) - max(begin, began)) for began, ended in jobs)
    return used / (limit * (end - begin))


def jain(shares: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 for equal shares, 1 / n if one of n has all (Jain, Chiu and Hawe 1984)."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


@frozen(kw_only=True)
class Fleet:
    """So many jobs under a limit unknown to the client; `scale` divides all durations."""

    jobs: int
    limit: int
    seed: int = 1
    median_s: float = 10.0
    sigma: float = 0.4

    @property
    def title(self) -> str:
        """Name it in a table."""
        return f"{self.jobs} jobs, limit {self.limit}, LN({self.median_s:g} s, {self.sigma:g})"


@frozen(kw_only=True)
class Served:
    """What the server of a fleet counted."""

    polls: int
    accepted: int
    delay_mean_s: float
    delay_p99_s: float
    refused_at: tuple[float, ...]
    """Seconds from the first create to each 429."""

    @classmethod
    def of(cls, stats: EmulatorStats, first_at: float, refused_at: Sequence[float]) -> "Served":
        """Read it out of an emulator's counts."""
        return cls(
            polls=stats.polls,
            accepted=stats.creates_accepted,
            delay_mean_s=stats.notice_delay_mean_s,
            delay_p99_s=stats.notice_delay_p99_s,
            refused_at=tuple(at - first_at for at in refused_at),
        )


@frozen(kw_only=True)
class Measured:
    """One client with one fleet."""

    jobs: int
    ended_well: int
    makespan_ratio: float
    polls_per_job: float
    delay_mean_s: float
    delay_p99_s: float
    poll_delay_product: float
    """Polls per job x mean delay / mean duration; any fixed interval pays 0.5."""
    refused_in_ramp: int
    refused_after: int
    probes: int
    """How many probes by the clock the run had time for."""
    cpu_ms_per_job: float | None = None
    peak_mb: float | None = None

    @classmethod
    def of(
        cls,
        served: Served,
        *,
        durations: Sequence[float],
        ended_well: int,
        makespan_s: float,
        ideal_s: float,
        cpu_s: float | None = None,
        peak_mb: float | None = None,
    ) -> "Measured":
        """Work it out; durations are those of the jobs in the order of acceptance."""
        mean_s = sum(durations) / len(durations)
        polls = served.polls / max(1, served.accepted)
        # The ramp is over when the round that met the first refusal is.
        ramp_s = max(RAMP_S, served.refused_at[0] + ROUND_S) if served.refused_at else RAMP_S
        ramp = sum(at <= ramp_s for at in served.refused_at)
        return cls(
            jobs=len(durations),
            ended_well=ended_well,
            makespan_ratio=makespan_s / ideal_s,
            polls_per_job=polls,
            delay_mean_s=served.delay_mean_s,
            delay_p99_s=served.delay_p99_s,
            poll_delay_product=polls * served.delay_mean_s / mean_s,
            refused_in_ramp=ramp,
            refused_after=len(served.refused_at) - ramp,
            probes=math.ceil(makespan_s / (PROBE_EVERY_MEANS * mean_s)),
            cpu_ms_per_job=None if cpu_s is None else 1000 * cpu_s / len(durations),
            peak_mb=peak_mb,
        )

    @property
    def refused(self) -> int:
        """All 429s to creates."""
        return self.refused_in_ramp + self.refused_after

    @property
    def allowed_after(self) -> float:
        """Refusals after the ramp that the target allows."""
        return 0.015 * self.jobs + self.probes


def medians(runs: Sequence[Measured]) -> Measured:
    """Return the run whose every number is the median over the runs."""
    rows: list[Mapping[str, Any]] = [asdict(run) for run in runs]
    whole = {"jobs", "ended_well", "refused_in_ramp", "refused_after", "probes"}
    middle: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        value = median(values) if values else None
        middle[name] = math.ceil(value) if value is not None and name in whole else value
    return Measured(**middle)
