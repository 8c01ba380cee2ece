"""The limit moves, goes away, or is a rate: how soon the session notices, and what it costs."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from attrs import evolve, frozen

from benchmarks.ideal import Drawn, bucket_schedule_s, list_schedule_s, mean_of
from benchmarks.pool import side_by_side
from benchmarks.report import Check, Section, Table
from benchmarks.simulating import Trace, simulate
from nanobanana_async.emulator import EmulatorSettings

MEDIAN_S, SIGMA = 20.0, 0.4
MEAN_S = mean_of(MEDIAN_S, SIGMA)
CHANGED_AT_S = 300.0
WATCHED_S = 400.0
AFTERMATH_S = 120.0
OUTAGE_S = 60.0
NEVER_FILLED = 99.0

Numbers = Mapping[str, float]


@frozen(kw_only=True)
class Moving:
    """A limit that another takes the place of; with `back_after_s` it comes back."""

    seed: int
    before: int
    after: int
    back_after_s: float | None = None
    retry_after_s: float | None = None

    @property
    def title(self) -> str:
        """Name the scenario."""
        if self.back_after_s is None:
            return f"{self.before} -> {self.after}"
        stated = "no Retry-After" if self.retry_after_s is None else f"Retry-After: {self.retry_after_s:g}"
        return f"{self.before} -> {self.after} for {self.back_after_s:g} s, {stated}"

    @property
    def schedule(self) -> tuple[tuple[float, int], ...]:
        """Return the times and values of the limit's changes."""
        changed = (CHANGED_AT_S, self.after)
        return (changed,) if self.back_after_s is None else (changed, (CHANGED_AT_S + self.back_after_s, self.before))


@frozen(kw_only=True)
class Rated:
    """A limit on creates per minute."""

    seed: int
    per_minute: int
    burst: int | None
    stated: bool
    jobs: int
    job_limit: int = 1000

    @property
    def title(self) -> str:
        """Name the scenario."""
        kind = "stated" if self.stated else "hidden"
        return f"{self.per_minute}/min, burst {self.burst or self.per_minute}, kind {kind}"


@frozen(kw_only=True)
class Unknown:
    """A constant, unknown limit."""

    seed: int
    limit: int
    jobs: int

    @property
    def title(self) -> str:
        """Name the scenario."""
        return f"limit {self.limit}, {self.jobs} jobs"


def moved(plan: Moving) -> Trace:
    """Run a session that always has work while the limit moves."""
    stated: Literal["absent", "seconds"] = "absent" if plan.retry_after_s is None else "seconds"
    settings = EmulatorSettings(
        seed=plan.seed,
        job_limit=plan.before,
        limit_schedule=plan.schedule,
        retry_after=stated,
        retry_after_s=plan.retry_after_s,
        duration=Drawn(plan.seed, MEDIAN_S, SIGMA),
    )
    workers = 2 * max(plan.before, plan.after)
    return simulate(settings, workers=workers, until_s=CHANGED_AT_S + WATCHED_S, sample_s=1.0)


def _after_moving(plan: Moving) -> Numbers:
    trace = moved(plan)
    back_s = plan.back_after_s or 0.0
    since, level = CHANGED_AT_S + back_s, plan.before if back_s else plan.after
    filled_at = trace.filled_at(since, 0.95 * level)
    return {
        "fill": NEVER_FILLED if filled_at is None else (filled_at - since) / MEAN_S,
        "refused": float(trace.refusals(CHANGED_AT_S, CHANGED_AT_S + AFTERMATH_S)),
        "used": trace.utilisation(since + AFTERMATH_S, CHANGED_AT_S + WATCHED_S, level),
    }


def _after_rated(plan: Rated) -> Numbers:
    settings = EmulatorSettings(
        seed=plan.seed,
        job_limit=plan.job_limit,
        creates_per_minute=plan.per_minute,
        rate_burst=plan.burst,
        states_429_kind=plan.stated,
        duration=Drawn(plan.seed, MEDIAN_S, SIGMA),
    )
    trace = simulate(settings, jobs=plan.jobs)
    durations = Drawn(plan.seed, MEDIAN_S, SIGMA).take(plan.jobs)
    ideal_s = bucket_schedule_s(durations, plan.job_limit, plan.per_minute, plan.burst or plan.per_minute)
    return {"ratio": trace.ended_at / ideal_s, "refused": len(trace.refused_at) / plan.jobs}


def _after_unknown(plan: Unknown) -> Numbers:
    settings = EmulatorSettings(seed=plan.seed, job_limit=plan.limit, duration=Drawn(plan.seed, MEDIAN_S, SIGMA))
    trace = simulate(settings, jobs=plan.jobs, workers=2 * plan.limit)
    ideal_s = list_schedule_s(Drawn(plan.seed, MEDIAN_S, SIGMA).take(plan.jobs), plan.limit)
    return {
        "ratio": trace.ended_at / ideal_s,
        "refused": len(trace.refused_at) / plan.jobs,
        "per_limit": len(trace.refused_at) / plan.limit,
    }


def _outcome(plan: Moving | Rated | Unknown) -> Numbers:
    match plan:
        case Moving():
            return _after_moving(plan)
        case Rated():
            return _after_rated(plan)
        case Unknown():
            return _after_unknown(plan)


def _plans(quick: bool) -> list[Moving | Rated | Unknown]:
    first = 1
    plans: list[Moving | Rated | Unknown] = [
        Unknown(seed=first, limit=limit, jobs=(15 if quick else 40) * limit) for limit in (5, 20, 100)
    ]
    doubled = (10, 20, 50) if quick else (10, 20, 50, 100)
    plans += [Moving(seed=first, before=limit, after=2 * limit) for limit in doubled]
    plans += [Moving(seed=first, before=limit, after=limit // 2) for limit in (20, 100)]
    plans += [
        Moving(seed=first, before=20, after=0, back_after_s=OUTAGE_S, retry_after_s=said_s) for said_s in (None, 5.0)
    ]
    plans += [
        Rated(seed=first, per_minute=rate, burst=burst, stated=stated, jobs=6 * rate)
        for rate in (120, 600)
        for burst in (None, 10)
        for stated in (True, False)
    ]
    return plans


def _row(plan: Moving | Rated | Unknown, runs: Sequence[Numbers]) -> list[str | float | None]:
    row: list[str | float | None] = [plan.title]
    for name in runs[0]:
        values = [run[name] for run in runs]
        worst = min(values) if name == "used" else max(values)
        row += [median(values), worst]
    return row


def _checks(plan: Moving | Rated | Unknown, runs: Sequence[Numbers]) -> list[Check]:
    def check(what: str, name: str, target: float) -> Check:
        values = [run[name] for run in runs]
        return Check(what=what, value=median(values), worst=max(values), target=target)

    match plan:
        case Moving(back_after_s=None, before=before, after=after) if after > before:
            wanted = 2.0 if before >= 50 else 4.0
            return [check(f"doubled {before} -> {after}: mean durations to fill 95 %", "fill", wanted)]
        case Moving(back_after_s=None, before=before, after=after):
            wanted = 25.0 if before >= 100 else 8.0
            return [check(f"halved {before} -> {after}: refusals in 120 s", "refused", wanted)]
        case Rated(stated=stated):
            return [
                check(f"{plan.title}: makespan / ideal", "ratio", 1.10 if stated else 1.20),
                check(f"{plan.title}: refusals per job", "refused", 0.03),
            ]
        case _:
            return []


_COLUMNS: Mapping[type, tuple[str, tuple[str, ...]]] = {
    Unknown: ("unknown", ("makespan / ideal", "worst", "429 / job", "worst", "429 / limit", "worst")),
    Moving: ("moved at 300 s", ("means to 95 %", "worst", "429 in 120 s", "worst", "in use after 120 s", "worst")),
    Rated: ("bound by a rate", ("makespan / ideal", "worst", "429 / job", "worst")),
}


def section(*, seeds: int, quick: bool) -> Section:
    """Run every scenario with each seed."""
    plans = _plans(quick)
    spread = [evolve(plan, seed=seed) for plan in plans for seed in range(1, seeds + 1)]
    outcomes = side_by_side(_outcome, spread)
    runs = {plan: outcomes[number * seeds : (number + 1) * seeds] for number, plan in enumerate(plans)}
    tables = [
        Table(
            title=f"The limit is {title}: median and worst of {seeds} seeds, LN({MEDIAN_S:g} s, {SIGMA:g})",
            columns=("scenario", *columns),
            rows=[_row(plan, runs[plan]) for plan in plans if isinstance(plan, kind)],
        )
        for kind, (title, columns) in _COLUMNS.items()
    ]
    checks = [check for plan in plans for check in _checks(plan, runs[plan])]
    return Section(name="limit", tables=tables, checks=checks)
