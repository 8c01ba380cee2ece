"""How long jobs of one class take: learned from those that ended and from those that still run."""

import math
from collections.abc import Sequence

from attrs import define, field

# The prior on a class of jobs never seen before: vague in the median, firm in the spread.
PRIOR_SIGMA = 0.5
PRIOR_WEIGHT_MEDIAN = 0.5
PRIOR_WEIGHT_SIGMA = 2.0

BIN = 1.1  # bins of 10 %: finer ones are noise, coarser ones blur a second mode
SHORTEST_S = 0.05
BINS = 120  # up to 0.05 s * 1.1^120: an hour and a quarter
PRIOR_EVENTS = 6.0  # so many completions in a bin weigh as much as the fitted curve
LEAST_HAZARD = 1e-6  # per second: nothing is impossible
MEMORY = 400.0  # completions after which the old ones weigh half: providers change
STEPS = 2  # of expectation-maximisation a fit; it starts from the last one

EDGES = tuple(SHORTEST_S * BIN**number for number in range(BINS + 1))
WIDTHS = tuple(EDGES[number + 1] - EDGES[number] for number in range(BINS))
_LOG_EDGES = tuple(math.log(edge) for edge in EDGES)
_LOG_BIN = math.log(BIN)
_ROOT_2 = math.sqrt(2.0)
_ROOT_2_PI = math.sqrt(2.0 * math.pi)


@define
class Durations:
    """A log-normal fitted with censoring, blended into a binned hazard as data comes in: bimodal durations exist."""

    expected_s: float
    """The first guess; worth half an observation."""
    count: float = 0.0
    median_s: float = 0.0
    sigma: float = PRIOR_SIGMA
    _sum: float = 0.0
    _squares: float = 0.0
    _ended: list[float] = field(factory=lambda: [0.0] * BINS, repr=False)

    def __attrs_post_init__(self) -> None:
        self.median_s = self.expected_s

    def completed(self, seconds: float) -> None:
        """Learn that a job took so long."""
        seconds = min(max(seconds, SHORTEST_S), EDGES[-1])
        log_s = math.log(seconds)
        self.count += 1.0
        self._sum += log_s
        self._squares += log_s * log_s
        middle = min(BINS - 1, int((log_s - _LOG_EDGES[0]) / _LOG_BIN))
        for number, share in ((middle - 1, 0.25), (middle, 0.5), (middle + 1, 0.25)):  # no moment is exact
            self._ended[min(BINS - 1, max(0, number))] += share
        if self.count > MEMORY:
            self._forget_half()

    def fit(self, running_s: Sequence[float]) -> None:
        """Fit the log-normal; `running_s` are the ages at which jobs were last seen to run.

        Leaving those out would bias the estimate short early in a batch, when only the short jobs have ended. They
        enter as censored observations, by expectation-maximisation.
        """
        mu, sigma = math.log(self.median_s), self.sigma
        prior_mu = math.log(self.expected_s)
        logs = [math.log(min(age, EDGES[-1])) for age in running_s if age > SHORTEST_S]
        seen = self.count + len(logs)
        for _ in range(STEPS if logs else 1):
            total, squares = self._sum, self._squares
            for log_s in logs:
                z = (log_s - mu) / sigma
                mills = _inverse_mills(z)
                mean = mu + sigma * mills
                total += mean
                squares += mean * mean + sigma * sigma * max(0.0, 1.0 + z * mills - mills * mills)
            mu = (total + PRIOR_WEIGHT_MEDIAN * prior_mu) / (seen + PRIOR_WEIGHT_MEDIAN)
            spread = squares - 2.0 * mu * total + seen * mu * mu + PRIOR_WEIGHT_SIGMA * PRIOR_SIGMA**2
            sigma = math.sqrt(max(spread / (seen + PRIOR_WEIGHT_SIGMA), 1e-4))
        self.median_s, self.sigma = math.exp(mu), sigma

    def hazards(self) -> list[float]:
        """Return the hazard in each bin of `EDGES`, per second: counts, weighed against the fitted curve."""
        mu = math.log(self.median_s)
        # The predictive spread: a median known from one observation is itself a guess.
        sigma = self.sigma * math.sqrt(1.0 + 1.0 / (self.count + PRIOR_WEIGHT_MEDIAN))
        left = sum(self._ended)
        tail, fitted = 1.0, LEAST_HAZARD
        hazards = []
        for number, ended in enumerate(self._ended):
            z = (_LOG_EDGES[number + 1] - mu) / sigma
            if -5.0 < z < 5.0:  # before that next to nothing ends; beyond it the last hazard goes on
                before, tail = tail, 0.5 * math.erfc(z / _ROOT_2)
                fitted = max(math.log(before / tail) / WIDTHS[number], LEAST_HAZARD)
            if ended or left > 0.5:
                exposure = (left - 0.5 * ended) * WIDTHS[number]
                left -= ended
                hazards.append((ended + PRIOR_EVENTS) / (exposure + PRIOR_EVENTS / fitted))
            else:
                hazards.append(fitted)
        return hazards

    def _forget_half(self) -> None:
        self.count /= 2.0
        self._sum /= 2.0
        self._squares /= 2.0
        self._ended = [share / 2.0 for share in self._ended]


def _upper_tail(z: float) -> float:
    return 0.5 * math.erfc(z / _ROOT_2)


def _inverse_mills(z: float) -> float:
    """Return the hazard of a standard normal, phi(z) / Q(z)."""
    tail = _upper_tail(z)
    if tail < 1e-12:  # both vanish; the first term of the asymptotic series is close enough
        return z + 1.0 / z
    return math.exp(-0.5 * z * z) / (_ROOT_2_PI * tail)
