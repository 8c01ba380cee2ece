"""Pace requests under a hidden rate limit: learn from the 429s how many requests it takes, and how it counts them.

Theory of operation. The gateway takes some rate of requests per second and does not publish it. The pacer keeps its own
rate r and lets one request leave every 1/r seconds. Until the first 429 there is no pace. If A requests were accepted
in the t seconds before it,

    r >= A / (t + 60 s)

whether the limit is a window (of a minute or less) or a token bucket (which holds a minute's worth or less). Then:

* Search, from this bound or from two requests per second, if that is more. Single requests leave, each at twice the
  rate of the one before, until one is refused or the round trip is longer than the gap.
* Tracking. Quantile tracking (a stochastic approximation, Robbins and Monro 1951) of the logarithm of the rate, with
  step size g and share e = `REFUSED_SHARE`:

      accepted:  r *= exp(e g)        refused:  r *= exp(-(1 - e) g)

  The expected change is zero where the share e of the requests is refused, so the share of 429s is a setting, and r
  stays just below the limit. g shrinks from `COARSEST_STEP` to `FINEST_STEP` as refusals narrow the range.
* Measuring. A token bucket is empty when it refuses, so the requests it took between two refusals, divided by the time
  between them, are its refill rate. If that is higher than the rate after the step down, it is used at once. (A bucket
  that holds a single token wastes tokens, and the quotient is then too low; hence the higher of the two.)
* Acceleration. After a long run without a 429 the limit has probably risen, and the rate grows much faster. The rate
  grows only while it holds requests back: otherwise nothing shows that the gateway takes more.

A bucket refuses for one gap of its rate. A limit per minute, by the clock or sliding, refuses for many gaps and then
opens again: it is recognised by a refusal, or a stated wait, longer than `WINDOW_GAPS` / r after the first, with the
bound of r above. What was accepted in the minute before the first of these refusals is then the quota Q: exactly for a
sliding window, about so by the clock. From then on

* no request leaves while Q others left within a minute. This is safe for both ways to count;
* requests are spread evenly, a little slower than r = Q / 60 s, so that some budget is left at any time. A few may
  follow at once after a pause. Urgent ones (creates) do not wait for the pace, and the others make up for them;
* a refusal measures Q again. After some minutes without one the rate is raised by `WINDOW_STEP`, which doubles each
  minute while the gateway takes what is sent. If it refuses, twice as many minutes pass before the next raise.

While a limit refuses, probes leave after one gap, then after twice as long each time, and when the oldest requests are
a minute old.

All 429s of one round trip are one event: they say the same thing, and counting each would cut the rate many times.
"""

import math

from attrs import define, field

from nanobanana_async.policy.learned import FASTEST_PER_S, SLOWEST_PER_S, LearnedPace
from nanobanana_async.policy.request_counts import WINDOW_S, SentLately

REFUSED_SHARE = 0.01
"""e above: the share of requests at the limit that may be refused. These probes show when the limit rises."""
FEW_ACCEPTED = 8
"""Fewer accepted requests than this between two refusals measure the rate too badly to make the steps finer."""
CLEAN_RUN_LENGTH = 200
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
LONGEST_PROBE_S = 10.0
"""The longest wait between two probes of a limit, until it has refused for four times as long."""
RESTORED_SHARE = 0.985
"""The pace of a session's start, as a share of the rate that an earlier one learned: few refusals, hardly slower."""
MEASURED_STEP_LEVEL = 3
"""The step level from which the rate of a bucket was measured between two refusals."""
RESTORED_STEP_LEVEL = 10
"""The step level of a session that starts from a learned rate."""
WAIT_UNIT_S = 1.0
"""Stated waits are whole seconds, rounded upwards."""
WINDOW_GAPS = 1.5
"""A limit that refuses for more than this many gaps is one per window of time."""
WINDOW_STEP = 0.02
"""The pace is this much below the quota, and grows by this share."""
WINDOW_BURST = 0.05
"""The share of the quota that may leave at once after a pause."""
LONGEST_PATIENCE = 8.0
"""The most minutes without a refusal before the rate of a window is raised."""


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
    windowed: bool = False
    """Whether the limit is one per window of time."""
    _sent: SentLately = field(factory=SentLately)
    _emptied_at: float = -math.inf
    """When the last refused request was sent: the gateway's bucket was empty then."""
    _refused_at: float = -math.inf
    """When the last refusal came. Requests sent before that belong to the same event."""
    _accepted_at: float = -math.inf
    """When the last accepted request was sent."""
    _first_sent_at: float = math.inf
    """When the first request left."""
    _refused_since: float = math.inf
    """When the first request of the current run of refusals was sent; infinite while requests are accepted."""
    _refusals_in_run: int = 0
    """Events in this run."""
    _accepted_before: int = 0
    """The requests accepted in the minute before this run: the quota of a window."""
    _first_run: bool = True
    """Whether this is the first run of refusals."""
    _refusing_s: float = 0.0
    """How long the gateway has refused in this run, or says that it will."""
    _measured_rate: float = 0.0
    """The rate after the last refusal, or at the last opening of a window; 0 during the search."""
    _clean_run_length: int = CLEAN_RUN_LENGTH
    _window_restored_at: float = -math.inf
    """When a session began that knows the window: what left in the minute before that counts, and is not known."""
    _rate_lower_bound: float = 0.0
    """The bound of the rate of the theory, at the start of this run."""
    _held_back_lately: bool = False
    """Whether requests lately waited for the pace."""
    _raise_at: float = math.inf
    """When the rate of a window is raised next."""
    _growth: float = WINDOW_STEP
    _patience: float = 1.0
    """The minutes without a refusal before the next raise."""
    _restored_rate: float = 0.0
    """The rate of a bucket that an earlier session learned: the pace after the first refusal."""

    @property
    def is_limited(self) -> bool:
        """Whether a rate limit was met."""
        return self.rate < math.inf

    def admits(self, now: float, sending: int, *, urgent: bool = False) -> bool:
        """Return whether a request may leave now while `sending` others are in flight."""
        if not self.is_limited:
            return True
        self._sent.forget(now)
        if (now < self.next_at and not (urgent and self._waits_for_room)) or self._is_window_full:
            self._held_back_lately = True
            return False
        return self.step_level > 0 or not sending

    def opens_at(self, *, urgent: bool = False) -> float:
        """Return when a request may leave by the passing of time."""
        paced = -math.inf if urgent and self._waits_for_room else self.next_at
        return max(paced, self._sent.next_expiry) if self._is_window_full else paced

    def on_sent(self, now: float) -> None:
        """Record that a request left. If it left late, the next ones make up for some of the lost time."""
        self._first_sent_at = min(self._first_sent_at, now)
        self._sent.add(now)
        if self.is_limited:
            self._held_back_lately = self._held_back_lately and now < self.next_at + 2.0 / self.rate
            made_up_s = max(0.5 / self.rate, WINDOW_BURST * WINDOW_S if self._waits_for_room else 0.0)
            self.next_at = max(self.next_at, now - made_up_s) + 1.0 / self.rate

    def take_back(self, at: float) -> None:
        """Record that no request left at a time that was recorded."""
        self._sent.remove(at)

    def on_accepted(self, now: float, sent_at: float) -> None:
        """Record that a request was accepted."""
        self._accepted_at = max(self._accepted_at, sent_at)
        if not self.is_limited or sent_at <= self._emptied_at:
            return
        self.accepted_since_refusal += 1
        if sent_at <= self._refused_at:  # in flight when the limit was met
            return
        if self._refused_since < math.inf and self._end_refusal_run(now):
            return
        if self.windowed:
            self._raise_window_rate(now)
            return
        if not self.step_level and self._held_back_lately:
            self.rate *= 2.0
            if self.rate * (now - sent_at) > 1.0:  # the round trip limits single creates: the search ends
                self.step_level, self.accepted_since_refusal, self._emptied_at = 2, CLEAN_RUN_LENGTH, -math.inf
        elif self._held_back_lately:
            clean = self.accepted_since_refusal >= self._clean_run_length
            self.rate *= CLEAN_GROWTH if clean else math.exp(REFUSED_SHARE * self._step_size)
        self.next_at = min(self.next_at, now + 1.0 / self.rate)

    def on_throttled(self, now: float, sent_at: float, wait_s: float | None = None) -> None:
        """Record a 429 for the rate; `wait_s` is the wait that the gateway asked for."""
        counted = self._sent.remove(sent_at)
        if sent_at <= self._refused_at:
            self._accepted_before -= counted and self._refused_since < math.inf  # it was counted when the run began
            return
        if self._refused_since == math.inf:
            self._begin_refusal_run(sent_at)
        self._refusals_in_run += 1
        closed_since = max(self._refused_since, self._accepted_at)
        self._refusing_s = max(self._refusing_s, sent_at - closed_since, (wait_s or 0.0) - WAIT_UNIT_S)
        if not self.windowed:
            self._step_down(sent_at, wait_s)
            self._measured_rate = self.rate if self.step_level else 0.0
        self._refused_at, self._emptied_at, self.accepted_since_refusal = now, sent_at, 0
        self.next_at = now + max(self._probe_wait_s(now), wait_s or 0.0)

    def raise_to(self, rate: float) -> None:
        """Raise the rate to one that is proven to be allowed."""
        if self.is_limited and rate > self.rate:
            self.rate = rate
            self.step_level = max(self.step_level, 2)

    def _begin_refusal_run(self, sent_at: float) -> None:
        self._refused_since, self._refusals_in_run, self._refusing_s = sent_at, 0, 0.0
        self._sent.forget(sent_at)
        self._accepted_before = self._sent.total
        passed_s = max(0.0, min(sent_at - self._first_sent_at, WINDOW_S))
        self._rate_lower_bound = self._accepted_before / (passed_s + WINDOW_S)
        self._first_run = not self.is_limited

    def _step_down(self, sent_at: float, wait_s: float | None) -> None:
        passed_s = max(sent_at - self._emptied_at, 1e-3)
        if not self.is_limited and self._restored_rate:
            self.rate, self.step_level = self._restored_rate, RESTORED_STEP_LEVEL
        elif not self.is_limited:
            self.rate = max(self._rate_lower_bound, 1.0 / max(wait_s or 0.0, FIRST_WAIT_S))
        elif not self.accepted_since_refusal:  # no token came in since the last refusal
            self.rate = min(self.rate / 2.0, 1.0 / passed_s)
            self.step_level //= 2
        elif not self.step_level:
            self.rate = max(self.accepted_since_refusal / passed_s, self.rate / 2.0)
            self.step_level = 2
        else:
            stepped = self.rate * math.exp(-(1.0 - REFUSED_SHARE) * self._step_size)
            if self.accepted_since_refusal < FEW_ACCEPTED:  # still above the limit, perhaps by far
                self.rate = max(self.rate / 2.0, min(stepped, 2.0 * self.accepted_since_refusal / passed_s))
            else:
                self.rate = max(stepped, min(self.rate, 0.99 * self.accepted_since_refusal / passed_s))
                self.step_level += 1
        self.rate = max(self.rate, MIN_RATE)

    def _probe_wait_s(self, now: float) -> float:
        """Return how long to wait after a refusal: one gap, then twice as long each time; no longer than a window."""
        wait_s = 1.0 / self.rate
        if self._refusals_in_run > 1:
            wait_s = max(wait_s, FIRST_WAIT_S * 2.0 ** min(self._refusals_in_run - 2, 16))
        wait_s = min(wait_s, max(LONGEST_PROBE_S, (now - self._refused_since) / 4.0), 1.0 / MIN_RATE)
        opens_s = self._sent.next_expiry - now
        return min(wait_s, opens_s) if opens_s > 0.0 else wait_s

    def _end_refusal_run(self, now: float) -> bool:
        """End a run of refusals; return whether the limit is one per window, and so its quota was measured."""
        unknown = self._refused_since < self._window_restored_at + WINDOW_S
        self._refused_since = math.inf
        if not self.windowed and not self._is_window(now):
            return False
        highest = self.rate if self.windowed else math.inf
        measured = highest if unknown else self._accepted_before / self._counted_s(now)
        self.windowed, self.step_level = True, max(self.step_level, 2)
        self.rate = max(MIN_RATE, (1.0 - WINDOW_STEP) * min(highest, measured))
        self._measured_rate = self.rate
        self._growth, self._raise_at = WINDOW_STEP, now + self._patience * WINDOW_S
        self._patience = min(2.0 * self._patience, LONGEST_PATIENCE)
        self.next_at = now + 1.0 / self.rate
        return True

    def _is_window(self, now: float) -> bool:
        """Return whether the gateway refused for longer than a bucket does, and long after the first request."""
        closed_s = max(FIRST_WAIT_S, WINDOW_GAPS / max(self._rate_lower_bound, MIN_RATE))
        late = self._refusing_s >= closed_s and now >= self._first_sent_at + WINDOW_S / 2.0
        return late and self._accepted_before >= FEW_ACCEPTED

    def _counted_s(self, now: float) -> float:
        """Return the time in which a window took what was counted: a whole one, if this was the first run."""
        return WINDOW_S if self._first_run else min(WINDOW_S, now - self._first_sent_at)

    def _raise_window_rate(self, now: float) -> None:
        if now >= self._raise_at and self._held_back_lately:
            if self._growth > WINDOW_STEP:  # the gateway took more than before
                self._patience = 1.0
            self.rate *= 1.0 + self._growth
            self._growth, self._raise_at = 2.0 * self._growth, now + WINDOW_S

    @property
    def _waits_for_room(self) -> bool:
        """Whether the quota of a window bounds what may leave at once."""
        return self.windowed and self._refused_since == math.inf

    @property
    def _is_window_full(self) -> bool:
        return self._waits_for_room and self._sent.total >= self.rate * WINDOW_S / (1.0 - WINDOW_STEP)

    @property
    def _step_size(self) -> float:
        return max(FINEST_STEP, COARSEST_STEP / self.step_level)

    def learned(self, proven: float) -> LearnedPace | None:
        """Return what the next session starts from, if a rate was measured; `proven` is that of the best minute.

        A rate that grew since it was measured was not met by a refusal, and counts as far as it is proven.
        """
        known = self.windowed or self._restored_rate or self.step_level >= MEASURED_STEP_LEVEL
        # So few refusals show no bucket: what the best minute took is kept as the quota of a window.
        rate = max(self._measured_rate, min(self.rate, proven) if known else proven)
        known_rate = min(rate, FASTEST_PER_S) if rate >= SLOWEST_PER_S else None
        return None if known_rate is None else LearnedPace(rate=known_rate, windowed=self.windowed or not known)

    def restore(self, pace: LearnedPace, now: float) -> None:
        """Start from what an earlier session learned: with few probes, as the limit is known well.

        A window is kept from the first request on. A bucket is full by now, and only paced once it is empty.
        """
        self._measured_rate = max(pace.rate, MIN_RATE)
        self._clean_run_length = 4 * CLEAN_RUN_LENGTH  # it starts below the limit, so more have to be accepted
        if pace.windowed:
            self.windowed, self.rate, self.step_level = True, self._measured_rate, RESTORED_STEP_LEVEL
            self._emptied_at = self._window_restored_at = now
            self._patience, self._raise_at = LONGEST_PATIENCE, now + LONGEST_PATIENCE * WINDOW_S
        else:
            self._restored_rate = max(RESTORED_SHARE * pace.rate, MIN_RATE)
