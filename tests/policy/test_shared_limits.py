"""A session that shares its account: it keeps to its allotment, reports each event once, and asks when it must."""

import math
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from nanobanana_async.policy.concurrency import AnsweredCreate, ConcurrencyPolicy, Load
from nanobanana_async.policy.learned import LearnedLimits
from nanobanana_async.policy.request_cap import RequestCap
from nanobanana_async.policy.shared_account import (
    DEPARTURE_KEPT_S,
    LEAST_GAP_S,
    MOST_EVENTS,
    OFFSET_KEPT_S,
    QUIET_TICKS,
    TICK_S,
    SharedAccount,
)
from nanobanana_async.policy.shared_limits import SharedBudget, SharedLimiter
from nanobanana_async.policy.sharing import LATER_S, Allotment, Report, RequestEvent

AHEAD_S = 1000.0
"""The ledger's clock minus the session's."""


def new(policy: ConcurrencyPolicy | None = None, **allotted: object) -> SharedLimiter:
    """Return the limiter of a session that had an exchange at 10 s of its clock."""
    limiter = SharedLimiter(policy or ConcurrencyPolicy(), budget=SharedBudget())
    say(limiter)
    hear(limiter, 10.0, **allotted)
    return limiter


def say(limiter: SharedLimiter, held: int = 0, queued: int = 0, polls_due: int = 0) -> Report:
    times: dict[str, Any] = {"mean_job_s": 20.0, "notice_delay_s": 0.5, "max_run_s": 60.0}
    return limiter.budget.shared.make_report(Load(held), queued, polls_due, **times)


def hear(limiter: SharedLimiter, at: float, **allotted: object) -> None:
    limiter.take_allotment(Allotment(at=at + AHEAD_S, **allotted), at, at)  # type: ignore[arg-type]


def next_at(limiter: SharedLimiter, now: float, taken: int = 0, queued: int = 0) -> float:
    return limiter.budget.shared.next_at(now, taken, queued)


def test_creates_are_admitted_within_the_allotment() -> None:
    limiter = new(granted=5, target=3)
    assert limiter.admits(11.0, Load(1, 1))
    assert not limiter.admits(11.0, Load(2, 1))
    assert not limiter.admits(11.0, Load(1, 0), weight=3)
    assert limiter.admits(11.0, Load(0, 0), weight=4)  # alone
    assert not new().admits(11.0, Load(0))


def test_max_jobs_bounds_the_allotment() -> None:
    limiter = new(ConcurrencyPolicy(max_jobs=2), granted=5, target=5)
    assert limiter.admits(11.0, Load(1))
    assert not limiter.admits(11.0, Load(2))


def test_nothing_leaves_until_the_learner_knows_of_a_refusal() -> None:
    limiter = new(granted=5, target=5)
    limiter.on_throttled(11.0, AnsweredCreate(10.5), Load(1), "jobs", 2.0)
    assert limiter.throttled == 1
    assert not limiter.admits(11.0, Load(1))
    assert not limiter.budget.admits("poll", 11.0, 0)
    assert next_at(limiter, 11.0, 1, 3) == -math.inf
    (event,) = say(limiter, 1).events
    assert (event.what, event.limit_kind, event.wait_s) == ("throttled", "jobs", 2.0)
    hear(limiter, 11.1, granted=5, target=5)
    assert limiter.admits(11.2, Load(1))


def test_a_refusal_during_an_exchange_is_reported_in_the_next() -> None:
    limiter = new(granted=5, target=5)
    say(limiter)
    limiter.budget.on_throttled("poll", 11.0, 10.9, 3.0)
    hear(limiter, 11.1, granted=5, target=5)
    assert not limiter.admits(11.2, Load(0))
    assert next_at(limiter, 11.2) == -math.inf
    (event,) = say(limiter).events
    assert (event.kind, event.at, event.sent_at, event.wait_s) == ("poll", 11.0 + AHEAD_S, 10.9 + AHEAD_S, 3.0)


def test_polls_go_on_while_the_ledger_is_away() -> None:
    limiter = new(granted=5, target=5)
    limiter.budget.on_throttled("poll", 11.0, 10.9)
    say(limiter)
    limiter.budget.shared.on_exchange_failed(12.0)
    assert limiter.budget.admits("poll", 12.0, 0)


def test_events_are_reported_once_in_order_by_the_clock_of_the_ledger() -> None:
    limiter = new(granted=5, target=5)
    limiter.on_sent(11.0)
    limiter.on_accepted(11.2, AnsweredCreate(11.0, 2), Load(2))
    limiter.budget.on_accepted("poll", 11.3, 11.25)
    limiter.on_ended()
    events = say(limiter, 1).events
    assert [event.what for event in events] == ["sent", "accepted", "accepted", "ended"]
    assert [event.at for event in events[:3]] == [11.0 + AHEAD_S, 11.2 + AHEAD_S, 11.3 + AHEAD_S]
    assert events[1].sent_at == 10.0 + AHEAD_S + LATER_S  # what it knew when it sent
    assert events[1].slots_needed == 2
    hear(limiter, 11.4)
    assert say(limiter).events == ()


def test_nothing_is_reported_before_the_clocks_were_compared() -> None:
    limiter = SharedLimiter(ConcurrencyPolicy(), budget=SharedBudget())
    limiter.on_sent(1.0)
    limiter.on_accepted(1.1, AnsweredCreate(1.0), Load(1))
    assert say(limiter).events == ()
    hear(limiter, 2.0)
    assert [event.sent_at for event in say(limiter).events] == [-math.inf, -math.inf]


def test_a_report_without_an_answer_is_repeated() -> None:
    limiter = new(granted=5, target=5)
    limiter.on_ended()
    first = say(limiter, 3)
    limiter.budget.shared.on_exchange_failed(11.0)
    limiter.on_ended()
    again = say(limiter, 2)
    assert (again.number, again.events, again.held) == (first.number, first.events, 2)
    hear(limiter, 12.0)
    assert len(say(limiter).events) == 1


def test_only_the_last_events_are_kept_while_the_ledger_is_away() -> None:
    limiter = new()
    for _ in range(2 * MOST_EVENTS):
        limiter.on_ended()
    assert MOST_EVENTS / 2 <= len(say(limiter).events) <= MOST_EVENTS


def test_the_offset_of_the_clocks_comes_from_the_shortest_exchange() -> None:
    limiter = new(granted=1, target=1)
    limiter.take_allotment(Allotment(at=11.0 + AHEAD_S), 11.0, 13.0)  # error up to 1 s
    limiter.on_sent(14.0)
    assert say(limiter).events[0].at == 14.0 + AHEAD_S
    limiter.take_allotment(Allotment(at=80.0 + AHEAD_S), 80.0, 10.0 + OFFSET_KEPT_S + 12.0)
    limiter.on_sent(90.0)
    assert say(limiter).events[0].at != 90.0 + AHEAD_S


def with_departures(**departures: tuple[float, ...]) -> SharedLimiter:
    """Return a limiter with departures, by the session's clock."""
    shifted = {kind: tuple(at + AHEAD_S for at in times) for kind, times in departures.items()}
    return new(granted=5, target=5, rate=2.0, gap_s=1.0, departures=shifted)


def test_requests_leave_at_their_departures() -> None:
    limiter = with_departures(create=(11.0,), poll=(12.0, 13.0))
    budget = limiter.budget
    assert budget.is_limited
    assert limiter.pacer.rate == 2.0
    assert limiter.opens_at(10.5) == 11.0
    assert budget.opens_at("poll") == 12.0
    assert not limiter.admits(10.9, Load(0))
    assert limiter.admits(11.0, Load(0))
    limiter.on_sent(11.0)
    assert not limiter.admits(11.1, Load(0))
    assert budget.opens_at("create") == -math.inf
    assert not budget.admits("poll", 11.1, 0)
    assert budget.admits("poll", 12.0, 0)
    report = say(limiter, polls_due=3)
    assert (report.events, report.polls_due, report.creates_ready) == ((), 1, 0)


def test_a_create_may_take_the_departure_of_a_poll_if_both_share_one_budget() -> None:
    limiter = with_departures(poll=(11.0,))
    assert not limiter.budget.admits("create", 11.0, 0)
    hear(limiter, 11.0, granted=5, target=5, gap_s=1.0, creates_first=True)
    assert limiter.budget.admits("create", 11.0, 0)
    limiter.on_sent(11.0)
    assert not limiter.budget.admits("poll", 11.0, 0)


def test_a_late_request_counts_from_when_it_left() -> None:
    limiter = with_departures(poll=(11.0,))
    limiter.budget.on_sent("poll", 11.5)
    assert [(event.what, event.at) for event in say(limiter).events] == [
        ("unused", 11.0 + AHEAD_S),
        ("sent", 11.5 + AHEAD_S),
    ]


def test_an_unused_departure_is_given_back() -> None:
    limiter = with_departures(poll=(11.0,))
    assert not limiter.budget.admits("poll", 11.1 + DEPARTURE_KEPT_S, 0)
    (event,) = say(limiter).events
    assert (event.what, event.kind, event.at) == ("unused", "poll", 11.0 + AHEAD_S)


def test_a_request_without_departure_asks_for_one() -> None:
    limiter = with_departures()
    assert not limiter.budget.admits("poll", 10.5, 0)
    assert next_at(limiter, 10.5, 1) == 10.0 + LEAST_GAP_S


def test_a_request_waits_for_the_departure_that_it_has() -> None:
    limiter = with_departures(poll=(11.0,))
    assert not limiter.budget.admits("poll", 10.5, 0)
    assert next_at(limiter, 10.5, 1, 1) == 10.0 + QUIET_TICKS * TICK_S


def test_requests_keep_their_part_of_the_pace_while_the_ledger_is_away() -> None:
    limiter = with_departures()
    limiter.budget.shared.on_exchange_failed(11.0)
    assert limiter.budget.admits("poll", 11.0, 0)
    limiter.budget.on_sent("poll", 11.0)
    assert not limiter.budget.admits("poll", 11.5, 0)
    assert limiter.budget.opens_at("poll") == 12.0
    assert limiter.budget.admits("poll", 12.0, 0)


def test_a_gate_of_another_owner_holds_creates_and_a_used_up_day_polls_too() -> None:
    limiter = new(granted=5, target=5, gate_until=20.0 + AHEAD_S)
    assert not limiter.admits(19.0, Load(0))
    assert limiter.opens_at(19.0) == 20.0
    assert limiter.admits(20.0, Load(0))
    assert limiter.budget.admits("poll", 19.0, 0)
    hear(limiter, 11.0, granted=5, target=5, gate_until=20.0 + AHEAD_S, gates_polls=True)
    assert not limiter.budget.admits("poll", 19.0, 0)


def test_the_cap_and_the_pause_of_the_session_hold_as_well() -> None:
    limiter = SharedLimiter(ConcurrencyPolicy(), budget=SharedBudget(cap=RequestCap(1)))
    hear(limiter, 10.0, granted=5, target=5)
    limiter.on_sent(11.0)
    assert not limiter.budget.admits("poll", 11.1, 0)
    assert limiter.budget.opens_at("poll") > 60.0
    other = new(granted=5, target=5)
    other.budget.long_pause.on_refused(11.0, 10.9, 3600.0)
    assert not other.admits(12.0, Load(0))
    other.budget.on_accepted("poll", 140.0, 139.0)
    assert other.admits(140.0, Load(0))


def test_a_session_with_nothing_to_say_does_not_ask() -> None:
    limiter = new()
    assert next_at(limiter, 11.0) == math.inf


@pytest.mark.parametrize(
    ("taken", "queued", "after_s"),
    [(3, 0, QUIET_TICKS * TICK_S), (3, 5, TICK_S), (2, 5, QUIET_TICKS * TICK_S), (2, 0, LEAST_GAP_S)],
)
def test_how_long_after_an_exchange_the_next_is_due(taken: int, queued: int, after_s: float) -> None:
    limiter = new(granted=3, target=3)
    say(limiter, taken, queued)
    hear(limiter, 20.0, granted=3, target=3)
    assert next_at(limiter, 20.1, taken, queued) == 20.0 + after_s


def test_slots_above_the_target_are_given_back_as_they_become_free() -> None:
    limiter = new(granted=5, target=3)
    say(limiter, 5, 9)
    hear(limiter, 20.0, granted=5, target=3)
    assert next_at(limiter, 20.1, 5, 9) == 20.0 + TICK_S
    assert next_at(limiter, 20.1, 4, 9) == 20.0 + LEAST_GAP_S


def test_an_exchange_is_due_at_once_when_jobs_begin_to_wait() -> None:
    limiter = new()
    assert next_at(limiter, 11.0, 0, 1) == -math.inf
    say(limiter, 0, 1)
    hear(limiter, 20.0, granted=1, target=1)
    assert next_at(limiter, 20.1, 1, 1) == 20.0 + TICK_S
    assert next_at(limiter, 20.2, 1, 0) == 20.0 + QUIET_TICKS * TICK_S
    assert next_at(limiter, 20.3, 1, 1) == -math.inf


@pytest.mark.parametrize(("interactive", "due_at"), [(True, -math.inf), (False, 20.0 + TICK_S)])
def test_an_exchange_is_due_at_once_when_another_interactive_job_waits(interactive: bool, due_at: float) -> None:
    limiter = SharedLimiter(ConcurrencyPolicy(), budget=SharedBudget(shared=SharedAccount(interactive, 1)))
    report = say(limiter, 0, 1)
    assert (report.interactive, report.reserve) == (interactive, 1)
    hear(limiter, 20.0)
    limiter.budget.shared.gate_until = -math.inf
    assert next_at(limiter, 20.1, 0, 2) == due_at


def test_an_exchange_is_due_at_once_when_another_urgent_job_waits() -> None:
    shared = SharedAccount()
    report = partial(shared.make_report, Load(5), polls_due=0, mean_job_s=20.0, notice_delay_s=0.5, max_run_s=60.0)
    shared.take_allotment(Allotment(at=10.0, granted=5, target=5), 10.0, 10.0)
    assert report(queued=9, urgent=1).urgent == 1
    assert report(queued=9, urgent=2).urgent == 2  # it had no answer
    shared.take_allotment(Allotment(at=20.0, granted=5, target=5), 20.0, 20.0)
    assert shared.next_at(20.1, 5, 9, 2) == 20.0 + TICK_S
    assert shared.next_at(20.2, 5, 9, 1) == 20.0 + TICK_S
    assert shared.next_at(20.3, 5, 9, 2) == -math.inf


def test_each_answer_is_reported_at_once_while_the_limit_is_approached() -> None:
    limiter = new(granted=5, target=5)
    limiter.on_accepted(11.0, AnsweredCreate(10.5), Load(1))
    assert next_at(limiter, 11.0, 1) == 10.0 + LEAST_GAP_S
    hear(limiter, 12.0, granted=5, target=5, learning=False)
    say(limiter)
    hear(limiter, 12.0, granted=5, target=5, learning=False)
    limiter.on_accepted(13.0, AnsweredCreate(12.5), Load(5))
    assert next_at(limiter, 13.0, 5) == 12.0 + TICK_S


def test_a_new_gate_is_reported_at_once() -> None:
    limiter = new()
    limiter.budget.shared.gate_until = 30.0
    assert next_at(limiter, 11.0) == -math.inf
    assert say(limiter).gate_until == 30.0 + AHEAD_S
    hear(limiter, 11.0)
    assert next_at(limiter, 11.0) == math.inf


def test_an_exchange_is_repeated_after_a_tick_while_the_ledger_is_away() -> None:
    limiter = new()
    limiter.budget.shared.on_exchange_failed(11.0)
    assert next_at(limiter, 11.0, 0, 1) == 11.0 + TICK_S


def test_the_session_shows_what_the_account_has_learned() -> None:
    limiter = new(cap=7.5, rate_log_odds=-3.0, undecided_since=9.0 + AHEAD_S, exchange_again_at=15.0 + AHEAD_S)
    assert (limiter.job_limit.cap_in_slots, limiter.limit_kind, limiter.undecided_since) == (7, "jobs", 9.0)
    assert limiter.was_throttled
    assert next_at(limiter, 11.0) == 15.0
    assert new().undecided_since is None


def test_what_a_session_learned_alone_is_not_used() -> None:
    limiter, at = new(), datetime(2026, 1, 1, tzinfo=UTC)
    limiter.restore(LearnedLimits(at=at, job_limit=3), now=0.0, at=at)
    assert limiter.learned(now=0.0, at=at) is None
    assert limiter.job_limit.cap == math.inf


def test_an_event_has_no_load_by_default() -> None:
    assert RequestEvent(what="ended").load == Load(0)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_departures_by_a_clock_that_was_set_are_dropped(jump_s: float) -> None:
    limiter = new(granted=5, target=5, gap_s=1.0, departures={"create": (10.5 + AHEAD_S, 11.0 + AHEAD_S)})
    assert limiter.budget.admits("create", 10.6, 0)
    say(limiter)
    soon = 12.5 + AHEAD_S + jump_s
    limiter.take_allotment(
        Allotment(at=12.0 + AHEAD_S + jump_s, granted=5, target=5, gap_s=1.0, departures={"create": (soon,)}),
        11.9,
        12.1,
    )
    assert not limiter.budget.admits("create", 12.4, 0)
    assert limiter.budget.opens_at("create") == pytest.approx(12.5)
    assert limiter.budget.admits("create", 12.6, 0)
