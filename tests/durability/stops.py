"""Suspend hosts, or cut them off from the ledger, for longer than their lease: `python -m tests.durability stops`.

Two hosts buy the same rows on one PostgreSQL ledger. One is stopped with SIGSTOP at a random time, or exactly within a
flush that it sends, between the intent of a create and its POST, before its bytes, or after its answer, and goes on
when it was buried; or its connection to the ledger is silent for as long. No answer is lost on the way, so at the end
every row must be bought once and SUCCEEDED: an UNCERTAIN one would be a task id that a living process knew and did not
write.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from nanobanana_async.testing import FaultProxy
from tests.durability.emulator_process import ROOT, AccountSettings, opened
from tests.durability.stop_worker import SELF_STOPS, Orders, StopAt, command
from tests.durability.worker import GatewayName, prompt_of
from tests.support.postgres import PASSWORD, USER, Server, new_schema, running_server

STOPPED_S, BURIED_WITHIN_S = 3.0, 20.0
"""For how long a host is stopped at least, and at most if it is not buried: its lease is two seconds."""
WAYS: tuple[StopAt, ...] = (*SELF_STOPS, "random", "cut off")
ROWS, JOB_S = 16, 1.5
"""Long enough that no host has ended when it is stopped."""
PATIENCE_S = 90.0


@contextmanager
def hosts(*each: Orders) -> Iterator[list["subprocess.Popen[str]"]]:
    """Run hosts until the end of the block."""
    environment = {**os.environ, "PGPASSWORD": PASSWORD}
    processes = [
        subprocess.Popen(command(orders), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
        for orders in each
    ]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def stop_once(server: Server, gateway: GatewayName, way: StopAt, seed: int) -> dict[str, Any]:
    """Stop one of two hosts in one way; return the figures."""
    rng, schema = random.Random(f"{gateway} {way} {seed}"), new_schema()
    with ExitStack() as stack:
        emulator = stack.enter_context(opened(AccountSettings(seed=seed, lost=0.0, median_s=JOB_S)))
        proxy = stack.enter_context(FaultProxy(server.port))
        url = f"postgresql://{USER}@127.0.0.1:{proxy.port}/postgres" if way == "cut off" else server.url
        common: dict[str, Any] = {"gateway": gateway, "url": emulator.url, "schema": schema, "rows": ROWS}
        first = Orders(**common, ledger=url, seed=seed, stop_at=way)
        second = Orders(**common, ledger=server.url, seed=seed + 1, first_row=ROWS // 2)
        processes = stack.enter_context(hosts(first, second))
        _disturb(way, processes[0], proxy, server, schema, rng)
        ends = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
        bought = emulator.records()
        rows: list[tuple[str, str, str | None]] = server.execute("SELECT key, state, task_id FROM jobs", schema=schema)
        burials = _buried(server, schema)
    reports: list[dict[str, Any]] = [
        json.loads(end) if end else {"errors": ["crashed"], "refused": 0, "held": 0} for end in ends
    ]
    charged = {key: bought.prompts[prompt_of(key)].task_ids for key, _, _ in rows if prompt_of(key) in bought.prompts}
    breaches: list[str] = [error for report in reports for error in report["errors"]]
    breaches += [f"host {number} holds slots" for number, report in enumerate(reports) if report["held"]]
    breaches += [f"{key} was bought {len(tasks)} times" for key, tasks in charged.items() if len(tasks) > 1]
    breaches += [
        f"{key} is {state}, task {task_id}, and {charged.get(key)} was bought"
        for key, state, task_id in rows
        if state != "succeeded" or charged.get(key) != [task_id]
    ]
    if not burials:
        breaches.append(f"the stopped host was not buried within {BURIED_WITHIN_S:g} s")
    if len(rows) != ROWS:
        breaches.append(f"{len(rows)} rows of {ROWS}")
    return {
        "gateway": gateway,
        "way": way,
        "rows": len(rows),
        "bought": sum(map(len, charged.values())),
        "bought twice": sum(len(tasks) > 1 for tasks in charged.values()),
        "uncertain": sum(state == "uncertain" for _, state, _ in rows),
        "burials": burials,
        "writes refused": sum(report["refused"] for report in reports),
        "repeats answered from the key": bought.counts["repeats answered from the key"],
        "breaches": breaches,
    }


def _disturb(
    way: StopAt, host: "subprocess.Popen[str]", proxy: FaultProxy, server: Server, schema: str, rng: random.Random
) -> None:
    """Stop a host, or its connection to the ledger, for longer than its lease."""
    if way in SELF_STOPS:
        os.waitpid(host.pid, os.WUNTRACED)
    else:
        while not _has_sent(host.pid, server, schema) and host.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.2))
    if way == "cut off":
        proxy.pause()
    elif way == "random":
        host.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)
    until = time.perf_counter() + BURIED_WITHIN_S - STOPPED_S
    while time.perf_counter() < until and not _buried(server, schema):
        time.sleep(0.1)
    if way == "cut off":
        proxy.resume()
    else:
        host.send_signal(signal.SIGCONT)


def _buried(server: Server, schema: str) -> int:
    return int(server.execute("SELECT count(buried_by) FROM owners", schema=schema)[0][0])


def _has_sent(process: int, server: Server, schema: str) -> bool:
    """Return whether this process owns a job that it has sent, or is about to send."""
    import psycopg

    of_process = f"SELECT id FROM owners WHERE process = {process}"
    sent = f"SELECT 1 FROM jobs WHERE state IN ('submitting', 'running') AND owner IN ({of_process}) LIMIT 1"
    try:
        return bool(server.execute(sent, schema=schema))
    except psycopg.Error:  # the tables are being made
        return False


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.durability stops", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how often each host is stopped in each way")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--gateway", choices=["apimall", "defapi", "both"], default="both")
    parser.add_argument("--way", choices=WAYS, help="only in this way")
    chosen = parser.parse_args(arguments)
    gateways: list[GatewayName] = ["apimall", "defapi"] if chosen.gateway == "both" else [chosen.gateway]
    broken = 0
    with running_server() as server:
        for gateway in gateways:
            for way in WAYS if chosen.way is None else [chosen.way]:
                totals = Counter[str]()
                for seed in range(chosen.first, chosen.first + chosen.seeds):
                    figures = stop_once(server, gateway, way, seed)
                    totals.update({name: value for name, value in figures.items() if isinstance(value, int)})
                    for breach in figures["breaches"]:
                        broken += 1
                        print(f"{gateway} {way} seed {seed}: {breach}", flush=True)
                print(f"{gateway} {way}: {', '.join(f'{name} {count}' for name, count in totals.items())}", flush=True)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
