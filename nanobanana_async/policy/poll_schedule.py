"""Decide when to poll a job, from the learned distribution of durations.

Theory of operation. A poll costs c1; each second in which a finished job goes unnoticed costs c2, since its slot is
idle. For a job with hazard h(t), the rate at which it ends at age t if it still runs, the cheapest density of polls is

    n(t) = sqrt(c2 h(t) / (2 c1)) = k sqrt(h(t))

(Keller 1974; the exact schedule is that of Barlow, Hunter and Proschan 1963; this closed form is within 3 to 11 % of
it). Poll often where the job is likely to end, seldom where it is not. With f the density of the duration, S its
survival function and A the integral of sqrt(f S) = sqrt(h) S,

    polls = k A        mean delay = A / (2 k)        polls x mean delay = A^2 / 2

A fixed interval gives E[T] / 2 instead, which is higher unless durations are memoryless (then it is equal). For
log-normal durations of sigma 0.4 the density needs 36 % fewer polls than a fixed interval with the same mean delay.

The mean delay is set by the user (`PollPolicy.target_delay_s`) or is a share of the mean duration, twice as much until
as many jobs have ended as run: the account may have a budget of requests that is not known yet, and when that is spent,
all wait until the minute is over. k = A / (2 delay) follows. A job older than nearly all others may be one that never
ends: there the gaps grow with its age. The schedule stores the cumulative density, N(t) = integral of n from 0 to t, as
a table over the age bins of `durations`; the next poll of a job of age a is at the age where N has grown by one:
N^-1(N(a) + 1).
"""

import math
from bisect import bisect_right
from collections.abc import Hashable, ItemsView, Sequence
from itertools import islice
from typing import Generic, TypeVar

from attrs import define, field

from nanobanana_async.policy.durations import BIN_COUNT, BIN_EDGES_S, BIN_WIDTHS_S, SHORTEST_S, Durations
from nanobanana_async.policy.polling import PollPolicy

DELAY_SHARE = 0.04
"""The mean delay as a share of the mean duration, unless the user sets one: about 0.32 / 0.04 = 8 polls a job."""
FIRST_DELAY_SHARE = 0.08
"""The same until as many jobs have ended as run: the account's budget of requests is not known yet."""
LEAST_DELAY_S = 0.5
"""The least mean delay that follows from `DELAY_SHARE`."""
LEAST_GAP_IF_UNKNOWN_S = 3.0
"""The least gap while durations are unknown. Both references ask for polls every few seconds."""
KNOWN_AFTER_COMPLETIONS = 3.0
"""From so many completions on, durations count as known."""
UNKNOWN_GROWTH = 0.22
"""While durations are unknown each gap is at least this share of the age: 12 polls for a job of 66 s."""
STRAGGLER_GROWTH = 0.15
"""Past the 90th percentile p, or the 99th if the user sets the delay, each gap is at least this share of the age a,
times sqrt(a / p): the older a job is, the less likely is it to end soon."""
STRAGGLER_MEDIANS = 2.0
"""A job is such a straggler at the latest when it is so many medians of the ended jobs old."""
STRAGGLER_HAZARD = 0.02
"""The lowest hazard per second past the median, so that a job far older than all others is still polled."""
NETWORK_S = 0.025
"""The part of the wanted delay that round trips and timers use up; the polls aim at the rest."""
DELAY_WEIGHT = 0.1
"""The weight of the last delay in the mean of late."""
FIT_SAMPLE_JOBS = 32
"""The number of running jobs that enter a fit: more cost processor time and change little."""
REFIT_SHARE = 0.25
"""A fit is repeated when the new evidence is this share of all completions."""
REFIT_SHARE_OF_A_POLL = 0.1
"""What a poll that finds a job running counts as evidence, where a completion counts 1."""


LN_2 = math.log(2.0)

Job = TypeVar("Job", bound=Hashable)


@define
class PollSchedule(Generic[Job]):
    """Poll times for jobs of one price class."""

    policy: PollPolicy
    durations: Durations
    mean_s: float = 0.0
    p99_s: float = 0.0
    """The learned 99th percentile of the duration."""
    wanted_delay_s: float = 0.0
    """The wanted mean delay."""
    notice_delay_s: float = 0.0
    """The mean delay of late: it is longer than the wanted one where polls must wait for their turn."""
    _p90_s: float = 0.0
    _poll_table: list[float] = field(factory=list, repr=False)
    """N above: how many polls a job should have had at the age of each bin's edge."""
    _cumulative_hazard: list[float] = field(factory=list, repr=False)
    """The cumulative hazard at each bin's edge."""
    _running: dict[Job, float] = field(factory=dict, repr=False)
    """The age of each job at the last poll that found it running. Its age now says nothing: it may have ended."""
    _new_evidence: float = 0.0
    _few_ended_yet: bool = True
    """Whether fewer jobs have ended so far than run."""

    def __attrs_post_init__(self) -> None:
        self._rebuild()

    def on_began(self, job: Job) -> None:
        """Record that a job runs."""
        self._running[job] = 0.0

    def running_jobs(self) -> ItemsView[Job, float]:
        """Return the jobs that run, with the age of each at the last poll that found it running."""
        return self._running.items()

    def hazard_since_poll(self, job: Job, age_s: float) -> float:
        """Return the hazard that a job of this age has met since its last poll: the more, the likelier it has ended."""
        hazard = self._cumulative_hazard
        return _interpolate(hazard, age_s) - _interpolate(hazard, self._running.get(job, 0.0))

    def on_running(self, job: Job, age_s: float) -> None:
        """Record that a poll found a job running at this age."""
        self._running[job] = age_s
        self._new_evidence += REFIT_SHARE_OF_A_POLL

    def on_ended(self, job: Job, age_s: float, took_s: float | None = None) -> None:
        """Record that a poll found a job ended.

        `took_s` is the duration by the gateway's own times; without it the middle between the last two polls is used.
        """
        last_s = self._running.pop(job, 0.0)
        ended_s = (last_s + age_s) / 2.0 if took_s is None else took_s
        self.notice_delay_s += DELAY_WEIGHT * (max(0.0, age_s - ended_s) - self.notice_delay_s)
        self.durations.add_completed(ended_s)
        self._new_evidence += 1.0

    def forget(self, job: Job) -> None:
        """Record that a job is no longer followed."""
        self._running.pop(job, None)

    def refit_if_due(self) -> None:
        """Repeat the fit if there is enough new evidence."""
        if self._new_evidence >= max(1.0, REFIT_SHARE * self.durations.count):
            self._refit()

    def next_poll_age_s(self, age_s: float) -> float:
        """Return the age at which a job of this age is polled next."""
        self.refit_if_due()
        poll_s = self._age_one_poll_later(age_s)
        if age_s < self.mean_s:  # jobs shorter than the target delay: one poll, that delay after their mean
            poll_s = min(poll_s, self.mean_s + self.wanted_delay_s)
        return max(age_s + self._least_gap_s(age_s), poll_s)

    def _least_gap_s(self, age_s: float) -> float:
        least_s, most_s = self.policy.min_gap_s, self.policy.max_gap_s
        if self.policy.target_delay_s is None and self.durations.count < KNOWN_AFTER_COMPLETIONS:
            return max(least_s, min(most_s, max(LEAST_GAP_IF_UNKNOWN_S, UNKNOWN_GROWTH * age_s)))
        if age_s <= self.straggler_age_s:
            return least_s
        return max(least_s, min(most_s, STRAGGLER_GROWTH * age_s * math.sqrt(age_s / self.straggler_age_s)))

    @property
    def straggler_age_s(self) -> float:
        """The age from which a job that still runs is polled less and less often, once durations are known."""
        if self.policy.target_delay_s is not None:
            return self.p99_s
        # The percentile grows with the ages of stragglers where few jobs have ended.
        return min(self._p90_s, STRAGGLER_MEDIANS * math.exp(self.durations.log_moments[0]))

    def _age_one_poll_later(self, age_s: float) -> float:
        wanted = _interpolate(self._poll_table, age_s) + 1.0
        number = bisect_right(self._poll_table, wanted) - 1
        if number >= BIN_COUNT:
            return age_s + self.policy.max_gap_s
        share = (wanted - self._poll_table[number]) / (self._poll_table[number + 1] - self._poll_table[number])
        return BIN_EDGES_S[number] + share * BIN_WIDTHS_S[number]

    def ended_between_probability(self, seen_s: float, age_s: float) -> float:
        """Return the probability that a job found running at age `seen_s` has ended by `age_s`."""
        return -math.expm1(_interpolate(self._cumulative_hazard, seen_s) - _interpolate(self._cumulative_hazard, age_s))

    def median_end_age_s(self, age_s: float) -> float:
        """Return the age by which half of the jobs that run at this age have ended.

        The median residual life (Schmittlein and Morrison 1981): with H the cumulative hazard, H(end) = H(age) + ln 2.
        """
        wanted = _interpolate(self._cumulative_hazard, age_s) + LN_2
        number = bisect_right(self._cumulative_hazard, wanted) - 1
        if number < BIN_COUNT:
            share = (wanted - self._cumulative_hazard[number]) / (
                self._cumulative_hazard[number + 1] - self._cumulative_hazard[number]
            )
            return BIN_EDGES_S[number] + share * BIN_WIDTHS_S[number]
        last_hazard = (self._cumulative_hazard[BIN_COUNT] - self._cumulative_hazard[BIN_COUNT - 1]) / BIN_WIDTHS_S[
            BIN_COUNT - 1
        ]  # it goes on beyond the table
        return max(age_s, BIN_EDGES_S[BIN_COUNT]) + (wanted - self._cumulative_hazard[BIN_COUNT]) / last_hazard

    def _refit(self) -> None:
        self._new_evidence = 0.0
        stride = max(1, len(self._running) // FIT_SAMPLE_JOBS)
        self.durations.fit(list(islice(self._running.values(), 0, None, stride)))
        self._rebuild()

    def _rebuild(self) -> None:
        hazards = self.durations.hazards()
        survival, a_integral = 1.0, 0.0
        self._cumulative_hazard = [0.0]
        self.mean_s, self._p90_s, self.p99_s, median_s = SHORTEST_S, BIN_EDGES_S[-1], BIN_EDGES_S[-1], BIN_EDGES_S[-1]
        for number, hazard in enumerate(hazards):
            self._cumulative_hazard.append(self._cumulative_hazard[-1] + hazard * BIN_WIDTHS_S[number])
            after = math.exp(-self._cumulative_hazard[-1])
            inside = (survival - after) / hazard  # the integral of the survival over the bin
            self.mean_s += inside
            a_integral += math.sqrt(hazard) * inside
            if survival > 0.5 >= after:
                median_s = BIN_EDGES_S[number + 1]
            if survival > 0.1 >= after:
                self._p90_s = BIN_EDGES_S[number + 1]
            if survival > 0.01 >= after:
                self.p99_s = BIN_EDGES_S[number + 1]
            survival = after
        self._few_ended_yet = self._few_ended_yet and self.durations.count < max(
            KNOWN_AFTER_COMPLETIONS, len(self._running)
        )
        share = FIRST_DELAY_SHARE if self._few_ended_yet else DELAY_SHARE
        self.wanted_delay_s = self.policy.target_delay_s or max(LEAST_DELAY_S, share * self.mean_s)
        k = a_integral / (2.0 * max(self.wanted_delay_s - NETWORK_S, 0.8 * self.wanted_delay_s))
        self._poll_table = self._cumulative_polls(hazards, k, median_s)

    def _cumulative_polls(self, hazards: Sequence[float], k: float, median_s: float) -> list[float]:
        policy = self.policy
        densest = 1.0 / policy.min_gap_s
        # Past the median a job can end at any moment: no gap is longer than four target delays.
        thinnest = 1.0 / max(policy.min_gap_s, min(policy.max_gap_s, 4.0 * self.wanted_delay_s))
        polls = [0.0]
        for number, hazard in enumerate(hazards):
            if BIN_EDGES_S[number] >= median_s:
                density = max(k * math.sqrt(max(hazard, STRAGGLER_HAZARD)), thinnest)
            else:
                density = k * math.sqrt(hazard)
            polls.append(polls[-1] + min(density, densest) * BIN_WIDTHS_S[number])
        return polls


def _interpolate(sums: Sequence[float], age_s: float) -> float:
    """Return the value of a cumulative table at an age, linear within the bin."""
    number = bisect_right(BIN_EDGES_S, age_s) - 1
    if number < 0:
        return 0.0
    if number >= BIN_COUNT:
        return sums[-1]
    return sums[number] + (age_s - BIN_EDGES_S[number]) / BIN_WIDTHS_S[number] * (sums[number + 1] - sums[number])
