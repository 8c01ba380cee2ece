"""Which limit a 429 speaks of, and what may leave under both."""

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import LimitKind
from nanobanana_async.policy.concurrency import ConcurrencyPolicy, Mode
from nanobanana_async.policy.limiter import LONGEST_WAIT_S, TRIAL_WAIT_S, AdmissionLimiter
from tests.policy.simulation import Bucket, Client, Gateway

SEEDS = range(4)
FOREVER = 1e12


def throttle(max_jobs: int | None = None, *, learn: bool = True) -> AdmissionLimiter:
    return AdmissionLimiter(ConcurrencyPolicy(max_jobs=max_jobs, learn=learn))


def in_doubt(held: int = 20, odds: float = 0.0) -> AdmissionLimiter:
    """Return one that met a refusal of unknown kind at 10 s."""
    doubting = throttle()
    doubting.rate_log_odds = odds
    doubting.sent(9.9)
    doubting.on_throttled(10.0, 9.9, held)
    return doubting


def test_a_stated_kind_goes_to_the_right_one() -> None:
    slots, rate = throttle(), throttle()
    slots.on_throttled(1.0, 0.9, 5, "jobs")
    rate.on_throttled(1.0, 0.9, 5, "rate", 7.0)
    assert (slots.jobs.mode, slots.jobs.cap, slots.pacer.active) == (Mode.HOLD, 5.0, False)
    assert (rate.jobs.mode, rate.jobs.cap, rate.pacer.active) == (Mode.RAMP, math.inf, True)
    assert rate.opens_at(5.0) == 8.0
    assert (slots.verdict, slots.undecided_since, rate.verdict, rate.undecided_since) == (None, None, None, None)
    assert slots.was_throttled
    assert not throttle().was_throttled


def test_a_stated_rate_settles_an_earlier_doubt() -> None:
    doubting = in_doubt()
    assert (doubting.jobs.cap, doubting.undecided_since) == (20.0, 10.0)
    doubting.on_throttled(11.0, 10.6, 20, "rate")
    assert doubting.jobs.mode is Mode.RAMP
    assert doubting.undecided_since is None


@pytest.mark.parametrize(("rate", "burst"), [(1.0, 1.0), (1.0, 10.0), (2.0, 20.0), (5.0, 10.0), (20.0, 20.0)])
def test_a_hidden_rate_is_recognised_within_few_refusals_and_the_slots_are_given_back(
    rate: float, burst: float
) -> None:
    for seed in SEEDS:
        bucket = Bucket(rate, burst)
        creates = int(max(300.0, 60.0 * rate))
        client = Client(Gateway(limiter=bucket), jobs=creates, stated=False, seed=seed).run()
        assert client.verdicts == [None, "rate"]
        assert client.refusals_before_verdict <= 5
        assert client.throttle.jobs.mode is Mode.RAMP
        assert client.taken_at[-1] <= 1.2 * bucket.ideal_s(creates)
        assert len(client.refusals) <= 0.06 * creates


@pytest.mark.parametrize(("rate", "burst"), [(2.0, 120.0), (10.0, 100.0)])
def test_a_hidden_rate_met_late_is_not_taken_for_slots(rate: float, burst: float) -> None:
    for seed in SEEDS:
        bucket = Bucket(rate, burst)
        client = Client(Gateway(limiter=bucket), jobs=600, stated=False, seed=seed).run()
        assert "jobs" not in client.verdicts
        assert client.taken_at[-1] <= 1.2 * bucket.ideal_s(600)


@pytest.mark.parametrize("rtt_s", [0.01, 0.15])
@pytest.mark.parametrize("limit", [1, 2, 5, 20, 60])
def test_a_hidden_slot_limit_is_recognised_after_two_trials_and_its_fall_changes_nothing(
    limit: int, rtt_s: float
) -> None:
    for seed in SEEDS:
        gateway = Gateway(slots=limit)
        client = Client(gateway, jobs=20 * limit + 50, stated=False, rtt_s=rtt_s, seed=seed)
        client.later(60.0, partial(setattr, gateway, "slots", (limit + 1) // 2))
        client.run()
        assert client.verdicts == [None, "jobs"]
        assert client.refusals_before_verdict - client.in_ramp() <= 2
        assert not client.throttle.pacer.active


def test_many_hidden_slots_are_never_taken_for_a_rate() -> None:
    for seed in SEEDS:
        client = Client(Gateway(slots=100), jobs=1500, stated=False, seed=seed).run()
        assert "rate" not in client.verdicts
        assert len(client.refusals) <= 70


def test_a_create_that_is_taken_soon_after_a_refusal_speaks_for_the_rate() -> None:
    doubting = in_doubt()
    assert not doubting.admits(10.4, 20, 0)
    assert doubting.opens_at(10.1) == 10.0 + TRIAL_WAIT_S
    assert doubting.admits(10.5, 20, 0)
    assert not doubting.admits(10.5, 20, 1)
    doubting.on_accepted(10.6, 10.5, 21, 0)
    assert doubting.verdict == "rate"
    assert doubting.jobs.mode is Mode.RAMP
    assert doubting.pacer.active


@pytest.mark.parametrize("likely_ends", [3.0, 50.0])
def test_a_create_that_is_taken_when_jobs_have_probably_ended_says_little(likely_ends: float) -> None:
    doubting = in_doubt()
    doubting.on_accepted(10.6, 10.5, 21, 0, likely_ends)
    assert doubting.verdict is None
    assert -0.5 < doubting.rate_log_odds <= 0.0
    assert doubting.undecided_since is None


def test_a_create_that_is_taken_after_a_job_was_seen_to_end_says_nothing() -> None:
    doubting = in_doubt()
    doubting.on_ended()
    doubting.on_accepted(10.6, 10.5, 20, 0)
    assert doubting.rate_log_odds == 0.0


def test_a_create_that_was_on_the_wire_when_the_refusal_came_says_nothing() -> None:
    doubting = in_doubt()
    doubting.on_accepted(10.1, 9.95, 21, 0)
    doubting.on_throttled(10.1, 9.95, 21)
    assert doubting.rate_log_odds == 0.0
    assert doubting.undecided_since == 10.0


def test_creates_that_are_refused_twice_though_time_passed_speak_for_the_slots() -> None:
    doubting = in_doubt()
    doubting.on_throttled(10.6, 10.5, 20)
    assert doubting.verdict is None
    assert doubting.opens_at(10.7) == 10.6 + 2.0 * TRIAL_WAIT_S
    doubting.on_throttled(11.7, 11.6, 20)
    assert doubting.verdict == "jobs"
    assert not doubting.admits(FOREVER, 20, 0)


def test_a_create_that_is_refused_though_jobs_have_ended_speaks_for_the_rate() -> None:
    doubting = in_doubt(held=20)
    for _ in range(4):
        doubting.on_ended()
    doubting.on_throttled(14.0, 13.9, 16)
    assert doubting.verdict == "rate"
    assert doubting.jobs.mode is Mode.RAMP


def test_slots_that_are_known_are_not_doubted_because_the_limit_fell() -> None:
    sure = in_doubt(odds=-1.4)
    sure.on_ended()
    sure.on_throttled(14.0, 13.9, 10)
    assert sure.rate_log_odds == -1.4


def test_refusals_that_no_pace_prevents_shake_the_verdict() -> None:
    paced = throttle()
    paced.rate_log_odds = 2.0
    for number in range(8):
        paced.on_throttled(100.0 * number + 0.1, 100.0 * number, 5)
    assert paced.rate_log_odds < 2.0
    assert paced.verdict != "rate"


def test_the_refusals_of_one_round_trip_do_not_shake_the_verdict() -> None:
    paced = throttle()
    paced.rate_log_odds = 2.0
    for number in range(30):
        paced.on_throttled(1.0 + number / 100.0, 0.9, 5)
    assert paced.rate_log_odds == 2.0


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("stated", [True, False])
def test_without_a_job_of_ours_to_end_refusals_wait_by_time(learn: bool, stated: bool) -> None:
    client = Client(Gateway(slots=0), throttle(40, learn=learn), until_s=600.0, stated=stated).run()
    assert len([at for at in client.sent_at if at > 1.0]) <= 45
    gaps = [later - at for at, later in zip(client.sent_at, client.sent_at[1:], strict=False)]
    assert max(gaps) <= LONGEST_WAIT_S + 1.0
    back = Client(Gateway(slots=0), throttle(40, learn=learn), until_s=200.0, stated=stated)
    back.later(60.0, partial(setattr, back.gateway, "slots", 40))
    assert back.run().most_held >= 38


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("limit", [5, 20])
def test_a_set_number_above_the_limit_goes_on_without_a_storm(limit: int, stated: bool) -> None:
    client = Client(Gateway(slots=limit), throttle(40, learn=False), jobs=20 * limit, stated=stated).run()
    assert client.ended == client.jobs
    assert len(client.refusals) <= 4 * client.jobs + 40
    assert max(sum(at <= sent < at + 1.0 for sent in client.sent_at) for at in client.sent_at[40:]) <= 25


def test_the_end_of_a_job_opens_what_was_shut_for_want_of_slots() -> None:
    shut = throttle(10, learn=False)
    shut.on_throttled(1.0, 0.9, 5, "jobs")
    assert not shut.admits(1.1, 5, 0)
    shut.on_ended()
    assert shut.admits(1.1, 4, 0)
    assert not shut.admits(1.1, 4, 1)
    shut.on_accepted(1.2, 1.1, 5, 0)
    assert shut.admits(1.2, 5, 1)


def test_the_end_of_a_job_opens_nothing_that_was_shut_for_the_rate() -> None:
    shut = throttle()
    shut.on_throttled(1.0, 0.9, 5, "rate", 30.0)
    shut.on_ended()
    assert not shut.admits(30.9, 4, 0)
    assert shut.admits(31.0, 4, 0)


def test_a_trial_keeps_to_what_the_user_allows() -> None:
    doubting = throttle(10)
    doubting.on_throttled(1.0, 0.9, 8)
    assert doubting.admits(9.0, 8, 0, 2)
    assert not doubting.admits(9.0, 8, 0, 3)
    assert not doubting.admits(9.0, 10, 0)


Told = tuple[str, float, int, LimitKind | None, float | None]


@given(
    st.sampled_from([throttle, partial(throttle, 6), partial(throttle, 6, learn=False)]),
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "accepted", "refused", "ended", "waited"]),
            st.floats(min_value=0.0, max_value=20.0),
            st.integers(min_value=1, max_value=3),
            st.sampled_from([None, "jobs", "rate"]),
            st.none() | st.floats(min_value=0.0, max_value=60.0),
        ),
        max_size=60,
    ),
)
def test_when_only_time_is_missing_it_says_when_that_has_passed(
    make: partial[AdmissionLimiter], told: list[Told]
) -> None:
    throttled, now, held = make(), 0.0, 0
    on_the_wire: list[float] = []
    for what, passed_s, weight, kind, wait_s in told:
        now += passed_s
        if what == "sent" and throttled.admits(now, held, len(on_the_wire), weight):
            throttled.sent(now)
            on_the_wire.append(now)
        elif what == "accepted" and on_the_wire:
            held += 1
            throttled.on_accepted(now, on_the_wire.pop(), held, len(on_the_wire), passed_s / 10.0)
        elif what == "refused" and on_the_wire:
            throttled.on_throttled(now, on_the_wire.pop(0), held, kind, wait_s, passed_s / 10.0)
        elif what == "ended" and held:
            held -= 1
            throttled.on_ended()
        state = (held, len(on_the_wire), weight)
        assert held + len(on_the_wire) <= throttled.jobs.ceiling
        if not throttled.admits(now, *state) and throttled.admits(FOREVER, *state):
            opens_at = throttled.opens_at(now)
            assert now < opens_at <= now + 120.0
            assert throttled.admits(opens_at, *state)
