"""Learn how long jobs of one price class take, from those that ended and those that still run.

A log-normal distribution is fitted first, since it needs few completions. As data comes in, a histogram of the hazard
(the rate at which running jobs end at an age) outweighs it: real durations can have two modes or a dead time.
"""

import math
from collections.abc import Sequence

from attrs import define, field

PRIOR_SIGMA = 0.5
"""The spread of an unknown class of jobs."""
PRIOR_WEIGHT_MEDIAN = 0.5
PRIOR_WEIGHT_SIGMA = 2.0
"""The weights of the first guesses, in completions: the median is a weak guess, the spread a better one."""

BIN_RATIO = 1.1
"""Each bin is 10 % wider than the one before: narrower bins are noise, wider ones hide a second mode."""
SHORTEST_S = 0.05
BIN_COUNT = 120
"""The bins reach from `SHORTEST_S` to 0.05 s * 1.1^120, an hour and a quarter."""
PRIOR_EVENTS = 6.0
"""This many completions in a bin weigh as much as the fitted curve."""
LEAST_HAZARD = 1e-6
"""Per second. A hazard of zero would mean that a job can't end at an age."""
NEVER_ENDING_SHARE = 0.01
"""The share of jobs that are taken never to end, so that a job that hangs does not count as a very long one."""
HALF_LIFE_COMPLETIONS = 400.0
"""After this many completions the old ones count half, so that a change at the gateway is followed."""
FIT_STEPS = 2
"""Steps of expectation-maximisation in a fit: few, since each fit starts from the previous one."""

BIN_EDGES_S = tuple(SHORTEST_S * BIN_RATIO**number for number in range(BIN_COUNT + 1))
BIN_WIDTHS_S = tuple(BIN_EDGES_S[number + 1] - BIN_EDGES_S[number] for number in range(BIN_COUNT))
_LOG_EDGES = tuple(math.log(edge) for edge in BIN_EDGES_S)
_LOG_BIN_RATIO = math.log(BIN_RATIO)
_ROOT_2 = math.sqrt(2.0)
_ROOT_2_PI = math.sqrt(2.0 * math.pi)


@define
class Durations:
    """The learned distribution of durations of one price class."""

    expected_s: float
    """The first guess of the median; it weighs `PRIOR_WEIGHT_MEDIAN` completions."""
    count: float = 0.0
    median_s: float = 0.0
    sigma: float = PRIOR_SIGMA
    _log_sum: float = 0.0
    _log_square_sum: float = 0.0
    _ended_per_bin: list[float] = field(factory=lambda: [0.0] * BIN_COUNT, repr=False)

    def __attrs_post_init__(self) -> None:
        self.median_s = self.expected_s

    def add_completed(self, seconds: float) -> None:
        """Record the duration of an ended job."""
        seconds = min(max(seconds, SHORTEST_S), BIN_EDGES_S[-1])
        log_s = math.log(seconds)
        self.count += 1.0
        self._log_sum += log_s
        self._log_square_sum += log_s * log_s
        middle = min(BIN_COUNT - 1, int((log_s - _LOG_EDGES[0]) / _LOG_BIN_RATIO))
        # Smooth: no end is noticed exactly.
        self._ended_per_bin[max(0, middle - 1)] += 0.25
        self._ended_per_bin[middle] += 0.5
        self._ended_per_bin[min(BIN_COUNT - 1, middle + 1)] += 0.25
        if self.count > HALF_LIFE_COMPLETIONS:
            self._forget_half()

    @property
    def log_moments(self) -> tuple[float, float]:
        """The mean and variance of the logarithms of the durations; meaningless before the first."""
        mean = self._log_sum / max(self.count, 1e-9)
        return mean, max(0.0, self._log_square_sum / max(self.count, 1e-9) - mean * mean)

    def restore(self, count: float, log_mean: float, log_variance: float) -> None:
        """Start from the durations of an earlier session, which weigh `count` completions."""
        log_mean = min(max(log_mean, _LOG_EDGES[0]), _LOG_EDGES[-1])
        self.count, self._log_sum, self._log_square_sum = (
            count,
            count * log_mean,
            count * (log_variance + log_mean * log_mean),
        )
        self.fit(())

    def fit(self, running_s: Sequence[float]) -> None:
        """Fit the log-normal; `running_s` are the ages at which polls last found jobs running.

        Those jobs enter as censored observations, by expectation-maximisation, each with the probability that it is not
        one of the few that never end. Without them the estimate is too short
        early in a batch, when only the short jobs have ended.
        """
        mu, sigma = math.log(self.median_s), self.sigma
        prior_mu = math.log(self.expected_s)
        logs = [math.log(min(age, BIN_EDGES_S[-1])) for age in running_s if age > SHORTEST_S]
        for _ in range(FIT_STEPS if logs else 1):
            total, squares, seen = self._log_sum, self._log_square_sum, self.count
            for log_s in logs:
                z = (log_s - mu) / sigma
                mills = _inverse_mills(z)
                mean = mu + sigma * mills
                tail = 0.5 * math.erfc(z / _ROOT_2)
                weight = tail / (tail + NEVER_ENDING_SHARE)  # the probability that it ends at all
                seen += weight
                total += weight * mean
                squares += weight * (mean * mean + sigma * sigma * max(0.0, 1.0 + z * mills - mills * mills))
            mu = (total + PRIOR_WEIGHT_MEDIAN * prior_mu) / (seen + PRIOR_WEIGHT_MEDIAN)
            spread = squares - 2.0 * mu * total + seen * mu * mu + PRIOR_WEIGHT_SIGMA * PRIOR_SIGMA**2
            sigma = math.sqrt(max(spread / (seen + PRIOR_WEIGHT_SIGMA), 1e-4))
        self.median_s, self.sigma = math.exp(mu), sigma

    def hazards(self) -> list[float]:
        """Return the hazard per second in each bin: the counts, blended with the fitted curve."""
        mu = math.log(self.median_s)
        # Widen the spread by the uncertainty of the median (the predictive distribution).
        sigma = self.sigma * math.sqrt(1.0 + 1.0 / (self.count + PRIOR_WEIGHT_MEDIAN))
        left = sum(self._ended_per_bin)
        tail, fitted = 1.0, LEAST_HAZARD
        hazards = []
        for number, ended in enumerate(self._ended_per_bin):
            z = (_LOG_EDGES[number + 1] - mu) / sigma
            if -5.0 < z < 5.0:  # before that almost nothing ends; beyond it the last hazard is kept
                before, tail = tail, 0.5 * math.erfc(z / _ROOT_2)
                fitted = max(math.log(before / tail) / BIN_WIDTHS_S[number], LEAST_HAZARD)
            if ended or left > 0.5:
                exposure = (left - 0.5 * ended) * BIN_WIDTHS_S[number]
                left -= ended
                hazards.append((ended + PRIOR_EVENTS) / (exposure + PRIOR_EVENTS / fitted))
            else:
                hazards.append(fitted)
        return hazards

    def _forget_half(self) -> None:
        self.count /= 2.0
        self._log_sum /= 2.0
        self._log_square_sum /= 2.0
        self._ended_per_bin = [share / 2.0 for share in self._ended_per_bin]


def _inverse_mills(z: float) -> float:
    """Return the hazard of a standard normal, phi(z) / Q(z)."""
    tail = 0.5 * math.erfc(z / _ROOT_2)
    if tail < 1e-12:  # phi and Q both underflow: use the asymptotic series
        return z + 1.0 / z
    return math.exp(-0.5 * z * z) / (_ROOT_2_PI * tail)
