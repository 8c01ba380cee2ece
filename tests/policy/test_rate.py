"""The pacer: a hidden rate is found and kept."""

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.policy.rate import Pacer
from tests.policy.simulation import Bucket, Client, Gateway, Limiter, Window, endless

NEVER_S = 1e8

waits = pytest.mark.parametrize("states_wait", [False, True], ids=["silent", "states-wait"])


def sent_through(
    limiter: Limiter, creates: int, *, states_wait: bool = False, rtt_s: float = 0.15, jitter: float = 0.4
) -> Client:
    return Client(
        Gateway(limiter=limiter),
        draw=endless,
        jobs=creates,
        until_s=NEVER_S,
        rtt_s=rtt_s,
        jitter=jitter,
        states_wait=states_wait,
    ).run()


@pytest.mark.slow
@waits
@pytest.mark.parametrize(("burst", "rtt_s"), [("ten", 0.01), ("a minute's worth", 0.15)])
@pytest.mark.parametrize("rate", [0.2, 1.0, 5.0, 20.0, 50.0])
def test_hidden_rate_is_used_in_full_with_few_429s(rate: float, burst: str, rtt_s: float, states_wait: bool) -> None:
    bucket = Bucket(rate, 10.0 if burst == "ten" else 60.0 * rate)
    creates = int(bucket.burst + max(400.0, 60.0 * rate))
    client = sent_through(bucket, creates, states_wait=states_wait, rtt_s=rtt_s)
    assert len(client.taken_at) == creates
    assert client.taken_at[-1] <= 1.17 * bucket.ideal_s(creates)
    assert len(client.refusals) <= 0.054 * creates


@pytest.mark.slow
@waits
@pytest.mark.parametrize("rate", [0.2, 1.0, 5.0, 20.0, 50.0])
def test_one_token_bucket_is_used_almost_in_full(rate: float, states_wait: bool) -> None:
    bucket = Bucket(rate, 1.0)
    creates = int(max(400.0, 30.0 * rate))
    client = sent_through(bucket, creates, states_wait=states_wait, rtt_s=0.01, jitter=0.1)
    assert client.taken_at[-1] <= 1.2 * bucket.ideal_s(creates)
    assert len(client.refusals) <= 0.04 * creates


@waits
@pytest.mark.parametrize(("most", "length_s"), [(5, 1.0), (10, 10.0), (60, 60.0), (100, 60.0)])
def test_fixed_window_limit_takes_at_most_twice_the_ideal_time(most: int, length_s: float, states_wait: bool) -> None:
    window = Window(most, length_s)
    client = sent_through(window, 400, states_wait=states_wait)
    assert len(client.taken_at) == 400
    assert client.taken_at[-1] <= 2.0 * window.ideal_s(400)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "to"), [(2.0, 4.0), (20.0, 5.0)])
def test_changed_rate_is_followed(rate: float, to: float) -> None:
    bucket = Bucket(rate, 10.0)
    client = Client(Gateway(limiter=bucket), draw=endless, until_s=900.0)
    client.later(300.0, partial(setattr, bucket, "rate", to))
    client.run()
    assert 0.95 * rate <= sum(200.0 < at <= 300.0 for at in client.taken_at) / 100.0 <= 1.01 * rate
    assert 0.95 * to <= sum(800.0 < at <= 900.0 for at in client.taken_at) / 100.0 <= 1.01 * to


def test_no_pacing_before_the_first_429() -> None:
    pacer = Pacer()
    pacer.on_sent(1.0)
    pacer.on_accepted(1.1, 1.0)
    assert not pacer.is_limited
    assert pacer.admits(1.1, 99)


def test_stated_wait_is_obeyed_and_a_single_create_follows() -> None:
    pacer = Pacer()
    pacer.on_throttled(1.0, 0.9, 20.0)
    assert not pacer.admits(20.9, 0)
    assert pacer.admits(21.0, 0)
    assert not pacer.admits(21.0, 1)


def test_all_429s_of_one_round_trip_are_one_event() -> None:
    once, often = Pacer(), Pacer()
    once.on_throttled(1.0, 0.5)
    for number in range(8):
        often.on_throttled(1.0 + number / 100.0, 0.5 + number / 100.0)
    assert often == once


def test_half_of_a_lost_gap_is_made_up_for() -> None:
    pacer = Pacer()
    pacer.on_throttled(1.0, 0.9)
    pacer.on_throttled(3.0, 2.9)
    gap_s = 1.0 / pacer.rate
    pacer.on_sent(pacer.next_at + 100.0)
    assert pacer.next_at == pytest.approx(3.0 + gap_s + 100.0 + gap_s / 2.0)


def test_long_outage_is_probed_every_half_minute_and_the_rate_recovers() -> None:
    pacer, now = Pacer(), 0.0
    while now < 3600.0:
        pacer.on_throttled(now + 0.1, now)
        assert pacer.next_at - now <= 31.0
        now = pacer.next_at
    for _ in range(8):
        assert not pacer.admits(now - 0.01, 0)  # a request waits: only then does a success show that more is allowed
        pacer.on_sent(now)
        pacer.on_accepted(now + 0.1, now)
        now = max(now + 0.1, pacer.next_at)
    assert pacer.rate >= 2.0


def minute_window(pacer: Pacer, quota: int, until_s: float) -> tuple[list[float], list[float]]:
    """Send as the pacer allows through a sliding minute; return when requests were accepted and refused."""
    taken: list[float] = []
    refused: list[float] = []
    now = 0.0
    while now < until_s:
        if pacer.admits(now, 0):
            pacer.on_sent(now)
            if sum(at > now - 60.0 for at in taken) < quota:
                taken.append(now)
                pacer.on_accepted(now + 0.05, now)
            else:
                refused.append(now)
                pacer.on_throttled(now + 0.05, now)
            now += 0.06
        else:
            now = max(now + 0.01, min(pacer.opens_at(), now + 1.0))
    return taken, refused


def test_sliding_minute_is_learned_from_its_first_closure_and_used_in_full() -> None:
    pacer = Pacer()
    taken, refused = minute_window(pacer, 120, 600.0)
    assert pacer.windowed
    assert pacer.rate == pytest.approx(2.0, rel=0.05)
    assert sum(at >= 120.0 for at in taken) >= 0.96 * 960
    assert len(refused) <= 0.02 * len(taken)


def test_urgent_requests_of_a_window_do_not_wait_for_the_pace_but_for_its_quota() -> None:
    pacer = Pacer()
    minute_window(pacer, 120, 300.0)
    now = 330.0  # a pause of half a minute makes room
    assert pacer.admits(now, 0)
    sent = 0
    while pacer.admits(now, 0, urgent=True):
        pacer.on_sent(now)
        sent += 1
    assert 50 <= sent <= 70
    assert pacer.opens_at() > now
    assert not pacer.admits(now, 0)


def test_rate_of_a_window_that_rose_is_found() -> None:
    pacer = Pacer()
    minute_window(pacer, 60, 300.0)
    taken = 0
    for number in range(40_000):
        now = 300.0 + number * 0.05
        if pacer.admits(now, 0):
            pacer.on_sent(now)
            pacer.on_accepted(now + 0.04, now)
            taken += 1
    assert pacer.rate > 4.0


def test_refusal_in_the_same_round_trip_is_not_counted_as_taken() -> None:
    pacer = Pacer()
    for number in range(20):
        pacer.on_sent(number * 0.01)
    for number in range(10):
        pacer.on_accepted(0.3, number * 0.01)
    for number in range(10, 20):
        pacer.on_throttled(0.3, number * 0.01)
    for at in (1.0, 3.0, 8.0, 20.0, 40.0):
        pacer.on_sent(at)
        pacer.on_throttled(at + 0.05, at)
    pacer.on_sent(61.0)
    pacer.on_accepted(61.05, 61.0)
    assert pacer.windowed
    assert pacer.rate == pytest.approx(0.98 * 10 / 60.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "accepted", "refused"]),
            st.floats(min_value=0.0, max_value=100.0),
            st.floats(min_value=0.0, max_value=10.0),
            st.none() | st.floats(min_value=0.0, max_value=120.0),
        ),
        max_size=80,
    )
)
def test_rate_stays_positive_for_any_event_sequence(
    events: list[tuple[str, float, float, float | None]],
) -> None:
    pacer, now = Pacer(), 0.0
    for what, passed_s, took_s, wait_s in events:
        now += passed_s
        if what == "sent":
            pacer.on_sent(now)
        elif what == "accepted":
            pacer.on_accepted(now, now - took_s)
        else:
            pacer.on_throttled(now, now - took_s, wait_s)
            assert pacer.next_at < math.inf
        assert pacer.rate > 0.0
        assert pacer.is_limited is (pacer.rate < math.inf)
        assert not math.isnan(pacer.next_at)
