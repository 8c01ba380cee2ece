"""Owners that share an account: the shares, what the learner makes of their reports, departures and gates."""

import math
import random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.account_state import AccountState, Share, fair_shares
from nanobanana_async.policy.concurrency import ConcurrencyPolicy, Load, Mode
from nanobanana_async.policy.learned import FRESH_S
from nanobanana_async.policy.sharing import (
    FIRST_PROBE_TURN_S,
    HORIZON_S,
    PROBE_AFTER_S,
    PROBE_S,
    SILENT_S,
    Allotment,
    Report,
    RequestEvent,
    exchange,
)

NOW = 1_700_000_000.0


def limited(limit: int, now: float = NOW) -> AccountState:
    """Return the state of an account whose limit is known, with an owner 0 that has left since."""
    state = AccountState()
    refused = RequestEvent(what="throttled", at=now, sent_at=now, load=Load(limit), limit_kind="jobs")
    exchange(state, 0, Report(number=1, held=limit), now)
    exchange(state, 0, Report(number=2, held=limit, events=(refused,)), now)
    assert state.limiter.job_limit.mode is Mode.HOLD
    state.shares = {99: Share(spoke_at=now)}  # one that wants nothing, so that the learner goes on
    return state


def ask(state: AccountState, owner: int, held: int = 0, queued: int = 100, *, now: float = NOW, **more: Any) -> int:
    number = state.shares[owner].reports + 1 if owner in state.shares else 1
    report = evolve(Report(number=number, held=held, queued=queued), **more)
    return exchange(state, owner, report, now).granted


@given(
    wants=st.dictionaries(st.integers(0, 9), st.integers(0, 40), max_size=8),
    room=st.integers(-3, 120),
    seed=st.integers(0, 99),
)
def test_fair_shares_use_the_room_and_differ_by_one_at_most(wants: dict[int, int], room: int, seed: int) -> None:
    rng = random.Random(seed)
    used = {owner: rng.random() for owner in wants}
    shares = fair_shares(wants, room, used)
    assert sum(shares.values()) == min(max(0, room), sum(wants.values()))
    assert all(0 <= shares[owner] <= wants[owner] for owner in wants)
    most = max(shares.values(), default=0)
    assert all(shares[owner] >= most - 1 for owner in wants if shares[owner] < wants[owner])
    unfilled = [owner for owner in wants if shares[owner] < wants[owner]]
    for one in unfilled:
        assert all(used[one] >= used[other] for other in wants if shares[other] > shares[one])


def test_owners_get_equal_parts_as_the_jobs_of_the_first_end() -> None:
    state = limited(50)
    assert ask(state, 1) == 50
    assert ask(state, 2) == 0
    assert ask(state, 1, held=30) == 30
    assert ask(state, 2) == 20
    assert [ask(state, 1, held=20), ask(state, 2, held=20)] == [25, 25]


def test_an_indivisible_slot_goes_to_the_owner_that_had_least() -> None:
    state = limited(5)
    assert [ask(state, 1, held=5), ask(state, 2)] == [5, 0]
    assert ask(state, 1, held=2, now=NOW + 60) == 2
    assert ask(state, 2, now=NOW + 60) == 3
    assert ask(state, 1, held=2, now=NOW + 61) == 2


def test_a_newcomer_has_no_claim_on_the_past() -> None:
    state = limited(10)
    ask(state, 1)
    ask(state, 1, held=10, now=NOW + 100)
    ask(state, 2, now=NOW + 100)
    assert state.shares[2].used == pytest.approx(state.shares[1].used / 2)  # the mean with the one that wants nothing


def taken(state: AccountState, held: dict[int, int]) -> int:
    """Return how many slots the owners have or may take."""
    return sum(max(state.shares[owner].granted if owner in state.shares else 0, held[owner]) for owner in held)


@given(seed=st.integers(0, 10_000))
def test_grants_never_pass_the_room_and_no_slot_is_lost(seed: int) -> None:
    rng, state, now = random.Random(seed), limited(rng_limit := 12), NOW
    held = dict.fromkeys(range(1, 5), 0)
    granted = dict.fromkeys(held, 0)
    orphans, owners = 0, 5
    for _ in range(120):
        now += rng.random()
        owner = rng.choice(list(held))
        match rng.choice(("work", "end", "speak", "speak", "die", "adopt")):
            case "work":
                held[owner] += rng.randint(0, max(0, granted[owner] - held[owner]))
            case "end":
                held[owner] -= rng.randint(0, held[owner])
            case "die" if rng.random() < 0.2:
                orphans += held.pop(owner)
                del granted[owner]
                state.shares.pop(owner, None)
                owner, owners = owners, owners + 1
                held[owner], granted[owner] = 0, 0
            case "adopt":
                adopted = rng.randint(0, orphans)
                orphans, held[owner] = orphans - adopted, held[owner] + adopted
                owner = rng.choice(list(held))  # another one may speak before the adopter does
            case _:
                pass
        before = taken(state, held)
        number = state.shares[owner].reports + 1 if owner in state.shares else 1
        owned: dict[int | None, int] = dict(held.items())
        owned[None] = orphans
        allotment = exchange(state, owner, Report(number=number, held=held[owner], queued=9), now, owned)
        granted[owner] = allotment.room
        total = taken(state, held) + orphans
        assert total <= max(rng_limit, before + orphans) or allotment.granted == held[owner]
    for _ in range(3):
        for owner in held:
            now += 0.1
            held[owner] = min(held[owner], state.shares[owner].target if owner in state.shares else 0)
            number = state.shares[owner].reports + 1 if owner in state.shares else 1
            exchange(state, owner, Report(number=number, held=held[owner], queued=20), now)
    assert sum(state.shares[owner].granted for owner in held) == rng_limit
    assert all(state.shares[owner].granted >= rng_limit // len(held) for owner in held)


def test_adopted_jobs_count_before_their_new_owner_has_reported_them() -> None:
    state = limited(20)
    ask(state, 1, held=6, queued=0)
    ask(state, 2, held=6, queued=100)
    owned = {None: 0, 1: 14, 2: 6}
    assert exchange(state, 2, Report(number=9, held=6, queued=100), NOW + 1, owned).room == 6
    learner = state.limiter.job_limit
    refused = RequestEvent(what="throttled", at=NOW + 2, sent_at=NOW + 2, load=Load(6), limit_kind="jobs")
    exchange(state, 2, Report(number=10, held=6, queued=100, events=(refused,)), NOW + 2, owned)
    assert learner.cap >= 19


def test_a_dead_owner_counts_until_its_burial_and_its_jobs_after_it() -> None:
    state = limited(20)
    ask(state, 1, held=8, queued=0)
    assert ask(state, 2, now=NOW + 1000) == 12
    del state.shares[1]
    exchange(state, 2, Report(number=9, held=12, queued=100), NOW + 1001, {None: 8})
    assert state.shares[2].granted == 12
    assert ask(state, 2, held=12, now=NOW + 1002) == 20


def test_interactive_owners_come_first() -> None:
    state = limited(10)
    ask(state, 1)
    assert ask(state, 2, queued=3, interactive=True) == 0
    assert ask(state, 1, held=9) == 9
    assert state.shares[1].target == 7
    assert ask(state, 2, queued=3, interactive=True) == 1


def test_urgent_jobs_get_slots_above_the_fair_share() -> None:
    state = limited(10)
    ask(state, 1)
    ask(state, 2, held=5, urgent=2)
    assert (state.shares[2].target, state.targets(NOW, 10)) == (7, {99: 0, 1: 3, 2: 7})
    ask(state, 2, held=7)  # they run: what is above the fair share comes back as jobs end
    assert state.targets(NOW, 10) == {99: 0, 1: 5, 2: 5}


def test_urgent_jobs_within_the_fair_share_take_nothing_from_others() -> None:
    state = limited(10)
    ask(state, 1)
    ask(state, 2, held=1, urgent=2)
    assert state.targets(NOW, 10) == {99: 0, 1: 5, 2: 5}


def test_urgent_jobs_of_two_owners_share_the_room() -> None:
    state = limited(9)
    for owner in (1, 2, 3):
        ask(state, owner)
    ask(state, 1, held=3, urgent=50, queued=50)
    ask(state, 2, held=3, urgent=50, queued=50)
    assert sorted(state.targets(NOW, 9).values()) == [0, 0, 4, 5]


def test_interactive_owners_come_before_urgent_jobs() -> None:
    state = limited(4)
    ask(state, 1, queued=3, interactive=True)
    ask(state, 2, held=0, urgent=4)
    assert state.targets(NOW, 4) == {99: 0, 1: 3, 2: 1}


def test_reserve_is_kept_for_a_minute_after_an_interactive_owner_waited() -> None:
    state = limited(10)
    ask(state, 1)
    ask(state, 2, queued=1, interactive=True, reserve=2)
    ask(state, 2, queued=0, interactive=True, reserve=2, now=NOW + 1)
    assert ask(state, 1, held=2, now=NOW + 2) == 8
    assert ask(state, 1, held=8, now=NOW + 62) == 10


def test_reserve_leaves_each_other_owner_a_slot() -> None:
    state = limited(3)
    ask(state, 1)
    ask(state, 2, queued=1, interactive=True, reserve=50)
    ask(state, 2, queued=0, interactive=True, reserve=50, now=NOW + 1)
    ask(state, 1, held=0, now=NOW + 2)
    assert state.shares[1].target == 2  # beside the one that wants nothing


def test_reserve_without_interactive_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="interactive=True"):
        ConcurrencyPolicy(reserve=2)


def test_ramp_gives_its_room_to_the_owner_that_asks() -> None:
    state = AccountState()
    assert ask(state, 1) == 2
    assert ask(state, 2) == 0
    assert ask(state, 1, held=16) == 20
    assert state.limiter.job_limit.cap == math.inf


def throttled(at: float, held: int, sent_at: float) -> RequestEvent:
    return RequestEvent(what="throttled", at=at, sent_at=sent_at, load=Load(held), limit_kind="jobs")


def accepted(at: float, held: int, sent_at: float) -> RequestEvent:
    return RequestEvent(what="accepted", at=at, sent_at=sent_at, load=Load(held))


def test_refusals_before_an_owner_knows_of_the_first_are_one_event() -> None:
    state = limited(20)
    for owner in (1, 2):
        ask(state, owner, held=10, queued=5, now=NOW + 0.2, events=(accepted(NOW + 0.2, 10, NOW + 0.1),))
    for owner in (1, 2):  # both left before their owners knew of the other's
        ask(state, owner, held=10, queued=5, now=NOW + owner, events=(throttled(NOW + owner, 10, NOW + 0.5),))
    assert state.limiter.job_limit.cap == pytest.approx(19.04)


def test_a_repeated_report_counts_once() -> None:
    state = limited(20)
    ask(state, 1, held=20)
    report = Report(number=7, held=20, events=(throttled(NOW + 1, 20, NOW + 0.5),))
    for _ in range(2):
        exchange(state, 1, report, NOW + 1)
    assert state.limiter.throttled == 2  # the first one made the limit known


@pytest.mark.parametrize(("silent_s", "raised"), [(1.0, True), (SILENT_S + 1.0, False)])
def test_nothing_accepted_raises_the_cap_while_an_owner_with_jobs_is_silent(silent_s: float, raised: bool) -> None:
    state, at = limited(20), NOW + silent_s
    ask(state, 1, held=10, queued=0)
    ask(state, 2, held=9, now=at)
    ask(state, 2, held=10, now=at, events=(accepted(at, 10, at),))
    assert (state.limiter.job_limit.cap > 20.0) is raised


def test_jobs_without_an_owner_keep_the_cap_too() -> None:
    state = limited(20)
    ask(state, 1, held=18)
    report = Report(number=5, held=19, events=(accepted(NOW + 1, 19, NOW + 0.5),))
    exchange(state, 1, report, NOW + 1, {None: 1})
    assert state.limiter.job_limit.cap == 20.0


def test_nothing_leaves_while_no_job_is_held_and_the_limit_refuses() -> None:
    state = AccountState()
    ask(state, 1, queued=1)
    first = throttled(NOW + 1, 0, NOW)
    allotment = exchange(state, 1, Report(number=2, held=0, queued=1, events=(first,)), NOW + 1)
    assert (allotment.granted, allotment.exchange_again_at) == (0, NOW + 1.5)
    assert ask(state, 1, queued=1, now=NOW + 1.6) == 1
    ended = RequestEvent(what="ended")
    again = throttled(NOW + 2, 0, NOW + 1.7)
    assert ask(state, 1, queued=1, now=NOW + 2, events=(again,)) == 0
    assert ask(state, 1, queued=1, now=NOW + 2.1, events=(ended,)) == 1


def test_an_unexplained_refusal_is_tried_again_by_one_owner() -> None:
    state = AccountState()
    ask(state, 1, held=9)
    unexplained = RequestEvent(what="throttled", at=NOW + 1, sent_at=NOW, load=Load(9))
    allotment = exchange(state, 1, Report(number=2, held=9, queued=9, events=(unexplained,)), NOW + 1)
    assert (allotment.granted, allotment.undecided_since, allotment.exchange_again_at) == (9, NOW + 1, NOW + 1.5)
    assert ask(state, 1, held=9, queued=9, now=NOW + 1.6) == 10
    assert ask(state, 2, queued=9, now=NOW + 1.6) == 0


def rate_limited() -> AccountState:
    """Return an account that refused a poll for its rate: two requests a second are taken from then on."""
    state = AccountState()
    ask(state, 1)
    events = (
        RequestEvent(what="sent", at=NOW, kind="poll"),
        RequestEvent(what="accepted", at=NOW + 0.1, kind="poll", sent_at=NOW),
        RequestEvent(what="sent", at=NOW + 0.5, kind="poll"),
        RequestEvent(what="throttled", at=NOW + 1, kind="poll", sent_at=NOW + 0.5),
    )
    exchange(state, 1, Report(number=2, held=5, queued=9, polls_due=9, events=events), NOW + 1)
    return state


def test_all_requests_leave_freely_before_the_first_refusal_for_the_rate() -> None:
    allotment = exchange(AccountState(), 1, Report(number=1, held=0, queued=9, polls_due=9), NOW)
    assert (allotment.departures, allotment.gap_s, allotment.rate) == ({}, 0.0, math.inf)


def test_departures_are_handed_out_once_and_creates_come_first() -> None:
    state = rate_limited()
    state.limiter.budget.on_accepted("poll", NOW + 3, NOW + 2)
    allotment = exchange(state, 1, Report(number=3, held=5, queued=1, polls_due=9), NOW + 5)
    assert len(allotment.departures["create"]) == 1
    other = exchange(state, 2, Report(number=1, held=0, queued=0, polls_due=9), NOW + 5)
    times = [at for each in (allotment, other) for kind in ("create", "poll") for at in each.departures[kind]]
    assert times == sorted(set(times))
    assert all(NOW + 5 <= at <= NOW + 5 + HORIZON_S for at in times)
    assert other.gap_s == pytest.approx(2 * allotment.gap_s)


def test_no_departure_is_handed_out_for_creates_that_have_one() -> None:
    state = rate_limited()
    allotment = exchange(state, 1, Report(number=3, held=5, queued=1, creates_ready=1), NOW + 5)
    assert allotment.departures["create"] == ()


def test_an_unused_departure_is_taken_back() -> None:
    state = rate_limited()
    allotment = exchange(state, 1, Report(number=3, held=5, queued=0, polls_due=1), NOW + 5)
    (at,) = allotment.departures["poll"]
    before = state.to_json()
    unused = RequestEvent(what="unused", at=at, kind="poll")
    exchange(state, 1, Report(number=4, held=5, events=(unused,)), NOW + 5)
    assert state.to_json() != before


@pytest.mark.parametrize("polls", [False, True])
def test_gate_holds_the_others_until_its_owner_is_through(polls: bool) -> None:
    state = limited(20)
    closed = Report(number=1, held=0, gate_until=NOW + 30, gates_polls=polls)
    assert exchange(state, 1, closed, NOW).gate_until == -math.inf  # it knows itself
    other = exchange(state, 2, Report(number=1, held=0), NOW + 1)
    assert (other.gate_until, other.gates_polls) == (NOW + 30 + PROBE_AFTER_S, polls)
    exchange(state, 1, evolve(closed, number=2, gate_until=NOW + 60), NOW + 2)
    assert exchange(state, 2, Report(number=2, held=0), NOW + 3).gate_until == NOW + 60 + PROBE_AFTER_S
    exchange(state, 1, Report(number=3, held=0), NOW + 4)
    assert exchange(state, 2, Report(number=3, held=0), NOW + 5).gate_until == -math.inf


def test_another_owner_probes_if_the_one_that_met_the_gate_is_gone() -> None:
    state = limited(20)
    exchange(state, 1, Report(number=1, held=0, gate_until=NOW + 30), NOW)
    exchange(state, 2, Report(number=1, held=0, gate_until=NOW + 10), NOW)
    assert state.prober == 1
    later = NOW + 31 + PROBE_AFTER_S
    assert exchange(state, 2, Report(number=2, held=0), later).gate_until == -math.inf
    exchange(state, 2, Report(number=3, held=0, gate_until=later + 9), later)
    assert state.prober == 2


def outage(number: int, for_s: float = 30.0, **facts: object) -> Report:
    return Report(number=number, held=0, gate_until=NOW + for_s, outage=True, **facts)  # type: ignore[arg-type]


def test_outage_of_one_owner_does_not_hold_others_whose_creates_are_answered() -> None:
    for what in ("accepted", "throttled"):
        state = limited(20)
        exchange(state, 1, outage(1), NOW)
        before = RequestEvent(what=what, at=NOW - 1, sent_at=NOW - 2)
        assert exchange(state, 2, Report(number=1, held=0, events=(before,)), NOW + 1).gate_until > NOW
        polled = RequestEvent(what="accepted", at=NOW + 1, sent_at=NOW, kind="poll")
        assert exchange(state, 2, Report(number=2, held=0, events=(polled,)), NOW + 1).gate_until > NOW
        after = evolve(before, at=NOW + 1)
        assert exchange(state, 2, Report(number=3, held=0, events=(after,)), NOW + 2).gate_until == -math.inf
        exchange(state, 1, outage(2, 60), NOW + 3)
        assert exchange(state, 2, Report(number=4, held=0), NOW + 4).gate_until == -math.inf
        known = AccountState.from_json(state.to_json(), state.shares)
        assert known.cut_off == {1}
        exchange(state, 1, Report(number=3, held=0), NOW + 5)  # it gets answers again
        exchange(state, 1, outage(4, 60), NOW + 6)
        assert exchange(state, 2, Report(number=5, held=0), NOW + 7).gate_until > NOW


def test_a_pause_that_the_gateway_asked_for_is_not_opened_by_answers() -> None:
    state = limited(20)
    exchange(state, 1, Report(number=1, held=0, gate_until=NOW + 90), NOW)
    answered = RequestEvent(what="accepted", at=NOW + 1, sent_at=NOW)
    exchange(state, 2, Report(number=1, held=0, queued=1, events=(answered,)), NOW + 2)
    assert exchange(state, 2, Report(number=2, held=0, queued=1), NOW + 80).gate_until > NOW + 80


def test_owners_take_turns_to_probe_during_an_outage() -> None:
    state = limited(20)
    exchange(state, 1, outage(1, 60), NOW)
    waiting = Report(number=1, held=2, queued=9)
    exchange(state, 2, waiting, NOW + 1)
    exchange(state, 3, evolve(waiting, queued=0), NOW + 1)
    at = NOW + FIRST_PROBE_TURN_S + 1
    assert exchange(state, 3, Report(number=2, held=2), at).gate_until > at  # it has nothing to send
    probing = exchange(state, 2, evolve(waiting, number=2), at)
    assert (probing.gate_until, probing.granted) == (-math.inf, 3)
    assert exchange(state, 2, evolve(waiting, number=3, slots_in_flight=1), at + 1).granted == 3
    exchange(state, 1, outage(2, 90), at + 2)
    assert state.prober == 2
    assert exchange(state, 3, evolve(waiting, number=3), at + 3).gate_until > at
    exchange(state, 1, outage(3, 90), at + PROBE_S + 1)  # no answer came
    assert state.prober == 1
    at += PROBE_S + 1
    exchange(state, 3, evolve(waiting, number=4), at + FIRST_PROBE_TURN_S + 1)
    assert state.prober == 1  # twice as long now
    exchange(state, 3, evolve(waiting, number=5), at + 2 * FIRST_PROBE_TURN_S + 1)
    assert state.prober == 3
    answered = RequestEvent(
        what="accepted", at=at + 2 * FIRST_PROBE_TURN_S + 2, sent_at=at + 2 * FIRST_PROBE_TURN_S + 1
    )
    allotment = exchange(
        state, 3, evolve(waiting, number=6, held=3, events=(answered,)), at + 2 * FIRST_PROBE_TURN_S + 3
    )
    assert allotment.gate_until == -math.inf
    assert state.cut_off == {1}
    assert allotment.granted > 4


def test_gate_opens_when_the_owner_that_found_the_outage_is_through() -> None:
    state = limited(20)
    exchange(state, 1, outage(1, 60), NOW)
    exchange(state, 2, Report(number=1, held=0, queued=9), NOW + FIRST_PROBE_TURN_S + 1)
    assert state.prober == 2
    exchange(state, 1, Report(number=2, held=0), NOW + FIRST_PROBE_TURN_S + 2)
    assert exchange(state, 3, Report(number=1, held=0), NOW + FIRST_PROBE_TURN_S + 3).gate_until == -math.inf


def test_nothing_waits_for_a_clock_that_went_back() -> None:
    state = rate_limited()
    wanting = Report(number=50, held=5, queued=9)
    exchange(state, 1, evolve(wanting, gate_until=NOW + 40), NOW + 10)
    earlier = NOW - 3600
    late = RequestEvent(what="throttled", at=NOW + 10, sent_at=NOW + 9, kind="poll")  # by the clock of before
    gated = exchange(state, 2, evolve(wanting, events=(late,)), earlier)
    assert gated.gate_until == earlier + 30 + PROBE_AFTER_S
    assert state.shares[1].spoke_at == earlier
    departures = [
        at
        for number in range(51, 80)
        for at in exchange(state, 2, evolve(wanting, number=number, polls_due=3), earlier + number - 50).departures[
            "poll"
        ]
    ]
    assert earlier < min(departures) < earlier + 10


def test_state_survives_its_form_in_the_ledger() -> None:
    state = rate_limited()
    ask(state, 1, held=9, events=(RequestEvent(what="throttled", at=NOW + 2, sent_at=NOW + 1.5, load=Load(9)),))
    known = AccountState.from_json(state.to_json(), state.shares)
    assert known == state


@pytest.mark.parametrize("text", [None, "{", '{"limiter": 7}'])
def test_unreadable_state_is_learned_again(text: str | None) -> None:
    assert AccountState.from_json(text, {}) == AccountState()


def test_state_that_grants_more_slots_than_any_account_has_is_learned_again() -> None:
    state = limited(20)
    state.limiter.job_limit.cap = 1e12
    assert AccountState.from_json(state.to_json(), {}) == AccountState()


@pytest.mark.parametrize(("after_s", "granted"), [(60.0, 20), (FRESH_S + 60.0, 10)])
def test_limit_is_believed_for_a_day_after_the_last_owner_left(after_s: float, granted: int) -> None:
    state = limited(20)
    ask(state, 1)
    state.shares = {}
    assert ask(state, 2, now=NOW + after_s) == granted


def test_owner_that_has_nothing_is_given_nothing() -> None:
    assert Allotment().room == 0
