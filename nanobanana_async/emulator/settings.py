"""Settings of the emulator, and distributions of job durations."""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypedDict, get_args

from attrs import Attribute, field, frozen
from attrs.validators import in_, optional

from nanobanana_async.emulator.checks import PROBABILITY, credits_or_none, number_validator, price
from nanobanana_async.emulator.faults import NO_SCRIPT, RandomFault, Script
from nanobanana_async.emulator.rates import RateWindow

Duration = Callable[[random.Random], float]
"""Draws the duration of one job, in seconds, with a random generator."""


@frozen
class Fixed:
    """Every job takes the same time."""

    seconds: float = field(validator=number_validator(endless=True))  # of each job

    def __call__(self, rng: random.Random) -> float:
        """Draw the duration of one job, in seconds."""
        return self.seconds


@frozen(kw_only=True)
class LogNormal:
    """Durations are log-normal around `median_s`; the right tail grows with `sigma`."""

    median_s: float = field(validator=number_validator(above=0))  # half of the jobs take longer
    sigma: float = field(default=0.35, validator=number_validator(most=10))  # of the logarithm

    def __call__(self, rng: random.Random) -> float:
        """Draw the duration of one job, in seconds."""
        return math.exp(rng.gauss(math.log(self.median_s), self.sigma))


@frozen(kw_only=True)
class Bimodal:
    """Durations come from `second` with probability `second_share`, otherwise from `first`."""

    first: Duration  # the usual one
    second: Duration  # the other one
    second_share: float = field(default=0.2, validator=PROBABILITY)  # how many jobs have it

    def __call__(self, rng: random.Random) -> float:
        """Draw the duration of one job, in seconds."""
        return (self.second if rng.random() < self.second_share else self.first)(rng)


QUICK = LogNormal(median_s=0.5, sigma=0.3)
"""Durations by default."""
REALISTIC = LogNormal(median_s=30.0, sigma=0.35)
"""Durations as at a gateway."""


API_KEY = "emulator-key"
"""The key that is accepted by default."""
UNAPPROVED_KEY = "unapproved-key"
"""A key to which API Mall answers 403."""

LimitCounts = Literal["jobs", "images"]
RetryAfter = Literal["absent", "seconds", "date"]
Idempotency = Literal["replay", "conflict", "refuse", "forget"]
"""What API Mall answers to a repeated key and body: the first answer; 409 while the job runs, then the first answer;
409 for ever, which never names the task; or the first answer until the key is forgotten."""
QueryShape = Literal["data", "top"]
BalanceFields = Literal["credits", "web_credits"]
Progress = Literal["absent", "number", "text"]
DoubleChargesBy = Literal["request", "prompt"]
WebhookSignatures = Literal["right", "wrong", "unknown", "absent"]
"""Signed with the secret; with another, as a forger would; in an undocumented form; or not signed."""
FailureField = Literal["error_message", "failMsg"]

_STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)
_APIMALL_PRICES = {"1K": Decimal(8), "2K": Decimal(8), "4K": Decimal(16)}


def _strings(value: Iterable[str]) -> frozenset[str]:
    return frozenset(value)


def _schedule(value: Iterable[tuple[float, int | None]]) -> tuple[tuple[float, int | None], ...]:
    return tuple((at, limit) for at, limit in value)


def _tuple(value: Iterable[RandomFault]) -> tuple[RandomFault, ...]:
    return tuple(value)


def _sorted_schedule(_: object, attribute: "Attribute[Any]", value: Sequence[tuple[float, int | None]]) -> None:
    times = [at for at, _ in value]
    if times != sorted(times):
        raise ValueError(f"{attribute.name} must be sorted by time")


@frozen(kw_only=True)
class EmulatorSettings:
    """How the emulated gateways behave. `speed` divides the durations of jobs and nothing else."""

    seed: int = 0  # of all that is drawn by chance
    started_at: datetime = _STARTED_AT  # the date and time at which `now` is 0

    # access
    api_keys: frozenset[str] = field(default=frozenset({API_KEY}), converter=_strings)  # others get 401
    unapproved_keys: frozenset[str] = field(default=frozenset({UNAPPROVED_KEY}), converter=_strings)  # these get 403
    required_host: str | None = None  # API Mall answers 403 for any other Host
    separate_accounts: bool = False  # False: both gateways share one account

    # limits
    job_limit: int | None = field(default=None, validator=optional(number_validator(whole=True)))  # jobs at once
    limit_counts: LimitCounts = field(default="jobs", validator=in_(("jobs", "images")))  # what `job_limit` counts
    limit_schedule: Sequence[tuple[float, int | None]] = field(
        default=(), converter=_schedule, validator=_sorted_schedule
    )  # `job_limit` from these times on
    slot_freed_after_s: float = field(default=0.0, validator=number_validator(endless=True))  # after the end of a job
    creates_per_minute: float | None = field(
        default=None, validator=optional(number_validator(above=0))
    )  # 429 above it
    # Of everything but creates, downloads and PUTs to storage:
    queries_per_minute: float | None = field(
        default=None, validator=optional(number_validator(above=0))
    )  # 429 above it
    requests_per_second: float | None = field(
        default=None, validator=optional(number_validator(above=0))
    )  # of all kinds
    requests_per_minute: float | None = field(
        default=None, validator=optional(number_validator(above=0))
    )  # of all kinds
    requests_per_day: float | None = field(default=None, validator=optional(number_validator(above=0)))  # of all kinds
    rate_window: RateWindow = field(
        default="bucket", validator=in_(("bucket", "clock", "sliding"))
    )  # how rates are counted
    rate_burst: int | None = field(
        default=None, validator=optional(number_validator(least=1, whole=True))
    )  # default: 1 min
    retry_after: RetryAfter = field(
        default="absent", validator=in_(("absent", "seconds", "date"))
    )  # the header of a 429
    retry_after_s: float | None = field(
        default=None, validator=optional(number_validator(endless=True))
    )  # default: computed
    states_429_kind: bool = True  # False: one code for all 429s

    # credits and prices
    credits: Decimal | None = field(default=None, converter=credits_or_none)  # None is unlimited
    apimall_prices: Mapping[str, Decimal] = field(factory=lambda: dict(_APIMALL_PRICES))  # an image, by resolution
    defapi_price: Decimal = field(default=Decimal("0.5"), converter=price)  # of a job
    refund_on_failure: bool = True  # False: a failed job stays charged
    web_credits: Decimal = field(default=Decimal(0), converter=price)  # API Mall: credits that the API can't spend
    balance_fields: BalanceFields = field(
        default="credits", validator=in_(get_args(BalanceFields))
    )  # names on API Mall

    # jobs
    duration: Duration = QUICK  # how long jobs take
    failure_duration: Duration | None = None  # default: `duration`
    speed: float = field(default=1.0, validator=number_validator(above=0))  # divides durations of jobs
    pending_share: float = field(default=0.2, validator=PROBABILITY)  # of its duration a job is pending
    failure_probability: float = field(default=0.0, validator=PROBABILITY)  # of each job
    unknown_status_probability: float = field(default=0.0, validator=PROBABILITY)  # per query: the status is "unknown"
    visible_after_s: float = field(default=0.0, validator=number_validator(endless=True))  # queries get 404 until then
    images_after_s: float = field(
        default=0.0, validator=number_validator(endless=True)
    )  # after the end: no URLs until then
    forget_seen_after_s: float | None = field(
        default=None, validator=optional(number_validator(endless=True))
    )  # then 404
    history_delay_s: float = field(
        default=0.0, validator=number_validator(endless=True)
    )  # not in the history until then
    history_time_step_s: int = field(default=0, validator=in_((0, 1)))  # 1: its `created_at` is in whole seconds

    # responses
    idempotency: Idempotency = field(default="replay", validator=in_(get_args(Idempotency)))  # to a repeated key
    forget_keys_after_s: float = field(default=60.0, validator=number_validator(endless=True))  # with "forget"
    refusals_in_200: bool = False  # True: errors come with status 200
    query_shape: QueryShape = field(default="data", validator=in_(("data", "top")))  # where a poll has its fields
    failure_field: FailureField = field(
        default="error_message", validator=in_(("error_message", "failMsg"))
    )  # the reason
    status_words: Mapping[str, str] = field(factory=dict)  # replaces the status of each key by its value
    progress: Progress = field(default="absent", validator=in_(get_args(Progress)))  # 45 or "45%", until the end
    data_uris: bool = False  # on defapi: images as base64 instead of URLs
    links_expire_after_s: float | None = field(
        default=None, validator=optional(number_validator(above=0))
    )  # None: never
    expired_link_status: int = field(default=403, validator=in_((403, 410)))  # of an expired link
    image_scale: float = field(
        default=1.0, validator=number_validator(above=0, most=1)
    )  # smaller images are made faster

    # references and uploads
    extra_fields: bool = False  # creates also take the parameters of other models, which the references lack
    check_references: bool = False  # 400 for a reference image that names an upload which is not there
    max_inline_bytes: int | None = field(
        default=None, validator=optional(number_validator(whole=True))
    )  # on defapi: 413 above it
    max_upload_bytes: int = field(default=104_857_600, validator=number_validator(whole=True))  # of one file
    put_urls_expire_after_s: float | None = field(
        default=None, validator=optional(number_validator())
    )  # default: as asked

    # callbacks (defapi) and deliveries of webhooks (API Mall)
    callback_delay_s: float = field(default=0.0, validator=number_validator(endless=True))  # after the end of the job
    callback_drop_probability: float = field(default=0.0, validator=PROBABILITY)  # of each
    callback_duplicate_probability: float = field(default=0.0, validator=PROBABILITY)  # of each
    webhooks_to_loopback: bool = True  # False: a webhook must be https
    webhook_signatures: WebhookSignatures = field(
        default="right", validator=in_(get_args(WebhookSignatures))
    )  # what they are
    webhook_retries: int = field(default=2, validator=number_validator(whole=True))  # after a delivery that failed
    webhook_retry_s: float = field(default=1.0, validator=number_validator(endless=True))  # between deliveries

    # faults and counting
    script: Script = NO_SCRIPT  # faults of the n-th request of an endpoint
    random_faults: Sequence[RandomFault] = field(default=(), converter=_tuple)  # faults by chance
    double_charges_by: DoubleChargesBy = field(
        default="request", validator=in_(("request", "prompt"))
    )  # what `double_charges` compares


class EmulatorOptions(TypedDict, total=False):
    """The fields of `EmulatorSettings` as keyword arguments."""

    seed: int
    started_at: datetime
    api_keys: frozenset[str]
    unapproved_keys: frozenset[str]
    required_host: str | None
    separate_accounts: bool
    job_limit: int | None
    limit_counts: LimitCounts
    limit_schedule: Sequence[tuple[float, int | None]]
    slot_freed_after_s: float
    creates_per_minute: float | None
    queries_per_minute: float | None
    requests_per_second: float | None
    requests_per_minute: float | None
    requests_per_day: float | None
    rate_window: RateWindow
    rate_burst: int | None
    retry_after: RetryAfter
    retry_after_s: float | None
    states_429_kind: bool
    credits: Decimal | int | str | None
    apimall_prices: Mapping[str, Decimal]
    defapi_price: Decimal
    refund_on_failure: bool
    web_credits: Decimal
    balance_fields: BalanceFields
    duration: Duration
    failure_duration: Duration | None
    speed: float
    pending_share: float
    failure_probability: float
    unknown_status_probability: float
    visible_after_s: float
    images_after_s: float
    forget_seen_after_s: float | None
    history_delay_s: float
    history_time_step_s: int
    idempotency: Idempotency
    forget_keys_after_s: float
    refusals_in_200: bool
    query_shape: QueryShape
    failure_field: FailureField
    status_words: Mapping[str, str]
    progress: Progress
    data_uris: bool
    links_expire_after_s: float | None
    expired_link_status: int
    image_scale: float
    extra_fields: bool
    check_references: bool
    max_inline_bytes: int | None
    max_upload_bytes: int
    put_urls_expire_after_s: float | None
    callback_delay_s: float
    callback_drop_probability: float
    callback_duplicate_probability: float
    webhooks_to_loopback: bool
    webhook_signatures: WebhookSignatures
    webhook_retries: int
    webhook_retry_s: float
    script: Script
    random_faults: Sequence[RandomFault]
    double_charges_by: DoubleChargesBy


AccountName = Literal["small", "medium", "large"]
ACCOUNTS: Mapping[AccountName, EmulatorOptions] = {
    "small": {"job_limit": 5, "requests_per_minute": 60, "requests_per_day": 10_000},
    "medium": {"job_limit": 10, "requests_per_minute": 120},
    "large": {"job_limit": 100, "requests_per_minute": 1_200},
}
"""Limits of accounts as they are sold, by name. `small` is what a relative of API Mall states as its default."""
