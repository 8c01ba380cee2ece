"""Both gateways with callbacks, in real time over loopback: polls, delay and makespan; also when some are lost.

defapi calls a URL of each job; API Mall calls one webhook of the account, which the session registers as it opens.

Emulator, application and session share one process, and each case runs in a process of its own.
"""

import asyncio
import logging
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from aiohttp import web
from attrs import asdict, frozen

from benchmarks.children import Child, orders, reply
from benchmarks.ideal import Drawn, list_schedule_s
from benchmarks.report import Cell, Check, Section, Table
from nanobanana_async import ApiMall, ConcurrencyPolicy, DefApi, JobState, Session, SqliteLedger
from nanobanana_async.emulator import API_KEY, Emulator, RandomFault, faults
from nanobanana_async.webhooks import CallbackReceiver

LIMIT = 20
SIGMA = 0.4
RESOLVED_WITHIN_S = 90.0
PATIENCE_S = 900.0

Run = dict[str, Any]
GatewayName = Literal["defapi", "apimall"]
GATEWAYS: Mapping[GatewayName, type[DefApi] | type[ApiMall]] = {"defapi": DefApi, "apimall": ApiMall}


@frozen(kw_only=True)
class Case:
    """One run: the number of jobs, and the faults."""

    gateway: GatewayName = "defapi"
    seed: int = 1
    jobs: int = 200
    median_s: float = 10.0
    dropped: float = 0.0
    doubled: float = 0.0
    lost: float = 0.0
    """The share of create answers that never arrive; the jobs run and are charged."""
    max_jobs: int | None = None
    """The limit, if the session knows it."""


def _emulator(case: Case) -> Emulator:
    lost = [RandomFault(case.lost, faults.reset(processed=True), "defapi.create")] if case.lost else []
    return Emulator(
        seed=case.seed,
        job_limit=LIMIT,
        duration=Drawn(case.seed, case.median_s, SIGMA),
        image_scale=0.05,
        callback_drop_probability=case.dropped,
        callback_duplicate_probability=case.doubled,
        random_faults=lost,
    )


async def _run(case: Case) -> Run:
    """Buy all jobs at once, and wait until none is uncertain."""
    clock = asyncio.get_running_loop().time
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        path = Path(folder) / "jobs.sqlite"
        async with _emulator(case) as emulator:
            # Not `emulator.defapi()` or `.apimall()`: it draws durations, and each duration is drawn only once.
            gateway = GATEWAYS[case.gateway](api_key=API_KEY, base_url=emulator.url)
            session = Session(gateway, ledger=path, concurrency=ConcurrencyPolicy(max_jobs=case.max_jobs or None))
            receiver = CallbackReceiver(session, public_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
            app = web.Application()
            app.add_routes(receiver.aiohttp_routes())
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
            await runner.setup()
            await web.SockSite(runner, listener).start()
            async with session:
                begun = clock()
                async with session.generate_many(f"image {number}" for number in range(case.jobs)) as outcomes:
                    well = sum([outcome.ok async for outcome in outcomes])
                doubtful = case.jobs - well
                patience = clock() + RESOLVED_WITHIN_S
                while (stats := session.stats()).uncertain + stats.slots_held and clock() < patience:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                took_s = clock() - begun
            await runner.cleanup()
            counted = emulator.stats()
        states = await _written(path)
    return {
        "took_s": took_s,
        "ideal_s": list_schedule_s(Drawn(case.seed, case.median_s, SIGMA).take(case.jobs), LIMIT),
        "well": states.get(JobState.SUCCEEDED.value, 0),
        "uncertain": states.get(JobState.UNCERTAIN.value, 0),
        "doubtful": doubtful,
        "charged": counted.creates_accepted,
        "double": counted.double_charges,
        "queries": counted.polls_per_job_mean,
        "most_queries": counted.polls_per_job_max,
        "delay_s": counted.notice_delay_mean_s,
        "delay_p99_s": counted.notice_delay_p99_s,
        "refused": counted.refusals_429.get("jobs", 0),
        "lost": counted.lost_creates,
        "calls": counted.callbacks_sent,
    }


async def _written(path: Path) -> dict[str, int]:
    ledger = SqliteLedger(path, read_only=True)
    await ledger.open()
    try:
        return {state.value: count for state, count in (await ledger.count_by_state()).items()}
    finally:
        await ledger.aclose()


async def _all(cases: Sequence[Case]) -> list[Run]:
    """Run the cases of a wave side by side."""

    async def one(case: Case) -> Run:
        async with Child("benchmarks.callbacks", asdict(case)) as child:
            return await child.answer(PATIENCE_S)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(case)) for case in cases]
    return [task.result() for task in tasks]


def _row(name: str, runs: Sequence[Run]) -> tuple[Cell, ...]:
    middle = {key: median(run[key] for run in runs) for key in runs[0]}
    return (
        name,
        middle["well"],
        middle["charged"],
        sum(run["double"] for run in runs),
        sum(run["uncertain"] for run in runs),
        middle["queries"],
        max(run["most_queries"] for run in runs),
        middle["delay_s"],
        middle["delay_p99_s"],
        median(run["took_s"] / run["ideal_s"] for run in runs),
        middle["refused"],
        middle["doubtful"],
        middle["calls"],
    )


COLUMNS = (
    "callbacks",
    "well",
    "charged",
    "double",
    "uncertain",
    "queries / job",
    "most",
    "delay s",
    "p99 s",
    "makespan / ideal",
    "429s",
    "doubtful",
    "calls",
)
ALL_COME = "all come"
WEBHOOK = "API Mall's webhook, all come"
WEBHOOK_SOME = "API Mall's webhook, 1/3 dropped, 1/3 doubled"
KNOWN_LIMIT = "all come, limit known"
SOME = "1/3 dropped, 1/3 doubled"
LOST = "20 % of create answers lost, limit known"
LOST_UNTOLD = "20 % of create answers lost, 429s among them"


def _checks(runs: Mapping[str, Sequence[Run]]) -> list[Check]:
    def check(what: str, values: Sequence[float], target: float, *, at_least: bool = False) -> Check:
        worst = min(values) if at_least else max(values)
        return Check(what=what, value=median(values), target=target, at_least=at_least, worst=worst)

    def all_come(name: str) -> list[Check]:
        ratios = [run["took_s"] / run["ideal_s"] for run in runs[name]]
        return [
            check(f"{name}: queries / job", [run["queries"] for run in runs[name]], 1.2),
            check(f"{name}: mean delay s", [run["delay_s"] for run in runs[name]], 0.05),
            check(f"{name}: makespan / ideal", ratios, 1.03),
        ]

    some, lost, webhook = runs[SOME], runs[LOST], runs[WEBHOOK_SOME]
    return [
        *all_come(ALL_COME),
        *all_come(WEBHOOK),
        check(
            f"{WEBHOOK_SOME}: share that ended well", [r["well"] / r["charged"] for r in webhook], 1.0, at_least=True
        ),
        check(f"{WEBHOOK_SOME}: double charges", [run["double"] for run in webhook], 0),
        check(f"{SOME}: share that ended well", [run["well"] / run["charged"] for run in some], 1.0, at_least=True),
        check(f"{SOME}: double charges", [run["double"] for run in some], 0),
        check(f"{LOST}: share that ended well", [run["well"] / run["charged"] for run in lost], 1.0, at_least=True),
        check(f"{LOST}: double charges", [run["double"] for run in lost], 0),
        check(f"{LOST}: left UNCERTAIN", [run["uncertain"] for run in lost], 0),
        check(f"{LOST}: create answers lost", [run["lost"] for run in lost], 1, at_least=True),
    ]


async def _measure(seeds: int, jobs: int, median_s: float) -> Section:
    kinds: Mapping[str, Mapping[str, Any]] = {
        ALL_COME: {},
        WEBHOOK: {"gateway": "apimall"},
        WEBHOOK_SOME: {"gateway": "apimall", "dropped": 1 / 3, "doubled": 1 / 3},
        KNOWN_LIMIT: {"max_jobs": LIMIT},
        SOME: {"dropped": 1 / 3, "doubled": 1 / 3},
        LOST: {"lost": 0.2, "max_jobs": LIMIT},
        LOST_UNTOLD: {"lost": 0.2},
    }
    runs: dict[str, list[Run]] = {}
    for name, trouble in kinds.items():
        print(f"callbacks: {name}", flush=True)
        cases = [Case(seed=seed, jobs=jobs, median_s=median_s, **trouble) for seed in range(1, seeds + 1)]
        runs[name] = await _all(cases)
    table = Table(
        title=f"Callbacks (of defapi, if no gateway is named): {jobs} jobs, limit {LIMIT}, LN({median_s:g} s, {SIGMA})",
        columns=COLUMNS,
        rows=[_row(name, found) for name, found in runs.items()],
        notes=(
            f"Medians of {seeds} seeds, ledger on disk; double and uncertain are sums.",
            "The ideal knows the limit and sees each end.",
            "A lost 429 leaves an uncertain job that was never bought: no callback comes, a person must resolve it.",
        ),
    )
    return Section(name="callbacks", tables=[table], checks=_checks(runs))


def section(*, seeds: int, quick: bool) -> Section:
    """Measure in real time: about two minutes for each kind of trouble, or less with short jobs."""
    return asyncio.run(_measure(seeds, jobs=100 if quick else 200, median_s=2.0 if quick else 10.0))


if __name__ == "__main__":
    logging.getLogger("nanobanana_async").setLevel(logging.ERROR)  # uncertain jobs are expected here
    reply(asyncio.run(_run(Case(**orders()))))
