"""How many jobs may be held at once: a limit learned from refusals, almost without causing any."""

import enum
import math

from attrs import define, field, frozen
from attrs.validators import optional

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.validators import at_least_one, switch

# Of the creates that would fill the last slot, so many may be refused: the price of knowing that the limit stands.
REFUSED_SHARE = 0.02
REFUSED_SHARE_OF_MANY = 0.01
# A limit below this is probed by the clock too: at its pace a stretch without refusals takes too long.
FEW_SLOTS = 50
PROBE_EVERY_MEANS = 3.0


@frozen(kw_only=True)
class ConcurrencyPolicy:
    """How many job slots and how many requests at once.

    `max_jobs` caps the held jobs; with `learn=False` exactly that many are held. `max_requests` bounds POSTs and GETs
    on the wire together.
    """

    max_jobs: int | None = field(default=None, validator=optional(at_least_one))
    learn: bool = field(default=True, validator=switch)
    max_requests: int = field(default=32, validator=at_least_one)

    def __attrs_post_init__(self) -> None:
        if self.max_jobs is None and not self.learn:
            raise ConfigurationError("learn=False needs max_jobs: how many jobs shall be held?")


class Mode(enum.Enum):
    """How the limit is approached."""

    RAMP = "about the square root of what is held on the wire, until the first refusal"
    CLIMB = "one more each round trip: a probe, or the way back up after the limit fell"
    HOLD = "at the learned cap, which creeps up and steps down"


@define
class JobLimit:
    """The learned cap on held jobs.

    A refusal proves that the limit is not above what is held. Holding is quantile tracking (Robbins and Monro 1951):
    up by the refused share with each create that fills the last slot, down by the rest with each refusal; a refused
    create leaves no queue behind, so nothing more drastic is needed. All refusals of one round trip are one event.
    """

    policy: ConcurrencyPolicy
    mode: Mode = Mode.RAMP
    cap: float = math.inf
    mean_s: float = 20.0
    """The learned mean duration of jobs; the clock of the probes."""
    delay_s: float = 0.5
    """How long an ended job goes unseen, in the mean: such jobs flatter a probe."""
    _last_refusal_at: float = -math.inf
    _events_in_a_row: int = 0
    _successes: int = 0
    _probe_at: float = math.inf
    _cap_before_probe: float | None = None
    _trusted_above: float = math.inf
    _ramp_ended_at: float = -math.inf
    _climbed_at: float = -math.inf
    _usually_sending: float = 0.0

    @property
    def slots(self) -> int | None:
        """The limit in whole slots, as far as it is known or set; None while nothing bounds it."""
        limit = min(self.cap, self.ceiling)
        return None if limit == math.inf else int(limit)

    @property
    def ceiling(self) -> float:
        """What the user allows."""
        return math.inf if self.policy.max_jobs is None else float(self.policy.max_jobs)

    def allows(self, taken: int, weight: int) -> bool:
        """Tell whether one more is within what the user allows; the only one always is."""
        return not taken or taken + weight <= self.ceiling

    def admits(self, held: int, sending: int, weight: int = 1) -> bool:
        """Tell whether a job may be sent while `held` are accepted and `sending` are on the wire."""
        taken = held + sending
        if not self.allows(taken, weight):
            return False
        if not self.policy.learn:
            return True
        if self.mode is Mode.RAMP:
            return sending < max(2, math.isqrt(held))
        if not taken:
            return True
        # A climb must not wait for an empty wire: where many jobs end in each round trip it never is.
        beyond = weight if self.mode is Mode.CLIMB and sending <= self._usually_sending else 0
        return taken + weight <= self.cap + beyond

    def on_accepted(self, now: float, sent_at: float, held: int, sending: int, weight: int = 1) -> None:
        """Note that a job of this weight was taken; `held` counts it."""
        if self.mode is Mode.HOLD and sent_at <= self._last_refusal_at:
            if self._ramp_ended_at == self._last_refusal_at:  # of the burst that met the limit: it was below it
                self.cap = max(self.cap, float(held))
        elif self.mode is Mode.CLIMB:
            if held > self._trusted_above:
                self._ramp()
            elif sent_at >= self._climbed_at and held + sending > self.cap:
                self.cap, self._climbed_at = self.cap + weight, now
        elif self.mode is Mode.HOLD and self._events_in_a_row > 1:  # the limit fell to somewhere above this
            self._cap_before_probe, self._events_in_a_row = None, 0
            self._climb(now, sent_at)
        else:
            self._events_in_a_row = 0
            if held + sending + weight > self.cap:  # another like it would not have fitted
                self._filled(now, sent_at, weight)

    def on_throttled(self, now: float, sent_at: float, held: int) -> None:
        """Note that a job was refused for want of a slot while `held` were accepted and not known to have ended."""
        if not self.policy.learn or sent_at <= self._last_refusal_at:
            return
        self._last_refusal_at = now
        self._events_in_a_row += 1
        if self.mode is Mode.RAMP:
            self._ramp_ended_at = now
            self._hold(now, held)
        elif self.mode is Mode.CLIMB:
            self._hold(now, held if self._cap_before_probe is None else min(self._cap_before_probe, held))
        elif self._events_in_a_row == 1:
            self._hold(now, min(self.cap - (1.0 - self._share), held))
        else:  # the limit fell: wait for twice as many completions each time
            self._trusted_above = self._above_noise(held)
            awaited = min(2 ** (self._events_in_a_row - 1), max(1, held // 4))
            self._hold(now, held - awaited + 1)

    @property
    def _share(self) -> float:
        return REFUSED_SHARE if self.cap < FEW_SLOTS else REFUSED_SHARE_OF_MANY

    def _filled(self, now: float, sent_at: float, weight: int) -> None:
        self.cap += self._share * weight
        self._successes += 1
        if now >= self._probe_at or self._successes >= max(FEW_SLOTS, 1.3 * self.cap):
            self._trusted_above = self._above_noise(self.cap)
            self._cap_before_probe, self._successes = self.cap, 0
            self._climb(now, sent_at)

    def _above_noise(self, held: float) -> float:
        """Return what must be held before a limit is believed to be above this: unseen completions flatter."""
        unseen = held * self.delay_s / self.mean_s
        return held + unseen + 2.0 * math.sqrt(unseen) + 1.0

    def _climb(self, now: float, sent_at: float) -> None:
        self.mode, self._climbed_at = Mode.CLIMB, now
        self._usually_sending = self.cap * (now - sent_at) / self.mean_s

    def _ramp(self) -> None:
        self.mode, self._cap_before_probe, self._events_in_a_row = Mode.RAMP, None, 0

    def _hold(self, now: float, cap: float) -> None:
        self.mode, self.cap, self._cap_before_probe, self._successes = Mode.HOLD, max(1.0, cap), None, 0
        self._probe_at = now + PROBE_EVERY_MEANS * self.mean_s if self.cap < FEW_SLOTS else math.inf
