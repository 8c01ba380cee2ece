"""Two processes resume one ledger at the same moment: each job goes to one of them, and nothing is bought twice."""

import pytest

from tests.faults.resuming import run
from tests.support.loopback import BOTH, GatewayName


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", BOTH)
def test_two_processes_that_resume_together_share_the_jobs(name: GatewayName) -> None:
    total, breaches = run(name, range(6))
    assert breaches == []
    assert total["rows"] > 10
