"""A worker killed with SIGKILL again and again: nothing is bought twice, and nothing bought is lost.

The long form is `python -m tests.durability --kills 200`.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.durability.emulator_process import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),  # on a busy machine
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork, and no SIGKILL"),
]


def figures_of(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run the kill loop in a process of its own, which forks; return its figures."""
    command = [sys.executable, "-m", "tests.durability", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_apimall_twelve_kills_charge_once_and_lose_no_job() -> None:
    figures = figures_of("--gateway", "apimall", "--kills", "12", "--seed", "7")
    assert figures["kills"] == 12
    assert min(figures["by phase"][phase] for phase in ("submit", "poll", "save")) > 0
    assert figures["kills that left work open"] > 5
    assert {"pending", "submitting", "running"} <= set(figures["jobs found open after kills"])
    assert figures["repeats answered from the key"] > 0
    assert set(figures["rows by state"]) == {"SUCCEEDED"}
    assert figures["rows charged"] == figures["creates charged"] == figures["rows by state"]["SUCCEEDED"]
    assert (figures["rows charged twice"], figures["rows charged and lost"]) == (0, 0)


def test_defapi_six_kills_buy_nothing_twice() -> None:
    figures = figures_of("--gateway", "defapi", "--kills", "6", "--seed", "5")
    assert figures["kills"] == 6
    assert figures["jobs found open after kills"]["submitting"] > 0
    states = figures["rows by state"]
    assert set(states) == {"SUCCEEDED", "UNCERTAIN"}
    assert figures["rows charged"] == figures["creates charged"]
    assert figures["rows charged"] == states["SUCCEEDED"] + figures["uncertain rows that were charged"]
    assert (figures["rows charged twice"], figures["rows charged and lost"]) == (0, 0)


def test_control_run_finds_second_purchases() -> None:
    figures = figures_of("--gateway", "defapi", "--kills", "6", "--seed", "5", "--control", code=1)
    assert figures["rows charged twice"] > 0
    assert any("charged 2 times" in breach for breach in figures["breaches"])
    assert any("sent again although it may have been bought" in breach for breach in figures["breaches"])
