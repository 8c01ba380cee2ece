"""What was ordered, and what becomes of it: the emulator's record of one paid job."""

import enum
from decimal import Decimal

from attrs import define, frozen

from nanobanana_async.emulator.values import Gateway


@frozen
class Order:
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
    order: Order
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
