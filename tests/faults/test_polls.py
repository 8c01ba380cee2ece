"""Polls that go back, are unknown or 404 in turn: an end is final, and a job without one ends at its deadline."""

import pytest

from tests.faults.polls import play
from tests.support.loopback import BOTH, GatewayName


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_log")
@pytest.mark.parametrize("name", BOTH)
def test_ended_job_stays_ended_and_an_endless_one_is_given_up(name: GatewayName) -> None:
    assert [breach for seed in range(40) for breach in play(name, seed)] == []
