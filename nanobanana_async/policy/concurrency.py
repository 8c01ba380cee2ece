"""Learn how many jobs an account may hold at once, with few 429s.

Theory of operation. The gateway lets L jobs run at once and does not publish L. The controlled variable is the number
of jobs held: accepted and not known to have ended. Published concurrency limiters (AIMD, Vegas, CUBIC) control requests
in flight or a rate and cut deeply after a refusal to drain a queue. A refused create leaves no queue, so no deep cut is
needed, and the cap may stay right below L. What is known: a 429 while k jobs are held proves L <= k; an accept proves
little, since some of the k may have ended unnoticed. Three modes follow:

* RAMP, until the first 429. About sqrt(k) creates are in flight while k jobs are held. So the burst that meets L costs
  at most about sqrt(L) 429s and the ramp takes 2 sqrt(L) round trips. One at a time would take L round trips, and
  doubling would cost up to L 429s; the square root is the knee between them.
* HOLD, at the cap. Quantile tracking (a stochastic approximation, Robbins and Monro 1951) with the share e
  (`REFUSED_SHARE`), in slots:

      accepted while it fills the last slot:  cap += e        refused:  cap -= 1 - e

  The expected change is zero where the share e of those creates is refused: the 429s per create are a setting. The
  slow rise is also the probe for a higher limit.
* CLIMB, after a long run without a 429, or every few mean durations if the cap is small. One more job than the cap
  allows is admitted each round trip. If the cap rises beyond what unnoticed ends explain, L has risen: back to RAMP. If
  a create is refused, the cap before the climb is restored. After a fall of L the same climb finds the new limit. A cap
  that the ramp has just met rests on a single event, and jobs of others may have filled the account then, so the first
  climb comes after one mean duration, the next after two.

When L falls, refusals come in a row: each time wait for twice as many completions before the next create, so a halved
limit costs about log2 of the difference in 429s. All 429s of one round trip are one event: counting each of a burst as
an event of its own made the makespan 1.5 times as long in simulation.

In the simulations behind this design (L from 5 to 500, e of 0.01) the makespan is within 0.2 points of a client that
knows L, at 0.01 to 0.03 429s per job.
"""

import enum
import math
from collections.abc import Mapping

from attrs import define, field, frozen
from attrs.validators import optional

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.misspelt import by_name
from nanobanana_async.policy.turn_settings import as_weights
from nanobanana_async.validators import at_least_one, at_least_zero, validate_switch

REFUSED_SHARE = 0.02
"""e above: of the creates that fill the last slot, the share that may be refused. These 429s show where L is."""
REFUSED_SHARE_OF_MANY = 0.01
"""e for a cap of `FEW_SLOTS` or more, where creates are frequent and a smaller share probes often enough."""
FEW_SLOTS = 50
"""A cap below this is also probed by the clock: with so few jobs a long run without a 429 takes too much time."""
FIRST_PROBE_MEANS = 1.0
"""The time from the first 429 to the first such probe, in mean durations of a job; it doubles with each."""
LONGEST_PROBE_MEANS = 3.0
"""The longest time between such probes, in mean durations."""
PROBE_AFTER_ROUNDS = 1.3
"""A climb begins after this many accepts per slot without a 429 (and at least `FEW_SLOTS` accepts)."""


@by_name
@frozen(kw_only=True)
class ConcurrencyPolicy:
    """How many jobs may be held, and how many requests may be in flight and leave in a minute.

    `max_jobs` caps the held jobs, and the learned cap stays below it; with `learn=False` nothing is learned and
    `max_jobs` is the limit. `max_requests` bounds creates and polls in flight together, `max_requests_per_minute` those
    that leave in any minute: set it if you know the account's budget of requests, or share it with other programs. The
    learned rates stay below it.

    Where several sessions share the account through one PostgreSQL ledger, the jobs of those with `interactive=True`
    get free slots first, and `reserve` slots more are kept free for them until none of them had to wait for a minute.
    There `max_jobs` counts the jobs of this session alone, and one with `learn=False` takes no part in the sharing.

    `group_weights`, such as `{"alice": 2.0}`, are the shares of groups (`group=` of a job) in the slots that come free
    while several wait; that of any other group is 1.
    """

    max_jobs: int | None = field(default=None, validator=optional(at_least_one))  # jobs at once; None: learned
    learn: bool = field(default=True, validator=validate_switch)  # False: exactly `max_jobs`
    max_requests: int = field(default=32, validator=at_least_one)  # creates and polls in flight together
    max_requests_per_minute: int | None = field(default=None, validator=optional(at_least_one))  # None: learned
    interactive: bool = field(default=False, validator=validate_switch)  # free slots come here first
    reserve: int = field(default=0, validator=at_least_zero)  # slots kept free for interactive sessions
    group_weights: Mapping[str, float] = field(factory=dict, converter=as_weights, hash=False)  # shares of groups

    def __attrs_post_init__(self) -> None:
        if self.reserve and not self.interactive:
            raise ConfigurationError("reserve keeps slots free for interactive sessions: set interactive=True with it")
        if self.max_jobs is None and not self.learn:
            raise ConfigurationError("learn=False needs max_jobs, the number of jobs to hold")


@frozen
class Load:
    """What takes up the account's slots at a moment."""

    held: int
    """Slots of jobs that were accepted, or may have been, and are not known to have ended."""
    slots_in_flight: int = 0
    """Slots of the creates in flight."""
    likely_ended: float = 0.0
    """m of the theory: the expected number of unnoticed ends since the refusal that is undecided."""

    @property
    def taken(self) -> int:
        """The slots in use or about to be."""
        return self.held + self.slots_in_flight


@frozen
class AnsweredCreate:
    """A create that was answered: when it was sent, and how many slots its job takes."""

    sent_at: float
    weight: int = 1


class Mode(enum.Enum):
    """How the cap is approached; see the theory at the top of the module."""

    RAMP = "about sqrt(held jobs) creates in flight, until the first 429"
    CLIMB = "one job above the cap each round trip: a probe, or the way up after the limit fell"
    HOLD = "at the learned cap, which rises slowly and steps down"


@define
class JobLimit:
    """The learned cap on held jobs; see the theory at the top of the module."""

    policy: ConcurrencyPolicy
    mode: Mode = Mode.RAMP
    cap: float = math.inf
    mean_job_s: float = 20.0
    """The learned mean duration of a job; it sets the time between probes."""
    notice_delay_s: float = 0.5
    """The mean time until the end of a job is noticed. Unnoticed ends make a climb look successful."""
    _last_refusal_at: float = -math.inf
    """When the last refusal event came. Creates sent before that belong to the same event."""
    _refusals_in_a_row: int = 0
    """Refusal events since the last accept."""
    _last_slot_accepts: int = 0
    """Accepts that filled the last slot since the last refusal or probe."""
    _cap_set_at: float = math.inf
    """When the present cap was set."""
    _probe_means: float = FIRST_PROBE_MEANS
    """The time from then to the next probe, in mean durations."""
    _longest_probe_means: float = LONGEST_PROBE_MEANS
    _cap_before_probe: float | None = None
    _proves_limit_above: float = math.inf
    """A climb that holds more jobs than this proves a higher limit."""
    _ramp_ended_at: float = -math.inf
    _climbed_at: float = -math.inf
    _usually_sending: float = 0.0
    """Creates in flight when completions alone drive them: throughput times round trip (Little's law)."""
    _slots_without_ramp: float = 0.0
    """So many slots need no ramp, by what an earlier session learned long ago."""

    @property
    def cap_in_slots(self) -> int | None:
        """The cap in whole slots, learned or set; None while there is none."""
        limit = min(self.cap, self.ceiling)
        return None if limit == math.inf else int(limit)

    @property
    def ceiling(self) -> float:
        """The user's `max_jobs`, or infinity."""
        return math.inf if self.policy.max_jobs is None else float(self.policy.max_jobs)

    @property
    def learned_cap(self) -> int | None:
        """The cap that the next session starts from; None before the first 429."""
        if self.cap == math.inf:
            return None
        return int(self.cap if self._cap_before_probe is None else self._cap_before_probe)

    def restore(self, cap: int, now: float, *, fresh: bool) -> None:
        """Start at the cap that an earlier session learned; if that is not fresh, begin the ramp at half of it."""
        if fresh:
            self._start_hold(now, cap)
            self._longest_probe_means = 2.0 * LONGEST_PROBE_MEANS  # fewer probes of a limit that is known so well
        else:
            self._slots_without_ramp = cap / 2.0

    def fits_max_jobs(self, taken: int, weight: int) -> bool:
        """Return whether one more job fits into `max_jobs`. A job heavier than that is allowed alone."""
        return not taken or taken + weight <= self.ceiling

    def admits(self, held: int, sending: int, weight: int = 1) -> bool:
        """Return whether a job may be sent while `held` slots are held and `sending` are in flight.

        `weight` is the number of slots that the job takes.
        """
        taken = held + sending
        if not self.fits_max_jobs(taken, weight):
            return False
        if not self.policy.learn:
            return True
        if self.mode is Mode.RAMP:
            return sending < max(2, math.isqrt(held)) or taken + weight <= self._slots_without_ramp
        if not taken:
            return True
        # Compare with the usual creates in flight: where many jobs end in each round trip there are always some.
        beyond = weight if self.mode is Mode.CLIMB and sending <= self._usually_sending else 0
        return taken + weight <= self.cap + beyond

    def room(self, held: int) -> int:
        """Return how many slots may be taken, by held jobs and creates in flight together, while so many are held."""
        if self.mode is Mode.RAMP:
            return max(held + max(2, math.isqrt(held)), int(self._slots_without_ramp))
        return max(1, int(self.cap + 1e-9)) + (self.mode is Mode.CLIMB)

    def on_accepted(self, now: float, sent_at: float, held: int, sending: int, weight: int = 1) -> None:
        """Record that a job of this weight was accepted; `held` includes it."""
        if self.mode is Mode.HOLD and sent_at <= self._last_refusal_at:
            if self._ramp_ended_at == self._last_refusal_at:  # sent in the burst that met the limit, and below it
                self.cap = max(self.cap, float(held))
        elif self.mode is Mode.CLIMB:
            if held > self._proves_limit_above:
                self._start_ramp()
            elif sent_at >= self._climbed_at and held + sending > self.cap:
                self.cap, self._climbed_at = self.cap + weight, now
        elif self.mode is Mode.HOLD and self._refusals_in_a_row > 1:  # the limit fell to a value above this
            self._cap_before_probe, self._refusals_in_a_row = None, 0
            self._start_climb(now, sent_at)
        else:
            self._refusals_in_a_row = 0
            if held + sending + weight > self.cap:  # it filled the last slot
                self._on_last_slot_filled(now, sent_at, weight)

    def on_throttled(self, now: float, sent_at: float, held: int) -> None:
        """Record a 429 for lack of a slot while `held` slots were held."""
        if not self.policy.learn or sent_at <= self._last_refusal_at:
            return
        self._last_refusal_at = now
        self._refusals_in_a_row += 1
        if self.mode is Mode.RAMP:
            self._ramp_ended_at = now
            self._start_hold(now, held)
        elif self.mode is Mode.CLIMB:
            self._probe_means = min(2.0 * self._probe_means, self._longest_probe_means)
            self._start_hold(now, held if self._cap_before_probe is None else min(self._cap_before_probe, held))
        elif self._refusals_in_a_row == 1:
            self._start_hold(now, min(self.cap - (1.0 - self._refused_share), held))
        else:  # the limit fell: wait for twice as many completions as last time
            self._proves_limit_above = self._above_noise(held)
            awaited = min(2 ** (self._refusals_in_a_row - 1), max(1, held // 4))
            self._start_hold(now, held - awaited + 1)

    @property
    def _refused_share(self) -> float:
        return REFUSED_SHARE if self.cap < FEW_SLOTS else REFUSED_SHARE_OF_MANY

    def _on_last_slot_filled(self, now: float, sent_at: float, weight: int) -> None:
        self.cap += self._refused_share * weight
        self._last_slot_accepts += 1
        probe_at = self._cap_set_at + self._probe_means * self.mean_job_s if self.cap < FEW_SLOTS else math.inf
        if now >= probe_at or self._last_slot_accepts >= max(FEW_SLOTS, PROBE_AFTER_ROUNDS * self.cap):
            self._proves_limit_above = self._above_noise(self.cap)
            self._cap_before_probe, self._last_slot_accepts = self.cap, 0
            self._start_climb(now, sent_at)

    def _above_noise(self, held: float) -> float:
        """Return how many jobs must be held to prove a limit above `held`.

        Ends that are not noticed yet are Poisson distributed about their mean; allow for two standard deviations.
        """
        unseen = held * self.notice_delay_s / self.mean_job_s
        return held + unseen + 2.0 * math.sqrt(unseen) + 1.0

    def _start_climb(self, now: float, sent_at: float) -> None:
        self.mode, self._climbed_at = Mode.CLIMB, now
        self._usually_sending = self.cap * (now - sent_at) / self.mean_job_s

    def _start_ramp(self) -> None:
        self.mode, self._cap_before_probe, self._refusals_in_a_row = Mode.RAMP, None, 0
        self._probe_means, self._longest_probe_means = FIRST_PROBE_MEANS, LONGEST_PROBE_MEANS

    def _start_hold(self, now: float, cap: float) -> None:
        self.mode, self.cap, self._cap_before_probe, self._last_slot_accepts = Mode.HOLD, max(1.0, cap), None, 0
        self._cap_set_at = now
