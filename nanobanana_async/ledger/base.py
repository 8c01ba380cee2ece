"""Where jobs are written down: the contract that every ledger keeps."""

import enum
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Protocol, runtime_checkable

from attrs import frozen

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobRecord
from nanobanana_async.policy.prices import Price


@frozen(kw_only=True)
class Claim:
    """What stands under a key, and whether it is ours to go on with."""

    record: JobRecord
    new: bool = False
    """It was not there before."""
    owned: bool = False
    """It has not ended, and we follow it; a job that is over, UNCERTAIN ones among them, is nobody's."""


class Refusal(enum.Enum):
    """Why a purchase of a named batch may not be made now."""

    PRICE = "price"
    """Another process has learned another price: it may be made at that one, if it fits."""
    ESTIMATE = "estimate"
    """Its price is an estimate, and so is that of an earlier charge under the name."""
    SUM = "sum"
    """It would pass the cap."""


@frozen(kw_only=True)
class Allowance:
    """Whether a purchase of a named batch was set aside for, and how its cap stands otherwise."""

    refusal: "Refusal | None" = None
    """None: it is granted."""
    price: Price
    """What the job is taken to cost, as the ledger knows it."""
    spent: Decimal
    """All charges under the name, this one not among them."""
    ours: tuple[str, ...] = ()
    """Jobs of ours that may free credits, or tell a price, as long as we follow them."""
    others: bool = False
    """Whether a living owner follows such jobs."""


class TaskTaken(LedgerError):
    """A write would give a job the task id of another job that was bought: two purchases can't share one task."""

    def __init__(self, task_id: str, holder: str, *, key: str) -> None:
        message = f"task {task_id} belongs to job {holder} already"
        super().__init__(message, task_id=task_id, key=key, safe_to_repeat=False)
        self.holder = holder


@runtime_checkable
class Ledger(Protocol):
    """A durable list of jobs, each followed by one owner at most: an open ledger is an owner while its process lives.

    Each write is a compare-and-swap on the record's `revision`, for the owner only. Every method raises `LedgerError`
    when the list can't be read or written; then nothing was changed.
    """

    async def open(self) -> None: ...

    async def aclose(self) -> None:
        """Let go of every job, and of the list."""
        ...

    async def claim(self, record: JobRecord) -> Claim:
        """Write a new job down as ours, or return what stands under its key; what nobody follows becomes ours.

        A ledger that keeps only a digest of a request may raise `IdempotencyConflict` itself.
        """
        ...

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after`; raise `LedgerError` if that no longer stands there, or is somebody else's.

        A job that is over may be moved on by anybody, and is then his. Raise `TaskTaken` if `after` brings a task id
        that another job of its account has which was sent; a task that was only attached (never sent) may be shared.
        """
        ...

    async def set_aside(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        """Replace `before` by `after`, about to be sent, and note its charge under `after.batch`, if that has room.

        All charges under the name and the price must not pass `max_credits`, and an estimate must be the only one
        under the name; None sets no cap. Nothing is changed when it is not granted. Raises as `advance` does, which
        keeps the charge up to date from then on.
        """
        ...

    async def find(self, key: str) -> JobRecord | None:
        """Return the job with this key."""
        ...

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job to which the gateway gave this task id."""
        ...

    async def adopt(self, key: str) -> Claim | None:
        """Take over an unfinished job that nobody follows, and return what stands there in any case."""
        ...

    async def release(self, key: str) -> None:
        """Let go of a job: from now on anybody may adopt it."""
        ...

    async def count_slots_of_others(self, account: str, *, since: datetime | None = None) -> int:
        """Count the jobs that may hold a slot of this account and are not ours, begun after a moment."""
        ...

    async def spent(self, batch: str) -> Decimal:
        """Return what was ever spent, or set aside, under a name, after refunds: also for jobs that are forgotten."""
        ...

    async def callback_secret(self) -> bytes:
        """Return 32 random bytes that all who share the list have in common, for as long as it lasts."""
        ...

    async def notify_owner(self, key: str, task_id: str | None) -> None:
        """Leave word for the owner who follows a job that there is news of it, and what its task id is said to be."""
        ...

    async def take_notices(self) -> Sequence[tuple[str, str | None]]:
        """Take what others have left for us: keys, and task ids as far as they were said."""
        ...

    def unfinished(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield the jobs of an account that have not ended and that nobody follows, oldest first.

        It only nominates; `adopt` decides.
        """
        ...
