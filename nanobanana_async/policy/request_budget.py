"""Find out whether creates and polls share one budget of requests, and pace them by it.

Theory of operation. A gateway may limit the requests per time of creates, of polls, or of both together, and does not
say which. Each kind begins with a pacer of its own. When one kind is refused for its rate, the next request of the
other kind, sent before the first is accepted again, is a trial:

    refused too:    the budget is shared (or both limits were met at once, which is rare)
    accepted soon:  the budgets are separate (a shared one would refuse it, unless it has just opened)

`_evidence` adds up such trials; above zero one pacer is used for both kinds. Creates go first then, since the
dispatcher admits them first and each may use the next gap; polls share the rest.
"""

import math
from typing import Literal

from attrs import define, field

from nanobanana_async.policy.rate import Pacer

RequestKind = Literal["create", "poll"]

REFUSED_TOO = 2.0
ACCEPTED_SOON = -1.0
MAX_EVIDENCE = 4.0
"""Weights of the trials, and the bound of their sum: a verdict can be revised after a few contrary trials."""
POLLS_REFUSED = math.log(0.7 / 0.1)
POLLS_ACCEPTED = math.log(0.1 / 0.7)
"""What polls show about an unexplained 429 to a create: that they are refused too, or not although both share."""
SOON_S = 0.5
"""A trial that is accepted later than this after a refusal shows nothing: the limit may have opened again."""


@define
class RequestBudget:
    """The pacers of creates and polls, which may be one; see the theory at the top of the module."""

    _own: dict[RequestKind, Pacer] = field(factory=lambda: {"create": Pacer(), "poll": Pacer()})
    _shared: Pacer = field(factory=Pacer)
    _evidence: float = 0.0
    _refused: dict[RequestKind, tuple[float, float]] = field(factory=dict)
    """When the last refused request of a kind was sent and answered, until one of the kind is accepted."""
    _poll_accepted_at: float = -math.inf
    """When the last accepted poll was sent."""

    @property
    def shared(self) -> bool:
        """Whether creates and polls share one budget."""
        return self._evidence > 0.0

    def pacer(self, kind: RequestKind) -> Pacer:
        """Return the pacer of a kind of requests."""
        return self._shared if self.shared else self._own[kind]

    def sent(self, kind: RequestKind, now: float) -> None:
        """Record that a request left."""
        self._own[kind].sent(now)
        self._shared.sent(now)

    def on_accepted(self, kind: RequestKind, now: float, sent_at: float) -> None:
        """Record that a request was answered, and not with a 429 for its rate."""
        if kind in self._refused and sent_at > self._refused[kind][1]:
            del self._refused[kind]
        if kind == "poll":
            self._poll_accepted_at = max(self._poll_accepted_at, sent_at)
        other: RequestKind = "poll" if kind == "create" else "create"
        if other in self._refused:
            refused_sent_at, refused_at = self._refused[other]
            if refused_sent_at < sent_at <= refused_at + SOON_S:
                self._weigh(ACCEPTED_SOON)
        self._own[kind].on_accepted(now, sent_at)
        self._shared.on_accepted(now, sent_at)

    def on_throttled(self, kind: RequestKind, now: float, sent_at: float, wait_s: float | None = None) -> None:
        """Record a 429 for the rate; `wait_s` is the wait that the gateway asked for."""
        other: RequestKind = "poll" if kind == "create" else "create"
        if other in self._refused and sent_at > self._refused[other][1]:
            self._weigh(REFUSED_TOO)
        self._refused[kind] = (sent_at, now)
        self._own[kind].on_throttled(now, sent_at, wait_s)
        self._shared.on_throttled(now, sent_at, wait_s)

    def rate_log_odds_of_refused_create(self, sent_at: float) -> float:
        """Return what polls show about an unexplained 429 to a create: log P(polls | rate) / P(polls | slots)."""
        if "poll" in self._refused and self._evidence >= 0.0:
            return POLLS_REFUSED
        if self.shared and sent_at - self._poll_accepted_at <= SOON_S:
            return POLLS_ACCEPTED
        return 0.0

    def _weigh(self, evidence: float) -> None:
        self._evidence = max(-MAX_EVIDENCE, min(MAX_EVIDENCE, self._evidence + evidence))
