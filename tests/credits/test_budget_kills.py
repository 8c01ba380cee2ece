"""Two real processes buy under one budget, and are killed and started again: the budget is spent, and not passed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanobanana_async import SqliteLedger
from nanobanana_async.engine.wall_clock import utcnow
from tests.durability.emulator_process import ROOT, AccountSettings, EmulatorProcess, opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),  # on a busy machine
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no SIGKILL"),
]

JOBS, PRICE = 60, 8


@contextmanager
def started(emulator: EmulatorProcess, ledger: Path, name: str) -> "Iterator[subprocess.Popen[str]]":
    """Run a worker; it is killed when the block is left early."""
    settings = {"url": emulator.url, "ledger": str(ledger), "name": name, "max_credits": JOBS * PRICE}
    command = [sys.executable, "-m", "tests.credits.budget_worker", json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def wait_until_charged(emulator: EmulatorProcess, jobs: int) -> None:
    while emulator.records().counts["creates charged"] < jobs:
        time.sleep(0.02)


async def test_killed_processes_spend_a_budget_and_no_more(tmp_path: Path) -> None:
    ledger = tmp_path / "jobs.sqlite"
    with opened(AccountSettings(seed=5, job_limit=6)) as emulator:
        for round_ in range(1, 4):  # both are killed while creates and polls are in flight
            with started(emulator, ledger, "one"), started(emulator, ledger, "two"):
                wait_until_charged(emulator, 15 * round_)
        with started(emulator, ledger, "one") as one, started(emulator, ledger, "two") as two:
            assert (one.wait(), two.wait()) == (0, 0)
        records = emulator.records()
    assert records.counts["creates charged"] == JOBS
    assert (
        max(len(bought.task_ids) for bought in records.prompts.values()) == 1
    )  # some were refused, and then lacked credits
    known = SqliteLedger(ledger)
    await known.open()
    (alice,) = await known.budgets(utcnow())
    await known.aclose()
    assert alice.left == alice.reserved == 0
    assert alice.spent == JOBS * PRICE
