"""Several processes open one new ledger file at the same time, like workers that are started together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.durability.emulator_process import ROOT

pytestmark = pytest.mark.slow

OPENERS = """
import asyncio, os, sys
from nanobanana_async import SqliteLedger

async def open_and_close(path):
    ledger = SqliteLedger(path)
    await ledger.open()
    await ledger.aclose()

for number in range(12):
    path = f"{sys.argv[1]}/{number}.sqlite"
    start, go = os.pipe()
    processes = []
    for _ in range(6):
        process = os.fork()
        if not process:
            os.close(go)
            os.read(start, 1)  # until the parent closes its end
            try:
                asyncio.run(open_and_close(path))
            except BaseException as error:
                os.write(1, f"{type(error).__name__}: {error}\\n".encode())
            os._exit(0)
        processes.append(process)
    os.close(start)
    os.close(go)
    for process in processes:
        os.waitpid(process, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_processes_opening_together_all_succeed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENERS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
