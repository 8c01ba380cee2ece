"""Which limit a 429 reports, and what may leave under both limits."""

import math
from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import LimitKind
from nanobanana_async.policy.concurrency import AnsweredCreate, ConcurrencyPolicy, Load, Mode
from nanobanana_async.policy.limiter import FIRST_TRIAL_WAIT_S, LONGEST_WAIT_S, AdmissionLimiter
from tests.policy.simulation import Bucket, Client, Gateway
from tests.support.rows import each_row

SEEDS = range(4)
FOREVER = 1e12


def limiter(max_jobs: int | None = None, *, learn: bool = True) -> AdmissionLimiter:
    return AdmissionLimiter(ConcurrencyPolicy(max_jobs=max_jobs, learn=learn))


def in_doubt(held: int = 20, odds: float = 0.0) -> AdmissionLimiter:
    """Return a limiter that met an unexplained 429 at 10 s."""
    undecided = limiter()
    undecided.rate_log_odds = odds
    undecided.on_sent(9.9)
    undecided.on_throttled(10.0, AnsweredCreate(9.9), Load(held))
    return undecided


def test_stated_kind_is_routed_to_its_limit() -> None:
    slots, rate = limiter(), limiter()
    slots.on_throttled(1.0, AnsweredCreate(0.9), Load(5), "jobs")
    rate.on_throttled(1.0, AnsweredCreate(0.9), Load(5), "rate", 7.0)
    assert (slots.job_limit.mode, slots.job_limit.cap, slots.pacer.is_limited) == (Mode.HOLD, 5.0, False)
    assert (rate.job_limit.mode, rate.job_limit.cap, rate.pacer.is_limited) == (Mode.RAMP, math.inf, True)
    assert rate.opens_at(5.0) == 8.0
    assert (slots.limit_kind, slots.undecided_since, rate.limit_kind, rate.undecided_since) == (None, None, None, None)
    assert slots.was_throttled
    assert not limiter().was_throttled


def test_stated_rate_resolves_an_undecided_429() -> None:
    undecided = in_doubt()
    assert (undecided.job_limit.cap, undecided.undecided_since) == (20.0, 10.0)
    undecided.on_throttled(11.0, AnsweredCreate(10.6), Load(20), "rate")
    assert undecided.job_limit.mode is Mode.RAMP
    assert undecided.undecided_since is None


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "burst"), [(1.0, 1.0), (1.0, 10.0), (2.0, 20.0), (5.0, 10.0), (20.0, 20.0)])
def test_hidden_rate_is_recognised_and_the_slots_are_restored(rate: float, burst: float) -> None:
    for seed in SEEDS:
        bucket = Bucket(rate, burst)
        creates = int(max(300.0, 60.0 * rate))
        client = Client(Gateway(limiter=bucket), jobs=creates, stated=False, seed=seed).run()
        assert client.verdicts == [None, "rate"]
        assert client.refusals_before_verdict <= 5
        assert client.limiter.job_limit.mode is Mode.RAMP
        assert client.taken_at[-1] <= 1.2 * bucket.ideal_s(creates)
        assert len(client.refusals) <= 0.06 * creates


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "burst"), [(2.0, 120.0), (10.0, 100.0)])
def test_hidden_rate_met_late_is_not_taken_for_slots(rate: float, burst: float) -> None:
    for seed in SEEDS:
        bucket = Bucket(rate, burst)
        client = Client(Gateway(limiter=bucket), jobs=600, stated=False, seed=seed).run()
        assert "jobs" not in client.verdicts
        assert client.taken_at[-1] <= 1.2 * bucket.ideal_s(600)


@each_row("rtt_s", [0.01, 0.15])
@each_row("limit", [1, 2, 5, 20, 60])
def test_hidden_slot_limit_is_recognised_after_two_trials(limit: int, rtt_s: float) -> None:
    for seed in SEEDS:
        gateway = Gateway(slots=limit)
        client = Client(gateway, jobs=20 * limit + 50, stated=False, rtt_s=rtt_s, seed=seed)
        client.later(60.0, partial(setattr, gateway, "slots", (limit + 1) // 2))
        client.run()
        assert client.verdicts == [None, "jobs"]
        assert client.refusals_before_verdict - client.in_ramp() <= 2
        assert not client.limiter.pacer.is_limited


@pytest.mark.slow
def test_many_hidden_slots_are_never_taken_for_a_rate() -> None:
    for seed in SEEDS:
        client = Client(Gateway(slots=100), jobs=1500, stated=False, seed=seed).run()
        assert "rate" not in client.verdicts
        assert len(client.refusals) <= 70


def test_trial_accepted_soon_is_evidence_for_the_rate() -> None:
    undecided = in_doubt()
    assert not undecided.admits(10.4, Load(20, 0))
    assert undecided.opens_at(10.1) == 10.0 + FIRST_TRIAL_WAIT_S
    assert undecided.admits(10.5, Load(20, 0))
    assert not undecided.admits(10.5, Load(20, 1))
    undecided.on_accepted(10.6, AnsweredCreate(10.5), Load(21, 0))
    assert undecided.limit_kind == "rate"
    assert undecided.job_limit.mode is Mode.RAMP
    assert undecided.pacer.is_limited


@pytest.mark.parametrize("likely_ends", [3.0, 50.0])
def test_trial_accepted_after_likely_ends_is_weak_evidence(likely_ends: float) -> None:
    undecided = in_doubt()
    undecided.on_accepted(10.6, AnsweredCreate(10.5), Load(21, 0, likely_ends))
    assert undecided.limit_kind is None
    assert -0.5 < undecided.rate_log_odds <= 0.0
    assert undecided.undecided_since is None


def test_trial_accepted_after_a_noticed_end_is_no_evidence() -> None:
    undecided = in_doubt()
    undecided.on_ended()
    undecided.on_accepted(10.6, AnsweredCreate(10.5), Load(20, 0))
    assert undecided.rate_log_odds == 0.0


def test_create_in_flight_during_the_429_is_no_evidence() -> None:
    undecided = in_doubt()
    undecided.on_accepted(10.1, AnsweredCreate(9.95), Load(21, 0))
    undecided.on_throttled(10.1, AnsweredCreate(9.95), Load(21))
    assert undecided.rate_log_odds == 0.0
    assert undecided.undecided_since == 10.0


def test_two_refused_trials_are_evidence_for_the_slots() -> None:
    undecided = in_doubt()
    undecided.on_throttled(10.6, AnsweredCreate(10.5), Load(20))
    assert undecided.limit_kind is None
    assert undecided.opens_at(10.7) == 10.6 + 2.0 * FIRST_TRIAL_WAIT_S
    undecided.on_throttled(11.7, AnsweredCreate(11.6), Load(20))
    assert undecided.limit_kind == "jobs"
    assert not undecided.admits(FOREVER, Load(20, 0))


def test_trial_refused_after_ended_jobs_is_evidence_for_the_rate() -> None:
    undecided = in_doubt(held=20)
    for _ in range(4):
        undecided.on_ended()
    undecided.on_throttled(14.0, AnsweredCreate(13.9), Load(16))
    assert undecided.limit_kind == "rate"
    assert undecided.job_limit.mode is Mode.RAMP


def test_lowered_limit_does_not_change_a_near_verdict_of_slots() -> None:
    sure = in_doubt(odds=-1.4)
    sure.on_ended()
    sure.on_throttled(14.0, AnsweredCreate(13.9), Load(10))
    assert sure.rate_log_odds == -1.4


def test_repeated_paced_429s_weaken_the_rate_verdict() -> None:
    paced = limiter()
    paced.rate_log_odds = 2.0
    for number in range(8):
        paced.on_throttled(100.0 * number + 0.1, AnsweredCreate(100.0 * number), Load(5))
    assert paced.rate_log_odds < 2.0
    assert paced.limit_kind != "rate"


def test_429s_of_one_round_trip_keep_the_rate_verdict() -> None:
    paced = limiter()
    paced.rate_log_odds = 2.0
    for number in range(30):
        paced.on_throttled(1.0 + number / 100.0, AnsweredCreate(0.9), Load(5))
    assert paced.rate_log_odds == 2.0


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("stated", [True, False])
def test_429s_without_held_jobs_back_off_by_time(learn: bool, stated: bool) -> None:
    client = Client(Gateway(slots=0), limiter(40, learn=learn), until_s=600.0, stated=stated).run()
    assert len([at for at in client.sent_at if at > 1.0]) <= 45
    gaps = [later - at for at, later in zip(client.sent_at, client.sent_at[1:], strict=False)]
    assert max(gaps) <= LONGEST_WAIT_S + 1.0
    back = Client(Gateway(slots=0), limiter(40, learn=learn), until_s=200.0, stated=stated)
    back.later(60.0, partial(setattr, back.gateway, "slots", 40))
    assert back.run().most_held >= 38


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("limit", [5, 20])
def test_fixed_max_jobs_above_the_limit_causes_no_429_storm(limit: int, stated: bool) -> None:
    client = Client(Gateway(slots=limit), limiter(40, learn=False), jobs=20 * limit, stated=stated).run()
    assert client.ended == client.jobs
    assert len(client.refusals) <= 4 * client.jobs + 40
    assert max(sum(at <= sent < at + 1.0 for sent in client.sent_at) for at in client.sent_at[40:]) <= 25


def test_ended_job_ends_the_backoff_for_slots() -> None:
    shut = limiter(10, learn=False)
    shut.on_throttled(1.0, AnsweredCreate(0.9), Load(5), "jobs")
    assert not shut.admits(1.1, Load(5, 0))
    shut.on_ended()
    assert shut.admits(1.1, Load(4, 0))
    assert not shut.admits(1.1, Load(4, 1))
    shut.on_accepted(1.2, AnsweredCreate(1.1), Load(5, 0))
    assert shut.admits(1.2, Load(5, 1))


def test_ended_job_does_not_end_a_wait_for_the_rate() -> None:
    shut = limiter()
    shut.on_throttled(1.0, AnsweredCreate(0.9), Load(5), "rate", 30.0)
    shut.on_ended()
    assert not shut.admits(30.9, Load(4, 0))
    assert shut.admits(31.0, Load(4, 0))


def test_trial_respects_max_jobs() -> None:
    undecided = limiter(10)
    undecided.on_throttled(1.0, AnsweredCreate(0.9), Load(8))
    assert undecided.admits(9.0, Load(8, 0), 2)
    assert not undecided.admits(9.0, Load(8, 0), 3)
    assert not undecided.admits(9.0, Load(10, 0))


Event = tuple[str, float, int, LimitKind | None, float | None]


@given(
    st.sampled_from([limiter, partial(limiter, 6), partial(limiter, 6, learn=False)]),
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
def test_opens_at_is_exact_when_only_time_is_missing(make: partial[AdmissionLimiter], events: list[Event]) -> None:
    limiting, now, held = make(), 0.0, 0
    in_flight: list[float] = []
    for what, passed_s, weight, kind, wait_s in events:
        now += passed_s
        if what == "sent" and limiting.admits(now, Load(held, len(in_flight)), weight):
            limiting.on_sent(now)
            in_flight.append(now)
        elif what == "accepted" and in_flight:
            held += 1
            limiting.on_accepted(now, AnsweredCreate(in_flight.pop()), Load(held, len(in_flight), passed_s / 10.0))
        elif what == "refused" and in_flight:
            limiting.on_throttled(
                now, AnsweredCreate(in_flight.pop(0)), Load(held, likely_ended=passed_s / 10.0), kind, wait_s
            )
        elif what == "ended" and held:
            held -= 1
            limiting.on_ended()
        state = (Load(held, len(in_flight)), weight)
        assert held + len(in_flight) <= limiting.job_limit.ceiling
        if not limiting.admits(now, *state) and limiting.admits(FOREVER, *state):
            opens_at = limiting.opens_at(now)
            assert now < opens_at <= now + 120.0
            assert limiting.admits(opens_at, *state)


def full_account(jobs: int = 5, *, limited: bool) -> AdmissionLimiter:
    """Return the limiter of an account that was full with these jobs; a rate may be known too."""
    known = limiter()
    for number in range(jobs - 1):
        known.on_sent(0.0)
        known.on_accepted(0.1, AnsweredCreate(0.0), Load(number + 1))
    known.on_throttled(0.2, AnsweredCreate(0.05), Load(jobs - 1), "jobs")
    known.on_accepted(0.3, AnsweredCreate(0.1), Load(jobs))  # in the same burst
    if limited:
        known.budget.on_sent("poll", 1.0)
        known.budget.on_throttled("poll", 1.1, 1.0)
        known.budget.on_accepted("poll", 5.1, 5.0)
    known.rate_log_odds = -4.0
    return known


def test_429_with_fewer_jobs_than_at_a_full_account_is_of_the_known_rate() -> None:
    known = full_account(limited=True)
    cap = known.job_limit.cap
    known.on_throttled(10.1, AnsweredCreate(10.0), Load(4))
    assert known.undecided_since is None
    assert not known.pacer.admits(10.2, 0)
    assert known.job_limit.cap == cap


def test_429_at_a_full_account_is_of_the_slots_although_a_rate_is_known() -> None:
    known = full_account(limited=True)
    known.on_throttled(10.1, AnsweredCreate(10.0), Load(5))
    assert known.undecided_since is None
    assert known.pacer.admits(10.2, 0)


def test_many_429s_below_a_full_account_are_doubted_although_a_rate_is_known() -> None:
    known, now = full_account(limited=True), 10.0
    for _ in range(30):
        known.on_throttled(now + 0.1, AnsweredCreate(now), Load(3))
        now += 1.0
    assert known.job_limit.cap <= 3.0


def test_429s_while_ever_fewer_jobs_are_held_are_of_an_unknown_rate() -> None:
    known = full_account(20, limited=False)
    cap = known.job_limit.cap
    for number, held in enumerate((18, 14, 10, 6, 3, 0)):
        known.on_ended()
        known.on_throttled(10.1 + number, AnsweredCreate(10.0 + number), Load(held))
    assert known.pacer.is_limited
    assert known.job_limit.cap == cap


def test_poll_refused_after_an_unexplained_429_shows_the_rate() -> None:
    undecided = in_doubt()
    undecided.budget.on_sent("poll", 11.0)
    undecided.budget.on_throttled("poll", 11.1, 11.0)
    assert not undecided.admits(11.2, Load(20))
    assert undecided.undecided_since is None
    assert undecided.job_limit.mode is Mode.RAMP


def test_trial_accepted_when_the_account_is_known_for_slots_does_not_change_its_verdict() -> None:
    known = full_account(limited=False)
    known.on_throttled(10.1, AnsweredCreate(10.0), Load(4))
    known.on_accepted(11.1, AnsweredCreate(11.0), Load(5))
    assert known.limit_kind == "jobs"
    assert known.admits(11.2, Load(3))


def test_undecided_429_of_a_large_job_is_forgotten_when_a_smaller_one_is_accepted() -> None:
    undecided = in_doubt(held=0)
    assert undecided.trial_at < math.inf
    undecided.forget_undecided()
    assert (undecided.undecided_since, undecided.trial_at, undecided.limit_kind) == (None, math.inf, None)


def test_refusal_while_others_hold_all_slots_is_no_learned_limit() -> None:
    full = limiter()
    full.on_throttled(1.0, AnsweredCreate(0.9), Load(0), "jobs")
    assert full.learned(now=2.0, at=datetime(2026, 11, 1, tzinfo=UTC)) is None
