"""When to look at a job: the density of looks that the learned durations call for.

Looks that cost c1 each and c2 a second of delay are best spread with the density sqrt(c2 h(t) / (2 c1)) over a job's
age, h being the hazard of its duration (Keller 1974; Barlow, Hunter and Proschan 1963). That gives polls x mean delay
= A^2 / 2 with A = integral of sqrt(f S): below the E[T] / 2 of any fixed interval unless durations are memoryless.
The wanted mean delay sets the exchange rate: sqrt(c2 / (2 c1)) = A / (2 delay).
"""

import math
from bisect import bisect_right
from collections.abc import Hashable, ItemsView, Sequence
from itertools import islice
from typing import Generic, TypeVar

from attrs import define, field

from nanobanana_async.policy.durations import BINS, EDGES, SHORTEST_S, WIDTHS, Durations
from nanobanana_async.policy.polling import PollPolicy

STRAGGLER_HAZARD = 0.02  # per second: a job far beyond all others is still looked at
WIRE_S = 0.025  # of the wanted delay is left to the wire and the timers
SAMPLE = 32  # running jobs that enter a fit
REFIT_SHARE = 0.25  # how much of what is known must be new before a fit is worth its processor time
REFIT_SHARE_OF_A_POLL = 0.1  # a look that finds a job running tells a little


Job = TypeVar("Job", bound=Hashable)


@define
class PollSchedule(Generic[Job]):
    """The looks at jobs of one class: how many a job of each age should have behind it, as a table."""

    policy: PollPolicy
    durations: Durations
    mean_s: float = 0.0
    p99_s: float = 0.0
    """The learned 99th percentile."""
    _looks: list[float] = field(factory=list, repr=False)
    _hazard: list[float] = field(factory=list, repr=False)
    _running: dict[Job, float] = field(factory=dict, repr=False)
    """Age at the last look that saw a job running; never its age now, which nobody has seen."""
    _new_evidence: float = 0.0

    def __attrs_post_init__(self) -> None:
        self._rebuild()

    def began(self, job: Job) -> None:
        """Note that a job runs."""
        self._running[job] = 0.0

    def running(self) -> ItemsView[Job, float]:
        """Return the jobs that run, with the age at which each was last seen."""
        return self._running.items()

    def ended_probability(self, job: Job, age_s: float) -> float:
        """Return how likely a job of this age has ended since it was last seen."""
        return self.ended_chance(self._running.get(job, 0.0), age_s)

    def on_running(self, job: Job, age_s: float) -> None:
        """Note that a job was seen to run at this age."""
        self._running[job] = age_s
        self._new_evidence += REFIT_SHARE_OF_A_POLL

    def on_ended(self, job: Job, age_s: float, took_s: float | None = None) -> None:
        """Note that a job was seen to have ended; without the gateway's own times the middle is the best guess."""
        last_s = self._running.pop(job, 0.0)
        self.durations.completed((last_s + age_s) / 2.0 if took_s is None else took_s)
        self._new_evidence += 1.0

    def forget(self, job: Job) -> None:
        """Note that a job is no longer followed."""
        self._running.pop(job, None)

    def learn(self) -> None:
        """Fit what is known anew, if enough of it is new."""
        if self._new_evidence >= max(1.0, REFIT_SHARE * self.durations.count):
            self._refit()

    def next_poll_s(self, age_s: float) -> float:
        """Return the age at which a job that has this age now should be looked at next."""
        self.learn()
        look_s = self._one_look_after(age_s)
        if age_s < self.mean_s:  # jobs shorter than the wanted delay: one look, that much after their end
            look_s = min(look_s, self.mean_s + self.policy.target_delay_s)
        return max(age_s + self.policy.min_gap_s, look_s)

    def _one_look_after(self, age_s: float) -> float:
        wanted = self._looks_at(age_s) + 1.0
        number = bisect_right(self._looks, wanted) - 1
        if number >= BINS:
            return age_s + self.policy.max_gap_s
        share = (wanted - self._looks[number]) / (self._looks[number + 1] - self._looks[number])
        return EDGES[number] + share * WIDTHS[number]

    def ended_chance(self, seen_s: float, age_s: float) -> float:
        """Return how likely a job that was seen to run at one age has ended by another."""
        return -math.expm1(self._hazard_until(seen_s) - self._hazard_until(age_s))

    def _refit(self) -> None:
        self._new_evidence = 0.0
        stride = max(1, len(self._running) // SAMPLE)
        self.durations.fit(list(islice(self._running.values(), 0, None, stride)))
        self._rebuild()

    def _rebuild(self) -> None:
        hazards = self.durations.hazards()
        survival, root = 1.0, 0.0
        self._hazard = [0.0]
        self.mean_s, self.p99_s, median_s = SHORTEST_S, EDGES[-1], EDGES[-1]
        for number, hazard in enumerate(hazards):
            self._hazard.append(self._hazard[-1] + hazard * WIDTHS[number])
            after = math.exp(-self._hazard[-1])
            inside = (survival - after) / hazard  # the integral of the survival over the bin
            self.mean_s += inside
            root += math.sqrt(hazard) * inside  # sqrt(f S) = sqrt(h) S
            if survival > 0.5 >= after:
                median_s = EDGES[number + 1]
            if survival > 0.01 >= after:
                self.p99_s = EDGES[number + 1]
            survival = after
        target_s = self.policy.target_delay_s
        exchange = root / (2.0 * max(target_s - WIRE_S, 0.8 * target_s))
        self._looks = self._accumulate(hazards, exchange, median_s)

    def _accumulate(self, hazards: Sequence[float], exchange: float, median_s: float) -> list[float]:
        policy = self.policy
        densest = 1.0 / policy.min_gap_s
        # Past the median a job can end at any moment: never more than four target delays without a look.
        thinnest = 1.0 / max(policy.min_gap_s, min(policy.max_gap_s, 4.0 * policy.target_delay_s))
        looks = [0.0]
        for number, hazard in enumerate(hazards):
            if EDGES[number] >= median_s:
                density = max(exchange * math.sqrt(max(hazard, STRAGGLER_HAZARD)), thinnest)
            else:
                density = exchange * math.sqrt(hazard)
            looks.append(looks[-1] + min(density, densest) * WIDTHS[number])
        return looks

    def _looks_at(self, age_s: float) -> float:
        return _interpolate(self._looks, age_s)

    def _hazard_until(self, age_s: float) -> float:
        return _interpolate(self._hazard, age_s)


def _interpolate(sums: Sequence[float], age_s: float) -> float:
    """Return a cumulative sum over the bins at an age."""
    number = bisect_right(EDGES, age_s) - 1
    if number < 0:
        return 0.0
    if number >= BINS:
        return sums[-1]
    return sums[number] + (age_s - EDGES[number]) / WIDTHS[number] * (sums[number + 1] - sums[number])
