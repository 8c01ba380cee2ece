"""Ten minutes without an answer: little load meanwhile, and the slots are full again soon after it."""

import pytest

from tests.faults.outage import FILLED_WITHIN_S, KINDS, measure
from tests.support.loopback import BOTH, GatewayName

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.usefixtures("quiet_log")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_outage_costs_a_tenth_of_the_load_and_slots_fill_within_a_backoff(name: GatewayName, kind: str) -> None:
    found = measure(name, kind)
    assert found["requests in ten minutes without the outage"] > 1000
    assert found["load"] <= 0.1
    assert found["95 % of the slots filled after s"] <= FILLED_WITHIN_S
