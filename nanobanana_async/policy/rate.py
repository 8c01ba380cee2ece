"""How fast creates may leave where a rate is the limit: a gap between two of them, learned from refusals."""

import math

from attrs import define

REFUSED_SHARE = 0.01  # of the creates at the limit: the price of knowing that it has not risen
TOO_FEW = 8  # creates between two refusals tell little of the rate
CLEAN_RUN = 200  # creates without a refusal, where it is: one time in seven
CLEAN_GROWTH = 1.02  # a create, as long as that goes on
FIRST_WAIT_S = 0.5
MIN_RATE = 1.0 / 30.0  # a second: what is slower is no rate, and is asked again all the same
FINEST_STEP = 0.04  # of the logarithm of the rate; coarse at first, finer with each refusal
COARSEST_STEP = 0.4


@define
class Pacer:
    """A rate that follows a hidden limit: no limit until the first refusal, then search, then quantile tracking.

    In the search single creates leave, each at twice the rate, until one is refused or the wire is the limit. Then the
    rate creeps up with each create that is taken and steps down with each that is refused, in a proportion that makes
    `REFUSED_SHARE` of them refused. A bucket of tokens is empty whenever it refuses, so what it took between two
    refusals, over the time between them, is its rate: where that is higher than the step down, it is used at once.
    (For a bucket that holds one token only this is too low, since tokens are lost; hence the higher of the two.)
    """

    rate: float = math.inf
    """Creates per second."""
    next_at: float = -math.inf
    accepted_since_refusal: int = 0
    """Creates sent after the last refusal and taken."""
    step_level: int = 0
    """How fine the steps are by now; 0 while the search goes on."""
    _emptied_at: float = -math.inf
    _handled_at: float = -math.inf

    @property
    def active(self) -> bool:
        """Whether a rate limit was ever met."""
        return self.rate < math.inf

    def admits(self, now: float, sending: int) -> bool:
        """Tell whether a create may leave now while `sending` others are on the wire."""
        if not self.active:
            return True
        return now >= self.next_at and (self.step_level > 0 or not sending)

    def sent(self, now: float) -> None:
        """Note that a create left: the next one keeps its gap, or catches up half of what a late one lost."""
        if self.active:
            self.next_at = max(self.next_at, now - 0.5 / self.rate) + 1.0 / self.rate

    def on_accepted(self, now: float, sent_at: float) -> None:
        """Note that a create was taken."""
        if not self.active or sent_at <= self._emptied_at:
            return
        self.accepted_since_refusal += 1
        if sent_at <= self._handled_at:  # of the round trip that met the limit
            return
        if not self.step_level:
            self.rate *= 2.0
            if self.rate * (now - sent_at) > 1.0:  # a single create can't go faster than its round trip
                self.step_level, self.accepted_since_refusal, self._emptied_at = 2, CLEAN_RUN, -math.inf
        elif self.accepted_since_refusal >= CLEAN_RUN:  # the limit is higher: run after it
            self.rate *= CLEAN_GROWTH
        else:
            self.rate *= math.exp(REFUSED_SHARE * self._step)
        self.next_at = min(self.next_at, now + 1.0 / self.rate)

    def on_throttled(self, now: float, sent_at: float, wait_s: float | None = None) -> None:
        """Note that a create was refused for its rate; all refusals of one round trip are one event."""
        if sent_at <= self._handled_at:
            return
        passed_s = max(sent_at - self._emptied_at, 1e-3)
        if not self.active:
            self.rate = 1.0 / max(wait_s or 0.0, FIRST_WAIT_S)  # the search comes from below
        elif not self.accepted_since_refusal:  # not one token came in all this time
            self.rate = min(self.rate / 2.0, 1.0 / passed_s)
            self.step_level //= 2
        elif not self.step_level:
            self.rate = max(self.accepted_since_refusal / passed_s, self.rate / 2.0)
            self.step_level = 2
        else:
            stepped = self.rate * math.exp(-(1.0 - REFUSED_SHARE) * self._step)
            if self.accepted_since_refusal < TOO_FEW:  # still above the limit, perhaps far: no finer steps yet
                self.rate = max(self.rate / 2.0, min(stepped, 2.0 * self.accepted_since_refusal / passed_s))
            else:
                self.rate = max(stepped, min(self.rate, 0.99 * self.accepted_since_refusal / passed_s))
                self.step_level += 1
        self.rate = max(self.rate, MIN_RATE)
        self._handled_at, self._emptied_at, self.accepted_since_refusal = now, sent_at, 0
        self.next_at = now + max(1.0 / self.rate, wait_s or 0.0)

    @property
    def _step(self) -> float:
        return max(FINEST_STEP, COARSEST_STEP / self.step_level)
