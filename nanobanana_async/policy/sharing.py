"""Share the limits of one account among the owners of one ledger.

Theory of operation. The account has one learner, the limiter that a session alone has (`policy.limiter`), and each
owner has a share of the learned room. Both are in the ledger, behind one lock. In an *exchange* an owner reports what
it holds, what it wants and what became of its requests since it last spoke; the learner takes the reports of all owners
as those of one client. The owner gets its *allotment*: it may hold that many slots, creates in flight included, until
it asks again. An ended job makes room for the next one of the same owner without an exchange.

* Invariant: the slots that are granted in all are never more than the room, unless more are taken already. A share
  shrinks only as its jobs end, and a dead owner's counts until the owner is buried: its jobs still run. The jobs that a
  burial leaves without an owner count until they are adopted, and from then on as their new owner's, before it has
  reported them. No slot becomes free by a timer.
* Targets are max-min fair shares of what the owners want. What can't be divided goes to those who had least of late.
  Interactive owners come first, and a reserve is kept free for them while one of them had to wait lately. Next come
  owners with waiting jobs of a priority above 0: beside what it has, each may take slots for these, even above its fair
  share. While the limit is unknown the room goes to who asks; fairness comes with the first refusal, as jobs end.
* One *round trip of knowledge* is one event: a create counts as sent at the last time of which its owner knew what the
  others met. Without that each owner would count the refusals of one burst again.
* While an owner with jobs is silent, its jobs may have ended unseen, so that nothing which is accepted raises the cap.
* The budget of requests hands out *departures*, the times at which requests may leave, for the next `HORIZON_S`, once a
  request was refused for its rate. Before that all leave freely. So the pace, the quota of a window and the search for
  a rate are those of one client; no owner needs to know how many others there are.
* A pause that the gateway asks for, and an outage, is a *gate* before the creates of all; a used-up budget of a day
  holds polls too. The owner that met it probes; the others wait a little longer than it does. An outage may be that
  owner's alone, which has lost its way to the gateway: so from time to time another one sends a single create, and if
  that is answered, or any other create of the others, the gate opens, and the first owner's outages close it no more.

All times are by the ledger's clock. It is lost work, not lost money, if a state is lost: the learner begins again.
"""

import math
from collections.abc import Mapping
from copy import copy
from typing import Literal

from attrs import evolve, field, frozen

from nanobanana_async.errors import LimitKind
from nanobanana_async.policy.account_state import AccountState, Share
from nanobanana_async.policy.concurrency import AnsweredCreate, Load, Mode
from nanobanana_async.policy.request_budget import RequestBudget, RequestKind

SILENT_S = 6.0
"""An owner with jobs speaks at least every four seconds; after this time it may be dead."""
UNREPORTED_S = 2.0
"""An owner whose jobs end speaks within this time; until then the others do not know of the ends."""
HORIZON_S = 0.7
"""Departures are handed out for this time. Those that are out when a request is refused will be refused, too."""
PROBE_AFTER_S = 5.0
"""How much longer than the owner that met a gate the others wait before they probe too: it may have died."""
PROBE_S = 10.0
"""How long an answer to the single create that leaves during an outage may take before another owner sends one."""
FIRST_PROBE_TURN_S, MOST_PROBE_TURN_S = 10.0, 120.0
"""How long an owner probes during an outage until another one does; the time doubles with each."""
CLOCK_JUMP_S = 1.0
"""A clock of the ledger that is off by more was set, or is that of another server now."""
LATER_S = 1e-5
"""What an owner learns in an exchange it knows a little later than the time of the exchange."""


@frozen(kw_only=True)
class RequestEvent:
    """Something that happened to a request of an owner, or the end of one of its jobs."""

    what: Literal["sent", "accepted", "throttled", "ended", "unused"]
    """Unused: no request left at this departure."""
    at: float = -math.inf
    kind: RequestKind = "create"
    sent_at: float = -math.inf
    """When it left; for a create, the last time of which its owner knew what the others met."""
    load: Load = field(default=Load(0))
    """Of the owner alone."""
    slots_needed: int = 1
    limit_kind: LimitKind | None = None
    wait_s: float | None = None

    @property
    def is_create_answer(self) -> bool:
        """Whether the gateway answered a create."""
        return self.kind == "create" and self.what in ("accepted", "throttled")


@frozen(kw_only=True)
class Report:
    """What an owner says in an exchange."""

    number: int
    held: int
    slots_in_flight: int = 0
    queued: int = 0
    urgent: int = 0
    """Of `queued`, those of jobs with a priority above 0."""
    creates_ready: int = 0
    """The departures for creates that it has not used yet."""
    polls_due: int = 0
    """How many polls wait for a departure."""
    interactive: bool = False
    reserve: int = 0
    events: tuple[RequestEvent, ...] = ()
    """In their order, since its last exchange."""
    max_run_s: float = math.inf
    """A job without an owner that began longer ago has ended."""
    mean_job_s: float = 20.0
    notice_delay_s: float = 0.5
    gate_until: float = -math.inf
    """Until when the gateway takes nothing from this owner, as the owner itself has found."""
    gates_polls: bool = False
    outage: bool = False
    """It found an outage: the gateway did not ask for a pause."""


@frozen(kw_only=True)
class Allotment:
    """What an owner may do until its next exchange, and what it should know of the account."""

    at: float = -math.inf
    """The ledger's time of the exchange."""
    granted: int = 0
    target: int = 0
    exchange_again_at: float = math.inf
    """When to ask again, because time alone may make room then."""
    learning: bool = True
    """The limit is being approached: the answer to each create is to be reported at once."""
    cap: float = math.inf
    """The learned limit of jobs; infinite while it is unknown."""
    rate_log_odds: float = 0.0
    undecided_since: float | None = None
    rate: float = math.inf
    """Creates a second; infinite while no rate was met."""
    gap_s: float = 0.0
    """The mean time between two departures of one owner; 0 while all requests leave freely."""
    departures: Mapping[RequestKind, tuple[float, ...]] = field(factory=dict)
    creates_first: bool = False
    """Creates and polls share one budget: a create may leave at the departure of a poll."""
    gate_until: float = -math.inf
    gates_polls: bool = False
    orphans: int = 0
    """How many slots are of jobs that run and have no living owner."""

    @property
    def room(self) -> int:
        """How many slots the owner may take."""
        return min(self.granted, self.target)


def exchange(
    state: AccountState, owner: int, report: Report, now: float, owned: Mapping[int | None, int] | None = None
) -> Allotment:
    """Take the report of an owner, and return what it may do.

    `owned` is how many slots each owner's jobs take that may run, by the ledger; those of None have no living owner.
    """
    owned = owned or {}
    orphans = owned.get(None, 0)
    for each, other in state.shares.items():
        follows = owned.get(each, 0)
        if each != owner and follows > max(other.granted, other.taken):  # it has adopted jobs since it last spoke
            other.held = follows - other.slots_in_flight
    if not state.shares:
        state.restart_learner(now)
    elif now < state.spoke_at - CLOCK_JUMP_S:
        state.set_clock_back(now)
    share = state.shares.get(owner)
    if share is None:  # who comes new has no claim on the past
        past = [other.usage_at(now) for other in state.shares.values()]
        share = state.shares[owner] = Share(used=sum(past) / len(past) if past else 0.0, spoke_at=now)
    if report.number != share.reports:
        _learn(state, owner, report, now, orphans)
    share.used, share.spoke_at, share.reports = share.usage_at(now), now, report.number
    share.held, share.slots_in_flight, share.queued = report.held, report.slots_in_flight, report.queued
    share.urgent, share.interactive, share.reserve = report.urgent, report.interactive, report.reserve
    limiter = state.limiter
    limiter.take_evidence_of_polls()
    limiter.budget.learned(now)  # it takes note of the best minute
    others = orphans + sum(max(other.granted, other.taken) for each, other in state.shares.items() if each != owner)
    share.granted = min(share.granted, share.taken)
    room = state.room(now, orphans)
    share.target = state.targets(now, room - orphans)[owner]
    share.granted = max(share.taken, min(share.target, room - others))
    if share.wanted > share.granted:
        share.hungry_at = now
    _set_gate(state, owner, report, now)
    state.spoke_at = now
    return evolve(_allotment(state, owner, report, now), orphans=orphans)


def _learn(state: AccountState, owner: int, report: Report, now: float, orphans: int) -> None:
    """Give what an owner has met to the learner, with the load of all."""
    others = [share for each, share in state.shares.items() if each != owner]
    held, in_flight = orphans + sum(share.held for share in others), sum(each.slots_in_flight for each in others)
    silent = orphans > 0 or any(now - share.spoke_at > SILENT_S and share.taken for share in others)
    limiter = state.limiter
    unreported_s = sum(share.held * min(now - share.spoke_at, UNREPORTED_S) for share in others) / max(1, held)
    limiter.job_limit.mean_job_s = report.mean_job_s
    limiter.job_limit.notice_delay_s = report.notice_delay_s + unreported_s
    for said in report.events:
        event = evolve(said, at=min(said.at, now), sent_at=min(said.sent_at, now))  # the clock may have gone back
        own = event.load
        total = held + own.held
        load = Load(total, in_flight + own.slots_in_flight, own.likely_ended * total / max(1, own.held))
        create = AnsweredCreate(event.sent_at, event.slots_needed)
        match event.what, event.kind:
            case "sent", kind:
                limiter.budget.on_sent(kind, event.at)
            case "unused", kind:
                limiter.budget.take_back(kind, event.at)
            case "ended", _:
                limiter.on_ended()
            case "accepted", "create":
                before = copy(limiter.job_limit)
                limiter.on_accepted(event.at, create, load)
                if silent and before.mode is not Mode.RAMP:
                    limiter.job_limit = before
            case "accepted", kind:
                limiter.budget.on_accepted(kind, event.at, event.sent_at)
            case _, "create":  # an event of now: what leaves before its owner knows of it belongs to it
                before = copy(limiter.job_limit)
                limiter.on_throttled(now, create, load, event.limit_kind, event.wait_s)
                if before.mode is Mode.HOLD:  # the others may hold fewer by now
                    limiter.job_limit.cap = min(limiter.job_limit.cap, before.cap)
            case _:
                limiter.budget.on_throttled(event.kind, event.at, event.sent_at, event.wait_s)


def _set_gate(state: AccountState, owner: int, report: Report, now: float) -> None:
    """Close the gate as the owner says, and open it when the owner that closed it is through, or late, or cut off."""
    closes = report.gate_until > now
    probes, late = owner == state.prober, now > state.gate_until + PROBE_AFTER_S
    anothers = state.outage_owner not in (None, owner)
    state.cut_off &= state.shares.keys() if closes else state.shares.keys() - {owner}
    if anothers and any(event.is_create_answer and event.at > state.probing_since for event in report.events):
        state.cut_off.add(state.outage_owner or 0)
        state.open_gate()
    elif closes:
        probed = state.outage_owner is not None and not probes and now <= state.gate_until
        waits = report.outage and (probed or owner in state.cut_off)
        if probes or (report.gate_until > state.gate_until and not waits):
            state.probing_since = state.probing_since if probes else now
            state.gate_until, state.prober, state.gates_polls = report.gate_until, owner, report.gates_polls
            state.outage_owner = owner if report.outage else None
    elif late or owner == state.outage_owner or (probes and not anothers):
        state.open_gate()
    elif anothers and not probes and now > state.probing_since + max(FIRST_PROBE_TURN_S, state.probe_turn_s):
        _let_probe(state, owner, now)
    if state.prober == owner and anothers:  # a single create shows whether the gateway answers it
        share = state.shares[owner]
        share.granted = min(share.granted, share.taken + (not share.slots_in_flight))


def _let_probe(state: AccountState, owner: int, now: float) -> None:
    """Let an owner probe that has a job and a slot for it, in place of the one that gets no answer."""
    share = state.shares[owner]
    if share.queued and share.granted > share.taken:
        state.prober, state.probing_since, state.gate_until = owner, now, now + PROBE_S
        state.probe_turn_s = min(2 * max(FIRST_PROBE_TURN_S, state.probe_turn_s), MOST_PROBE_TURN_S)


def _allotment(state: AccountState, owner: int, report: Report, now: float) -> Allotment:
    share, limiter, budget = state.shares[owner], state.limiter, state.limiter.budget
    departures: dict[RequestKind, tuple[float, ...]] = {}
    if budget.is_limited:
        creates = min(report.queued, share.granted - share.taken) - report.creates_ready
        departures["create"] = _hand_out(budget, "create", creates, now)
        departures["poll"] = _hand_out(budget, "poll", report.polls_due, now)
    gated = state.prober not in (None, owner)
    return Allotment(
        at=now,
        granted=share.granted,
        target=share.target,
        exchange_again_at=min((at for at in (limiter.blocked_until, limiter.trial_at) if at > now), default=math.inf),
        learning=limiter.job_limit.mode is not Mode.HOLD,
        cap=limiter.job_limit.cap,
        rate_log_odds=limiter.rate_log_odds,
        undecided_since=limiter.undecided_since,
        rate=limiter.pacer.rate,
        gap_s=len(state.shares) / limiter.pacer.rate,
        departures=departures,
        creates_first=budget.is_shared,
        gate_until=state.gate_until + PROBE_AFTER_S if gated else -math.inf,
        gates_polls=state.gates_polls,
    )


def _hand_out(budget: RequestBudget, kind: RequestKind, wanted: int, now: float) -> tuple[float, ...]:
    """Return when up to so many requests may leave; they count as sent."""
    times: list[float] = []
    at = now
    while len(times) < wanted:
        if not budget.admits(kind, at, len(times)):
            at = max(at, budget.opens_at(kind))
            if at > now + HORIZON_S or not budget.admits(kind, at, len(times)):
                break
        budget.on_sent(kind, at)
        times.append(at)
    return tuple(times)
