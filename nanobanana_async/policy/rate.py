"""Pace creates under a hidden rate limit: learn the gap between two creates from the 429s.

Theory of operation. The gateway takes some rate of creates per second and does not publish it. The pacer keeps its own
rate r and lets one create leave every 1/r seconds; a gap, not a burst, because a burst after a pause meets the limit
again. Until the first 429 there is no pace. Then:

* Search. Single creates leave, each at twice the rate of the one before, until one is refused or the round trip is
  longer than the gap. The search comes from below.
* Tracking. Quantile tracking (a stochastic approximation, Robbins and Monro 1951) of the logarithm of the rate, with
  step size g and share e = `REFUSED_SHARE`:

      accepted:  r *= exp(e g)        refused:  r *= exp(-(1 - e) g)

  The expected change is zero where the share e of the creates is refused, so the share of 429s is a setting, and r
  stays just below the limit. g shrinks from `COARSEST_STEP` to `FINEST_STEP` as refusals narrow the range.
* Measuring. A token bucket is empty when it refuses, so the creates it took between two refusals, divided by the time
  between them, are its refill rate. If that is higher than the rate after the step down, it is used at once. (A bucket
  that holds a single token wastes tokens, and the quotient is then too low; hence the higher of the two.)
* Acceleration. After a long run without a 429 the limit has probably risen, and the rate grows much faster.

All 429s of one round trip are one event: they say the same thing, and counting each would cut the rate many times.
"""

import math

from attrs import define

REFUSED_SHARE = 0.01
"""e above: the share of creates at the limit that may be refused. These probes show when the limit rises."""
TOO_FEW = 8
"""Fewer accepted creates than this between two refusals measure the rate too badly to make the steps finer."""
CLEAN_RUN = 200
"""This many creates in a row without a 429 mean that the limit rose: at the limit the chance is 0.99^200, 1 in 7."""
CLEAN_GROWTH = 1.02
"""Growth of the rate with each create after a clean run."""
FIRST_WAIT_S = 0.5
"""The shortest wait after the first 429, and so the search begins at two creates per second at most."""
MIN_RATE = 1.0 / 30.0
"""Creates per second. Anything slower is not treated as a rate limit: one create per half minute still probes it."""
FINEST_STEP = 0.04
COARSEST_STEP = 0.4
"""g above is `COARSEST_STEP` divided by the step level, and at least `FINEST_STEP`."""


@define
class Pacer:
    """A rate that follows a hidden limit; see the theory at the top of the module."""

    rate: float = math.inf
    """Creates per second; infinite until the first 429."""
    next_at: float = -math.inf
    """When the next create may leave."""
    accepted_since_refusal: int = 0
    """Creates that were sent after the last refusal and accepted."""
    step_level: int = 0
    """How fine the steps are: 0 during the search, then from 1 upwards."""
    _emptied_at: float = -math.inf
    """When the last refused create was sent: the gateway's bucket was empty then."""
    _handled_at: float = -math.inf
    """When the last refusal came. Creates sent before that belong to the same event."""

    @property
    def active(self) -> bool:
        """Whether a rate limit was met."""
        return self.rate < math.inf

    def admits(self, now: float, sending: int) -> bool:
        """Return whether a create may leave now while `sending` others are in flight."""
        if not self.active:
            return True
        return now >= self.next_at and (self.step_level > 0 or not sending)

    def sent(self, now: float) -> None:
        """Record that a create left. If it left late, the next one makes up for half of the lost gap."""
        if self.active:
            self.next_at = max(self.next_at, now - 0.5 / self.rate) + 1.0 / self.rate

    def on_accepted(self, now: float, sent_at: float) -> None:
        """Record that a create was accepted."""
        if not self.active or sent_at <= self._emptied_at:
            return
        self.accepted_since_refusal += 1
        if sent_at <= self._handled_at:  # in flight when the limit was met
            return
        if not self.step_level:
            self.rate *= 2.0
            if self.rate * (now - sent_at) > 1.0:  # the round trip limits single creates: the search ends
                self.step_level, self.accepted_since_refusal, self._emptied_at = 2, CLEAN_RUN, -math.inf
        elif self.accepted_since_refusal >= CLEAN_RUN:
            self.rate *= CLEAN_GROWTH
        else:
            self.rate *= math.exp(REFUSED_SHARE * self._step)
        self.next_at = min(self.next_at, now + 1.0 / self.rate)

    def on_throttled(self, now: float, sent_at: float, wait_s: float | None = None) -> None:
        """Record a 429 for the rate; `wait_s` is the wait that the gateway asked for."""
        if sent_at <= self._handled_at:
            return
        passed_s = max(sent_at - self._emptied_at, 1e-3)
        if not self.active:
            self.rate = 1.0 / max(wait_s or 0.0, FIRST_WAIT_S)  # start the search from below
        elif not self.accepted_since_refusal:  # no token came in since the last refusal
            self.rate = min(self.rate / 2.0, 1.0 / passed_s)
            self.step_level //= 2
        elif not self.step_level:
            self.rate = max(self.accepted_since_refusal / passed_s, self.rate / 2.0)
            self.step_level = 2
        else:
            stepped = self.rate * math.exp(-(1.0 - REFUSED_SHARE) * self._step)
            if self.accepted_since_refusal < TOO_FEW:  # still above the limit, perhaps by far
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
