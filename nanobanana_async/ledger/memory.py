"""A ledger that lives and dies with the process: the contract in a dict."""

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal

from attrs import asdict, define, evolve, field, frozen

from nanobanana_async.errors import IdempotencyConflict, LedgerError
from nanobanana_async.jobs import ACTIVE_STATES, TERMINAL_STATES, JobRecord, JobState, is_generated_key
from nanobanana_async.ledger.base import Allowance, Claim, TaskTaken
from nanobanana_async.ledger.memory_charges import MemoryCharges
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.prices import Price

# What is kept of a job that has ended under a key of the caller's own, in characters: 1 to 3 KB in all, and never more
# than 8 KB. A longer request is kept as its digest, longer links are asked for again, a longer reason is cut.
LONGEST_REQUEST = 1000
LONGEST_LINKS = 2000
LONGEST_REASON = 500

# Of jobs that are forgotten, the last so many task ids are known: a task must not be two jobs' result.
TASKS_KEPT = 4096


@frozen
class Ended:
    """What is kept of a job that has ended."""

    record: JobRecord
    """Without its body; without its request if that is long."""
    digest: bytes
    """Of a request that is not kept; else empty."""


@define
class MemoryLedger:
    """Keeps unfinished jobs, and of those that have ended what a key of the caller's own still needs.

    A job that ended under a key which the session made itself is forgotten, so that memory does not grow with the work
    done. One that ended under a key of the caller's own is kept, in 8 KB at most: the same key is the same payment as
    long as the ledger lives. One session at a time. After that was closed another may have it: what ran is found again.
    """

    _jobs: dict[str, JobRecord] = field(factory=dict, init=False, repr=False)
    _ended: dict[str, Ended] = field(factory=dict, init=False, repr=False)
    _tasks: dict[tuple[str, str], str] = field(factory=dict, init=False, repr=False)
    _past_tasks: OrderedDict[tuple[str, str], str] = field(factory=OrderedDict, init=False, repr=False)
    _ours: set[str] = field(factory=set, init=False, repr=False)
    _charges: MemoryCharges = field(factory=MemoryCharges, init=False, repr=False)
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
        ended = self._ended.get(record.key)
        if ended is not None:
            return Claim(record=_recalled(ended, record))
        known = self._jobs.setdefault(record.key, record)
        if known is record:
            self._index(record)
        return Claim(record=known, new=known is record, owned=self._taken(known))

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after` if it still stands there and is ours, or is over."""
        known = self._known(before.key)
        ours = before.key in self._ours or before.state not in ACTIVE_STATES
        if known is None or known.revision != before.revision or not ours:
            raise LedgerError(f"job {before.key} was changed by somebody else", key=before.key, safe_to_repeat=False)
        if after.task_id is not None and after.task_id != before.task_id:
            self._check_task(after)
        self._drop_task(known, after)
        if after.state in TERMINAL_STATES:
            self._end(after)
        else:
            self._ended.pop(after.key, None)
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
        """Return the job with this key; None if it was forgotten."""
        return self._known(key)

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job to which the gateway gave this task id; None if it was forgotten."""
        key = self._tasks.get((account, task_id))
        return None if key is None else self._known(key)

    async def adopt(self, key: str) -> Claim | None:
        """Take over a job that was let go, and return what stands there."""
        known = self._known(key)
        return None if known is None else Claim(record=known, owned=self._taken(known))

    async def release(self, key: str) -> None:
        """Let go of a job."""
        self._ours.discard(key)

    async def count_slots_of_others(self, account: str, *, since: datetime | None = None) -> int:
        """Count the jobs that may hold a slot and were let go."""
        return sum(1 for record in self._free(account) if _may_hold_a_slot(record, since))

    async def spent(self, batch: str) -> Decimal:
        """Return what was ever spent, or set aside, under a name, after refunds."""
        return self._charges.spent(batch)

    async def callback_secret(self) -> bytes:
        """Return 32 random bytes, the same as long as the ledger lives."""
        return self._secret

    async def notify_owner(self, key: str, task_id: str | None) -> None:
        """Do nothing: nobody else follows these jobs."""

    async def take_notices(self) -> Sequence[tuple[str, str | None]]:
        """Return nothing: nobody else knows of this ledger."""
        return ()

    async def unfinished(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield the jobs of an account that were let go, oldest first."""
        for record in self._free(account):
            if record.state in ACTIVE_STATES:
                yield record

    def _known(self, key: str) -> JobRecord | None:
        ended = self._ended.get(key)
        return self._jobs.get(key) if ended is None else ended.record

    def _free(self, account: str) -> list[JobRecord]:
        return [record for key, record in self._jobs.items() if record.account == account and key not in self._ours]

    def _taken(self, record: JobRecord) -> bool:
        """Make an unfinished job ours; one that is over is nobody's."""
        if record.state not in ACTIVE_STATES:
            self._ours.discard(record.key)
            return False
        self._ours.add(record.key)
        return True

    def _index(self, record: JobRecord) -> None:
        if record.task_id is not None:
            self._tasks[record.account, record.task_id] = record.key

    def _check_task(self, after: JobRecord) -> None:
        """Raise `TaskTaken` if another job that was bought has the task id that `after` brings."""
        task = (after.account, after.task_id or "")
        holder = self._past_tasks.get(task)
        if holder is None and (key := self._tasks.get(task)) is not None:
            known = self._known(key)
            holder = key if known is not None and known.first_sent_at is not None else None
        if holder not in (None, after.key):
            raise TaskTaken(task[1], holder, key=after.key)

    def _drop_task(self, before: JobRecord, after: JobRecord) -> None:
        if before.task_id is not None and before.task_id != after.task_id:
            self._tasks.pop((before.account, before.task_id), None)

    def _end(self, record: JobRecord) -> None:
        """Keep what a key of the caller's own still needs; forget a job under a key that the session has chosen."""
        self._jobs.pop(record.key, None)
        self._ours.discard(record.key)
        attached = record.first_sent_at is None and record.key == f"task-{record.task_id}"
        if not (attached or is_generated_key(record.key)):
            self._ended[record.key] = _kept(record)
            self._index(record)
        elif record.task_id is not None:
            task = (record.account, record.task_id)
            self._tasks.pop(task, None)
            if record.first_sent_at is not None:
                self._past_tasks[task] = record.key
                if len(self._past_tasks) > TASKS_KEPT:
                    self._past_tasks.popitem(last=False)


def _kept(record: JobRecord) -> Ended:
    """Return what is kept of a job that has ended, with bounds on all that a gateway or a caller may make long."""
    request, failure, images, digest = record.request, record.failure, record.images, b""
    if request is not None and len(_canonical(request)) > LONGEST_REQUEST:
        digest, request = _digest(request), None
    if sum(map(len, images)) > LONGEST_LINKS:
        images = ("",) * len(images)
    if failure is not None and len(failure.message) > LONGEST_REASON:
        failure = evolve(failure, message=f"{failure.message[:LONGEST_REASON]}...")
    return Ended(evolve(record, request=request, body=b"", images=images, failure=failure), digest)


def _recalled(ended: Ended, wanted: JobRecord) -> JobRecord:
    """Return an ended job for a caller who asks for it again; raise `IdempotencyConflict` for another request."""
    record = ended.record
    if not ended.digest or wanted.request is None:
        return record
    if _digest(wanted.request) != ended.digest:
        why = f"key {record.key} already stands for another request: use another key for another request"
        raise IdempotencyConflict(why, key=record.key, safe_to_repeat=False)
    return evolve(record, request=wanted.request)


def _canonical(request: ImageRequest) -> str:
    return repr(asdict(evolve(request, callback_url=None)))


def _digest(request: ImageRequest) -> bytes:
    return hashlib.sha256(_canonical(request).encode()).digest()


def _may_hold_a_slot(record: JobRecord, since: datetime | None) -> bool:
    return record.state not in TERMINAL_STATES | {JobState.PENDING} and (since is None or record.may_run_since >= since)
