"""Kill real processes while they buy, and count charges: `python -m tests.durability --kills 200`.

With `--processes 4 --rows 400` four processes buy one batch on one ledger, and one of them is killed on the way. The
exit code is 1 when a promise was broken. With `--control` jobs in doubt are bought again on defapi, as a user may
choose: then the count must find second purchases. With `--postgres` the ledger is on a server.
`python -m tests.durability stops --seeds 20` stops hosts for longer than their leases on PostgreSQL.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from nanobanana_async.emulator.settings import Idempotency
from tests.durability import stops
from tests.durability.emulator_process import AccountSettings, opened
from tests.durability.killing import Toll, finish, kill_again_and_again, plans
from tests.durability.sharing import share
from tests.durability.verdict import Verdict, judged
from tests.durability.worker import STEPS, GatewayName, Orders, Results
from tests.support.postgres import Server, running_server


def killed(
    gateway: GatewayName,
    kills: int,
    seed: int,
    folder: Path,
    *,
    manner: Idempotency,
    control: bool,
    server: Server | None = None,
) -> dict[str, Any]:
    """Run the kill loop against one gateway; return its figures."""
    began_at = time.perf_counter()
    toll, rng = Toll(), random.Random(f"{gateway} {seed}")
    with opened(AccountSettings(seed=seed, idempotency=manner)) as emulator:
        orders = Orders(
            gateway=gateway,
            url=emulator.url,
            ledger=folder / f"{gateway}.sqlite" if server is None else server.url,
            results=folder / f"{gateway}.results",
            images=folder / "images",
            retry_uncertain=control,
        )
        kill_again_and_again(orders, list(plans(kills, rng)), toll)
        rows = orders.rows * (1 + finish(orders, toll))
        bought = emulator.records()
    saved = Results(orders.results, lambda _: None).rows
    verdict = judged(gateway, bought, orders.ledger, saved, orders.images)
    if toll.crashes:
        verdict.breaches.append(f"{toll.crashes} workers crashed: see their tracebacks")
    if len(saved) != rows:
        verdict.breaches.append(f"{len(saved)} rows ended, expected {rows}")
    phases = {phase: sum(toll.at[step] for step in steps) for phase, steps in STEPS.items()}
    return {
        "gateway": gateway,
        "kills": toll.at.total(),
        "by phase": {**phases, "opening": toll.at["opening"], "step did not come": toll.at["step did not come"]},
        "by step": dict(sorted(toll.at.items())),
        "exactly at the step": toll.still,
        "kills that left work open": toll.met_live_work,
        "jobs found open after kills": dict(sorted(toll.found.items())),
        **_figures(verdict, bought.counts),
        "unfinished image files": _leftovers(folder / "images"),
        "seconds": round(time.perf_counter() - began_at, 1),
    }


def shared(gateway: GatewayName, processes: int, rows: int, seed: int, folder: Path) -> dict[str, Any]:
    """Let several processes buy one batch together; return the figures."""
    began_at = time.perf_counter()
    with opened(AccountSettings(seed=seed, job_limit=40)) as emulator:
        orders = Orders(
            gateway=gateway,
            url=emulator.url,
            ledger=folder / "shared.sqlite",
            results=folder / "shared.results",
            rows=rows,
            window=100,
            last_set=0,
        )
        outcome = share(orders, processes)
        bought = emulator.records()
    verdict = judged(gateway, bought, orders.ledger, outcome.saved)
    verdict.breaches.extend(outcome.breaches)
    return {
        "gateway": gateway,
        "processes": processes,
        "rows": rows,
        "creates of the one that was killed": outcome.creates_at_kill,
        "jobs that the killed one left open": outcome.orphaned,
        **_figures(verdict, bought.counts),
        "seconds": round(time.perf_counter() - began_at, 1),
    }


def _figures(verdict: Verdict, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        **counts,
        "rows by state": dict(verdict.states),
        "rows charged": verdict.charged,
        "rows charged twice": verdict.charged_twice,
        "rows charged and lost": verdict.lost,
        "uncertain rows that were charged": verdict.uncertain_charged,
        "breaches": verdict.breaches,
    }


def _leftovers(images: Path) -> int:
    return sum(file.suffix != ".png" and file.name not in ("SHA256SUMS", "metadata.jsonl") for file in images.iterdir())


def _table(figures: Mapping[str, Any]) -> str:
    def text(value: object) -> str:
        match value:
            case dict():
                return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
            case list():
                return "\n".join(["none"] if not value else [str(len(value)), *(f"  {each}" for each in value[:20])])
            case _:
                return str(value)

    width = max(map(len, figures))
    return "\n".join(f"{name:<{width}}  {text(value)}" for name, value in figures.items())


def main() -> int:
    """Run the command line."""
    if sys.argv[1:2] == ["stops"]:
        return stops.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.durability", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--gateway", choices=["apimall", "defapi", "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--manner", choices=["replay", "conflict"], default="conflict", help="how API Mall answers a repeated key"
    )
    parser.add_argument("--processes", type=int, help="share one batch instead of killing in a loop")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--postgres", action="store_true", help="kill in a loop with a ledger on PostgreSQL")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each gateway")
    args = parser.parse_args()
    gateways: list[GatewayName] = ["apimall", "defapi"] if args.gateway == "both" else [args.gateway]
    broken = False
    for gateway in gateways:
        with tempfile.TemporaryDirectory(prefix="nanobanana-") as folder:
            if args.processes:
                figures = shared(gateway, args.processes, args.rows, args.seed, Path(folder))
            else:
                with running_server() if args.postgres else nullcontext() as server:
                    figures = killed(
                        gateway,
                        args.kills,
                        args.seed,
                        Path(folder),
                        manner=args.manner,
                        control=args.control,
                        server=server,
                    )
        print(json.dumps(figures) if args.json else f"{_table(figures)}\n", flush=True)
        broken = broken or bool(figures["breaches"])
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
