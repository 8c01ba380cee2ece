"""Durations, learned from jobs that ended and jobs that still run."""

import math
import random
from statistics import median

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanobanana_async.policy.durations import (
    BIN_COUNT,
    BIN_EDGES_S,
    BIN_WIDTHS_S,
    HALF_LIFE_COMPLETIONS,
    PRIOR_SIGMA,
    PRIOR_WEIGHT_MEDIAN,
    SHORTEST_S,
    Durations,
)
from tests.policy.simulation import Draw, bimodal, floor_and_tail, lognormal
from tests.support.rows import each_row

SEEDS = range(20)
SECONDS = st.floats(min_value=0.0, max_value=1e300) | st.sampled_from([0.0, SHORTEST_S, 10.0, BIN_EDGES_S[-1], 1e12])


def learned(draw: Draw, completions: int, seed: int = 0, expected_s: float = 20.0) -> Durations:
    chance = random.Random(seed)
    durations = Durations(expected_s)
    for _ in range(completions):
        durations.add_completed(draw(chance))
    durations.fit([])
    return durations


def hazard_at(durations: Durations, age_s: float) -> float:
    number = next(number for number in range(BIN_COUNT) if BIN_EDGES_S[number + 1] > age_s)
    return durations.hazards()[number]


@each_row("sigma", [0.2, 0.4, 0.8])
@each_row(("completions", "off"), [(5, 0.3), (20, 0.2), (300, 0.06)])
def test_median_and_sigma_are_found_from_few_completions(sigma: float, completions: int, off: float) -> None:
    fits = [learned(lognormal(60.0, sigma), completions, seed) for seed in SEEDS]
    pull = PRIOR_WEIGHT_MEDIAN / completions * math.log(60.0 / 20.0)
    standard_error = sigma / math.sqrt(completions)
    assert all(abs(math.log(fit.median_s / 60.0)) <= pull + 3.5 * standard_error for fit in fits)
    assert abs(median(fit.sigma for fit in fits) - sigma) <= off


def test_first_guess_holds_before_the_first_completion() -> None:
    durations = Durations(30.0)
    assert (durations.median_s, durations.sigma, durations.count) == (30.0, PRIOR_SIGMA, 0.0)
    durations.fit([])
    assert durations.median_s == pytest.approx(30.0)
    assert durations.sigma == pytest.approx(PRIOR_SIGMA)


@pytest.mark.parametrize("expected_s", [1.0, 400.0])
def test_wrong_first_guess_fades_after_three_completions(expected_s: float) -> None:
    durations = Durations(expected_s)
    for _ in range(3):
        durations.add_completed(20.0)
    durations.fit([])
    assert abs(math.log(durations.median_s / 20.0)) <= 0.2 * abs(math.log(expected_s / 20.0))


@each_row("seed", SEEDS)
def test_running_jobs_prevent_a_short_estimate(seed: int) -> None:
    chance = random.Random(seed)
    took = sorted(lognormal(20.0, 0.4)(chance) for _ in range(100))
    first_half, age_s = took[:50], took[49]
    censored, naive = Durations(20.0), Durations(20.0)
    for seconds in first_half:
        censored.add_completed(seconds)
        naive.add_completed(seconds)
    censored.fit([age_s] * 50)
    naive.fit([])
    truth_s = took[49]
    assert naive.median_s < 0.85 * truth_s
    assert 0.93 * truth_s < censored.median_s < 1.15 * truth_s
    assert abs(censored.sigma - 0.4) < abs(naive.sigma - 0.4)


def test_long_running_jobs_raise_the_median_before_any_ends() -> None:
    durations = Durations(10.0)
    for _ in range(5):
        durations.fit([60.0] * 20)
    assert durations.median_s > 60.0


def test_bimodal_durations_give_two_hazard_peaks() -> None:
    durations = learned(bimodal, 300, seed=1)
    valley = hazard_at(durations, 28.0)
    assert hazard_at(durations, 16.0) > 2.0 * valley
    assert hazard_at(durations, 48.0) > 2.0 * valley


def test_minimum_duration_is_learned() -> None:
    durations = learned(floor_and_tail, 300, seed=1)
    assert hazard_at(durations, 6.0) < 0.02
    assert hazard_at(durations, 12.0) == pytest.approx(0.2, rel=0.5)
    assert hazard_at(durations, 18.0) == pytest.approx(0.2, rel=0.5)


def test_slower_gateway_is_followed() -> None:
    durations = learned(lognormal(10.0, 0.3), 600)
    assert durations.median_s == pytest.approx(10.0, rel=0.1)
    chance = random.Random(1)
    for _ in range(800):
        durations.add_completed(lognormal(40.0, 0.3)(chance))
    durations.fit([])
    assert durations.median_s == pytest.approx(40.0, rel=0.15)
    assert durations.count <= HALF_LIFE_COMPLETIONS
    # With the old distribution half of all jobs would end before 12 s.
    assert sum(hazard * width for hazard, width in zip(durations.hazards()[:57], BIN_WIDTHS_S, strict=False)) < 0.2


@example(20.0, [], [1e300, 0.06] * 10, 1)
@given(
    st.floats(min_value=0.01, max_value=1e4),
    st.lists(SECONDS, max_size=30),
    st.lists(SECONDS, max_size=30),
    st.integers(min_value=1, max_value=40),
)
def test_hazards_are_finite_and_positive_for_any_input(
    expected_s: float, took: list[float], running: list[float], times: int
) -> None:
    durations = Durations(expected_s)
    for seconds in took * times:
        durations.add_completed(seconds)
    for _ in range(3):
        durations.fit(running)
    assert all(0.0 < hazard < math.inf for hazard in durations.hazards())
    assert 0.0 < durations.median_s < math.inf
    assert 0.0 < durations.sigma < math.inf
