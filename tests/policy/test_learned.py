"""What was learned about an account survives as JSON, ages, and is replaced fact by fact."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from attrs import evolve

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.concurrency import AnsweredCreate, ConcurrencyPolicy, JobLimit, Load, Mode
from nanobanana_async.policy.durations import Durations
from nanobanana_async.policy.learned import (
    FRESH_S,
    HALF_LIFE_S,
    KEPT_S,
    MOST_CLASSES,
    MOST_WEIGHT,
    SLOWEST_PER_S,
    LearnedAccount,
    LearnedLimits,
    LearnedPace,
    LearnedPriceClass,
    LearnedRates,
)
from nanobanana_async.policy.limiter import AdmissionLimiter
from nanobanana_async.policy.prices import Basis, Price, Prices
from nanobanana_async.policy.rate import Pacer
from nanobanana_async.policy.request_budget import RequestBudget
from tests.support.rows import each_row

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)
SHARED = LearnedRates(log_odds=3.0, both=LearnedPace(rate=1.0, windowed=True))
APART = LearnedRates(
    log_odds=-2.0, both=LearnedPace(rate=4.5), create=LearnedPace(rate=0.5, windowed=True), poll=LearnedPace(rate=4.0)
)
LIMITS = LearnedLimits(at=NOON, job_limit=5, rate_log_odds=-1.5, rates=SHARED)
FOXES = LearnedPriceClass(at=NOON, count=6.0, log_mean=3.0, log_variance=0.2, price=Decimal("8.5"))


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@each_row("limits", [None, LIMITS, evolve(LIMITS, rates=APART), LearnedLimits(at=NOON)])
@each_row("classes", [{}, {"foxes": FOXES, "owls": LearnedPriceClass(at=NOON)}])
def test_facts_survive_as_json(limits: LearnedLimits | None, classes: dict[str, LearnedPriceClass]) -> None:
    facts = LearnedAccount(limits=limits, classes=classes)
    read = LearnedAccount.from_json(facts.to_json())
    assert read == facts
    assert limits is None or (read.limits is not None and read.limits.at == NOON)


def test_unknown_fields_are_ignored() -> None:
    text = '{"moods": 3, "limits": {"at": "2026-03-12T12:00:00+00:00", "job_limit": 5, "colour": "red"}}'
    assert LearnedAccount.from_json(text) == LearnedAccount(limits=LearnedLimits(at=NOON, job_limit=5))


@each_row(
    "text",
    [
        "",
        "{",
        "null",
        '{"limits": 5}',
        '{"limits": {"job_limit": 5}}',
        '{"limits": {"at": "2026-03-12T12:00:00", "job_limit": 5}}',
        '{"limits": {"at": "2026-03-12T12:00:00+00:00", "job_limit": 0}}',
        '{"limits": {"at": "2026-03-12T12:00:00+00:00", "rate_log_odds": NaN}}',
        '{"limits": {"at": "2026-03-12T12:00:00+00:00", "rates": {"log_odds": 1, "both": {"rate": 0}}}}',
        '{"limits": {"at": "2026-03-12T12:00:00+00:00", "rates": {"log_odds": 1, "both": {"rate": 1e-9}}}}',
        '{"classes": 5}',
    ],
)
def test_damaged_text_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, TypeError, ConfigurationError, ExceptionGroup)):
        LearnedAccount.from_json(text)


@each_row(
    "facts",
    [
        '"count": -1',
        '"count": NaN',
        '"count": Infinity',
        '"log_mean": NaN',
        '"log_mean": 1e9',
        '"log_mean": 19.0',  # five years
        '"log_mean": -12.0',
        '"log_mean": "long"',
        '"log_variance": -1',
        '"log_variance": 1e6',
        '"price": "-1"',
        '"price": "a lot"',
    ],
)
def test_class_that_cannot_be_true_is_ignored_alone(facts: str) -> None:
    wrong = f'{{"at": "2026-03-12T12:00:00+00:00", "count": 3, {facts}}}'
    right = '{"at": "2026-03-12T12:00:00+00:00", "count": 6, "log_mean": 3, "log_variance": 0.2, "price": "8.5"}'
    limits = '{"at": "2026-03-12T12:00:00+00:00", "job_limit": 5}'
    read = LearnedAccount.from_json(f'{{"limits": {limits}, "classes": {{"owls": {wrong}, "foxes": {right}}}}}')
    assert read.classes == {"foxes": FOXES}
    assert read.limits == LearnedLimits(at=NOON, job_limit=5)


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 1e-9, 1e12])
def test_durations_of_any_size_can_be_read_again(seconds: float) -> None:
    learned = Durations(30.0)
    for _ in range(401):
        learned.add_completed(seconds)
    mean, variance = learned.log_moments
    facts = LearnedAccount(
        classes={"foxes": LearnedPriceClass(at=NOON, count=learned.count, log_mean=mean, log_variance=variance)}
    )
    assert LearnedAccount.from_json(facts.to_json()) == facts


def test_durations_fade_with_age() -> None:
    many = evolve(FOXES, count=400.0)
    assert many.faded_weight(NOON) == MOST_WEIGHT
    assert many.faded_weight(later(HALF_LIFE_S)) == MOST_WEIGHT / 2
    assert many.faded_weight(later(-HALF_LIFE_S)) == MOST_WEIGHT / 2  # a clock was wrong
    assert many.faded_weight(later(KEPT_S + 1)) == 0
    assert evolve(FOXES, count=0.9).faded_weight(later(HALF_LIFE_S)) == 0


def test_only_changed_facts_are_replaced() -> None:
    owls = evolve(FOXES, count=2.0)
    stored = LearnedAccount(limits=LIMITS, classes={"foxes": FOXES, "owls": owls})
    began = LearnedAccount(limits=LIMITS, classes={"foxes": evolve(FOXES, count=3.0), "owls": owls})
    slower = evolve(FOXES, at=later(60), log_mean=3.5)
    ended = LearnedAccount(limits=evolve(LIMITS, at=later(60)), classes={**began.classes, "foxes": slower})
    updated = stored.merge_changes(began, ended)
    assert updated.limits is LIMITS
    assert updated.classes == {"foxes": slower, "owls": owls}
    assert updated.classes["owls"].at == NOON
    fewer = evolve(LIMITS, at=later(60), job_limit=4)
    assert stored.merge_changes(began, evolve(ended, limits=fewer)).limits is fewer
    assert stored.merge_changes(began, began) == stored


def test_classes_learned_last_are_kept() -> None:
    old = {f"class {number}": evolve(FOXES, at=later(number)) for number in range(MOST_CLASSES)}
    new = LearnedAccount(classes={"new": evolve(FOXES, at=later(1000))})
    kept = LearnedAccount(classes=old).merge_changes(LearnedAccount(), new).classes
    assert len(kept) == MOST_CLASSES
    assert "new" in kept
    assert "class 0" not in kept


def test_fresh_job_limit_is_held_from_the_first_create() -> None:
    limit = JobLimit(ConcurrencyPolicy(), mean_job_s=10.0)
    limit.restore(5, 100.0, fresh=True)
    assert (limit.mode, limit.learned_cap) == (Mode.HOLD, 5)
    assert all(limit.admits(0, sending) for sending in range(5))
    assert not limit.admits(0, 5)
    limit.on_accepted(120.0, 119.9, 5, 0)  # one early probe
    assert limit.admits(5, 0)
    assert limit.learned_cap == 5
    limit.on_throttled(121.0, 120.1, 5)
    assert not limit.admits(5, 0)
    held_since, probes_s = 121.0, (20.0, 40.0, 60.0, 60.0)  # after each refused probe the next one comes later
    for probe_s in probes_s:
        limit.on_accepted(held_since + probe_s - 1.0, held_since + probe_s - 1.1, 5, 0)
        assert not limit.admits(5, 0)
        held_since += probe_s
        limit.on_accepted(held_since, held_since - 0.1, 5, 0)
        assert limit.admits(5, 0)
        limit.on_throttled(held_since, held_since - 0.05, 5)


def test_restored_large_limit_is_not_probed_by_the_clock() -> None:
    limit = JobLimit(ConcurrencyPolicy())
    limit.restore(80, 0.0, fresh=True)
    limit.on_accepted(1e6, 1e6 - 0.1, 80, 0)
    assert not limit.admits(80, 0)


def test_old_job_limit_fills_half_at_once_and_ramps_on() -> None:
    limit = JobLimit(ConcurrencyPolicy())
    limit.restore(20, 0.0, fresh=False)
    assert limit.mode is Mode.RAMP
    assert limit.learned_cap is None
    assert limit.admits(0, 9)
    assert not limit.admits(0, 10)
    assert limit.admits(10, 2)
    assert not limit.admits(10, 3)


def test_job_limit_is_learned_only_from_a_429() -> None:
    limit = JobLimit(ConcurrencyPolicy())
    assert limit.learned_cap is None
    limit.on_throttled(1.0, 0.9, 7)
    assert limit.learned_cap == 7


@pytest.mark.parametrize(("rates", "pace"), [(SHARED, SHARED.both), (APART, APART.create)])
def test_restored_budget_paces_from_the_first_request(rates: LearnedRates, pace: LearnedPace) -> None:
    budget = RequestBudget()
    budget.restore(rates, 10.0)
    assert budget.is_shared is (rates is SHARED)
    assert budget.learned(10.0) == rates
    assert 0.97 * pace.rate < budget.pacer("create").rate <= pace.rate
    sent = 0
    while budget.admits("create", 10.0, 0):
        budget.on_sent("create", 10.0)
        sent += 1
    assert sent == pytest.approx(60.0 * pace.rate, abs=2)
    assert not budget.admits("create", 60.0, 0)
    assert budget.admits("create", 71.0, 0)
    assert budget.learned(10.0) == rates


def test_pace_of_a_search_is_not_learned() -> None:
    budget = RequestBudget()
    budget.on_sent("poll", 0.0)
    budget.on_throttled("poll", 0.05, 0.0)
    assert budget.learned(1.0) == LearnedRates(log_odds=budget.shared_log_odds)


@pytest.mark.parametrize(("every_s", "learned"), [(10.0, 1.0), (0.5, 2.0), (0.1, 5.0)])
def test_pace_that_grew_is_learned_as_far_as_a_minute_proves_it(every_s: float, learned: float) -> None:
    budget = RequestBudget()
    budget.restore(LearnedRates(log_odds=3.0, both=LearnedPace(rate=1.0, windowed=True)), 0.0)
    budget.pacer("poll").rate = 5.0
    for number in range(int(120 / every_s)):
        budget.on_accepted("poll", number * every_s + 0.05, number * every_s)
    rates = budget.learned(120.0)
    assert rates is not None
    assert rates.both is not None
    assert rates.both.rate == pytest.approx(learned, rel=0.05)


def test_single_refusal_lowers_a_restored_pace_of_a_window_a_little() -> None:
    pacer = Pacer()
    pacer.restore(LearnedPace(rate=2.0, windowed=True), 5.0)
    for number in range(9):
        pacer.on_sent(5.0 + number)
        pacer.on_accepted(5.05 + number, 5.0 + number)
    pacer.on_sent(14.0)
    pacer.on_throttled(14.05, 14.0)  # the minute before the session was not empty
    pacer.on_sent(50.0)
    pacer.on_accepted(50.05, 50.0)
    assert 1.9 < pacer.rate < 2.0
    slow = Pacer()
    slow.restore(LearnedPace(rate=SLOWEST_PER_S, windowed=True), 0.0)
    assert slow.rate == SLOWEST_PER_S


def test_full_bucket_is_paced_after_its_first_refusal() -> None:
    budget = RequestBudget()
    rates = LearnedRates(log_odds=3.0, both=LearnedPace(rate=2.0))
    budget.restore(rates, 0.0)
    assert not budget.is_limited
    assert budget.learned(0.0) == rates
    budget.on_sent("poll", 0.0)
    assert budget.admits("poll", 0.0, 7)
    budget.on_throttled("poll", 0.05, 0.0)
    assert budget.pacer("poll").rate == pytest.approx(2.0, rel=0.05)
    assert budget.admits("poll", 0.7, 1)


def test_limiter_learns_nothing_without_a_429() -> None:
    limiter = AdmissionLimiter(ConcurrencyPolicy())
    limiter.on_sent(0.0)
    limiter.on_accepted(0.1, AnsweredCreate(0.0), Load(1))
    assert limiter.learned(now=0.2, at=NOON) is None


def test_undecided_429_is_not_learned_as_a_job_limit() -> None:
    limiter = AdmissionLimiter(ConcurrencyPolicy())
    limiter.on_throttled(0.1, AnsweredCreate(0.0), Load(7))
    assert limiter.job_limit.cap == 7
    assert limiter.learned(now=0.2, at=NOON) is None


def test_limiter_starts_from_learned_limits() -> None:
    limiter = AdmissionLimiter(ConcurrencyPolicy())
    limiter.restore(LIMITS, now=0.0, at=later(60))
    assert (limiter.job_limit.cap_in_slots, limiter.limit_kind, limiter.was_throttled) == (5, "jobs", True)
    assert limiter.budget.is_limited
    learned = limiter.learned(now=0.0, at=later(60))
    assert learned is not None
    assert (learned.at, learned.job_limit) == (later(60), 5)


def test_age_decides_which_limits_are_used() -> None:
    limiter = AdmissionLimiter(ConcurrencyPolicy())
    limiter.restore(LIMITS, now=0.0, at=later(FRESH_S + 1))
    assert limiter.job_limit.cap == math.inf
    assert limiter.budget.is_limited
    limiter = AdmissionLimiter(ConcurrencyPolicy())
    limiter.restore(LIMITS, now=0.0, at=later(KEPT_S + 1))
    assert not limiter.budget.is_limited


def test_limits_without_facts_and_fixed_limits_restore_nothing() -> None:
    limiter = AdmissionLimiter(ConcurrencyPolicy(max_jobs=9, learn=False))
    limiter.restore(evolve(LIMITS, rates=None), now=0.0, at=NOON)
    assert (limiter.job_limit.cap_in_slots, limiter.budget.is_limited) == (9, False)
    limiter = AdmissionLimiter(ConcurrencyPolicy())
    limiter.restore(LearnedLimits(at=NOON), now=0.0, at=NOON)
    assert limiter.job_limit.cap_in_slots is None


def test_new_durations_win_over_restored_ones_after_a_few_jobs() -> None:
    durations = Durations(20.0)
    durations.restore(MOST_WEIGHT, math.log(60.0), 0.04)
    assert durations.median_s == pytest.approx(60.0, rel=0.1)
    assert durations.log_moments == pytest.approx((math.log(60.0), 0.04))
    for _ in range(16):
        durations.add_completed(20.0)
    durations.fit(())
    assert durations.median_s < 32.0


def test_known_prices_are_those_that_were_stated() -> None:
    prices = Prices()
    prices.learn("foxes", Decimal(8))
    prices.learn("owls", None)
    assert prices.known == {"foxes": Decimal(8)}


def test_price_of_an_earlier_session_is_an_estimate() -> None:
    prices = Prices()
    prices.restore("foxes", Decimal(8))
    assert prices.known == {"foxes": Decimal(8)}
    assert prices.estimate("foxes", Decimal(1), None) == Price("foxes", Decimal(8), Basis.EXAMPLE)
    assert prices.estimate("foxes", Decimal(1), Decimal(9)).credits == 9
    prices.learn("foxes", Decimal(10))
    assert prices.estimate("foxes", Decimal(1), Decimal(9)) == Price("foxes", Decimal(10))
