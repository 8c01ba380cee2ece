"""Pace requests under a hidden rate limit: learn the gap between two requests from the 429s.

Theory of operation. The gateway takes some rate of requests per second and does not publish it. The pacer keeps its own
rate r and lets one request leave every 1/r seconds; a gap, not a burst, because a burst after a pause meets the limit
again. Until the first 429 there is no pace. Then:

* Search. Single requests leave, each at twice the rate of the one before, until one is refused or the round trip is
  longer than the gap. The search comes from below.
* Tracking. Quantile tracking (a stochastic approximation, Robbins and Monro 1951) of the logarithm of the rate, with
  step size g and share e = `REFUSED_SHARE`:

      accepted:  r *= exp(e g)        refused:  r *= exp(-(1 - e) g)

  The expected change is zero where the share e of the requests is refused, so the share of 429s is a setting, and r
  stays just below the limit. g shrinks from `COARSEST_STEP` to `FINEST_STEP` as refusals narrow the range.
* Windows. A limit per minute, by the clock or sliding, refuses for many gaps in a row and then opens again. One cycle
  lasts from one opening to the next. What was accepted in a cycle, divided by its length, is a rate that the gateway
  takes, and so the pace continues just below it. A bucket refuses for one gap only, and is measured differently:
* Measuring. A token bucket is empty when it refuses, so the requests it took between two refusals, divided by the time
  between them, are its refill rate. If that is higher than the rate after the step down, it is used at once. (A bucket
  that holds a single token wastes tokens, and the quotient is then too low; hence the higher of the two.)
* Acceleration. After a long run without a 429 the limit has probably risen, and the rate grows much faster. The rate
  grows only while it holds requests back: otherwise nothing shows that the gateway takes more.

All 429s of one round trip are one event: they say the same thing, and counting each would cut the rate many times.
"""

import math

from attrs import define

from nanobanana_async.policy.learned import FASTEST, LearnedPace

REFUSED_SHARE = 0.01
"""e above: the share of requests at the limit that may be refused. These probes show when the limit rises."""
TOO_FEW = 8
"""Fewer accepted requests than this between two refusals measure the rate too badly to make the steps finer."""
CLEAN_RUN = 200
"""This many requests in a row without a 429 mean that the limit rose: at the limit the chance is 0.99^200, 1 in 7."""
CLEAN_GROWTH = 1.02
"""Growth of the rate with each request after a clean run."""
FIRST_WAIT_S = 0.5
"""The shortest wait after the first 429, and so the search begins at two requests per second at most."""
MIN_RATE = 1.0 / 30.0
"""Requests per second. Anything slower is not treated as a rate limit: one request per half minute still probes it."""
FINEST_STEP = 0.04
COARSEST_STEP = 0.4
"""g above is `COARSEST_STEP` divided by the step level, and at least `FINEST_STEP`."""


WINDOW_GAPS = 3.0
"""A limit that refuses for longer than this many gaps is one per window of time."""
BELOW_WINDOW = 0.98
"""The pace as a share of what a window takes."""
WINDOW_DOUBT = 0.95
"""What is left of a window's measured rate after each refusal: a window that has just opened may refuse at once."""
LONGEST_PROBE_S = 10.0
"""The longest wait between two probes of a limit that refuses, until it has refused for four times as long."""
RESTORED = 0.985
"""The pace of a session's start, as a share of the rate that an earlier one learned: few refusals, hardly slower."""
FINE = 10
"""The step level of a session that starts from a learned rate."""


@define
class Pacer:
    """A rate that follows a hidden limit; see the theory at the top of the module."""

    rate: float = math.inf
    """Requests per second; infinite until the first 429."""
    next_at: float = -math.inf
    """When the next request may leave."""
    accepted_since_refusal: int = 0
    """Requests that were sent after the last refusal and accepted."""
    step_level: int = 0
    """How fine the steps are: 0 during the search, then from 1 upwards."""
    _emptied_at: float = -math.inf
    """When the last refused request was sent: the gateway's bucket was empty then."""
    _handled_at: float = -math.inf
    """When the last refusal came. Requests sent before that belong to the same event."""
    _cycle_at: float = math.inf
    """When the current cycle began: the first request, or the first accepted one after refusals."""
    _cycle_accepted: int = 0
    _window_rate: float = 0.0
    """The rate that the last cycle of a window proved, a little lower after each refusal since."""
    _last_measured: float = 0.0
    _measured_rate: float = 0.0
    """The rate after the last refusal, or at the last opening of a window; 0 during the search."""
    _refused_since: float = math.inf
    """When the first request of the current run of refusals was sent; infinite while requests are accepted."""
    _holds_back: bool = False
    """Whether requests lately waited for the pace."""
    _remembered: float = 0.0
    """The rate of a bucket that an earlier session learned: the pace after the first refusal."""
    _clean_run: int = CLEAN_RUN

    @property
    def active(self) -> bool:
        """Whether a rate limit was met."""
        return self.rate < math.inf

    def admits(self, now: float, sending: int) -> bool:
        """Return whether a request may leave now while `sending` others are in flight."""
        if not self.active:
            return True
        if now < self.next_at:
            self._holds_back = True
            return False
        return self.step_level > 0 or not sending

    def sent(self, now: float) -> None:
        """Record that a request left. If it left late, the next one makes up for half of the lost gap."""
        self._cycle_at = min(self._cycle_at, now)
        if self.active:
            self._holds_back = self._holds_back and now < self.next_at + 2.0 / self.rate
            self.next_at = max(self.next_at, now - 0.5 / self.rate) + 1.0 / self.rate

    def on_accepted(self, now: float, sent_at: float) -> None:
        """Record that a request was accepted."""
        self._cycle_accepted += 1
        if not self.active or sent_at <= self._emptied_at:
            return
        self.accepted_since_refusal += 1
        if sent_at <= self._handled_at:  # in flight when the limit was met
            return
        if self._refused_since < math.inf and self._opened(now, sent_at):
            return
        if not self.step_level:
            self.rate *= 2.0
            if self.rate * (now - sent_at) > 1.0:  # the round trip limits single creates: the search ends
                self.step_level, self.accepted_since_refusal, self._emptied_at = 2, CLEAN_RUN, -math.inf
        elif not self._holds_back:
            pass
        elif self.accepted_since_refusal >= self._clean_run:
            self.rate *= CLEAN_GROWTH
        else:
            self.rate *= math.exp(REFUSED_SHARE * self._step)
        self.next_at = min(self.next_at, now + 1.0 / self.rate)

    def on_throttled(self, now: float, sent_at: float, wait_s: float | None = None) -> None:
        """Record a 429 for the rate; `wait_s` is the wait that the gateway asked for."""
        if sent_at <= self._handled_at:
            return
        passed_s = max(sent_at - self._emptied_at, 1e-3)
        self._refused_since = min(self._refused_since, sent_at)
        if not self.active and self._remembered:
            self.rate, self.step_level = self._remembered, FINE
        elif not self.active:
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
        self._window_rate *= WINDOW_DOUBT
        self.rate = max(self.rate, self._window_rate, MIN_RATE)
        self._measured_rate = self.rate if self.step_level else 0.0
        self._handled_at, self._emptied_at, self.accepted_since_refusal = now, sent_at, 0
        probe_s = min(1.0 / self.rate, max(LONGEST_PROBE_S, (now - self._refused_since) / 4.0))
        self.next_at = now + max(probe_s, wait_s or 0.0)

    def keep_above(self, rate: float) -> None:
        """Raise the rate to one that is proven to be allowed."""
        if self.active and rate > self.rate:
            self.rate = rate
            self.step_level = max(self.step_level, 2)

    def _opened(self, now: float, sent_at: float) -> bool:
        """Begin a new cycle; return whether the limit is one per window, and so its rate was measured."""
        accepted, length_s = self._cycle_accepted - 1, sent_at - self._cycle_at
        closed_s, self._refused_since = sent_at - self._refused_since, math.inf
        if accepted < TOO_FEW:  # too few for a measurement: the cycle goes on
            return False
        self._cycle_at, self._cycle_accepted = sent_at, 1
        measured = accepted / max(length_s, 1e-3)
        if closed_s * measured < WINDOW_GAPS:
            return False
        self.rate = self._measured_rate = BELOW_WINDOW * measured
        # The first cycle of a bucket holds its burst, and proves nothing.
        self._window_rate, self._last_measured = min(self._last_measured, self.rate), self.rate
        self.step_level = max(self.step_level, 2)
        self.next_at = now + 1.0 / self.rate
        return True

    @property
    def _step(self) -> float:
        return max(FINEST_STEP, COARSEST_STEP / self.step_level)

    def learned(self, proven: float) -> LearnedPace | None:
        """Return what the next session starts from, if a rate was measured; `proven` is that of the best minute.

        A rate that grew since it was measured was not met by a refusal, and counts as far as it is proven.
        """
        if not self._measured_rate:
            return None
        rate = min(max(self._measured_rate, min(self.rate, proven)), FASTEST)
        return LearnedPace(rate=rate, windowed=self._last_measured > 0.0)

    def restore(self, pace: LearnedPace, now: float) -> None:
        """Start from what an earlier session learned.

        A window is paced from the first request on. A bucket is full by now, and only paced once it is empty.
        """
        self._measured_rate = max(pace.rate, MIN_RATE)
        self._clean_run = 4 * CLEAN_RUN  # it starts below the limit, so that more of them have to be accepted
        start = max(RESTORED * pace.rate, MIN_RATE)
        if pace.windowed:
            self.rate, self.step_level, self._emptied_at = start, FINE, now
            self._window_rate = self._last_measured = start
        else:
            self._remembered = start
