"""A virtual day in which the system's clock jumps: the same requests at the same times as without the jumps."""

import pytest

from tests.faults.day import play


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_log")
def test_clock_that_jumps_changes_no_request_of_a_day() -> None:
    day, breaches = play(seed=0)
    assert breaches == []
    assert day.jumps > 30
    assert len(day.requests) > 500
