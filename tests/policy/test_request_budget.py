"""Whether creates and polls share one budget of requests is found out, and either way the pace is right."""

import pytest

from nanobanana_async.policy.request_budget import RequestBudget, RequestKind
from nanobanana_async.policy.request_counts import AcceptedLately

BOTH: tuple[RequestKind, RequestKind] = ("create", "poll")


@pytest.mark.parametrize(("refused", "other"), [BOTH, BOTH[::-1]])
def test_one_request_of_the_other_kind_may_leave_after_a_refusal(refused: RequestKind, other: RequestKind) -> None:
    budget = RequestBudget()
    budget.on_sent(refused, 0.0)
    budget.on_throttled(refused, 0.1, 0.0)
    assert not budget.admits(refused, 0.2, 0)
    assert budget.admits(other, 0.2, 0)
    assert not budget.admits(other, 0.2, 1)
    budget.on_sent(other, 0.2)
    budget.on_throttled(other, 0.3, 0.2)
    assert not budget.admits(other, 0.3, 0)
    assert budget.is_shared
    assert budget.shared_log_odds > 3.0


def test_other_kind_that_is_accepted_during_a_run_of_refusals_has_its_own_budget() -> None:
    budget, now = RequestBudget(), 0.0
    for _ in range(6):
        budget.on_sent("create", now)
        budget.on_throttled("create", now + 0.05, now)
        budget.on_sent("poll", now + 0.1)
        budget.on_accepted("poll", now + 0.15, now + 0.1)
        now += 2.0
    assert not budget.is_shared
    assert budget.admits("poll", now, 5)
    assert not budget.pacer("poll").is_limited
    assert budget.pacer("create").is_limited
    for number in range(4):  # and shared again, once both are refused
        budget.on_throttled("create", now + number, now + number - 0.05)
        budget.on_throttled("poll", now + number + 0.2, now + number + 0.1)
    assert budget.is_shared


def test_single_refusals_are_no_evidence_against_a_shared_budget() -> None:
    budget, now = RequestBudget(), 0.0
    for _ in range(30):
        budget.on_sent("poll", now)
        budget.on_throttled("poll", now + 0.05, now)
        budget.on_sent("create", now + 0.1)
        budget.on_accepted("create", now + 0.15, now + 0.1)
        budget.on_sent("poll", now + 1.0)
        budget.on_accepted("poll", now + 1.05, now + 1.0)
        now += 2.0
    assert budget.is_shared


def test_no_pace_falls_far_below_what_the_last_minute_took() -> None:
    budget = RequestBudget()
    for second in range(120):
        budget.on_sent("poll", float(second))
        budget.on_accepted("poll", second + 0.05, float(second))
    for number in range(8):
        budget.on_throttled("poll", 120.1 + 2.0 * number, 120.0 + 2.0 * number)
    assert budget.pacer("poll").rate >= 0.6


def test_proven_rate_needs_a_full_minute_and_ignores_a_burst_before_silence() -> None:
    lately = AcceptedLately()
    for _ in range(60):
        lately.add(0.5)
    assert lately.proven_rate(30.0) == 0.0
    assert lately.proven_rate(60.5) == 0.0
    for second in range(61, 121):
        lately.add(float(second))
    assert lately.proven_rate(120.0) == pytest.approx(1.0, abs=0.05)


def test_polls_are_evidence_about_an_unexplained_refusal_of_a_create() -> None:
    budget = RequestBudget()
    assert budget.rate_log_odds_of_refused_create(0.0) == 0.0
    budget.on_accepted("poll", 1.05, 1.0)
    assert budget.rate_log_odds_of_refused_create(1.2) < 0.0
    assert budget.rate_log_odds_of_refused_create(9.0) == 0.0
    budget.on_throttled("poll", 2.05, 2.0)
    assert budget.rate_log_odds_of_refused_create(2.1) > 0.0


def test_other_kind_that_may_be_tried_opens_at_once() -> None:
    budget = RequestBudget()
    budget.on_sent("poll", 0.0)
    budget.on_throttled("poll", 0.1, 0.0)
    assert budget.opens_at("create") < 0.1 < budget.opens_at("poll")
