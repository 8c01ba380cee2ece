"""Several hosts, each a process, on one account and one PostgreSQL ledger, under faults; about half an hour.

The server is started here, on loopback, from the programs that the machine has.
"""

import asyncio
from collections.abc import Sequence

from attrs import evolve

from benchmarks.hosts_run import SHORT_LEASE, Plan, Result, run
from benchmarks.report import Check, Section, Table
from tests.support.postgres import running_server, why_no_server

EIGHT = Plan(title="8 hosts, limit 50, jobs of 10 s")
KILLED = evolve(EIGHT, title="the same, a host killed every 10 s", fault="kill", every_s=10.0)
ARRIVING = evolve(EIGHT, title="the same, hosts 10 s apart", arrival_s=10.0)
SHORT = Plan(title="", hosts=5, limit=20, jobs=1500, median_s=0.8, lease=SHORT_LEASE)
SMALL = Plan(title="4 hosts, 5 jobs, 60 requests a minute", hosts=4, limit=5, per_minute=60, jobs=60, median_s=30.0)
PLANS: Sequence[Plan] = (
    EIGHT,
    ARRIVING,
    KILLED,
    *(
        evolve(SHORT, title=f"{gateway}: a kill every 0.7 s", gateway=gateway, fault="kill", every_s=0.7, times=150)
        for gateway in ("apimall", "defapi")
    ),
    *(
        evolve(SHORT, title=f"{gateway}: stopped for 8 s", gateway=gateway, fault="stop", lasts_s=8.0, every_s=1.0)
        for gateway in ("apimall", "defapi")
    ),
    evolve(EIGHT, title="one host cut off for 20 s", fault="partition", jobs=400, every_s=20.0, lasts_s=20.0, times=1),
    evolve(EIGHT, title="PostgreSQL restarted 5 times", fault="crash", jobs=600, every_s=15.0, lasts_s=1.0, times=5),
    evolve(EIGHT, title="connections broken 10 times", fault="cut", jobs=600, every_s=7.0, times=10),
    evolve(EIGHT, title="PostgreSQL away for 30 s", fault="outage", jobs=600, every_s=30.0, lasts_s=30.0, times=1),
    evolve(
        SHORT,
        title="a cap of 40,000 credits, a kill every 0.7 s",
        hosts=8,
        limit=300,
        jobs=5200,
        max_credits=40_000,
        fault="kill",
        every_s=0.7,
        times=45,
    ),
    SMALL,
    evolve(SMALL, title="1 host, 5 jobs, 60 requests a minute", hosts=1),
)
QUICK: Sequence[Plan] = (
    evolve(EIGHT, title="4 hosts, limit 12, jobs of 2 s", hosts=4, limit=12, jobs=150, median_s=2.0),
    evolve(SHORT, title="the same of 0.8 s, a kill every 2 s", hosts=4, limit=12, jobs=200, fault="kill", every_s=2.0),
)
COLUMNS = (
    *("run", "filled", "most in flight", "429s per 100", "refused %", "Jain", "faults", "burials"),
    *("twice", "lost", "in doubt", "95 % again after s", "makespan s"),
)


def _row(result: Result) -> Sequence[str | float | int]:
    return (
        *(result.plan.title, result.filled, result.in_flight_max, result.refused_per_100, 100 * result.refused_share),
        *(result.jain, result.faults, result.burials, result.twice, result.lost, result.uncertain),
        *(result.back_s, result.makespan_s),
    )


def _checks(result: Result) -> list[Check]:
    title, plan = result.plan.title, result.plan
    checks = [
        Check(what=f"{title}: bought twice", value=result.twice, target=0),
        Check(what=f"{title}: lost", value=result.lost, target=0),
        Check(what=f"{title}: most in flight", value=result.in_flight_max, target=plan.limit),
    ]
    if plan.fault in ("none", "kill") and plan.per_minute is None and plan.limit == EIGHT.limit:
        filled = 0.95 if plan.fault == "none" else 0.93
        checks.append(Check(what=f"{title}: slots filled", value=result.filled, target=filled, at_least=True))
    if plan.fault == "none" and plan.per_minute is None:
        checks.append(Check(what=f"{title}: 429s per 100 jobs", value=result.refused_per_100, target=3.0))
        checks.append(Check(what=f"{title}: fairness (Jain)", value=result.jain, target=0.98, at_least=True))
    if plan.per_minute is not None:
        checks.append(Check(what=f"{title}: refused", value=result.refused_share, target=0.04))
    if plan.max_credits is not None:
        spent = 8.0 * result.bought
        checks.append(Check(what=f"{title}: credits spent", value=spent, target=plan.max_credits))
        checks.append(Check(what=f"{title}: of the cap", value=spent, target=plan.max_credits, at_least=True))
    if plan.fault in ("crash", "cut", "outage"):
        checks.append(Check(what=f"{title}: burials by the outage", value=result.burials, target=0))
        checks.append(Check(what=f"{title}: 95 % filled again after s", value=result.back_s, target=10.0))
    return checks


def section(*, quick: bool, only: str | None = None) -> Section:
    """Run all plans, one after another, each on a schema of its own."""
    if (reason := why_no_server()) is not None:
        return Section(name="hosts", tables=[Table(title="Hosts", columns=("",), rows=[(f"not run: {reason}",)])])
    plans = [plan for plan in (QUICK if quick else PLANS) if only is None or only in plan.title]
    results = []
    with running_server() as server:
        for plan in plans:
            print(f"hosts: {plan.title}", flush=True)
            results.append(asyncio.run(run(plan, server)))
            print(
                "  "
                + ", ".join(
                    f"{name} {cell:.4g}" if isinstance(cell, float) else f"{name} {cell}"
                    for name, cell in zip(COLUMNS[1:], _row(results[-1])[1:], strict=True)
                ),
                flush=True,
            )
            for error in sorted(set(results[-1].errors))[:5]:
                print(f"  {error}", flush=True)
    table = Table(title="Hosts on one account", columns=COLUMNS, rows=[_row(result) for result in results])
    return Section(name="hosts", tables=[table], checks=[check for result in results for check in _checks(result)])
