"""Where jobs are written down: the contract that every ledger keeps."""

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from nanobanana_async.jobs import JobRecord


@runtime_checkable
class Ledger(Protocol):
    """A durable list of jobs. Each write is a compare-and-swap on the record's `revision`.

    Every method raises `LedgerError` when the list can't be read or written; then nothing was changed.
    """

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def claim(self, record: JobRecord) -> JobRecord:
        """Write a new job down as ours, or return what already stands under its key.

        The caller compares: getting back its own record means that the job is new.
        """
        ...

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after`; raise `LedgerError` if it is no longer what stands there."""
        ...

    async def find(self, key: str) -> JobRecord | None:
        """Return the job with this key."""
        ...

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job to which the gateway gave this task id."""
        ...

    def unfinished(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield the jobs of an account that have not ended, oldest first."""
        ...
