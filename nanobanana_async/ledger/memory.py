"""A ledger that lives and dies with the process: the contract in a dict."""

import secrets
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal

from attrs import define, field

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import FINAL, UNFINISHED, JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Claim
from nanobanana_async.ledger.remembered import RememberedCharges
from nanobanana_async.policy.credits import Price


@define
class MemoryLedger:
    """Keeps unfinished jobs and forgets the finished ones, so that memory does not grow with the work done.

    One session at a time. After that was closed another may have it: what ran is found again.
    """

    _jobs: dict[str, JobRecord] = field(factory=dict, init=False, repr=False)
    _tasks: dict[str, dict[str, str]] = field(factory=dict, init=False, repr=False)
    _ours: set[str] = field(factory=set, init=False, repr=False)
    _charges: RememberedCharges = field(factory=RememberedCharges, init=False, repr=False)
    _secret: bytes = field(factory=lambda: secrets.token_bytes(32), init=False, repr=False)
    _is_open: bool = field(default=False, init=False, repr=False)

    async def open(self) -> None:
        """Let a session have it; raises `LedgerError` while another one does."""
        if self._is_open:
            raise LedgerError("this ledger is already open: give each session one of its own")
        self._is_open = True

    async def aclose(self) -> None:
        """Keep everything, and let go of it: the ledger may outlive the session."""
        self._is_open = False
        self._ours.clear()

    async def claim(self, record: JobRecord) -> Claim:
        """Write a new job down as ours, or return what stands under its key."""
        known = self._jobs.setdefault(record.key, record)
        if known is record:
            self._index(record)
        return Claim(record=known, new=known is record, ours=self._taken(known))

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after` if it still stands there and is ours, or is over."""
        known = self._jobs.get(before.key)
        ours = before.key in self._ours or before.state not in UNFINISHED
        if known is None or known.revision != before.revision or not ours:
            raise LedgerError(f"job {before.key} was changed by somebody else", key=before.key, safe_to_repeat=False)
        if after.state in FINAL:
            self._forget(after)
        else:
            self._jobs[after.key] = after
            self._index(after)
            self._taken(after)
        if after.batch is not None:
            self._charges.follow(before, after)

    async def set_aside(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        """Replace `before` by `after`, about to be sent, and note its charge, if the cap of its batch has room."""
        allowance = self._charges.allowance(
            after, price, max_credits, lambda key: "ours" if key in self._ours else None
        )
        if allowance.refusal is None:
            await self.advance(before, after)
            self._charges.add(after, allowance.price)
        return allowance

    async def find(self, key: str) -> JobRecord | None:
        """Return the unfinished job with this key."""
        return self._jobs.get(key)

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the unfinished job to which the gateway gave this task id."""
        key = self._tasks.get(account, {}).get(task_id)
        return None if key is None else self._jobs[key]

    async def adopt(self, key: str) -> Claim | None:
        """Take over a job that was let go, and return what stands there."""
        known = self._jobs.get(key)
        return None if known is None else Claim(record=known, ours=self._taken(known))

    async def release(self, key: str) -> None:
        """Let go of a job."""
        self._ours.discard(key)

    async def held(self, account: str, *, since: datetime | None = None) -> int:
        """Count the jobs that may hold a slot and were let go."""
        return sum(1 for record in self._free(account) if _may_hold_a_slot(record, since))

    async def spent(self, batch: str) -> Decimal:
        """Return what was ever spent, or set aside, under a name, after refunds."""
        return self._charges.spent(batch)

    async def secret(self) -> bytes:
        """Return 32 random bytes, the same as long as the ledger lives."""
        return self._secret

    async def nudge(self, key: str, task_id: str | None) -> None:
        """Do nothing: nobody else follows these jobs."""

    async def nudges(self) -> Sequence[tuple[str, str | None]]:
        """Return nothing: nobody else knows of this ledger."""
        return ()

    async def unfinished(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield the jobs of an account that were let go, oldest first."""
        for record in self._free(account):
            if record.state in UNFINISHED:
                yield record

    def _free(self, account: str) -> list[JobRecord]:
        return [record for key, record in self._jobs.items() if record.account == account and key not in self._ours]

    def _taken(self, record: JobRecord) -> bool:
        """Make an unfinished job ours; one that is over is nobody's."""
        if record.state not in UNFINISHED:
            self._ours.discard(record.key)
            return False
        self._ours.add(record.key)
        return True

    def _index(self, record: JobRecord) -> None:
        if record.task_id is not None:
            self._tasks.setdefault(record.account, {})[record.task_id] = record.key

    def _forget(self, record: JobRecord) -> None:
        del self._jobs[record.key]
        self._ours.discard(record.key)
        if record.task_id is not None:
            self._tasks.get(record.account, {}).pop(record.task_id, None)


def _may_hold_a_slot(record: JobRecord, since: datetime | None) -> bool:
    return record.state not in FINAL | {JobState.PENDING} and (since is None or record.begun_at >= since)
