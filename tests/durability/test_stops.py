"""Hosts that are suspended, or cut off from the ledger, until they are buried: each row is bought once.

The long form is `python -m tests.durability stops --seeds 20`.
"""

import os

import pytest

from tests.durability.stop_worker import StopAt
from tests.durability.stops import ROWS, stop_once
from tests.durability.worker import GatewayName
from tests.support.postgres import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no SIGSTOP"),
]


@pytest.mark.parametrize(
    ("gateway", "way"),
    [
        ("apimall", "flush"),
        ("apimall", "intended"),
        ("defapi", "before"),
        ("defapi", "after"),
        ("defapi", "cut off"),
        ("defapi", "random"),
    ],
)
def test_stopped_host_is_buried_and_every_row_is_bought_once(
    postgres: Server, gateway: GatewayName, way: StopAt
) -> None:
    figures = stop_once(postgres, gateway, way, seed=1)
    assert figures["breaches"] == []
    assert (figures["bought"], figures["bought twice"], figures["uncertain"]) == (ROWS, 0, 0)
    assert figures["burials"] >= 1
