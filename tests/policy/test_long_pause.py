"""A used-up budget of a day holds all requests back, once it is certain."""

import math

from nanobanana_async.policy.long_pause import MARGIN_S, PROBE_EVERY_S, LongPause
from nanobanana_async.policy.session_budget import SessionBudget

HOURS_S = 36_000.0


def test_first_refusal_pauses_for_two_minutes_and_the_second_is_believed() -> None:
    pause = LongPause()
    assert pause.on_refused(10.0, 9.9, HOURS_S)
    assert (pause.used_up, pause.confirmed) == (True, False)
    assert pause.opens_at == 10.0 + 120.0
    assert not pause.on_refused(10.1, 9.95, HOURS_S)  # in flight when the first came
    assert not pause.confirmed
    assert not pause.on_refused(140.0, 139.0, HOURS_S)
    assert pause.confirmed
    assert pause.opens_at == 140.0 + HOURS_S + MARGIN_S


def test_pause_outlasts_a_wait_once_it_is_confirmed_or_the_wait_is_over() -> None:
    pause = LongPause()
    assert not pause.outlasts(0.0, 0.0)
    pause.on_refused(10.0, 9.9, HOURS_S)
    assert pause.outlasts(10.0, 0.0)
    assert not pause.outlasts(14.9, 5.0)
    assert pause.outlasts(15.0, 5.0)
    assert not pause.outlasts(15.0, 600.0)
    pause.on_refused(140.0, 139.0, HOURS_S)
    assert pause.outlasts(140.0, 600.0)
    assert not pause.outlasts(140.0, 130.0 + HOURS_S)
    pause.on_answered(141.0)
    assert not pause.outlasts(200.0, 0.0)


def test_pause_that_ends_within_the_wait_does_not_outlast_it() -> None:
    pause = LongPause()
    pause.on_refused(0.0, -0.1, 60.0)
    assert not pause.outlasts(59.0, 60.0)
    pause.on_refused(61.0, 60.5, 60.0)  # the gateway says so once more: now it takes longer
    assert pause.outlasts(61.0, 60.0)


def test_single_request_shows_the_end_of_a_pause() -> None:
    budget = SessionBudget()
    budget.long_pause.on_refused(0.0, -0.1, 60.0)
    opens_at = 60.0
    assert not budget.admits("poll", opens_at - 0.1, 0)
    assert budget.opens_at("create") == opens_at
    assert budget.admits("create", opens_at, 0)
    budget.on_sent("create", opens_at)
    assert not budget.admits("poll", opens_at + 1.0, 0)
    budget.count_unpaced(opens_at + 1.0)  # a query that no pause holds back
    assert budget.opens_at("poll") == opens_at + PROBE_EVERY_S
    budget.on_accepted("create", opens_at + 2.0, -1.0)  # sent before the refusal: it shows nothing
    assert budget.long_pause.used_up
    budget.on_accepted("create", opens_at + 2.0, opens_at)
    assert not budget.long_pause.used_up
    assert budget.admits("poll", opens_at + 2.0, 5)
    assert budget.cap_and_pause_end_at == -math.inf


def test_refusal_for_the_rate_ends_a_pause() -> None:
    budget = SessionBudget()
    budget.long_pause.on_refused(0.0, -0.1, HOURS_S)
    budget.on_throttled("poll", 200.0, 199.0, 5.0)
    assert not budget.long_pause.used_up
    assert budget.cap_wait_s(0.0) == -math.inf
