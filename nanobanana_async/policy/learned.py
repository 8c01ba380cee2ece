"""What was learned about an account, in the form that a ledger keeps for the next session.

Theory of operation. Limits, durations and prices outlive a session by far, so the next one starts where the last one
stood instead of meeting 429s again. What an earlier session learned may be wrong by now, so age decides how far it is
believed:

* The job limit is the start for `FRESH_S`, one day: the cap holds from the first create, and is probed and followed
  down as within a session. A day covers the runs of one piece of work. Over a longer time another plan, or jobs of
  other programs that filled the account when the limit was learned, become likely. An older limit only shortens the
  ramp: half of it is filled at once, and the ramp goes on from there to the limit of today, which may be higher.
* Request rates are the start for `KEPT_S`, 30 days. A pace corrects itself in both directions at the cost of a few
  requests: a single refusal lowers it, and a clean run raises it. A window is paced from the first request on; a token
  bucket is full when a session starts, and is paced from its first refusal on.
* Durations are evidence that fades. Those of an earlier session weigh `MOST_WEIGHT` completions at most, and half of
  that after each `HALF_LIFE_S`: a gateway that became slower outweighs them after a few jobs.
* Prices are estimates for `KEPT_S`, as the example of the gateway's reference is. A cap of credits admits many jobs at
  a known price, so a price that has changed since could pass the cap by all of them. At an estimate the first job of
  its class goes alone, and shows the price.

Each fact has a time of its own. A session replaces only facts that changed while it ran, so that it neither makes old
facts look fresh nor forgets what it did not meet.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from attrs import Attribute, field, frozen
from attrs.validators import optional
from cattrs.preconf.json import make_converter

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.durations import BIN_EDGES_S, SHORTEST_S
from nanobanana_async.policy.prices import parse_credits
from nanobanana_async.validators import DAY_S, at_least_one, validate_switch, within

FRESH_S = DAY_S
"""How long a job limit is believed; see the theory at the top of the module."""
KEPT_S = 30.0 * DAY_S
"""How long anything is used."""
MOST_WEIGHT = 8.0
"""What durations of earlier sessions weigh at most, in completions."""
HALF_LIFE_S = 10.0 * DAY_S
"""The weight of durations halves in this time."""
LEAST_WEIGHT = 0.5
"""Durations that weigh less than this are forgotten."""
MOST_CLASSES = 50
"""How many price classes are kept: those learned last. Models may be named freely, so their number is not bounded."""
SLOWEST_PER_S = 0.1
"""Requests per second. A slower pace is a damaged record, or a gateway's bad hour, and no budget that is sold."""
FASTEST_PER_S = 1e6
"""Requests per second, more than any pace."""
LOG_BOUNDS = math.log(SHORTEST_S) - 0.01, math.log(BIN_EDGES_S[-1]) + 0.01
"""Between them is the mean of logarithms of durations, which are bounded when they are recorded; rounding moves it."""


def _check_aware(_: object, attribute: "Attribute[datetime]", value: datetime) -> None:
    if value.tzinfo is None:
        raise ConfigurationError(f"{attribute.name} must have a time zone")


@frozen(kw_only=True)
class LearnedPace:
    """What a pacer learned (`policy.rate`)."""

    rate: float = field(validator=within(least=SLOWEST_PER_S, most=FASTEST_PER_S))
    windowed: bool = field(default=False, validator=validate_switch)
    """The limit is one per window of time."""


@frozen(kw_only=True)
class LearnedRates:
    """What the budget of requests learned (`policy.request_budget`)."""

    log_odds: float = field(validator=within(least=-100, most=100))
    create: LearnedPace | None = None
    poll: LearnedPace | None = None
    both: LearnedPace | None = None


@frozen(kw_only=True)
class LearnedLimits:
    """What the limiter learned (`policy.limiter`), and when."""

    at: datetime = field(validator=_check_aware, eq=False)
    job_limit: int | None = field(default=None, validator=optional(at_least_one))
    """The learned cap in whole slots; None if no 429 showed one."""
    held_when_full: int | None = field(default=None, validator=optional(at_least_one))
    """How many slots were held when a create was last refused for lack of one."""
    rate_log_odds: float = field(default=0.0, validator=within(least=-100, most=100))
    rates: LearnedRates | None = None


@frozen(kw_only=True)
class LearnedPriceClass:
    """What was learned about the jobs of a price class, and when."""

    at: datetime = field(validator=_check_aware, eq=False)
    count: float = field(default=0.0, validator=within())
    """The weight of the durations, in completions."""
    log_mean: float = field(default=0.0, validator=within(least=LOG_BOUNDS[0], most=LOG_BOUNDS[1]))
    log_variance: float = field(default=0.0, validator=within(most=(LOG_BOUNDS[1] - LOG_BOUNDS[0]) ** 2))
    """The mean and variance of the logarithms of the durations in seconds."""
    price: Decimal | None = None

    def faded_weight(self, now: datetime) -> float:
        """Return what the durations weigh by now; 0 if they are forgotten."""
        age_s = _age_s(self.at, now)
        weight = min(self.count, MOST_WEIGHT) * 0.5 ** (age_s / HALF_LIFE_S)
        return weight if age_s <= KEPT_S and weight >= LEAST_WEIGHT else 0.0


@frozen(kw_only=True)
class LearnedAccount:
    """All that was learned about an account."""

    limits: LearnedLimits | None = None
    classes: Mapping[str, LearnedPriceClass] = field(factory=dict)
    """By price class."""

    def merge_changes(self, before: "LearnedAccount", after: "LearnedAccount") -> "LearnedAccount":
        """Return these facts, with those of `after` that a session changed since `before`."""
        changed = {name: facts for name, facts in after.classes.items() if facts != before.classes.get(name)}
        classes = sorted({**self.classes, **changed}.items(), key=lambda item: item[1].at, reverse=True)
        return LearnedAccount(
            limits=self.limits if after.limits == before.limits else after.limits,
            classes=dict(classes[:MOST_CLASSES]),
        )

    def to_json(self) -> str:
        """Return the form for the ledger."""
        return json.dumps(_CONVERTER.unstructure(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "LearnedAccount":
        """Return the facts in a ledger, without price classes that can't be true: an edited row, a clock that jumped.

        Raises an exception of any kind for a text that can't be used.
        """
        return _CONVERTER.structure(json.loads(text), cls)


def is_fresh(at: datetime, now: datetime) -> bool:
    """Return whether a job limit of a time is believed."""
    return _age_s(at, now) <= FRESH_S


def is_kept(at: datetime, now: datetime) -> bool:
    """Return whether what was learned at a time is used at all."""
    return _age_s(at, now) <= KEPT_S


def _age_s(at: datetime, now: datetime) -> float:
    """Return how far a time is away: one in the future says that a clock was wrong, and counts like the past."""
    return abs((now - at) / timedelta(seconds=1))


def _to_classes(found: Any, _: object) -> Mapping[str, LearnedPriceClass]:
    """Return the price classes that can be read: a wrong one must not take the others with it."""
    classes = {}
    for name, facts in dict(found).items():
        with suppress(Exception):
            classes[str(name)] = _CONVERTER.structure(facts, LearnedPriceClass)
    return classes


_CONVERTER = make_converter(omit_if_default=True)
_CONVERTER.register_structure_hook_func(lambda kind: kind == Mapping[str, LearnedPriceClass], _to_classes)
_CONVERTER.register_unstructure_hook(Decimal, str)
_CONVERTER.register_structure_hook(Decimal, lambda text, _: parse_credits("price", Decimal(text)))
