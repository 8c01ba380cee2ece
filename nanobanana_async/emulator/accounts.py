"""What was ordered, and what becomes of it: the emulator's record of one paid job."""

import enum
from collections.abc import Sequence
from decimal import Decimal

from attrs import define, frozen

from nanobanana_async.emulator.messages import Gateway
from nanobanana_async.emulator.settings import EmulatorSettings


@frozen
class CreateRequest:
    """A create request that fits the reference."""

    prompt: str
    model: str
    canonical: str
    images: int = 1
    aspect_ratio: str | None = None
    resolution: str = "1K"
    output_format: str = "png"
    callback_url: str | None = None


@frozen
class Refusal:
    """A no: `kind` names which limit a 429 stands for."""

    status: int
    code: str
    message: str
    kind: str | None = None
    wait_s: float | None = None


class Phase(enum.Enum):
    """Where a job stands."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@define(eq=False)
class Task:
    """One accepted create. Its whole life is known from the start; `ends_at` is not a secret."""

    number: int
    task_id: str
    gateway: Gateway
    key: str | None
    order: CreateRequest
    price: Decimal
    remaining: Decimal | None  # credits right after the charge
    created_at: float
    starts_at: float
    ends_at: float
    fails: bool
    refunded: bool = False
    queries: int = 0
    first_seen_at: float | None = None

    def phase(self, now: float) -> Phase:
        """Return where the job stands at this moment."""
        if now >= self.ends_at:
            return Phase.FAILED if self.fails else Phase.SUCCEEDED
        if now >= self.starts_at:
            return Phase.PROCESSING
        middle = (self.created_at + self.starts_at) / 2
        return Phase.SUBMITTED if now >= middle else Phase.PENDING


ENDLESS_CREDITS = 999_999


class Bucket:
    """A token bucket; without a rate it always has a token."""

    def __init__(self, per_minute: float | None, burst: int | None) -> None:
        self._per_s = None if per_minute is None else per_minute / 60
        self._size = float(burst) if burst is not None else max(1.0, per_minute or 0.0)
        self._tokens = self._size
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take one token and return 0, or return the seconds until there is one."""
        if self._per_s is None:
            return 0.0
        self._tokens = min(self._size, self._tokens + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._per_s


class Account:
    """What one customer may do and has left."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self.credits = settings.credits
        self.limit = settings.job_limit
        self.held = 0  # in the unit of the limit
        self._counts_images = settings.limit_counts == "images"
        self._schedule: Sequence[tuple[float, int | None]] = settings.limit_schedule
        self._next_change = 0
        self._creates = Bucket(settings.creates_per_minute, settings.rate_burst)
        self._queries = Bucket(settings.queries_per_minute, settings.rate_burst)
        self._states_kind = settings.states_429_kind
        self._slot_wait_s = settings.retry_after_s if settings.retry_after_s is not None else 1.0
        self._rate_wait_s = settings.retry_after_s

    def follow_schedule(self, now: float) -> None:
        """Put in force what the schedule of limits says."""
        while self._next_change < len(self._schedule) and self._schedule[self._next_change][0] <= now:
            self.limit = self._schedule[self._next_change][1]
            self._next_change += 1

    def set_schedule(self, schedule: Sequence[tuple[float, int | None]]) -> None:
        """Replace the schedule of limits; moments are in the world's time."""
        self._schedule = tuple(sorted(schedule, key=lambda change: change[0]))
        self._next_change = 0

    def weight(self, order: CreateRequest) -> int:
        """Return how much of the limit an order takes."""
        return order.images if self._counts_images else 1

    def over_rate(self, now: float, *, create: bool) -> Refusal | None:
        """Count one request against its rate."""
        wait_s = (self._creates if create else self._queries).take(now)
        if not wait_s:
            return None
        kind = "creates" if create else "queries"
        return self._too_many(kind, wait_s if self._rate_wait_s is None else self._rate_wait_s)

    def over_limit(self, order: CreateRequest) -> Refusal | None:
        """Tell whether there is no slot for an order."""
        if self.limit is None or self.held + self.weight(order) <= self.limit:
            return None
        return self._too_many("jobs", self._slot_wait_s)

    def too_poor(self, price: Decimal) -> Refusal | None:
        """Tell whether the credits do not suffice."""
        if self.credits is None or self.credits >= price:
            return None
        return Refusal(402, "insufficient_credits", "Insufficient credits")

    def pay(self, amount: Decimal) -> None:
        """Take credits away; a negative amount gives them back."""
        if self.credits is not None:
            self.credits -= amount

    def _too_many(self, kind: str, wait_s: float) -> Refusal:
        if not self._states_kind:
            return Refusal(429, "too_many_requests", "Too many requests", kind, wait_s)
        if kind == "jobs":
            return Refusal(429, "too_many_concurrent_jobs", "Too many concurrent jobs", kind, wait_s)
        return Refusal(429, "rate_limit_exceeded", "Rate limit exceeded", kind, wait_s)
