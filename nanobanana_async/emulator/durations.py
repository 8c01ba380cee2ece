"""How long a job takes: callables from a random generator to seconds."""

import math
import random
from collections.abc import Callable

from attrs import field, frozen

from nanobanana_async.emulator.ranges import PROBABILITY, number

Duration = Callable[[random.Random], float]


@frozen
class Fixed:
    """Take the same time, always."""

    seconds: float = field(validator=number(endless=True))

    def __call__(self, rng: random.Random) -> float:
        """Return the seconds of one job."""
        return self.seconds


@frozen(kw_only=True)
class LogNormal:
    """Take `median_s` in the middle, with a long right tail that grows with `sigma`."""

    median_s: float = field(validator=number(above=0))
    sigma: float = field(default=0.35, validator=number(most=10))

    def __call__(self, rng: random.Random) -> float:
        """Return the seconds of one job."""
        return math.exp(rng.gauss(math.log(self.median_s), self.sigma))


@frozen(kw_only=True)
class Bimodal:
    """Take the time of `first`, or with the probability `second_share` that of `second`."""

    first: Duration
    second: Duration
    second_share: float = field(default=0.2, validator=PROBABILITY)

    def __call__(self, rng: random.Random) -> float:
        """Return the seconds of one job."""
        return (self.second if rng.random() < self.second_share else self.first)(rng)


QUICK = LogNormal(median_s=0.5, sigma=0.3)
REALISTIC = LogNormal(median_s=30.0, sigma=0.35)
