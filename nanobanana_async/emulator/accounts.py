"""Jobs, and the accounts that pay for them: slots, request rates and credits."""

import enum
from collections.abc import Sequence
from decimal import Decimal

from attrs import define, frozen

from nanobanana_async.emulator.messages import Gateway
from nanobanana_async.emulator.rates import Rate, make_rate
from nanobanana_async.emulator.settings import EmulatorSettings

DAY_S = 86_400.0
UNLIMITED_CREDITS = 999_999  # `remaining_credits` of an account without a limit


@frozen
class Reference:
    """A reference image of a create: by URL, or the SHA-256 of one sent inside the create."""

    url: str | None = None
    sha256: str | None = None


@frozen
class CreateRequest:
    """A valid create request."""

    prompt: str
    model: str
    canonical: str
    image_count: int = 1
    aspect_ratio: str | None = None
    resolution: str = "1K"
    output_format: str = "png"
    callback_url: str | None = None
    references: Sequence[Reference] = ()


@frozen
class Refusal:
    """An error response. `kind` names the limit behind a 429: jobs, creates or queries."""

    status: int
    code: str
    message: str
    kind: str | None = None
    wait_s: float | None = None


class TaskState(enum.Enum):
    """The state of a job at the gateway."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@define(eq=False)
class Task:
    """One accepted create. Its start, end and outcome are decided when it is created."""

    number: int
    task_id: str
    gateway: Gateway
    key: str | None
    request: CreateRequest
    price: Decimal
    remaining: Decimal | None  # credits after the charge
    created_at: float
    starts_at: float
    ends_at: float
    fails: bool
    reference_digests: Sequence[str | None] = ()  # the SHA-256 of each, None if unknown
    foreign: bool = False  # of another client: it takes no slot and no credits
    refunded: bool = False
    polls: int = 0
    first_seen_at: float | None = None

    def percent(self, now: float) -> int:
        """Return how much of the job is done at `now`."""
        return int(100 * (now - self.created_at) / (self.ends_at - self.created_at))

    def state_at(self, now: float) -> TaskState:
        """Return the state of the job at `now`."""
        if now >= self.ends_at:
            return TaskState.FAILED if self.fails else TaskState.SUCCEEDED
        if now >= self.starts_at:
            return TaskState.PROCESSING
        submitted_at = (self.created_at + self.starts_at) / 2
        return TaskState.SUBMITTED if now >= submitted_at else TaskState.PENDING


def _rates(settings: EmulatorSettings) -> list[tuple[str, Rate, float]]:
    """Return the request rates of an account, each with what it counts (creates, queries or all) and its period."""
    limits = (
        ("creates", settings.creates_per_minute, 60.0),
        ("queries", settings.queries_per_minute, 60.0),
        ("all", settings.requests_per_second, 1.0),
        ("all", settings.requests_per_minute, 60.0),
        ("all", settings.requests_per_day, DAY_S),
    )
    return [
        (
            counted,
            make_rate(settings.rate_window, count, period_s, settings.rate_burst if period_s < DAY_S else None),
            period_s,
        )
        for counted, count, period_s in limits
        if count is not None
    ]


class Account:
    """The limits and credits of one customer."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self.credits = settings.credits
        self.limit = settings.job_limit
        self.held = 0  # in jobs or images, as the limit counts
        self._counts_images = settings.limit_counts == "images"
        self._schedule: Sequence[tuple[float, int | None]] = settings.limit_schedule
        self._next_change = 0
        self._rates = _rates(settings)
        self._states_kind = settings.states_429_kind
        self._slot_wait_s = settings.retry_after_s if settings.retry_after_s is not None else 1.0
        self._rate_wait_s = settings.retry_after_s

    def follow_schedule(self, now: float) -> None:
        """Apply the limit that the schedule sets for `now`."""
        while self._next_change < len(self._schedule) and self._schedule[self._next_change][0] <= now:
            self.limit = self._schedule[self._next_change][1]
            self._next_change += 1

    def set_schedule(self, schedule: Sequence[tuple[float, int | None]]) -> None:
        """Replace the schedule of limits. Times are in seconds of the simulator's clock."""
        self._schedule = tuple(sorted(schedule, key=lambda change: change[0]))
        self._next_change = 0

    def slots_for(self, request: CreateRequest) -> int:
        """Return how many slots a create takes."""
        return request.image_count if self._counts_images else 1

    def count_request_or_refuse(self, now: float, *, create: bool) -> Refusal | None:
        """Count one HTTP request against its rates; return the 429 if one is exceeded."""
        kind = "creates" if create else "queries"
        rates = [(rate, period_s) for counted, rate, period_s in self._rates if counted in (kind, "all")]
        wait_s, period_s = max(((rate.wait_s(now), period_s) for rate, period_s in rates), default=(0.0, 0.0))
        if wait_s:
            stated_s = wait_s if self._rate_wait_s is None else self._rate_wait_s
            return self._too_many(kind, stated_s, daily=period_s == DAY_S)
        for rate, _ in rates:
            rate.take(now)
        return None

    def slot_refusal(self, request: CreateRequest) -> Refusal | None:
        """Return the 429 if no slot is free for a create."""
        if self.limit is None or self.held + self.slots_for(request) <= self.limit:
            return None
        return self._too_many("jobs", self._slot_wait_s)

    def credit_refusal(self, price: Decimal) -> Refusal | None:
        """Return the 402 if the credits do not cover a price."""
        if self.credits is None or self.credits >= price:
            return None
        return Refusal(402, "insufficient_credits", "Insufficient credits")

    def pay(self, amount: Decimal) -> None:
        """Subtract credits. A negative amount adds them."""
        if self.credits is not None:
            self.credits -= amount

    def _too_many(self, kind: str, wait_s: float, *, daily: bool = False) -> Refusal:
        if not self._states_kind:
            return Refusal(429, "too_many_requests", "Too many requests", kind, wait_s)
        if kind == "jobs":
            return Refusal(429, "too_many_concurrent_jobs", "Too many concurrent jobs", kind, wait_s)
        if daily:
            return Refusal(429, "daily_limit_exceeded", "Daily request limit exceeded", kind, wait_s)
        return Refusal(429, "rate_limit_exceeded", "Rate limit exceeded", kind, wait_s)
