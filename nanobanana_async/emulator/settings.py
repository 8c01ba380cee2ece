"""How long a job takes: callables from a random generator to seconds."""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypedDict

from attrs import Attribute, field, frozen
from attrs.validators import in_, optional

from nanobanana_async.emulator.faults import NO_SCRIPT, RandomFault, Script
from nanobanana_async.emulator.validators import PROBABILITY, credits_or_none, number, price

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


API_KEY = "emulator-key"
UNAPPROVED_KEY = "unapproved-key"

LimitCounts = Literal["jobs", "images"]
RetryAfter = Literal["absent", "seconds", "date"]
Idempotency = Literal["replay", "conflict", "forget"]
QueryShape = Literal["data", "top"]
UniqueBy = Literal["request", "prompt"]
FailureField = Literal["error_message", "failMsg"]

_STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)
_APIMALL_PRICES = {"1K": Decimal(8), "2K": Decimal(8), "4K": Decimal(16)}


def _words(value: Iterable[str]) -> frozenset[str]:
    return frozenset(value)


def _changes(value: Iterable[tuple[float, int | None]]) -> tuple[tuple[float, int | None], ...]:
    return tuple((at, limit) for at, limit in value)


def _tuple(value: Iterable[RandomFault]) -> tuple[RandomFault, ...]:
    return tuple(value)


def _sorted_schedule(_: object, attribute: "Attribute[Any]", value: Sequence[tuple[float, int | None]]) -> None:
    moments = [at for at, _ in value]
    if moments != sorted(moments):
        raise ValueError(f"{attribute.name} must be sorted by time")


@frozen(kw_only=True)
class EmulatorSettings:
    """How the emulated gateways behave; `speed` divides the durations of jobs and nothing else."""

    seed: int = 0
    started_at: datetime = _STARTED_AT  # what the calendar says when `now` is 0

    # who may ask
    api_keys: frozenset[str] = field(default=frozenset({API_KEY}), converter=_words)
    unapproved_keys: frozenset[str] = field(default=frozenset({UNAPPROVED_KEY}), converter=_words)
    gateway_host: str | None = None  # API Mall answers 403 to any other Host
    separate_accounts: bool = False  # one account per gateway instead of one for both

    # how much at once
    job_limit: int | None = field(default=None, validator=optional(number(whole=True)))
    limit_counts: LimitCounts = field(default="jobs", validator=in_(("jobs", "images")))
    limit_schedule: Sequence[tuple[float, int | None]] = field(
        default=(), converter=_changes, validator=_sorted_schedule
    )
    slot_freed_after_s: float = field(default=0.0, validator=number(endless=True))
    creates_per_minute: float | None = field(default=None, validator=optional(number(above=0)))
    queries_per_minute: float | None = field(default=None, validator=optional(number(above=0)))
    rate_burst: int | None = field(default=None, validator=optional(number(least=1, whole=True)))  # a minute's worth
    retry_after: RetryAfter = field(default="absent", validator=in_(("absent", "seconds", "date")))
    retry_after_s: float | None = field(default=None, validator=optional(number(endless=True)))  # else computed
    states_429_kind: bool = True  # False: one plain code for slots and rates alike

    # money
    credits: Decimal | None = field(default=None, converter=credits_or_none)  # None is endless
    apimall_prices: Mapping[str, Decimal] = field(factory=lambda: dict(_APIMALL_PRICES))
    defapi_price: Decimal = field(default=Decimal("0.5"), converter=price)
    refund_on_failure: bool = True

    # a job's life
    duration: Duration = QUICK
    failure_duration: Duration | None = None  # when failing takes another time than succeeding
    speed: float = field(default=1.0, validator=number(above=0))
    pending_share: float = field(default=0.2, validator=PROBABILITY)
    failure_probability: float = field(default=0.0, validator=PROBABILITY)
    unknown_probability: float = field(default=0.0, validator=PROBABILITY)  # per query
    visible_after_s: float = field(default=0.0, validator=number(endless=True))  # 404 until then
    images_after_s: float = field(default=0.0, validator=number(endless=True))  # completed, no URL until then
    forget_seen_after_s: float | None = field(default=None, validator=optional(number(endless=True)))

    # answers
    idempotency: Idempotency = field(default="replay", validator=in_(("replay", "conflict", "forget")))
    forget_keys_after_s: float = field(default=60.0, validator=number(endless=True))
    refusals_in_200: bool = False
    query_shape: QueryShape = field(default="data", validator=in_(("data", "top")))
    failure_field: FailureField = field(default="error_message", validator=in_(("error_message", "failMsg")))
    status_words: Mapping[str, str] = field(factory=dict)  # say the value for the key
    data_uris: bool = False  # defapi: images as base64 instead of URLs
    links_expire_after_s: float | None = field(default=None, validator=optional(number(above=0)))
    expired_link_status: int = field(default=403, validator=in_((403, 410)))
    picture_scale: float = field(default=1.0, validator=number(above=0, most=1))

    # callbacks of defapi
    callback_delay_s: float = field(default=0.0, validator=number(endless=True))
    callback_drop_probability: float = field(default=0.0, validator=PROBABILITY)
    callback_duplicate_probability: float = field(default=0.0, validator=PROBABILITY)

    # trouble, and how it is counted
    script: Script = NO_SCRIPT
    chances: Sequence[RandomFault] = field(default=(), converter=_tuple)
    unique_by: UniqueBy = field(default="request", validator=in_(("request", "prompt")))


class EmulatorOptions(TypedDict, total=False):
    """The fields of `EmulatorSettings` as keyword arguments."""

    seed: int
    started_at: datetime
    api_keys: frozenset[str]
    unapproved_keys: frozenset[str]
    gateway_host: str | None
    separate_accounts: bool
    job_limit: int | None
    limit_counts: LimitCounts
    limit_schedule: Sequence[tuple[float, int | None]]
    slot_freed_after_s: float
    creates_per_minute: float | None
    queries_per_minute: float | None
    rate_burst: int | None
    retry_after: RetryAfter
    retry_after_s: float | None
    states_429_kind: bool
    credits: Decimal | int | str | None
    apimall_prices: Mapping[str, Decimal]
    defapi_price: Decimal
    refund_on_failure: bool
    duration: Duration
    failure_duration: Duration | None
    speed: float
    pending_share: float
    failure_probability: float
    unknown_probability: float
    visible_after_s: float
    images_after_s: float
    forget_seen_after_s: float | None
    idempotency: Idempotency
    forget_keys_after_s: float
    refusals_in_200: bool
    query_shape: QueryShape
    failure_field: FailureField
    status_words: Mapping[str, str]
    data_uris: bool
    links_expire_after_s: float | None
    expired_link_status: int
    picture_scale: float
    callback_delay_s: float
    callback_drop_probability: float
    callback_duplicate_probability: float
    script: Script
    chances: Sequence[RandomFault]
    unique_by: UniqueBy
