"""Admit creates under two hidden limits, job slots and request rate, and decide which of them a 429 reports.

Theory of operation. Both limits answer with 429, and they need opposite reactions: a full account opens when a job
ends, a rate limit opens with time. Treating a rate limit as a slot limit cost 44 to 138 % of the makespan in
simulation, more than any tuning gains. If the answer says which limit it was, that decides. If not, the limiter keeps
log-odds of the two hypotheses

    o = log P(rate) / P(slots)

and adds log P(evidence | rate) / P(evidence | slots) for each piece of evidence (Bayes): once for the account
(`rate_log_odds`), and once for each undecided 429, which starts from the account's odds, since an account may have both
limits. One kind of evidence is the outcome of a trial create that is sent shortly after the 429. Let m be the number of
jobs that can be expected to have ended, unnoticed, in between, so that 1 - exp(-m) is the probability that a slot
became free:

    trial accepted before any end was noticed:  + log 0.7 / (1 - exp(-m))     time alone made room: rate
    trial refused before any end was noticed:   + log 0.3 / exp(-m)           time did not help: slots
    trial refused after jobs ended:             + log 0.3 / 0.06              room did not help: rate
    trial accepted after a job ended:           + 0                           both explain it

Odds beyond `SURELY_RATE_LOG_ODDS` or `SURELY_JOBS_LOG_ODDS` are a verdict. Until then an unexplained 429 is treated
as one of slots, which is the cautious choice. A copy of the job limit from before is kept: if the verdict is the rate,
the copy is restored, since the slots lost nothing, and the pacer handles the events instead.

Two more kinds of evidence need no trial. Where polls share a budget with creates, a rate that refuses a create refuses
them as well. And `_full_at` slots were held when a create was last refused for lack of one: with fewer held, a slot
should be free (`BELOW_FULL`), with as many, not (`FULL`). Once a rate is known, this decides, since the account's odds
were learned at a full account. While the refusals go on and the held jobs fall from h to k, the limit would have to
have fallen to k as well: + log h / k.

All 429s of one round trip are one event. Where no job of this session can end and make room, or nothing is learned
(`learn=False`), the limiter waits with exponential backoff.
"""

import copy
import math
from datetime import datetime

from attrs import Factory, define, field

from nanobanana_async.errors import LimitKind
from nanobanana_async.policy.concurrency import AnsweredCreate, ConcurrencyPolicy, JobLimit, Load
from nanobanana_async.policy.learned import LearnedLimits, is_fresh, is_kept
from nanobanana_async.policy.rate import Pacer
from nanobanana_async.policy.request_budget import RequestBudget

SURELY_RATE_LOG_ODDS = 1.5
SURELY_JOBS_LOG_ODDS = -1.5
"""Log-odds (4.5 to 1) at which the verdict is the rate or the slots; one clear trial is enough, or two."""
MAX_LOG_ODDS = 4.0
"""Bound of the log-odds, so that a verdict can be revised after a few contrary trials."""

ACCEPTED_IF_RATE_PROBABILITY = 0.7
REFUSED_IF_RATE_PROBABILITY = 0.3
"""Probabilities of a trial's outcome under a rate limit, from simulations of both kinds of limit."""
REFUSED_AFTER_END_IF_JOBS_PROBABILITY = 0.06
"""Probability that a create is refused under a slot limit although jobs ended: the limit fell, or is shared."""
LEAST_LIKELY_ENDS = 0.02
"""Lower bound of m: keeps the evidence of one trial finite."""

BELOW_FULL_SHARE = 0.95
"""With fewer held slots than this share of those at which slots were refused before, a slot should be free."""
BELOW_FULL_LOG_ODDS = math.log(0.3 / 0.06)
"""What that shows: under a limit of slots such a refusal means that the limit fell."""
FULL_LOG_ODDS = math.log(0.2)
"""With as many held slots, a refusal for slots is likely."""
FIRST_TRIAL_WAIT_S = 0.5
"""The wait before the first trial; it doubles with each further one."""
MAX_PACED_REFUSALS = 5
"""Refusals in a row under growing gaps that cast doubt on the verdict of a rate."""
LONGEST_WAIT_S = 30.0
"""The longest wait before a trial, and the longest backoff."""


@define
class _UnexplainedRefusal:
    """An unexplained 429, and the state before it was treated as one of slots."""

    sent_at: float
    refused_at: float
    held: int
    limit_before: JobLimit
    """A copy of the job limit, to restore if the verdict is the rate."""
    ends_before: int
    log_odds: float
    """Of the rate, for this refusal."""
    refusals: list[tuple[float, float]]
    """When this refusal and those before it since the last accepted create came, and when their creates were sent."""


@define
class AdmissionLimiter:
    """Decides whether a create may leave, and learns from the answer of each."""

    policy: ConcurrencyPolicy
    job_limit: JobLimit = field(default=Factory(lambda self: JobLimit(self.policy), takes_self=True))
    budget: RequestBudget = field(factory=RequestBudget)
    rate_log_odds: float = 0.0
    throttled: int = 0
    """The number of 429s to creates."""
    blocked_until: float = -math.inf
    """No create leaves before this time: backoff where no job can end and make room."""
    _refused_at: float = -math.inf
    _refused_in_a_row: int = 0
    _max_slots_in_flight: float = math.inf
    """Bound of slots in flight if nothing is learned: 1 after a refusal, one more with each accept."""
    _held_when_full: float = math.inf
    """The fewest slots that were held when a create was refused for lack of one."""
    _ramp_ended_at: float = -math.inf
    """When that happened for the first time. Creates sent before may still be accepted."""
    _jobs_ended: int = 0
    _undecided: _UnexplainedRefusal | None = None
    _trials: int = 0
    """Unexplained refusals so far; the wait before a trial doubles with each."""

    @property
    def pacer(self) -> Pacer:
        """The pacer of creates, which polls may share."""
        return self.budget.pacer("create")

    @property
    def limit_kind(self) -> LimitKind | None:
        """The limit that unexplained 429s are attributed to; None while undecided."""
        return _limit_kind_of(self.rate_log_odds)

    def admits(self, now: float, load: Load, weight: int = 1) -> bool:
        """Return whether a job that takes `weight` slots may be sent under this load."""
        self.take_evidence_of_polls()
        if now < self.blocked_until or not self.budget.admits("create", now, load.slots_in_flight):
            return False
        if self.trial_at <= now:
            return not load.slots_in_flight and self.job_limit.fits_max_jobs(load.held, weight)
        if load.slots_in_flight >= self._max_slots_in_flight:
            return False
        return self.job_limit.admits(load.held, load.slots_in_flight, weight)

    def take_evidence_of_polls(self) -> None:
        """Attribute an undecided refusal to the rate, if polls of the same budget are refused for it."""
        if self._undecided is not None and self.budget.polls_refused_after(self._undecided.sent_at):
            self._attribute_to_rate(self._undecided)

    def opens_at(self, now: float) -> float:
        """Return when a create may leave by the passing of time; a past time if other events are awaited."""
        gates_open_at = max(self.blocked_until, self.budget.opens_at("create"))
        if gates_open_at > now or self.trial_at == math.inf:
            return gates_open_at
        return self.trial_at

    @property
    def was_throttled(self) -> bool:
        """Whether any create was answered with 429, in this session or the one whose limits it started from."""
        return self.throttled > 0 or self.job_limit.cap < math.inf

    @property
    def undecided_since(self) -> float | None:
        """When the refusal came whose kind is undecided; None if there is none."""
        return None if self._undecided is None else self._undecided.refused_at

    def on_sent(self, now: float) -> None:
        """Record that a create left."""
        self.budget.on_sent("create", now)

    def on_ended(self) -> None:
        """Record that the end of a job was noticed, which makes room for another."""
        self._jobs_ended += 1
        self.blocked_until = -math.inf

    def on_accepted(self, now: float, create: AnsweredCreate, load: Load) -> None:
        """Record that a create was accepted; `load.held` includes its job."""
        self._refused_in_a_row = 0
        if create.sent_at <= self._ramp_ended_at:  # in the burst that met the limit
            self._held_when_full = max(self._held_when_full, load.held)
        self._max_slots_in_flight += 1.0
        event = self._undecided
        if event is not None and create.sent_at > event.refused_at:
            if self._jobs_ended == event.ends_before:
                evidence = math.log(
                    ACCEPTED_IF_RATE_PROBABILITY / -math.expm1(-max(load.likely_ended, LEAST_LIKELY_ENDS))
                )
                if self.limit_kind is None:
                    self._add_rate_evidence(evidence)
                event.log_odds += evidence
            if event.log_odds > (0.0 if self.budget.is_limited else SURELY_RATE_LOG_ODDS):
                self._attribute_to_rate(event)
            self._undecided = None
        self.job_limit.on_accepted(now, create.sent_at, load.held, load.slots_in_flight, create.weight)
        self.budget.on_accepted("create", now, create.sent_at)

    def on_throttled(
        self, now: float, create: AnsweredCreate, load: Load, kind: LimitKind | None = None, wait_s: float | None = None
    ) -> None:
        """Record a 429 to a create; `kind` and `wait_s` are what the gateway stated, if it did."""
        sent_at = create.sent_at
        self.throttled += 1
        if kind is None:
            kind = self._attribute_refusal(now, sent_at, load)
        if sent_at > self._refused_at:  # one event per round trip
            self._refused_at = now
            self._refused_in_a_row += 1
        if kind == "rate":
            if self._undecided is not None:
                self._attribute_to_rate(self._undecided)
            self.budget.on_throttled("create", now, sent_at, wait_s)
        else:
            if kind == "jobs":  # the request counted all the same
                if self._held_when_full == math.inf:
                    self._ramp_ended_at = now
                self._held_when_full = min(self._held_when_full, load.held or create.weight - 1)
                self._undecided, self._trials = None, 0
                self.budget.on_accepted("create", now, sent_at)
            self._on_refused_for_slots(now, sent_at, load.held, create.weight)

    def forget_undecided(self) -> None:
        """Leave an undecided refusal as one of slots: a smaller job was accepted, which shows nothing of the rate."""
        self._undecided, self._trials = None, 0

    @property
    def trial_at(self) -> float:
        """When a create may leave as a trial; infinite if none is needed."""
        if self._undecided is None or (self.limit_kind is not None and not self.budget.is_limited):
            return math.inf
        return self._undecided.refused_at + min(LONGEST_WAIT_S, FIRST_TRIAL_WAIT_S * 2.0 ** (self._trials - 1))

    def _on_refused_for_slots(self, now: float, sent_at: float, held: int, weight: int) -> None:
        self.job_limit.on_throttled(now, sent_at, held or weight - 1)  # alone, it shows no more than that
        if not self.policy.learn:
            self._max_slots_in_flight = 1.0
        if not held or not self.policy.learn:
            wait_s = min(LONGEST_WAIT_S, FIRST_TRIAL_WAIT_S * 2.0 ** min(self._refused_in_a_row - 1, 5))
            self.blocked_until = now + wait_s

    def _attribute_refusal(self, now: float, sent_at: float, load: Load) -> LimitKind | None:
        """Return which limit an unexplained refusal reports; None, and remember it, if that is unclear."""
        polls, slots = self.budget.rate_log_odds_of_refused_create(sent_at), self._rate_log_odds_of_load(load.held)
        if slots > 0.0:  # polls may have a budget of their own
            polls = max(0.0, polls)
        evidence = self._weigh_refusal(sent_at, load) + polls
        self._add_rate_evidence(polls)
        event = self._undecided
        if event is not None and sent_at > event.refused_at:
            odds = event.log_odds + evidence
        else:
            usual = max(SURELY_JOBS_LOG_ODDS, min(SURELY_RATE_LOG_ODDS, self.rate_log_odds))
            if self._held_when_full < math.inf and self.budget.is_limited:  # its odds were learned at a full account
                doubtful = load.held and self._refused_in_a_row >= 4 * MAX_PACED_REFUSALS
                usual = math.log(REFUSED_IF_RATE_PROBABILITY) if doubtful else 0.0
            odds = usual + polls + slots
        kind = _limit_kind_of(odds) or ("rate" if odds > 0.0 and self.limit_kind == "rate" else None)
        if kind is None:
            before = copy.copy(self.job_limit) if event is None else event.limit_before
            refusals = [*(() if event is None else event.refusals), (now, sent_at)]
            if event is None or sent_at > event.refused_at:
                self._trials += 1
                self._undecided = _UnexplainedRefusal(sent_at, now, load.held, before, self._jobs_ended, odds, refusals)
            else:
                event.refusals = refusals
        return kind

    def _weigh_refusal(self, sent_at: float, load: Load) -> float:
        """Weigh a refusal as the outcome of a trial; return what it shows about the refusal that is undecided."""
        event = self._undecided
        if event is None or sent_at <= event.refused_at:
            if self.limit_kind == "rate" and self._refused_in_a_row >= MAX_PACED_REFUSALS:
                self._add_rate_evidence(math.log(REFUSED_IF_RATE_PROBABILITY))
            return 0.0
        if self._jobs_ended == event.ends_before:
            evidence = math.log(REFUSED_IF_RATE_PROBABILITY) + load.likely_ended
            self._add_rate_evidence(evidence)
            return evidence
        if -0.5 < self.rate_log_odds < SURELY_RATE_LOG_ODDS and load.held < event.held - 1:
            # Jobs ended and fewer are held than before, and still there was no room.
            self._add_rate_evidence(math.log(REFUSED_IF_RATE_PROBABILITY / REFUSED_AFTER_END_IF_JOBS_PROBABILITY))
        return math.log(max(event.held, 1) / max(1, min(load.held, event.held)))  # a slot limit would have fallen again

    def _rate_log_odds_of_load(self, held: int) -> float:
        """Return what the held slots show: with fewer than at any refusal for slots, a slot should be free."""
        if self._held_when_full == math.inf:
            return 0.0
        if held >= self._held_when_full:
            return FULL_LOG_ODDS
        if held >= BELOW_FULL_SHARE * self._held_when_full:
            return 0.0
        return BELOW_FULL_LOG_ODDS

    def _add_rate_evidence(self, evidence: float) -> None:
        self.rate_log_odds = max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, self.rate_log_odds + evidence))

    def _attribute_to_rate(self, event: _UnexplainedRefusal) -> None:
        """Restore the job limit from before the refusal, and let the pacer handle the refusal."""
        self.job_limit, self._undecided, self._trials = event.limit_before, None, 0
        for at, sent_at in event.refusals:
            self.budget.on_throttled("create", at, sent_at)

    def learned(self, *, now: float, at: datetime) -> LearnedLimits | None:
        """Return what the next session starts from; None before the first 429."""
        jobs = self.job_limit if self._undecided is None else self._undecided.limit_before
        rates, held = self.budget.learned(now), self._held_when_full
        cap = jobs.learned_cap if held else None  # with 0 others held all slots: a later session may get them
        if cap is None and rates is None:
            return None
        full = int(held) if 0 < held < math.inf else None
        return LearnedLimits(at=at, job_limit=cap, held_when_full=full, rate_log_odds=self.rate_log_odds, rates=rates)

    def restore(self, limits: LearnedLimits, *, now: float, at: datetime) -> None:
        """Start from what an earlier session learned, as far as it is believed at the wall clock's time `at`."""
        if not is_kept(limits.at, at):
            return
        self.rate_log_odds = limits.rate_log_odds
        if limits.rates is not None:
            self.budget.restore(limits.rates, now)
        if limits.job_limit is not None and self.policy.learn:
            fresh = is_fresh(limits.at, at)
            self.job_limit.restore(limits.job_limit, now, fresh=fresh)
            self._held_when_full = math.inf if limits.held_when_full is None or not fresh else limits.held_when_full


def _limit_kind_of(rate_log_odds: float) -> LimitKind | None:
    return (
        "rate" if rate_log_odds >= SURELY_RATE_LOG_ODDS else "jobs" if rate_log_odds <= SURELY_JOBS_LOG_ODDS else None
    )
