"""The protocols of ledgers: what every one implements, and what those do whose jobs outlive the process."""

import enum
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Protocol, runtime_checkable

from attrs import evolve, frozen

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.policy.named_budget import Budget, BudgetState
from nanobanana_async.policy.prices import Price
from nanobanana_async.policy.sharing import Allotment, Report


@frozen(kw_only=True)
class Claim:
    """The record that the ledger holds under a key, and whether this ledger now owns the job."""

    record: JobRecord
    is_new: bool = False
    """The claim inserted the record."""
    is_ours: bool = False
    """The job is active and this ledger owns it. Ended and UNCERTAIN jobs have no owner."""


class Refusal(enum.Enum):
    """Why a purchase can't be made now under a cap that the ledger counts."""

    PRICE = "price"
    """Another process has learned a different price: check again with that price."""
    ESTIMATE = "estimate"
    """The price is an estimate, and so is the price of an earlier charge under the cap."""
    SUM = "sum"
    """The purchase would pass the cap."""


@frozen(kw_only=True)
class Allowance:
    """Whether credits were reserved for a purchase, and the state of its batch's cap, or of the budget that refused."""

    refusal: "Refusal | None" = None
    """None: the credits are reserved."""
    price: Price
    """The price of the job, as the ledger knows it."""
    other_charges: Decimal
    """The sum of the other charges of the batch or budget."""
    budget: Budget | None = None
    """The budget that refused, as it is in the ledger; None if it was the cap of the batch."""
    ours_may_free: tuple[str, ...] = ()
    """Keys of jobs that this ledger owns and that may still free credits or teach a price."""
    others_may_free: bool = False
    """Whether another living owner has such jobs."""


_EXPIRED_AT = datetime(1970, 1, 1, tzinfo=UTC)


@frozen(kw_only=True)
class Upload:
    """A reference image that an account has uploaded."""

    digest: str
    """The SHA-256 of its content, in hex."""
    url: str
    size: int
    uploaded_at: datetime

    def left_s(self, now: datetime, lifetime_s: float) -> float:
        """Return for how long it is used again; 0 when that is over, or when the clock was set back."""
        age_s = (now - self.uploaded_at).total_seconds()
        return max(0.0, lifetime_s - age_s) if age_s >= 0 and self.uploaded_at > _EXPIRED_AT else 0.0

    def as_expired(self) -> "Upload":
        """Return this upload as one that is not used again."""
        return evolve(self, uploaded_at=_EXPIRED_AT)


class TaskTaken(LedgerError):
    """The task id in a write belongs to another bought job: two purchases can't share one task."""

    def __init__(self, task_id: str, holder: str, *, key: str) -> None:
        message = f"task {task_id} belongs to job {holder} already"
        super().__init__(message, task_id=task_id, key=key, safe_to_repeat=False)
        self.holder = holder


class NotOurs(LedgerError):
    """The job went to another owner, or was changed by one: nothing was written, and the ledger works.

    A session follows such a job through the ledger. Its owner goes on with it.
    """

    def __init__(self, message: str, *, key: str | None = None, safe_to_repeat: bool = False) -> None:
        super().__init__(message, key=key, safe_to_repeat=safe_to_repeat)


@runtime_checkable
class Ledger(Protocol):
    """A durable list of jobs, each with at most one owner. An open ledger is an owner as long as its process lives.

    Each write is a compare-and-swap on the record's `revision`, and only the owner may write. Every method raises
    `LedgerError` when the list can't be read or written; nothing is changed then.
    """

    async def open(self) -> None:
        """Open the list, and become an owner."""
        ...

    async def aclose(self) -> None:
        """Release every job and close the list."""
        ...

    async def claim(self, record: JobRecord) -> Claim:
        """Insert a new job as its owner, or return the stored record; an active job without an owner becomes ours.

        A ledger that keeps only a digest of a request may raise `IdempotencyConflict` itself.
        """
        ...

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after`; raise `NotOurs` if the record has changed or is not ours (any more).

        Any owner may update an ended job, and then owns it. Raise `TaskTaken` if the task id that `after` adds belongs
        to another job of the account that was sent. An attached task (never sent) may be shared.
        """
        ...

    async def advance_and_reserve(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        """Replace `before` by `after`, which is about to be sent, and add its charges, if they fit.

        All charges of `after.batch` and the price must not exceed `max_credits`, and an estimate must be the only one
        in the batch; None sets no cap. The same holds for `after.budget`, with the stored cap of that budget, on the
        day of `after.sent_at` if it counts each day. A refusal changes nothing. Raises as `advance` does, which keeps
        the charges up to date afterwards.
        """
        ...

    async def find(self, key: str) -> JobRecord | None:
        """Return the job with this key."""
        ...

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job to which the gateway gave this task id."""
        ...

    async def known_tasks(self, account: str, task_ids: Sequence[str]) -> Mapping[str, JobRecord | None]:
        """Return those of the tasks that a job of the account has, with the job; None for a job that was forgotten."""
        ...

    async def adopt(self, key: str) -> Claim | None:
        """Take ownership of an active job without an owner; return the stored record in any case."""
        ...

    async def release(self, key: str) -> None:
        """Give up ownership of a job: any owner may adopt it afterwards."""
        ...

    async def count_foreign_slots(self, account: str, *, since: datetime | None = None) -> int:
        """Count the slots that jobs of other owners may hold; only of jobs that began since a time, if given."""
        ...

    async def spent_or_reserved(self, batch: str) -> Decimal:
        """Return the sum of the charges of the batch with this name, reserved ones included, after refunds.

        Pruned jobs still count. Records and charges have `key_prefix(batch)` in place of the name.
        """
        ...

    async def set_budget(self, budget: Budget) -> None:
        """Store a budget, in place of an earlier one of the name; raise `ConfigurationError` for another `per`."""
        ...

    async def budgets(self, now: datetime, names: Collection[str] | None = None) -> Sequence[BudgetState]:
        """Return the state of each stored budget at a time, or of those of these names, by name; in one read."""
        ...

    async def callback_secret(self) -> bytes:
        """Return 32 random bytes that all users of the list share, the same as long as the list exists."""
        ...

    async def notify_owner(self, key: str, task_id: str | None) -> None:
        """Leave a callback notice for the job's owner, with the task id that the callback claimed."""
        ...

    async def take_notices(self) -> Sequence[tuple[str, str | None]]:
        """Remove and return the callback notices left for us: keys, each with the claimed task id if there was one."""
        ...

    async def recall(self, account: str) -> str | None:
        """Return the text that was last stored by `remember` for an account; None if there is none."""
        ...

    async def remember(self, account: str, learned: str) -> None:
        """Store what was learned about an account, in place of what was stored before; any owner may."""
        ...

    async def find_upload(self, account: str, digest: str) -> Upload | None:
        """Return the last upload of this content by the account; None if none is remembered."""
        ...

    async def remember_upload(self, account: str, upload: Upload) -> None:
        """Store an upload, in place of an earlier one of the same content; any owner may."""
        ...

    def adoptable_jobs(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield the account's active jobs without an owner, oldest first.

        Candidates only: call `adopt` to take one.
        """
        ...

    def uncertain(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield the account's UNCERTAIN jobs, oldest first."""
        ...


@runtime_checkable
class SharesAccount(Protocol):
    """A ledger through which its owners share the limits of an account."""

    async def exchange(self, account: str, report: Report) -> Allotment:
        """Take what this owner reports, and return what it may do (`policy.sharing`).

        Raises `LedgerError` if the ledger can't answer soon, or if this owner is no longer alive.
        """
        ...


@runtime_checkable
class LeasedLedger(Protocol):
    """What a ledger has beside the methods of `Ledger` if its owner may be buried while it lives.

    A buried owner goes on under a new number, and owns nothing: its jobs went to other owners in that moment.
    """

    @property
    def surely_owns(self) -> bool:
        """Whether this owner certainly lives; else no create may leave, since its job may be another owner's by now."""
        ...

    @property
    def outage(self) -> str | None:
        """Why the ledger can't be reached at present, so that calls wait; None if it can."""
        ...

    def on_burial(self, notify: Callable[[], None]) -> None:
        """Call `notify` in the event loop each time that this owner was buried. It must be set while it is open."""
        ...


class StoredLedger(Ledger, Protocol):
    """A ledger whose jobs outlive the process, as the command line lists, counts and prunes them."""

    @property
    def location(self) -> str:
        """Where the jobs are, as a text without a password."""
        ...

    async def reserved(self, batch: str) -> Decimal:
        """Return the part of `spent_or_reserved` that is for jobs in doubt, and running ones without a stated price."""
        ...

    def jobs(
        self, state: JobState | Collection[JobState] | None = None, limit: int | None = None
    ) -> AsyncIterator[JobRecord]:
        """Yield the jobs, newest first; only those in the given states, and at most `limit`."""
        ...

    async def jobs_in_key_range(self, first_key: str, last_key: str) -> Sequence[JobRecord]:
        """Return the jobs whose keys lie between two keys, these included, in the order of their keys."""
        ...

    async def count_by_state(self) -> Counter[JobState]:
        """Count all jobs by state."""
        ...

    async def has_owner(self, key: str) -> bool:
        """Return whether a job is active and has a living owner."""
        ...

    async def count_unowned(self) -> Counter[JobState]:
        """Count the active jobs of all accounts without a living owner, by state."""
        ...

    async def count_by_account(self) -> Counter[tuple[str, str]]:
        """Count the jobs by gateway and account."""
        ...

    async def batch_prefixes(self) -> list[str]:
        """Return the prefixes of the keys of all named batches."""
        ...

    async def missing_parts(self) -> list[str]:
        """Return what the ledger lacks of its tables, columns, indexes and triggers, such as "table jobs"."""
        ...

    async def hand_over(self, gateway: str, old: str, new: str) -> int:
        """Move all jobs of one account to another of the same gateway; return how many."""
        ...

    async def count_prunable(self, older_than: datetime) -> int:
        """Count the jobs that `prune` would delete."""
        ...

    async def prune(self, older_than: datetime) -> int:
        """Delete the jobs that ended before a time; return how many. UNCERTAIN jobs are never deleted."""
        ...
