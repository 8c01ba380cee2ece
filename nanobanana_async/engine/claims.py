"""How a job comes in: written down as new, or found in the ledger in whatever state it was left."""

from collections.abc import Callable
from datetime import timedelta

from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.submitter import Submitter
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.errors import ConfigurationError, IdempotencyConflict, LedgerError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import Failure, JobRecord, JobState, account_conflict
from nanobanana_async.ledger.base import Claim
from nanobanana_async.models import difference, same_request

# How often we look in the ledger what became of a job that somebody else follows.
OWNER_CHECK_S = 1.0

# To ask for such a job again is a new purchase.
REBUYABLE = frozenset({JobState.REFUSED, JobState.WITHDRAWN})


class Claims:
    """Claims a job's key, and finds where a known job goes on. Each step returns when the job is due."""

    def __init__(
        self,
        gateway: Gateway,
        books: JobStore,
        slots: Slots,
        buyer: Submitter,
        follower: Poller,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._store = books
        self._slots = slots
        self._submitter = buyer
        self._poller = follower
        self._clock = clock

    async def claim(self, entry: TrackedJob) -> float:
        """Write the job down, or take over what stands under its key."""
        wanted = entry.record
        claim = await self._claim(wanted)
        if claim.new:
            self._store.emit_created(entry)
            return await self._continue(entry)
        if claim.record.state in REBUYABLE or (entry.retry_failed and claim.record.state is JobState.FAILED):
            entry.ledger_record = claim.record
            try:
                await self._store.start_generation(entry, body=wanted.body)
                self._slots.release(entry)
                return await self._continue(entry)
            except LedgerError:
                was, claim = claim, await self._claim(wanted)
                if claim.record.revision == was.record.revision:
                    raise
                # else somebody was faster: that purchase is ours as well
        return await self._on_claim(entry, claim)

    async def check_owner(self, entry: TrackedJob) -> float:
        """Take over a job that nobody follows, or see what became of one that somebody else does."""
        while True:
            claim = await self._store.ledger.adopt(entry.key)
            if claim is None:
                raise LedgerError(f"job {entry.key} is no longer in the ledger")
            if (
                entry.may_buy
                or entry.withdraw_requested
                or not claim.owned
                or claim.record.state is not JobState.PENDING
            ):
                return await self._on_claim(entry, claim)
            await self._store.ledger.release(entry.key)
            if not (entry.may_buy or entry.withdraw_requested):  # else somebody has asked for it meanwhile
                entry.foreign = False
                return NEVER

    async def resolve(self, entry: TrackedJob, *, task_id: str | None, body: bytes | None) -> float:
        """Write down what a human knows of a job: its task id, a body to buy it anew with, or neither: not bought."""
        record = entry.record
        if body is not None:
            await self._store.start_generation(entry, body=body)
            self._slots.release(entry)
        elif task_id is not None:
            began_at = record.first_sent_at or self._store.utcnow()
            facts = {"task_id": task_id, "running_since": began_at, "in_doubt": False, "body": b"", "failure": None}
            await self._store.transition(entry, JobState.RUNNING, **facts)
        else:
            why = record.failure or Failure(kind="GatewayError", message="settled by hand: it was not bought")
            facts = {"in_doubt": False, "failure": why, "ended_at": self._store.utcnow()}
            facts |= {"task_id": None, "running_since": None, "credits_used": None}  # of a task that was not its own
            await self._store.transition(entry, JobState.REFUSED, **facts)
        return await self._continue(entry)

    async def withdraw(self, entry: TrackedJob) -> float:
        """Take back a job that was never sent."""
        await self._store.transition(entry, JobState.WITHDRAWN, ended_at=self._store.utcnow())
        return NEVER

    async def count_foreign_slots(self) -> int:
        """Count the jobs of this account that are not ours and may hold slots: those that may still run."""
        since = self._store.utcnow() - timedelta(seconds=self._poller.longest_s)
        return await self._store.ledger.count_slots_of_others(self._gateway.account, since=since)

    async def _claim(self, wanted: JobRecord) -> Claim:
        claim = await self._store.ledger.claim(wanted)
        try:
            self.check_same(claim.record, wanted)
        except IdempotencyConflict:
            if claim.owned:  # nobody followed it, and we shall not
                await self._store.ledger.release(wanted.key)
            raise
        return claim

    async def _on_claim(self, entry: TrackedJob, claim: Claim) -> float:
        if claim.record != entry.ledger_record:  # else we may know more than the ledger: its last write may have failed
            entry.ledger_record = claim.record
            entry.set_record(claim.record)
        entry.foreign = not claim.owned and not entry.done
        if entry.foreign:
            entry.notify_listeners()
            return self._clock() + OWNER_CHECK_S
        if claim.owned and claim.record.state is not JobState.PENDING:
            self._slots.foreign_adopted()
        try:
            return await self._continue(entry)
        except LedgerError:
            entry.claimed = True  # it stands there as ours: it is let go when it stops
            raise

    async def _continue(self, entry: TrackedJob) -> float:
        """Go on with a job where its state says."""
        match entry.record.state:
            case JobState.PENDING:
                return self._clock()
            case JobState.SUBMITTING:
                return await self._submitter.recover(entry)
            case JobState.RUNNING:
                self._slots.acquire(entry)
                self._store.credits.refollow(entry)
                entry.running_at = self._poller.running_since(entry)
                return self._poller.begin(entry)
            case JobState.UNCERTAIN if entry.slots:
                return entry.holds_until
            case _:
                return NEVER

    def check_account(self, record: JobRecord) -> None:
        """Raise `ConfigurationError` for a job of another account: under this one it could be bought again."""
        if record.account != self._gateway.account:
            why = account_conflict(record, self._gateway.name, self._gateway.account)
            raise ConfigurationError(why, key=record.key, safe_to_repeat=not record.possibly_bought)

    @staticmethod
    def check_same(known: JobRecord, wanted: JobRecord) -> None:
        """Raise `IdempotencyConflict` if a key stands for another request already; found without asking anybody."""
        if known.account != wanted.account:
            other = account_conflict(known, wanted.gateway, wanted.account)
            raise IdempotencyConflict(other, key=known.key, safe_to_repeat=False)
        why: str | None = None
        if wanted.task_id is not None and known.task_id != wanted.task_id:
            why = f"a job of task {known.task_id}" if known.task_id else "a job that has no task id: settle it"
        elif known.request is None or wanted.request is None:
            if known.task_id != wanted.task_id:
                why = f"task {known.task_id}, which was attached"
        elif not same_request(known.request, wanted.request):
            why = f"another request ({difference(known.request, wanted.request)}): use another key for another request"
        if why is not None:
            raise IdempotencyConflict(f"key {known.key} already stands for {why}", key=known.key, safe_to_repeat=False)
