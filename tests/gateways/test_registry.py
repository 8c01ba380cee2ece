"""The table of built-in gateways."""

from typing import get_args

import pytest

from nanobanana_async.gateways.registry import GATEWAYS, GatewayName


def test_literal_names_match_the_table() -> None:
    assert get_args(GatewayName) == tuple(GATEWAYS)


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateway_reads_its_own_key_variable(name: str) -> None:
    kind = GATEWAYS[name]
    assert kind.from_env({kind.key_variable: "k" * 8}).name == name


def test_key_variables_differ() -> None:
    assert len({kind.key_variable for kind in GATEWAYS.values()}) == len(GATEWAYS)
