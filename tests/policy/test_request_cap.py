"""A stated number of requests per minute is never passed, and nearly used up."""

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.request_cap import RequestCap
from nanobanana_async.policy.session_budget import SessionBudget


def most_in_a_minute(sent: list[float]) -> int:
    return max(bisect_left(sent, at + 60.0) - number for number, at in enumerate(sent))


@given(
    per_minute=st.integers(1, 90),
    pauses=st.lists(st.floats(0.0, 90.0, allow_subnormal=False), min_size=1, max_size=20),
    burst=st.integers(1, 100),
)
def test_no_minute_has_more_requests(per_minute: int, pauses: list[float], burst: int) -> None:
    cap, now = RequestCap(per_minute), 0.0
    sent: list[float] = []
    for pause in pauses:
        now += pause
        for _ in range(burst):
            now = max(now, cap.opens_at)
            cap.on_sent(now)
            sent.append(now)
    assert most_in_a_minute(sent) <= per_minute


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1200])
def test_busy_session_sends_nearly_as_many(per_minute: int) -> None:
    cap, sent = RequestCap(per_minute), 0
    while cap.opens_at < 600.0:
        cap.on_sent(max(cap.opens_at, 0.0) + 0.005)
        sent += 1
    assert 0.95 * 10 * per_minute <= sent


def test_requests_leave_evenly_after_a_small_burst() -> None:
    cap, now = RequestCap(60), 0.0
    for _ in range(6):
        assert cap.opens_at <= now
        cap.on_sent(now)
    assert cap.opens_at == pytest.approx(6 * 61 / 60 - 6)
    cap.on_sent(0.1)
    assert cap.opens_at == pytest.approx(7 * 61 / 60 - 6)


def test_cap_says_how_many_requests_may_leave_soon() -> None:
    assert SessionBudget().cap_most_requests_within(0.0, 2.0) == math.inf
    cap = RequestCap(60)
    budget = SessionBudget(cap=cap)
    assert budget.cap_most_requests_within(0.0, 2.0) == 8
    for _ in range(7):
        cap.on_sent(0.0)
    assert cap.most_requests_within(0.0, 2.0) == 1
    assert cap.most_requests_within(0.0, 1.0) == 0
    assert RequestCap(2).most_requests_within(0.0, 600.0) == 2


def test_learned_pace_stays_below_the_cap() -> None:
    budget = SessionBudget(cap=RequestCap(2))
    assert budget.opens_at("poll") == -math.inf
    budget.on_sent("create", 0.0)
    assert not budget.admits("poll", 24.0, 0)
    assert budget.opens_at("poll") == pytest.approx(24.5)
    assert budget.admits("poll", 25.0, 0)
    budget.on_throttled("poll", 25.1, 25.0, wait_s=50.0)
    assert not budget.admits("poll", 60.0, 0)
    assert budget.opens_at("poll") == pytest.approx(75.1)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "60", True])
def test_cap_must_be_a_whole_number_of_at_least_one(bad: object) -> None:
    with pytest.raises(ConfigurationError, match="max_requests_per_minute must be a whole number of at least 1"):
        ConcurrencyPolicy(max_requests_per_minute=bad)  # type: ignore[arg-type]
