"""Runs that save in a store are killed; the short form of `python -m tests.store.kills`."""

from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

from tests.store.kills import Runs, campaign, faults_of

ROWS, KILLS = 30, 2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("runs", ["command", "two processes"])
async def test_killed_runs_end_with_one_object_a_row(runs: Runs, s3_url: str, tmp_path: Path) -> None:
    found = await campaign(s3_url, tmp_path, runs, ROWS, KILLS, seed=1)
    assert faults_of(found, ROWS) == []
    assert len(found.killed_at) == KILLS
    assert found.killed_at[0] < ROWS
