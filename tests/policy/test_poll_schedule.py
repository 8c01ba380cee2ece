"""Poll schedules: how soon the end of a job is noticed, and with how many polls."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.policy.durations import BIN_EDGES_S, SHORTEST_S, Durations
from nanobanana_async.policy.poll_schedule import STRAGGLER_GROWTH, UNKNOWN_GROWTH, PollSchedule
from nanobanana_async.policy.polling import PollPolicy
from tests.policy.simulation import Draw, bimodal, floor_and_tail, lognormal, poll_jobs
from tests.support.rows import each_row

LN_10 = lognormal(10.0, 0.4)
LONG_TAIL = lognormal(12.0, 0.8)
WORTH_LEARNING = 300
JOBS = 1500
HALF_A_SECOND = PollPolicy(target_delay_s=0.5, max_gap_s=8.0)


def learned(
    draw: Draw, completions: int, policy: PollPolicy = HALF_A_SECOND, expected_s: float = 20.0
) -> PollSchedule[int]:
    chance = random.Random(1)
    schedule = PollSchedule[int](policy, Durations(expected_s))
    for job in range(completions):
        took_s = draw(chance)
        schedule.on_ended(job, took_s, took_s)
        schedule.next_poll_age_s(0.0)
    return schedule


def median_s(schedule: PollSchedule[int]) -> float:
    """Return the age by which half of the jobs have ended, by the schedule."""
    return next(
        edge for edge in BIN_EDGES_S if edge == BIN_EDGES_S[-1] or schedule.ended_between_probability(0.0, edge) >= 0.5
    )


POLICIES = st.builds(
    PollPolicy,
    target_delay_s=st.floats(min_value=0.05, max_value=5.0),
    min_gap_s=st.floats(min_value=0.05, max_value=2.0),
    max_gap_s=st.floats(min_value=2.0, max_value=20.0),
)
SCHEDULES = st.builds(
    learned,
    st.sampled_from([LN_10, lognormal(2.0, 0.2), lognormal(100.0, 0.3), LONG_TAIL, bimodal, floor_and_tail]),
    st.sampled_from([0, 1, 10, 60]),
    POLICIES,
    st.floats(min_value=1.0, max_value=300.0),
)
AGES = st.floats(min_value=0.0, max_value=3.0 * BIN_EDGES_S[-1])


@given(SCHEDULES, AGES)
def test_half_of_the_jobs_of_an_age_end_by_their_median_end(schedule: PollSchedule[int], age_s: float) -> None:
    end_s = schedule.median_end_age_s(age_s)
    assert age_s < end_s < math.inf
    if end_s < BIN_EDGES_S[-1]:
        assert math.isclose(schedule.ended_between_probability(age_s, end_s), 0.5, rel_tol=1e-6)


@given(SCHEDULES, AGES, AGES)
def test_median_end_moves_forward_with_age(schedule: PollSchedule[int], one_s: float, other_s: float) -> None:
    assert schedule.median_end_age_s(min(one_s, other_s)) <= schedule.median_end_age_s(max(one_s, other_s)) + 1e-9


def test_median_end_of_a_new_job_is_the_median_duration() -> None:
    schedule = learned(LN_10, WORTH_LEARNING)
    assert math.isclose(schedule.median_end_age_s(0.0), 10.0, rel_tol=0.1)
    assert 20.0 < schedule.median_end_age_s(20.0) < 30.0


def test_share_of_the_median_end_rises_with_age() -> None:
    schedule = learned(LN_10, WORTH_LEARNING)
    shares = [age_s / schedule.median_end_age_s(age_s) for age_s in (0.0, 1.0, 4.0, 8.0, 10.0, 15.0, 25.0, 40.0)]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.35 < shares[2] < 0.45
    assert shares[-1] < 1.0


@given(SCHEDULES, AGES)
def test_next_poll_keeps_min_gap(schedule: PollSchedule[int], age_s: float) -> None:
    assert schedule.next_poll_age_s(age_s) - age_s >= schedule.policy.min_gap_s - 1e-9 * age_s > 0.0


@given(SCHEDULES, st.floats(min_value=0.0, max_value=BIN_EDGES_S[-1] / 2.0))
def test_gap_past_the_median_is_at_most_four_target_delays(schedule: PollSchedule[int], beyond_s: float) -> None:
    policy = schedule.policy
    age_s = median_s(schedule) + beyond_s
    wanted_s = 4.0 * schedule.wanted_delay_s
    if age_s > schedule.straggler_age_s:
        wanted_s = max(wanted_s, STRAGGLER_GROWTH * age_s * math.sqrt(age_s / schedule.straggler_age_s))
    longest_s = max(policy.min_gap_s, min(policy.max_gap_s, wanted_s))
    assert schedule.next_poll_age_s(age_s) - age_s <= longest_s * (1.0 + 1e-6)


@given(SCHEDULES, AGES.filter(lambda age: age >= SHORTEST_S), st.floats(min_value=1e-3, max_value=100.0))
def test_older_job_is_not_polled_earlier(schedule: PollSchedule[int], age_s: float, older_s: float) -> None:
    assert schedule.next_poll_age_s(age_s + older_s) >= schedule.next_poll_age_s(age_s)


def test_straggler_is_polled_every_max_gap() -> None:
    schedule = learned(LN_10, 60)
    age_s = 2.0 * BIN_EDGES_S[-1]
    assert schedule.next_poll_age_s(age_s) == age_s + schedule.policy.max_gap_s


@pytest.mark.slow
@given(SCHEDULES, st.tuples(AGES, AGES, AGES))
def test_ended_chance_grows_with_age(schedule: PollSchedule[int], ages: tuple[float, float, float]) -> None:
    seen_s, age_s, later_s = sorted(ages)
    chance, later = (
        schedule.ended_between_probability(seen_s, age_s),
        schedule.ended_between_probability(seen_s, later_s),
    )
    assert 0.0 <= chance <= later <= 1.0
    assert schedule.ended_between_probability(age_s, age_s) == 0.0


@each_row("target_s", [0.25, 0.5, 2.0])
@each_row("draw", [LN_10, LONG_TAIL, bimodal, floor_and_tail])
def test_learned_polls_meet_the_delay_and_beat_a_fixed_interval(draw: Draw, target_s: float) -> None:
    policy = PollPolicy(target_delay_s=target_s, max_gap_s=4.0 * target_s)  # the gaps of stragglers stay short
    a_job, delay_s, mean_s = poll_jobs(learned(draw, WORTH_LEARNING, policy), draw, JOBS)
    assert 0.78 * target_s <= delay_s <= 1.2 * target_s
    # A fixed interval needs mean / interval + 1/2 polls for a delay of half an interval.
    assert a_job < 0.97 * (mean_s / (2.0 * delay_s) + 0.5)


def test_learned_schedule_is_near_the_optimum_for_log_normal_jobs() -> None:
    a_job, delay_s, mean_s = poll_jobs(learned(LN_10, WORTH_LEARNING), LN_10, 4 * JOBS)
    assert delay_s == pytest.approx(0.5, rel=0.2)
    assert a_job * delay_s <= 0.345 * mean_s
    assert a_job <= 8.5


@pytest.mark.parametrize(("completions", "most", "off"), [(0, 0.4, 0.2), (5, 0.36, 0.5), (20, 0.345, 0.2)])
def test_cold_start_beats_a_fixed_interval(completions: int, most: float, off: float) -> None:
    a_job, delay_s, mean_s = poll_jobs(learned(LN_10, completions), LN_10, JOBS)
    assert a_job * delay_s <= most * mean_s
    assert delay_s == pytest.approx(0.5, rel=off)


def test_poll_count_is_inverse_to_the_target_delay() -> None:
    quick, slow = (
        poll_jobs(
            learned(lognormal(60.0, 0.4), 100, PollPolicy(target_delay_s=target_s, max_gap_s=8.0)),
            lognormal(60.0, 0.4),
            300,
        )
        for target_s in (0.5, 2.0)
    )
    assert quick[0] / slow[0] == pytest.approx(4.0, rel=0.1)
    assert slow[1] / quick[1] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("draw", [LN_10, LONG_TAIL, bimodal], ids=["log-normal", "tail", "two"])
def test_learned_mean_and_p99_match_the_distribution(draw: Draw) -> None:
    schedule = learned(draw, WORTH_LEARNING)
    chance = random.Random(7)
    took = sorted(draw(chance) for _ in range(10_000))
    assert schedule.mean_s == pytest.approx(sum(took) / len(took), rel=0.1)
    assert took[9700] <= schedule.p99_s <= 1.1 * took[9990]


def test_midpoint_of_two_polls_replaces_a_missing_duration() -> None:
    guessed, stated = (PollSchedule[str](PollPolicy(), Durations(20.0)) for _ in range(2))
    for _ in range(10):
        guessed.on_running("a", 8.0)
        guessed.on_ended("a", 12.0)
        stated.on_ended("a", 12.0, 10.0)
    for schedule in (guessed, stated):
        schedule.durations.fit([])
    assert guessed.durations.median_s == pytest.approx(stated.durations.median_s)


def test_running_lists_jobs_until_they_end_or_are_forgotten() -> None:
    schedule = PollSchedule[int](PollPolicy(), Durations(20.0))
    for job in range(6):
        schedule.on_began(job)
    schedule.on_running(1, 5.0)
    assert dict(schedule.running_jobs()) == {0: 0.0, 1: 5.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0}
    for job in range(3):
        schedule.on_ended(job, 6.0)
    for job in (3, 4, 5, 5, 99):
        schedule.forget(job)
    assert not schedule.running_jobs()
    assert schedule.durations.count == 3.0


def test_hazard_since_poll_is_higher_for_jobs_polled_longer_ago() -> None:
    schedule = PollSchedule[str](PollPolicy(), Durations(20.0))
    schedule.on_running("polled", 19.0)
    schedule.on_began("not polled")
    assert 0.0 < schedule.hazard_since_poll("polled", 20.0) < schedule.hazard_since_poll("not polled", 20.0)
    assert schedule.hazard_since_poll("unknown", 20.0) == schedule.hazard_since_poll("not polled", 20.0)


def test_running_jobs_lengthen_the_schedule_before_any_ends() -> None:
    schedule = PollSchedule[int](HALF_A_SECOND, Durations(5.0))
    first_s = schedule.next_poll_age_s(0.0)
    for age_s in (6.0, 12.0, 24.0, 60.0):
        for job in range(200):
            schedule.on_running(job, age_s)
        schedule.refit_if_due()
    assert schedule.next_poll_age_s(0.0) > 10.0 * first_s
    assert schedule.mean_s > 60.0


def test_job_far_older_than_all_others_does_not_lengthen_the_schedule() -> None:
    schedule = learned(LN_10, 60)
    mean_s = schedule.mean_s
    for _ in range(100):
        schedule.on_running(1, 1000.0)
    schedule.refit_if_due()
    assert schedule.mean_s == pytest.approx(mean_s, rel=0.05)


# Without a target


@pytest.mark.parametrize(("typical_s", "most"), [(2.0, 3.0), (10.0, 10.0), (60.0, 11.0), (180.0, 11.0)])
def test_default_delay_is_four_percent_of_the_mean_and_at_least_half_a_second(typical_s: float, most: float) -> None:
    draw = lognormal(typical_s, 0.4)
    schedule = learned(draw, 100, PollPolicy())
    assert schedule.wanted_delay_s == max(0.5, 0.04 * schedule.mean_s)
    a_job, delay_s, _ = poll_jobs(schedule, draw, 300)
    assert a_job <= most
    assert delay_s == pytest.approx(schedule.wanted_delay_s, rel=0.25)


def test_gaps_grow_with_age_while_durations_are_unknown() -> None:
    schedule = PollSchedule[int](PollPolicy(), Durations(5.0))
    gaps = [schedule.next_poll_age_s(age_s) - age_s for age_s in (0.0, 5.0, 10.0, 100.0, 200.0, 1000.0)]
    assert gaps == pytest.approx([3.0, 3.0, 3.0, UNKNOWN_GROWTH * 100.0, UNKNOWN_GROWTH * 200.0, 60.0])
    for job in range(3):
        schedule.on_ended(job, 5.0, 5.0)
    assert schedule.next_poll_age_s(5.0) - 5.0 < 2.0


def test_gaps_of_stragglers_are_a_share_of_their_age() -> None:
    by_default, given_target = learned(LN_10, 60, PollPolicy()), learned(LN_10, 60, PollPolicy(target_delay_s=0.5))
    age_s = by_default.p99_s - 1.0
    assert by_default.next_poll_age_s(age_s) - age_s >= STRAGGLER_GROWTH * age_s
    assert given_target.next_poll_age_s(age_s) - age_s < STRAGGLER_GROWTH * age_s
    for schedule in (by_default, given_target):
        shares = [schedule.next_poll_age_s(age_s) / age_s - 1.0 for age_s in (30.0, 50.0, 100.0)]
        assert shares == sorted(shares)
        assert shares[0] >= STRAGGLER_GROWTH
        assert schedule.next_poll_age_s(1000.0) - 1000.0 == 60.0


@pytest.mark.parametrize("ended", [0, 3, 20, 100])
def test_job_that_never_ends_is_polled_rarely(ended: int) -> None:
    schedule = learned(LN_10, ended, PollPolicy()) if ended else PollSchedule[int](PollPolicy(), Durations(20.0))
    polled_at = [0.0]
    while polled_at[-1] < 3600.0:
        schedule.on_running(-1, polled_at[-1])
        polled_at.append(schedule.next_poll_age_s(polled_at[-1]))
    assert sum(0.0 < age_s <= 60.0 for age_s in polled_at) <= 25
    assert len(polled_at) <= 120
