"""Job slots: a hidden limit is found, filled and followed with few 429s."""

import math
from functools import partial
from statistics import mean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.concurrency import ConcurrencyPolicy, JobLimit, Mode
from nanobanana_async.policy.limiter import AdmissionLimiter
from tests.policy.simulation import Client, Gateway, lognormal

SEEDS = range(4)
CHANGE_AT_S = 300.0
MEAN_S = 10.0 * math.exp(0.08)

limits = pytest.mark.parametrize("limit", [5, 20, pytest.param(100, marks=pytest.mark.slow)])
round_trips = pytest.mark.parametrize("rtt_s", [0.01, 0.15])


def sent_under(limit: int, rtt_s: float, seed: int, policy: ConcurrencyPolicy | None = None) -> Client:
    limiter = AdmissionLimiter(policy or ConcurrencyPolicy())
    return Client(Gateway(slots=limit), limiter, jobs=40 * limit, rtt_s=rtt_s, seed=seed).run()


def changed(limit: int, to: int, rtt_s: float, seed: int, until_s: float = CHANGE_AT_S + 120.0) -> Client:
    gateway = Gateway(slots=limit)
    client = Client(gateway, until_s=until_s, rtt_s=rtt_s, seed=seed)
    client.later(CHANGE_AT_S, partial(setattr, gateway, "slots", to))
    return client.run()


def filled_after_s(client: Client, limit: int) -> float:
    """Return how long after the change 95 % of the limit were in use."""
    return next(at for at, running in client.filled if at > CHANGE_AT_S and running >= 0.95 * limit) - CHANGE_AT_S


@pytest.mark.slow
@limits
@round_trips
def test_hidden_slot_limit_is_found_and_filled_with_few_429s(limit: int, rtt_s: float) -> None:
    clients = [sent_under(limit, rtt_s, seed) for seed in SEEDS]
    assert all(client.in_ramp() <= math.ceil(math.sqrt(limit)) for client in clients)
    assert mean(client.while_holding() / client.jobs for client in clients) <= 0.015
    probes_s = 3.0 * MEAN_S if limit < 50 else 1.3 * limit / (limit / MEAN_S)
    for client in clients:
        ideal_s = client.jobs * MEAN_S / limit
        assert len(client.refusals) - client.in_ramp() <= 0.015 * client.jobs + 2.0 * client.now / probes_s
        assert client.now <= 1.2 * ideal_s + 10.0


@pytest.mark.slow
def test_climb_proceeds_when_many_jobs_end_per_round_trip() -> None:
    gateway = Gateway(slots=400)
    client = Client(gateway, until_s=150.0, rtt_s=0.3, seed=1).run()
    assert mean(running for at, running in client.filled if at > 30.0) >= 0.95 * 400


@pytest.mark.slow
@round_trips
@pytest.mark.parametrize(("limit", "means"), [(5, 4.0), (20, 4.0), (100, 2.5)])
def test_doubled_limit_is_filled_within_few_mean_durations(limit: int, means: float, rtt_s: float) -> None:
    took = [
        filled_after_s(changed(limit, 2 * limit, rtt_s, seed), 2 * limit) for seed in range(4 if limit == 100 else 12)
    ]
    assert max(took) <= means * MEAN_S
    assert mean(took) <= 2.2 * MEAN_S  # small limits are probed every three means: half of that, and the climb


@pytest.mark.slow
@round_trips
@pytest.mark.parametrize(("limit", "refusals"), [(20, 10), (100, 25)])
def test_halved_limit_is_followed_with_few_429s(limit: int, refusals: int, rtt_s: float) -> None:
    clients = [changed(limit, limit // 2, rtt_s, seed) for seed in range(3 if limit == 100 else 9)]
    assert median(sum(refusal.at > CHANGE_AT_S for refusal in client.refusals) for client in clients) <= refusals
    for client in clients:
        assert mean(running for at, running in client.filled if at > CHANGE_AT_S + 60.0) >= 0.9 * limit / 2


@pytest.mark.slow
@round_trips
def test_limit_of_zero_for_a_minute_is_filled_again_afterwards(rtt_s: float) -> None:
    gateway = Gateway(slots=60)
    client = Client(gateway, until_s=CHANGE_AT_S + 200.0, rtt_s=rtt_s)
    client.later(CHANGE_AT_S, partial(setattr, gateway, "slots", 0))
    client.later(CHANGE_AT_S + 60.0, partial(setattr, gateway, "slots", 60))
    client.run()
    refused = [refusal.at for refusal in client.refusals if CHANGE_AT_S < refusal.at < CHANGE_AT_S + 60.0]
    assert len(refused) <= 30
    assert mean(running for at, running in client.filled if at > CHANGE_AT_S + 120.0) >= 0.95 * 60


@limits
def test_max_jobs_is_never_exceeded(limit: int) -> None:
    client = sent_under(2 * limit, 0.15, 1, ConcurrencyPolicy(max_jobs=limit))
    assert client.most_held == limit
    assert not client.refusals


@pytest.mark.parametrize("max_jobs", [1, 7, 40])
def test_learn_false_holds_exactly_max_jobs(max_jobs: int) -> None:
    policy = ConcurrencyPolicy(max_jobs=max_jobs, learn=False)
    client = Client(Gateway(), AdmissionLimiter(policy), jobs=10 * max_jobs, draw=lognormal(10.0, 0.4))
    client.run()
    assert client.most_held == max_jobs
    limit = JobLimit(policy)
    limit.on_throttled(1.0, 0.5, max_jobs - 1)
    assert limit.admits(max_jobs - 1, 0)
    assert not limit.admits(max_jobs, 0)
    assert limit.cap_in_slots == max_jobs


def test_learn_false_requires_max_jobs() -> None:
    with pytest.raises(ConfigurationError, match="max_jobs"):
        ConcurrencyPolicy(learn=False)


def test_slots_is_none_until_the_limit_is_met_or_set() -> None:
    assert JobLimit(ConcurrencyPolicy()).cap_in_slots is None
    assert JobLimit(ConcurrencyPolicy(max_jobs=8)).cap_in_slots == 8
    met = JobLimit(ConcurrencyPolicy(max_jobs=8))
    met.on_throttled(1.0, 0.5, 5)
    assert met.cap_in_slots == 5


def test_all_429s_of_one_round_trip_are_one_event() -> None:
    once, often = JobLimit(ConcurrencyPolicy()), JobLimit(ConcurrencyPolicy())
    once.on_throttled(1.0, 0.5, 30)
    for number in range(8):
        often.on_throttled(1.0 + number / 100.0, 0.5 + number / 100.0, 30)
    assert often == once
    assert often.cap == 30.0


def test_late_accepts_of_the_burst_raise_the_cap() -> None:
    limit = JobLimit(ConcurrencyPolicy())
    limit.on_throttled(1.0, 0.5, 30)
    limit.on_accepted(1.1, 0.5, 31, 2)
    limit.on_accepted(1.2, 0.6, 32, 1)
    assert limit.cap == 32.0
    limit.on_accepted(5.0, 4.9, 20, 0)
    limit.on_throttled(9.0, 8.9, 32)
    stepped_down = limit.cap
    assert stepped_down == pytest.approx(31.02)
    limit.on_accepted(9.1, 8.9, 33, 0)
    assert limit.cap == stepped_down


def test_heavy_job_waits_for_all_its_slots_or_runs_alone() -> None:
    limit = JobLimit(ConcurrencyPolicy(max_jobs=10))
    limit.on_throttled(1.0, 0.5, 8)
    assert limit.admits(4, 0, 4)
    assert not limit.admits(4, 1, 4)
    assert limit.admits(0, 0, 40)
    assert limit.fits_max_jobs(6, 4)
    assert not limit.fits_max_jobs(7, 4)


def test_failed_probe_restores_the_learned_cap() -> None:
    limit = JobLimit(ConcurrencyPolicy())
    limit.on_throttled(1.0, 0.9, 10)
    learned = limit.cap
    for at in range(200):
        limit.on_accepted(2.0 + at, 1.9 + at, 10, 0)
        if limit.mode is Mode.CLIMB:
            break
        learned = limit.cap
    assert limit.admits(10, 0)
    assert not limit.admits(10, 1)
    limit.on_throttled(300.0, 299.9, 11)
    assert limit.mode is Mode.HOLD
    assert learned <= limit.cap <= learned + 0.03


TIMES = st.floats(min_value=0.0, max_value=1e6)
COUNTS = st.integers(min_value=0, max_value=3000)


@pytest.mark.slow
@given(
    st.builds(ConcurrencyPolicy, max_jobs=st.none() | st.integers(min_value=1, max_value=50))
    | st.builds(ConcurrencyPolicy, max_jobs=st.integers(min_value=1, max_value=50), learn=st.just(False)),
    st.lists(st.tuples(st.sampled_from(["accepted", "refused"]), TIMES, TIMES, COUNTS, COUNTS), max_size=60),
    COUNTS,
    COUNTS,
    st.integers(min_value=1, max_value=9),
)
def test_at_least_one_and_at_most_max_jobs_are_admitted(
    policy: ConcurrencyPolicy, events: list[tuple[str, float, float, int, int]], held: int, sending: int, weight: int
) -> None:
    limit = JobLimit(policy)
    for what, at, took_s, of_held, of_sending in events:
        if what == "accepted":
            limit.on_accepted(at + took_s, at, of_held + 1, of_sending)
        else:
            limit.on_throttled(at + took_s, at, of_held)
        assert limit.cap >= 1.0
        assert limit.admits(0, 0, weight)
        assert limit.cap_in_slots is None or 1 <= limit.cap_in_slots <= limit.ceiling
        if held + sending and held + sending + weight > limit.ceiling:
            assert not limit.admits(held, sending, weight)


def test_heavy_jobs_are_probed_for_too() -> None:
    limit = JobLimit(ConcurrencyPolicy())
    limit.on_throttled(1.0, 0.9, 40)
    for number in range(200):
        at = 2.0 + number
        limit.on_accepted(at, at - 0.1, 40, 0, 4)
    assert limit.cap > 44 or limit.mode is Mode.CLIMB
    assert limit.admits(40, 0, 4)
