"""A ledger that lives and dies with the process: the contract in a dict."""

from collections.abc import AsyncIterator

from attrs import define, field

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import FINAL, JobRecord


@define
class MemoryLedger:
    """Keeps unfinished jobs and forgets the finished ones, so that memory does not grow with the work done.

    It can be handed to a second session after the first was closed: what ran is found again.
    """

    _jobs: dict[str, JobRecord] = field(factory=dict, init=False, repr=False)
    _tasks: dict[str, dict[str, str]] = field(factory=dict, init=False, repr=False)

    async def open(self) -> None:
        """Do nothing: memory is always open."""

    async def aclose(self) -> None:
        """Keep everything: the ledger may outlive the session."""

    async def claim(self, record: JobRecord) -> JobRecord:
        """Write a new job down, or return what already stands under its key."""
        known = self._jobs.setdefault(record.key, record)
        if known is record:
            self._index(record)
        return known

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after` if it still stands there."""
        known = self._jobs.get(before.key)
        if known is None or known.revision != before.revision:
            raise LedgerError(f"job {before.key} was changed by somebody else", key=before.key, safe_to_repeat=False)
        if after.state in FINAL:
            del self._jobs[after.key]
            if after.task_id is not None:
                self._tasks.get(after.account, {}).pop(after.task_id, None)
        else:
            self._jobs[after.key] = after
            self._index(after)

    async def find(self, key: str) -> JobRecord | None:
        """Return the unfinished job with this key."""
        return self._jobs.get(key)

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the unfinished job to which the gateway gave this task id."""
        key = self._tasks.get(account, {}).get(task_id)
        return None if key is None else self._jobs[key]

    async def unfinished(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield the unfinished jobs of an account, oldest first."""
        for record in list(self._jobs.values()):
            if record.account == account:
                yield record

    def _index(self, record: JobRecord) -> None:
        if record.task_id is not None:
            self._tasks.setdefault(record.account, {})[record.task_id] = record.key
