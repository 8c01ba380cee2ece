"""Find out whether creates and polls share one budget of requests, and pace them by it.

Theory of operation. A gateway may limit the requests per time of creates, of polls, or of both together, and does not
say which. Three pacers learn all the time: one of each kind, and one of both. The budget counts as shared at first,
since accounts are sold with one limit. While one kind is refused for its rate, what the other kind meets is evidence,
added up as log P(seen | shared) / P(seen | separate):

    the other kind is refused too:            + log 0.7 / 0.05    two limits are rarely met at once
    refused again, though the share q of the
    other kind was accepted in between:       + log (1 - q)       a shared budget would have taken it as well

So that there is evidence, after each refusal one request of the other kind may leave at once, until the budget is well
known. From `SURELY_SHARED_LOG_ODDS` on the pacer of both is used. Creates go first then: the dispatcher admits them
first, and where the limit is a window they need not wait for the pace; polls share the rest.

What was accepted in the last full minute proves that such a rate is allowed: no pace falls far below it.
"""

import math
from typing import Literal

from attrs import define, evolve, field

from nanobanana_async.policy.learned import LearnedPace, LearnedRates
from nanobanana_async.policy.rate import Pacer
from nanobanana_async.policy.request_counts import WINDOW_S, AcceptedLately

RequestKind = Literal["create", "poll"]

_OTHER_KIND: dict[RequestKind, RequestKind] = {"create": "poll", "poll": "create"}

SURELY_SHARED_LOG_ODDS = 1.5
"""Log-odds (4.5 to 1) from which the budget counts as shared; they begin there."""
MAX_LOG_ODDS = 6.0
"""Bound of the log-odds, so that a verdict can be revised after a few contrary observations."""
WELL_KNOWN_LOG_ODDS = 3.0
"""Log-odds from which no request is spent on showing whether the budget is shared."""
LONG_RUN_LENGTH = 3
"""Refusals in a row from which the other kind's success counts: one or two happen whenever a bucket is empty."""
REFUSED_TOO_EVIDENCE = math.log(0.7 / 0.05)
POLLS_REFUSED_EVIDENCE = math.log(0.7 / 0.1)
POLLS_ACCEPTED_EVIDENCE = math.log(0.1 / 0.7)
"""What polls show about an unexplained 429 to a create: that they are refused too, or not although both share."""
SOON_S = 0.5
"""A poll that was accepted so shortly before a create shows that the rate of both was not exceeded."""
PROVEN_SHARE = 0.9
"""No pace is below this share of the rate that the last minute proves."""


@define
class _KindState:
    """One kind of requests: its own pacer, and what it met since it was last accepted."""

    pacer: Pacer = field(factory=Pacer)
    accepted: AcceptedLately = field(factory=AcceptedLately)
    accepted_at: float = -math.inf
    """When the last accepted request was sent."""
    refused_since: float | None = None
    """When the first refusal of a run of refusals was answered; None while requests are accepted."""
    refused_in_a_row: int = 0
    """The length of the run."""
    limited_since: float = math.inf
    """When the first refusal for the rate came."""
    best_minute: float = 0.0
    """The highest rate that a minute since then has proven."""
    other_kind_sent_count: int = 0
    other_kind_accepted_count: int = 0
    """Requests of the other kind that were sent during the run, and how many of them were accepted."""

    def learned(self) -> LearnedPace | None:
        """Return what the pacer learned."""
        return self.pacer.learned(self.best_minute)


@define
class RequestBudget:
    """The pacers of creates and polls, which may be one; see the theory at the top of the module."""

    shared_log_odds: float = SURELY_SHARED_LOG_ODDS
    """Of a shared budget. It is assumed at first, since accounts are sold with one limit of requests."""
    _kinds: dict[RequestKind, _KindState] = field(factory=lambda: {"create": _KindState(), "poll": _KindState()})
    _both: _KindState = field(factory=_KindState)
    _has_pace: bool = False
    """Whether a refusal, or what an earlier session learned, has given any pacer a pace. Until then nothing waits."""

    @property
    def is_shared(self) -> bool:
        """Whether creates and polls share one budget."""
        return self.shared_log_odds >= SURELY_SHARED_LOG_ODDS

    @property
    def is_limited(self) -> bool:
        """Whether any request was refused for its rate."""
        return self._both.pacer.is_limited

    def pacer(self, kind: RequestKind) -> Pacer:
        """Return the pacer of a kind of requests."""
        return self._both.pacer if self.is_shared else self._kinds[kind].pacer

    def admits(self, kind: RequestKind, now: float, in_flight: int) -> bool:
        """Return whether a request may leave now while `in_flight` of its kind have no answer yet."""
        if not self._has_pace:
            return True
        own = self._kinds[kind]
        if not self.is_shared:
            return own.pacer.admits(now, in_flight, urgent=kind == "create")
        if self._may_probe_sharing(kind):
            return not in_flight
        return self._both.pacer.admits(now, in_flight, urgent=kind == "create")

    def opens_at(self, kind: RequestKind) -> float:
        """Return when a request may leave by the passing of time."""
        if not self._has_pace or (self.is_shared and self._may_probe_sharing(kind)):
            return -math.inf
        return self.pacer(kind).opens_at(urgent=kind == "create")

    def on_sent(self, kind: RequestKind, now: float) -> None:
        """Record that a request left."""
        self._kinds[kind].pacer.on_sent(now)
        self._both.pacer.on_sent(now)

    def take_back(self, kind: RequestKind, at: float) -> None:
        """Record that no request left at a time for which one was recorded as sent."""
        self._kinds[kind].pacer.take_back(at)
        self._both.pacer.take_back(at)

    def on_accepted(self, kind: RequestKind, now: float, sent_at: float) -> None:
        """Record that a request was answered, and not with a 429 for its rate."""
        this = self._kinds[kind]
        if self._has_pace:
            self._count_for_other_kind(kind, sent_at, accepted=True)
            if this.refused_since is not None and sent_at > this.refused_since:
                this.refused_since = None
        for each in (this, self._both):
            each.accepted.add(sent_at)
            if sent_at > each.accepted_at:
                each.accepted_at = sent_at
            each.pacer.on_accepted(now, sent_at)

    def on_throttled(self, kind: RequestKind, now: float, sent_at: float, wait_s: float | None = None) -> None:
        """Record a 429 for the rate; `wait_s` is the wait that the gateway asked for."""
        this, self._has_pace = self._kinds[kind], True
        if self._count_for_other_kind(kind, sent_at, accepted=False):
            self._add_shared_evidence(REFUSED_TOO_EVIDENCE)
        if this.refused_since is None:
            this.refused_since, this.refused_in_a_row, this.other_kind_sent_count, this.other_kind_accepted_count = (
                now,
                1,
                0,
                0,
            )
        elif sent_at > this.refused_since:
            this.refused_in_a_row += 1
            if this.refused_in_a_row >= LONG_RUN_LENGTH and this.other_kind_accepted_count:
                share = (this.other_kind_accepted_count + 0.5) / (this.other_kind_sent_count + 1.0)
                self._add_shared_evidence(math.log(1.0 - share))
        for each in (this, self._both):
            each.limited_since = min(each.limited_since, now)
            each.pacer.on_throttled(now, sent_at, wait_s)
            each.pacer.raise_to(PROVEN_SHARE * each.accepted.proven_rate(each.accepted_at))

    def rate_log_odds_of_refused_create(self, sent_at: float) -> float:
        """Return what polls show about an unexplained 429 to a create: log P(polls | rate) / P(polls | slots)."""
        polls = self._kinds["poll"]
        if polls.refused_since is not None and self.shared_log_odds >= 0.0:
            return POLLS_REFUSED_EVIDENCE
        if self.is_limited or sent_at - polls.accepted_at > SOON_S:  # at a known limit single requests are refused
            return 0.0
        shared = 1.0 / (1.0 + math.exp(-self.shared_log_odds))  # otherwise they show nothing
        return math.log(shared * math.exp(POLLS_ACCEPTED_EVIDENCE) + 1.0 - shared)

    def polls_refused_after(self, sent_at: float) -> bool:
        """Return whether polls are refused for their rate, the first of them after a request of both."""
        refused_at = self._kinds["poll"].refused_since
        return self.is_shared and refused_at is not None and refused_at > sent_at

    def _may_probe_sharing(self, kind: RequestKind) -> bool:
        """Return whether one request may show, at once, whether it is refused as the other kind was."""
        other = self._kinds[_OTHER_KIND[kind]]
        untried = other.refused_since is not None and other.other_kind_sent_count < other.refused_in_a_row
        return untried and self._kinds[kind].refused_since is None and self.shared_log_odds < WELL_KNOWN_LOG_ODDS

    def _count_for_other_kind(self, kind: RequestKind, sent_at: float, *, accepted: bool) -> bool:
        """Count a request for the other kind; return whether that was being refused when this one was sent."""
        other = self._kinds[_OTHER_KIND[kind]]
        if other.refused_since is None or sent_at <= other.refused_since:
            return False
        other.other_kind_sent_count += 1
        other.other_kind_accepted_count += accepted
        return True

    def _add_shared_evidence(self, evidence: float) -> None:
        before = self.is_shared
        self.shared_log_odds = max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, self.shared_log_odds + evidence))
        if self.is_shared and not before:
            self._both.pacer.raise_to(self._both.accepted.proven_rate(self._both.accepted_at))

    def learned(self, now: float) -> LearnedRates | None:
        """Return what the next session starts from; None before the first refusal for the rate.

        Called each half minute, so that it sees the minutes in which the most was accepted.
        """
        for each in (*self._kinds.values(), self._both):
            if now >= each.limited_since + WINDOW_S:  # what a bucket held at first is no rate
                each.best_minute = max(each.best_minute, each.accepted.in_last_minute(now) / WINDOW_S)
        rates = LearnedRates(log_odds=self.shared_log_odds, both=self._both.learned())
        if not self.is_limited and rates.both is None:
            return None
        if self.is_shared:
            return rates
        return evolve(rates, create=self._kinds["create"].learned(), poll=self._kinds["poll"].learned())

    def restore(self, rates: LearnedRates, now: float) -> None:
        """Start from what an earlier session learned."""
        self.shared_log_odds, self._has_pace = rates.log_odds, True
        kinds = (self._kinds["create"], self._kinds["poll"], self._both)
        for each, pace in zip(kinds, (rates.create, rates.poll, rates.both), strict=True):
            if pace is not None:
                each.pacer.restore(pace, now)
                each.limited_since = now if pace.windowed else math.inf
