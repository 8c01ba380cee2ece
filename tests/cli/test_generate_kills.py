"""The short form of `python -m tests.cli.generate_kills`."""

from pathlib import Path

import pytest

from tests.cli.generate_kills import PLANS, campaign


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_killed_command_run_again_buys_each_prompt_once(tmp_path: Path) -> None:
    toll = await campaign(tmp_path, len(PLANS))
    assert toll.wrong == []
    assert toll.bought_before[True] > 0
    assert toll.ended_by.total() == len(PLANS)
