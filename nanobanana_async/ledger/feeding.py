"""The protocol of ledgers from which several workers draw the rows of one batch.

A *fed* row is a job in PENDING without an owner, and beside it what its outcome needs: its number, its own key, its
metadata and the name of its images. A worker *draws* rows, a few at a time, and *delivers* each: its outcome was taken.
What a dead worker had drawn is drawn by the others, in whichever state its job is.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Protocol, runtime_checkable

from attrs import frozen

from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.models import same_request

UNSAVED = -1
"""In place of a revision: the row was delivered without its images, which the next run tries to save."""

WITHOUT_IMAGES = frozenset({JobState.FAILED, JobState.REFUSED, JobState.WITHDRAWN})
"""The states of jobs that ended without images."""


@frozen(kw_only=True)
class FedBatch:
    """What holds for all rows of a fed batch, on all hosts."""

    batch: str
    """The prefix of the keys of its jobs."""
    name: str
    """For people: the prefix is a hash of it."""
    gateway: str
    account: str
    max_credits: Decimal | None = None
    expected_credits: Decimal | None = None
    rows: int = 0
    """How many rows were fed."""


@frozen(kw_only=True)
class FedRow:
    """One row of a fed batch: its job, and what its outcome needs beside the job's record."""

    record: JobRecord
    index: int
    """Its position in the input, from 0."""
    place: int | None = None
    """Its position among the rows without a key, which are distinguished by it; None for a row with a key."""
    own_key: str | None = None
    digest: str = ""
    """Of its request: a key that is fed again with another one is a conflict."""
    metadata: str | None = None
    """As JSON."""
    name: str = ""
    """The name of its images."""


@frozen(kw_only=True)
class Fed:
    """What the ledger found when it was given some rows."""

    new: int = 0
    """How many were new: the others were known, and keep their jobs."""
    other_requests: Mapping[str, JobRecord]
    """The known jobs whose key belongs to another request, or to another account."""
    ended: tuple[JobRecord, ...] = ()
    """The known jobs in `WITHOUT_IMAGES`: perhaps they are to be bought again."""
    misplaced: int | None = None
    """A place that belongs to another row: this is not the input that was fed before, and nothing was stored."""


@frozen(kw_only=True)
class Draw:
    """The rows that were drawn."""

    rows: tuple[FedRow, ...] = ()
    unfinished: bool
    """Whether rows of the batch are left to draw, or are drawn and not delivered, by any worker."""
    batch: FedBatch
    """As they are now: another feed may have changed the cap."""


def is_same_job(known: JobRecord, wanted: JobRecord) -> bool:
    """Return whether a job that was not fed is the one that a row asks for."""
    if known.account != wanted.account or known.request is None or wanted.request is None:
        return False
    return same_request(known.request, wanted.request)


@runtime_checkable
class FeedsRows(Ledger, Protocol):
    """A ledger that several workers share, from which they draw the rows of a batch."""

    async def open_batch(self, fed: FedBatch, *, change: bool = False) -> FedBatch:
        """Store what holds for a new batch, and return what is stored.

        A batch that is known changes only with `change`: it gets the cap and the expected price of `fed`, and keeps
        its own where `fed` has none. One of another account never changes.
        """
        ...

    async def fed_batch(self, batch: str) -> FedBatch | None:
        """Return what holds for a batch; None if it was not fed."""
        ...

    async def feed(self, batch: str, rows: Sequence[FedRow], *, max_credits: Decimal | None = None) -> Fed:
        """Store those of the rows that are new, all in one transaction, as jobs that no owner has.

        The first row that is new to the batch lowers its cap to `max_credits`, as `lower_cap` does.

        A known row gets the number, metadata and name given now. It is to be drawn again if its job has changed since
        it was delivered. No two rows may have one key.
        """
        ...

    async def lower_cap(self, batch: str, max_credits: Decimal) -> None:
        """Let the cap of a batch fall to this one, if it is lower or the batch has none."""
        ...

    async def draw(self, batch: str, count: int) -> Draw:
        """Draw at most so many rows, in the order of the input. Their jobs are then claimed as any others."""
        ...

    async def deliver(self, revisions: Mapping[str, int | None]) -> None:
        """Store that rows were delivered: by the key of each job, the revision of its record, or `UNSAVED`.

        None gives a row back, undelivered: any worker may draw it. So does a revision that is no longer the job's.
        """
        ...

    async def draw_unsaved(self, batch: str) -> None:
        """Let the rows be drawn again whose images could not be saved."""
        ...
