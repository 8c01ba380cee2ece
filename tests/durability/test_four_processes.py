"""Four processes buy one batch of rows on one ledger file, and one of them is killed on the way."""

import os

import pytest

from tests.durability.test_kills import figures_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),  # on a busy machine
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork, and no SIGKILL"),
]

ROWS = 90


def test_apimall_rows_are_bought_once_and_orphans_adopted() -> None:
    figures = figures_of("--gateway", "apimall", "--processes", "4", "--rows", str(ROWS))
    assert figures["creates of the one that was killed"] == ROWS // 9
    assert figures["jobs that the killed one left open"] > 0
    assert figures["rows by state"] == {"SUCCEEDED": ROWS}
    assert figures["rows charged"] == figures["creates charged"] == ROWS
    assert figures["breaches"] == []  # each survivor has every result, and all have the same


def test_defapi_rows_are_bought_at_most_once() -> None:
    figures = figures_of("--gateway", "defapi", "--processes", "4", "--rows", str(ROWS))
    states = figures["rows by state"]
    assert sum(states.values()) == ROWS
    assert set(states) == {"SUCCEEDED", "UNCERTAIN"}
    assert figures["rows charged"] == figures["creates charged"]
    assert figures["rows charged"] == states["SUCCEEDED"] + figures["uncertain rows that were charged"]
    assert figures["breaches"] == []
