"""The circuit breaker and the retry budget."""

import math

from nanobanana_async.errors import MAX_RETRY_AFTER_S
from nanobanana_async.policy.circuit import CircuitBreaker, CreateSpacing, RetryBudget
from nanobanana_async.policy.retry import RetryPolicy


def test_breaker_tolerates_two_failures_and_pauses_after_three() -> None:
    breaker = CircuitBreaker(RetryPolicy(first_backoff_s=2.0))
    breaker.on_failed(10.0, jitter=1.0)
    breaker.on_failed(10.0, jitter=1.0)
    assert not breaker.is_half_open
    assert breaker.allows(10.0, in_flight=9)
    breaker.on_failed(10.0, jitter=1.0)
    assert breaker.is_half_open
    assert not breaker.allows(11.9, in_flight=0)


def test_half_open_breaker_admits_single_probes_after_growing_waits() -> None:
    breaker = CircuitBreaker(RetryPolicy(first_backoff_s=2.0, max_backoff_s=5.0), failures=2)
    waits: list[float] = []
    now = 0.0
    for _ in range(4):
        breaker.on_failed(now, jitter=1.0)
        waits.append(breaker.paused_until - now)
        now = breaker.paused_until
        assert breaker.allows(now, in_flight=0)
        assert not breaker.allows(now, in_flight=1)
    assert waits == [2.0, 4.0, 5.0, 5.0]
    breaker.on_answered()
    assert breaker.allows(now, in_flight=99)


def test_retry_after_pauses_all_requests_and_is_capped() -> None:
    breaker = CircuitBreaker(RetryPolicy())
    breaker.pause_for(100.0, 5.0)
    assert not breaker.allows(104.9, in_flight=0)
    assert breaker.allows(105.0, in_flight=50)
    breaker.pause_for(100.0, math.inf)
    breaker.pause_for(100.0, 1.0)
    assert breaker.paused_until == 100.0 + MAX_RETRY_AFTER_S
    breaker.on_answered()
    assert not breaker.allows(219.9, in_flight=0)


def test_budget_allows_fifty_repeats_then_one_per_ten_requests() -> None:
    budget = RetryBudget()
    assert [budget.spend(0.0) for _ in range(51)] == [True] * 50 + [False]
    for _ in range(9):
        budget.earn()
    assert not budget.spend(0.0)
    budget.earn()
    budget.earn()
    assert budget.spend(0.0)


def test_budget_refills_with_time_up_to_its_capacity() -> None:
    budget = RetryBudget(tokens=0.0)
    assert not budget.spend(9.0)
    assert budget.spend(11.0)
    assert not budget.spend(5.0)
    budget.tokens = 49.99
    budget.earn()
    assert budget.tokens == 50.0


def test_spacing_lets_all_creates_leave_before_an_answer_is_lost() -> None:
    assert CreateSpacing().allows(0.0, in_flight=9, repeat=False)


def test_spacing_ends_where_no_history_can_be_read() -> None:
    spacing = CreateSpacing()
    spacing.on_answer_lost(10.0, lateness_s=2.0)
    spacing.disable()
    assert spacing.allows(10.0, in_flight=9, repeat=False)
    spacing.on_answer_lost(20.0, lateness_s=2.0)
    assert spacing.allows(20.0, in_flight=9, repeat=False)


def test_spacing_is_released_until_another_answer_is_lost() -> None:
    spacing = CreateSpacing()
    spacing.on_answer_lost(10.0, lateness_s=2.0)
    spacing.release()
    assert spacing.allows(10.0, in_flight=9, repeat=False)
    spacing.on_answer_lost(20.0, lateness_s=2.0)
    assert not spacing.allows(20.0, in_flight=0, repeat=False)


def test_spacing_holds_creates_back_while_a_lost_one_may_be_processed() -> None:
    spacing = CreateSpacing()
    spacing.on_answer_lost(10.0, lateness_s=2.0)
    assert not spacing.allows(12.9, in_flight=0, repeat=False)
    assert spacing.allows(13.0, in_flight=0, repeat=False)
    assert not spacing.allows(13.0, in_flight=1, repeat=False)
    assert spacing.allows(10.0, in_flight=0, repeat=True)
    assert not spacing.allows(10.0, in_flight=1, repeat=True)


def test_spacing_ends_when_a_repeat_names_the_task_and_begins_again_when_one_does_not() -> None:
    spacing = CreateSpacing()
    spacing.on_answer_lost(10.0, lateness_s=2.0)
    spacing.on_repeat_answered(named_task=True)
    spacing.on_answer_lost(20.0, lateness_s=2.0)
    assert spacing.allows(20.0, in_flight=9, repeat=False)
    spacing.on_repeat_answered(named_task=False)
    assert not spacing.allows(20.0, in_flight=0, repeat=False)
