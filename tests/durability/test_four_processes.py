"""Four processes buy one batch of 400 rows on one ledger file, and one of them is killed half-way."""

import os

import pytest

from tests.durability.test_kills import told

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork, and no SIGKILL")


def test_on_apimall_each_row_is_bought_once_and_the_killed_ones_jobs_are_adopted() -> None:
    figures = told("--gateway", "apimall", "--processes", "4", "--rows", "400")
    assert figures["saved when one was killed"] == 200
    assert figures["jobs that the killed one left open"] > 0
    assert figures["rows by state"] == {"SUCCEEDED": 400}
    assert figures["rows charged"] == figures["creates charged"] == 400
    assert figures["breaches"] == []  # each survivor has every result, and all have the same


def test_on_defapi_each_row_is_bought_once_at_most_and_each_doubt_is_told_to_all() -> None:
    figures = told("--gateway", "defapi", "--processes", "4", "--rows", "400")
    states = figures["rows by state"]
    assert sum(states.values()) == 400
    assert set(states) == {"SUCCEEDED", "UNCERTAIN"}
    assert figures["rows charged"] == figures["creates charged"]
    assert figures["rows charged"] == states["SUCCEEDED"] + figures["uncertain rows that were charged"]
    assert figures["breaches"] == []
