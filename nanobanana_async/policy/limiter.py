"""Which limit a 429 speaks of, and what may leave under both: the account's job slots and its rate.

The gateway's own word decides where it says one. Where it does not, one create sent soon after the refusal does: if it
is taken although no job can have ended meanwhile, time alone made room, and the rate was the limit; if it is refused
too, it was the slots. What is learned is kept as log-odds.
"""

import copy
import math

from attrs import define, field

from nanobanana_async.errors import LimitKind
from nanobanana_async.policy.concurrency import ConcurrencyPolicy, JobLimit
from nanobanana_async.policy.rate import Pacer

# Log-odds of rate against slots at which the verdict is in.
SURELY_RATE = 1.5
SURELY_JOBS = -1.5
MOST_ODDS = 4.0

# How likely each sign is under either: simulated over both kinds of limit.
TAKEN_IF_RATE = 0.7
REFUSED_IF_RATE = 0.3
REFUSED_AFTER_END_IF_JOBS = 0.06

TRIAL_WAIT_S = 0.5
PACED_IN_VAIN = 5  # refusals in a row, each after a longer gap: no rate is as slow as that
LONGEST_WAIT_S = 30.0


@define
class _Undecided:
    """A refusal whose kind was not stated, and what was true before it was believed to be about slots."""

    sent_at: float
    at: float
    held: int
    before: JobLimit
    ends_before: int


@define
class AdmissionLimiter:
    """Whether one more create may leave; what became of each is told to it."""

    policy: ConcurrencyPolicy
    jobs: JobLimit = field(init=False)
    pacer: Pacer = field(factory=Pacer)
    rate_log_odds: float = 0.0
    throttled: int = 0
    """429s to creates, each counted."""
    blocked_until: float = -math.inf
    _refused_at: float = -math.inf
    _refused_in_a_row: int = 0
    _max_in_flight: float = math.inf
    """Creates on the wire where nothing is learned: one after a refusal, one more with each that is taken."""
    _jobs_ended: int = 0
    _undecided: _Undecided | None = None
    _trials: int = 0

    def __attrs_post_init__(self) -> None:
        self.jobs = JobLimit(self.policy)

    @property
    def verdict(self) -> LimitKind | None:
        """What unstated 429s are taken to be about, once that is clear."""
        if self.rate_log_odds >= SURELY_RATE:
            return "rate"
        return "jobs" if self.rate_log_odds <= SURELY_JOBS else None

    def admits(self, now: float, held: int, sending: int, weight: int = 1) -> bool:
        """Tell whether a job may be sent while `held` are accepted and `sending` are on the wire."""
        if now < self.blocked_until or not self.pacer.admits(now, sending):
            return False
        if self._trial_at <= now:
            return not sending and self.jobs.allows(held, weight)
        return sending < self._max_in_flight and self.jobs.admits(held, sending, weight)

    def opens_at(self, now: float) -> float:
        """When time alone may let something leave; in the past if it waits for something else."""
        gates_open_at = max(self.blocked_until, self.pacer.next_at)
        if gates_open_at > now or self._trial_at == math.inf:
            return gates_open_at
        return self._trial_at

    @property
    def was_throttled(self) -> bool:
        """Whether a create was ever refused for now."""
        return self.throttled > 0

    @property
    def undecided_since(self) -> float | None:
        """When the refusal came whose kind is still unknown; None when nothing is in question."""
        return None if self._undecided is None else self._undecided.at

    def sent(self, now: float) -> None:
        """Note that a create left."""
        self.pacer.sent(now)

    def on_ended(self) -> None:
        """Note that a job was seen to have ended: room for another."""
        self._jobs_ended += 1
        self.blocked_until = -math.inf

    def on_accepted(
        self, now: float, sent_at: float, held: int, sending: int, likely_ends: float = 0.0, weight: int = 1
    ) -> None:
        """Note that a job of this weight was taken.

        `held` counts it; `likely_ends` is how many jobs can be expected to have ended, unseen, since the last refusal.
        """
        self._refused_in_a_row = 0
        self._max_in_flight += 1.0
        event = self._undecided
        if event is not None and sent_at > event.at:
            if self._jobs_ended == event.ends_before:
                self._weigh(math.log(TAKEN_IF_RATE / -math.expm1(-max(likely_ends, 0.02))))
            if self.verdict == "rate":
                self._attribute_to_rate(event)
            self._undecided = None
        self.jobs.on_accepted(now, sent_at, held, sending, weight)
        self.pacer.on_accepted(now, sent_at)

    def on_throttled(
        self,
        now: float,
        sent_at: float,
        held: int,
        kind: LimitKind | None = None,
        wait_s: float | None = None,
        likely_ends: float = 0.0,
    ) -> None:
        """Note a 429 to a create; `kind` and `wait_s` as the gateway stated them."""
        self.throttled += 1
        if kind is None:
            self._weigh_refusal(sent_at, held, likely_ends)
            kind = self.verdict
            if kind is None and (self._undecided is None or sent_at > self._undecided.at):
                self._trials += 1
                before = self._undecided.before if self._undecided is not None else copy.copy(self.jobs)
                self._undecided = _Undecided(sent_at, now, held, before, self._jobs_ended)
        if sent_at > self._refused_at:  # all refusals of one round trip are one event
            self._refused_at = now
            self._refused_in_a_row += 1
        if kind == "rate":
            if self._undecided is not None:
                self._attribute_to_rate(self._undecided)
                self._undecided = None
            self.pacer.on_throttled(now, sent_at, wait_s)
        else:
            self._refused_for_slots(now, sent_at, held)

    @property
    def _trial_at(self) -> float:
        if self._undecided is None or self.verdict is not None:
            return math.inf
        return self._undecided.at + min(LONGEST_WAIT_S, TRIAL_WAIT_S * 2.0 ** (self._trials - 1))

    def _refused_for_slots(self, now: float, sent_at: float, held: int) -> None:
        self.jobs.on_throttled(now, sent_at, held)
        if not self.policy.learn:
            self._max_in_flight = 1.0
        if not held or not self.policy.learn:  # nothing of ours will end and make room, or nothing is learned
            wait_s = min(LONGEST_WAIT_S, TRIAL_WAIT_S * 2.0 ** min(self._refused_in_a_row - 1, 5))
            self.blocked_until = now + wait_s

    def _weigh_refusal(self, sent_at: float, held: int, likely_ends: float) -> None:
        event = self._undecided
        if event is not None and sent_at > event.at and self._jobs_ended == event.ends_before:
            self._weigh(math.log(REFUSED_IF_RATE) + likely_ends)
        elif (
            event is not None
            and sent_at > event.at
            and -0.5 < self.rate_log_odds < SURELY_RATE
            and held < event.held - 1
        ):
            # Jobs have ended, fewer are held than before, and yet there was no room.
            self._weigh(math.log(REFUSED_IF_RATE / REFUSED_AFTER_END_IF_JOBS))
        elif self.verdict == "rate" and self._refused_in_a_row >= PACED_IN_VAIN:
            self._weigh(math.log(REFUSED_IF_RATE))

    def _weigh(self, evidence: float) -> None:
        self.rate_log_odds = max(-MOST_ODDS, min(MOST_ODDS, self.rate_log_odds + evidence))

    def _attribute_to_rate(self, event: _Undecided) -> None:
        """Give the slots back what they lost to a refusal that was not theirs, and let the pacer have it."""
        self.jobs = event.before
        self.pacer.on_throttled(event.at, event.sent_at)
