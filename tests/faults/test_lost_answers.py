"""Lost, cut and garbled answers to creates: one charge each, and without keys never a second create."""

import pytest

from tests.faults.lost_answers import JOBS, play

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet_log")]
SEEDS = range(40)


def test_keyed_creates_are_repeated_byte_for_byte_until_one_charge_each() -> None:
    outcomes = [play("apimall", seed) for seed in SEEDS]
    assert [breach for outcome in outcomes for breach in outcome.breaches] == []
    lost = sum(outcome.lost for outcome in outcomes)
    assert lost > len(SEEDS)
    assert sum(outcome.posts for outcome in outcomes) >= JOBS * len(SEEDS) + lost / 2
    assert sum(outcome.uncertain for outcome in outcomes) == 0


def test_unkeyed_creates_are_sent_once_and_listed_when_in_doubt() -> None:
    outcomes = [play("defapi", seed) for seed in SEEDS]
    assert [breach for outcome in outcomes for breach in outcome.breaches] == []
    assert sum(outcome.posts for outcome in outcomes) == JOBS * len(SEEDS)
    assert sum(outcome.uncertain for outcome in outcomes) == sum(outcome.lost for outcome in outcomes) > len(SEEDS)
