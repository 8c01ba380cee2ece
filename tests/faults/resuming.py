"""Two processes resume one ledger at the same moment, again and again: `python -m tests.faults resume --count 500`.

A process buys six rows, and dies by SIGKILL at a random transition. Then two processes resume its ledger together. A
row must be followed by one of them only, sent by none that need not, and charged at most once.
"""

import json
import random
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.durability.emulator_process import ROOT, AccountSettings, EmulatorProcess, Records, opened
from tests.durability.worker import GatewayName, prompt_of
from tests.faults.resumer import Orders, command
from tests.support import forked

ROWS = 6
PATIENCE_S = 60.0


def _posts(records: Records, key: str) -> list[str | None]:
    """Return the keys of the creates for a row that were not refused for lack of a slot: those are sent again."""
    bought = records.prompts.get(prompt_of(key))
    return [] if bought is None else [post.key for post in bought.posts if post.status != 429]


def _states(ledger: Path) -> dict[str, str]:
    with closing(sqlite3.connect(ledger)) as connection:
        return dict(connection.execute("SELECT key, state FROM jobs"))


def resume_together(
    name: GatewayName, seed: int, emulator: EmulatorProcess, folder: Path
) -> tuple[Counter[str], list[str]]:
    """Run one seed; return its counts, and what went wrong."""
    rng, ledger = random.Random(f"{name} {seed}"), folder / f"{name}-{seed}.sqlite"
    keys = [f"{name}-{seed}-{number}" for number in range(ROWS)]
    facts: dict[str, Any] = {"gateway": name, "url": emulator.url, "ledger": str(ledger), "keys": keys}
    subprocess.run(
        command(Orders(**facts, dies_at=rng.randint(1, 3 * ROWS))), cwd=ROOT, timeout=PATIENCE_S, check=False
    )
    time.sleep(0.1)  # what it has sent arrives
    left, before = _states(ledger), emulator.records()
    orders = command(Orders(**facts))
    processes = [
        subprocess.Popen(orders, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        resumed = [json.loads(process.communicate(timeout=PATIENCE_S)[0] or "null") for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ended, after = _states(ledger), emulator.records()
    counts = Counter({f"left {state}": sum(each == state for each in left.values()) for state in set(left.values())})
    counts["runs in which both got jobs"] = all(resumed)
    breaches = [f"process {number} crashed" for number, keys_of in enumerate(resumed) if keys_of is None]
    breaches += [f"{key} was resumed by both" for key in set(resumed[0] or ()) & set(resumed[1] or ())]
    for key, state in left.items():
        sent = len(_posts(after, key)) - len(_posts(before, key))
        may_send = {"pending": 1, "submitting": 1 if name == "apimall" else 0}.get(state, 0)
        tasks = after.prompts[prompt_of(key)].task_ids if prompt_of(key) in after.prompts else []
        if sent > may_send:
            breaches.append(f"{key} was {state} and was sent {sent} times more")
        if len(tasks) > 1:
            breaches.append(f"{key} was charged {len(tasks)} times")
        wanted = "uncertain" if state == "submitting" and name == "defapi" else "succeeded"
        if ended[key] != wanted:
            breaches.append(f"{key} was {state} and is {ended[key]}, wanted {wanted}")
        counts["rows"] += 1
        counts["creates by the two"] += sent
    return counts, [f"{name}, seed {seed}: {breach}" for breach in breaches]


def run(name: GatewayName, seeds: range) -> tuple[Counter[str], list[str]]:
    """Run seeds on one gateway."""
    total, breaches = Counter[str](), list[str]()
    account = AccountSettings(job_limit=4, median_s=0.05, lost=0.0)
    with tempfile.TemporaryDirectory(prefix="nanobanana-") as folder, opened(account) as emulator:
        for seed in seeds:
            counts, found = resume_together(name, seed, emulator, Path(folder))
            total.update(counts)
            breaches += found
    return total, breaches


def main(count: int | None) -> dict[str, Any]:
    """Run so many seeds, half of them on each gateway."""
    forked.install()
    figures: dict[str, Any] = {"runs": count or 500}
    breaches: list[str] = []
    names: tuple[GatewayName, ...] = ("apimall", "defapi")
    for name in names:
        total, found = run(name, range((count or 500) // 2))
        figures |= {f"{name}: {what}": number for what, number in sorted(total.items())}
        breaches += found
    return {**figures, "breaches": breaches}
