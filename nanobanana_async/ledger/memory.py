"""The ledger in memory, for sessions that need no durability."""

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from attrs import asdict, define, evolve, field, frozen

from nanobanana_async.errors import IdempotencyConflict, LedgerError
from nanobanana_async.jobs import ACTIVE_STATES, TERMINAL_STATES, JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix, is_generated_key
from nanobanana_async.ledger.base import Allowance, Claim, NotOurs, TaskTaken, Upload
from nanobanana_async.ledger.memory_charges import MemoryCharges
from nanobanana_async.models import ImageRequest, without_transient_parts
from nanobanana_async.policy.named_budget import Budget, BudgetState
from nanobanana_async.policy.prices import Price

# Limits, in characters, for an ended job with a caller's own key, so that it takes 1 to 3 KB and never more than 8 KB.
# A longer request is stored as its digest, longer links are fetched again when needed, a longer message is cut.
MAX_REQUEST_CHARS = 1000
MAX_LINKS_CHARS = 2000
MAX_MESSAGE_CHARS = 500

# Number of task ids remembered of forgotten jobs, so that a task can't become the result of a second job.
TASKS_KEPT = 4096

# Number of uploads remembered; a forgotten one is uploaded again.
UPLOADS_KEPT = 4096


@frozen
class EndedJob:
    """What the ledger stores of an ended job."""

    record: JobRecord
    """Without its body, and without a long request."""
    digest: bytes
    """The digest of a long request; empty if the request is in the record."""


@define
class MemoryLedger:
    """Keeps active jobs, and ended jobs under a caller's own key.

    An ended job under a generated key is forgotten, so that memory does not grow with the number of jobs. An ended job
    under a caller's own key is kept, in at most 8 KB: the same key stays the same purchase as long as the ledger
    exists. One session at a time may open it; a later session finds the jobs that still ran.
    """

    _jobs: dict[str, JobRecord] = field(factory=dict, init=False, repr=False)
    _ended: dict[str, EndedJob] = field(factory=dict, init=False, repr=False)
    _keys_by_task: dict[str, dict[str, str]] = field(factory=dict, init=False, repr=False)
    """Account -> task id -> key."""
    _forgotten_tasks: OrderedDict[tuple[str, str], str] = field(factory=OrderedDict, init=False, repr=False)
    _unowned: set[str] = field(factory=set, init=False, repr=False)
    """The keys of `_jobs` that this session does not own: nearly all are its own."""
    _charges: MemoryCharges = field(factory=MemoryCharges, init=False, repr=False)
    _learned: dict[str, str] = field(factory=dict, init=False, repr=False)
    _uploads: OrderedDict[tuple[str, str], Upload] = field(factory=OrderedDict, init=False, repr=False)
    """Account and digest -> upload, the newest last."""
    _secret: bytes = field(factory=lambda: secrets.token_bytes(32), init=False, repr=False)
    _is_open: bool = field(default=False, init=False, repr=False)

    async def open(self) -> None:
        """Open the ledger for a session; raises `LedgerError` while another session has it open."""
        if self._is_open:
            raise LedgerError("this ledger is already open: give each session a ledger of its own")
        self._is_open = True

    async def aclose(self) -> None:
        """Release all jobs but keep them: another session may open the ledger."""
        self._is_open = False
        self._unowned = set(self._jobs)

    async def claim(self, record: JobRecord) -> Claim:
        """Insert a new job as its owner, or return the stored record."""
        ended = self._ended.get(record.key)
        if ended is not None:
            return Claim(record=_restore_request(ended, record))
        known = self._jobs.setdefault(record.key, record)
        if known is record:
            self._index_task(record)
        return Claim(record=known, is_new=known is record, is_ours=self._try_own(known))

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        """Replace `before` by `after` if the record is unchanged and ours, or ended."""
        known = self._find_record(before.key)
        may_write = self._owns(before.key) or before.state not in ACTIVE_STATES
        if known is None or known.revision != before.revision or not may_write:
            raise NotOurs(f"job {before.key} was changed by another owner", key=before.key)
        if after.task_id is not None and after.task_id != before.task_id:
            self._check_task_free(after)
        self._unindex_task(known, after)
        if after.state in TERMINAL_STATES:
            self._store_ended(after)
        else:
            self._ended.pop(after.key, None)
            self._jobs[after.key] = after
            self._index_task(after)
            self._try_own(after)
        if after.is_counted:
            self._charges.update_from_record(before, after)

    async def advance_and_reserve(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        """Replace `before` by `after`, which is about to be sent, and add its charges, if its caps allow it."""
        allowance = self._charges.allowance(after, price, max_credits, lambda key: "ours" if self._owns(key) else None)
        if allowance.refusal is None:
            await self.advance(before, after)
            self._charges.reserve(after, allowance.price)
        return allowance

    async def find(self, key: str) -> JobRecord | None:
        """Return the job with this key; None if it is unknown or forgotten."""
        return self._find_record(key)

    async def find_task(self, account: str, task_id: str) -> JobRecord | None:
        """Return the job to which the gateway gave this task id; None if it is unknown or forgotten."""
        key = self._keys_by_task.get(account, {}).get(task_id)
        return None if key is None else self._find_record(key)

    async def known_tasks(self, account: str, task_ids: Sequence[str]) -> Mapping[str, JobRecord | None]:
        """Return those of the tasks that a job has, with the job; None for a job that was forgotten."""
        keys = self._keys_by_task.get(account, {})
        known: dict[str, JobRecord | None] = {
            task: None for task in task_ids if (account, task) in self._forgotten_tasks
        }
        return known | {task: self._find_record(keys[task]) for task in task_ids if task in keys}

    async def adopt(self, key: str) -> Claim | None:
        """Take ownership of a released job; return the stored record."""
        known = self._find_record(key)
        return None if known is None else Claim(record=known, is_ours=self._try_own(known))

    async def release(self, key: str) -> None:
        """Give up ownership of a job."""
        if key in self._jobs:
            self._unowned.add(key)

    async def count_foreign_slots(self, account: str, *, since: datetime | None = None) -> int:
        """Count the slots that released jobs may hold."""
        return sum(record.slots for record in self._unowned_jobs(account) if _may_hold_slots(record, since))

    async def spent_or_reserved(self, batch: str) -> Decimal:
        """Return the sum of the charges of the batch with this name, reserved ones included, after refunds."""
        return self._charges.spent_or_reserved(batch_key_prefix(batch))

    async def set_budget(self, budget: Budget) -> None:
        """Store a budget, in place of an earlier one of the name; raises `ConfigurationError` for another `per`."""
        self._charges.set_budget(budget)

    async def budgets(self, now: datetime, names: Collection[str] | None = None) -> Sequence[BudgetState]:
        """Return the state of each budget at a time, or of those of these names, by name."""
        return self._charges.budgets(now, names)

    async def callback_secret(self) -> bytes:
        """Return 32 random bytes, the same as long as the ledger exists."""
        return self._secret

    async def notify_owner(self, key: str, task_id: str | None) -> None:
        """Do nothing: a ledger in memory has no other owner."""

    async def take_notices(self) -> Sequence[tuple[str, str | None]]:
        """Return nothing: no other process can leave a notice here."""
        return ()

    async def recall(self, account: str) -> str | None:
        """Return the text that was last stored for an account."""
        return self._learned.get(account)

    async def remember(self, account: str, learned: str) -> None:
        """Store what was learned about an account, for later sessions of this process."""
        self._learned[account] = learned

    async def find_upload(self, account: str, digest: str) -> Upload | None:
        """Return the last upload of this content by the account."""
        return self._uploads.get((account, digest))

    async def remember_upload(self, account: str, upload: Upload) -> None:
        """Store an upload; the oldest of very many is forgotten."""
        self._uploads[account, upload.digest] = upload
        self._uploads.move_to_end((account, upload.digest))
        if len(self._uploads) > UPLOADS_KEPT:
            self._uploads.popitem(last=False)

    async def adoptable_jobs(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield an account's released active jobs, oldest first."""
        for record in self._unowned_jobs(account):
            if record.state in ACTIVE_STATES:
                yield record

    async def uncertain(self, account: str) -> AsyncIterator[JobRecord]:
        """Yield an account's UNCERTAIN jobs, oldest first."""
        for record in list(self._jobs.values()):
            if record.state is JobState.UNCERTAIN and record.account == account:
                yield record

    def _find_record(self, key: str) -> JobRecord | None:
        ended = self._ended.get(key)
        return self._jobs.get(key) if ended is None else ended.record

    def _unowned_jobs(self, account: str) -> list[JobRecord]:
        return [record for key, record in self._jobs.items() if record.account == account and key in self._unowned]

    def _try_own(self, record: JobRecord) -> bool:
        """Own an active job; an ended or UNCERTAIN one has no owner."""
        if record.state not in ACTIVE_STATES:
            if record.key in self._jobs:
                self._unowned.add(record.key)
            return False
        self._unowned.discard(record.key)
        return True

    def _owns(self, key: str) -> bool:
        return key in self._jobs and key not in self._unowned

    def _index_task(self, record: JobRecord) -> None:
        if record.task_id is not None:
            self._keys_by_task.setdefault(record.account, {})[record.task_id] = record.key

    def _check_task_free(self, after: JobRecord) -> None:
        """Raise `TaskTaken` if the task id of `after` belongs to another job that was sent."""
        task = (after.account, after.task_id or "")
        holder = self._forgotten_tasks.get(task)
        if holder is None and (key := self._keys_by_task.get(task[0], {}).get(task[1])) is not None:
            known = self._find_record(key)
            holder = key if known is not None and known.first_sent_at is not None else None
        if holder not in (None, after.key):
            raise TaskTaken(task[1], holder, key=after.key)

    def _unindex_task(self, before: JobRecord, after: JobRecord) -> None:
        if before.task_id is not None and before.task_id != after.task_id:
            self._keys_by_task.get(before.account, {}).pop(before.task_id, None)

    def _store_ended(self, record: JobRecord) -> None:
        """Keep an ended job under a caller's own key; forget one under a generated key."""
        self._jobs.pop(record.key, None)
        self._unowned.discard(record.key)
        attached = record.first_sent_at is None and record.key == f"task-{record.task_id}"
        if not (attached or is_generated_key(record.key)):
            self._ended[record.key] = _compact(record)
            self._index_task(record)
        elif record.task_id is not None:
            task = (record.account, record.task_id)
            self._keys_by_task.get(record.account, {}).pop(record.task_id, None)
            if record.first_sent_at is not None:
                self._forgotten_tasks[task] = record.key
                if len(self._forgotten_tasks) > TASKS_KEPT:
                    self._forgotten_tasks.popitem(last=False)


def _compact(record: JobRecord) -> EndedJob:
    """Return what is stored of an ended job, within the limits above."""
    request, failure, images, digest = record.request, record.failure, record.images, b""
    if request is not None and len(_canonical_text(request)) > MAX_REQUEST_CHARS:
        digest, request = _digest(request), None
    if sum(map(len, images)) > MAX_LINKS_CHARS:
        images = ("",) * len(images)
    if failure is not None and len(failure.message) > MAX_MESSAGE_CHARS:
        failure = evolve(failure, message=f"{failure.message[:MAX_MESSAGE_CHARS]}...")
    return EndedJob(evolve(record, request=request, body=b"", images=images, failure=failure), digest)


def _restore_request(ended: EndedJob, wanted: JobRecord) -> JobRecord:
    """Return an ended job for a caller who claims its key again; raise `IdempotencyConflict` for another request."""
    record = ended.record
    if not ended.digest or wanted.request is None:
        return record
    if _digest(wanted.request) != ended.digest:
        message = f"key {record.key} was already used for another request: use a new key for a new request"
        raise IdempotencyConflict(message, key=record.key, safe_to_repeat=False)
    return evolve(record, request=wanted.request)


def _canonical_text(request: ImageRequest) -> str:
    return repr(asdict(without_transient_parts(request)))


def _digest(request: ImageRequest) -> bytes:
    return hashlib.sha256(_canonical_text(request).encode()).digest()


def _may_hold_slots(record: JobRecord, since: datetime | None) -> bool:
    return record.state not in TERMINAL_STATES | {JobState.PENDING} and (since is None or record.may_run_since >= since)
