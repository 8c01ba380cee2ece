"""How a job comes in: written down as new, or found in the ledger in whatever state it was left."""

from collections.abc import Callable
from datetime import timedelta

from nanobanana_async.engine.books import Books
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.slots import Slots
from nanobanana_async.errors import ConfigurationError, IdempotencyConflict, LedgerError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import Failure, JobRecord, JobState, account_conflict
from nanobanana_async.ledger.base import Claim
from nanobanana_async.models import difference, same_wish

# How often we look in the ledger what became of a job that somebody else follows.
ELSEWHERE_LOOK_S = 1.0

# To ask for such a job again is a new purchase.
NEVER_BOUGHT = frozenset({JobState.REFUSED, JobState.WITHDRAWN})


class Admission:
    """Claims a job's key, and finds where a known job goes on. Each step returns when the job is due."""

    def __init__(
        self,
        gateway: Gateway,
        books: Books,
        slots: Slots,
        buyer: Buyer,
        follower: Follower,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._books = books
        self._slots = slots
        self._buyer = buyer
        self._follower = follower
        self._clock = clock

    async def claim(self, entry: Entry) -> float:
        """Write the job down, or take over what stands under its key."""
        wanted = entry.record
        claim = await self._claim_of(wanted)
        if claim.new:
            self._books.born(entry)
            return await self._take_up(entry)
        if claim.record.state in NEVER_BOUGHT or (entry.retries_failed and claim.record.state is JobState.FAILED):
            entry.stored = claim.record
            try:
                await self._books.renew(entry, body=wanted.body)
                self._slots.release(entry)
                return await self._take_up(entry)
            except LedgerError:
                was, claim = claim, await self._claim_of(wanted)
                if claim.record.revision == was.record.revision:
                    raise
                # else somebody was faster: that purchase is ours as well
        return await self._go_on(entry, claim)

    async def look_elsewhere(self, entry: Entry) -> float:
        """Take over a job that nobody follows, or see what became of one that somebody else does."""
        while True:
            claim = await self._books.ledger.adopt(entry.key)
            if claim is None:
                raise LedgerError(f"job {entry.key} is no longer in the ledger")
            if entry.wanted or entry.leaving or not claim.ours or claim.record.state is not JobState.PENDING:
                return await self._go_on(entry, claim)
            await self._books.ledger.release(entry.key)
            if not (entry.wanted or entry.leaving):  # else somebody has asked for it meanwhile
                entry.elsewhere = False
                return NEVER

    async def settle(self, entry: Entry, *, task_id: str | None, body: bytes | None) -> float:
        """Write down what a human knows of a job: its task id, a body to buy it anew with, or neither: not bought."""
        record = entry.record
        if body is not None:
            await self._books.renew(entry, body=body)
            self._slots.release(entry)
        elif task_id is not None:
            began_at = record.first_sent_at or self._books.utcnow()
            facts = {"task_id": task_id, "running_since": began_at, "in_doubt": False, "body": b"", "failure": None}
            await self._books.move(entry, JobState.RUNNING, **facts)
        else:
            why = record.failure or Failure(kind="GatewayError", message="settled by hand: it was not bought")
            facts = {"in_doubt": False, "failure": why, "ended_at": self._books.utcnow()}
            facts |= {"task_id": None, "running_since": None, "credits_used": None}  # of a task that was not its own
            await self._books.move(entry, JobState.REFUSED, **facts)
        return await self._take_up(entry)

    async def withdraw(self, entry: Entry) -> float:
        """Take back a job that was never sent."""
        await self._books.move(entry, JobState.WITHDRAWN, ended_at=self._books.utcnow())
        return NEVER

    async def held_elsewhere(self) -> int:
        """Count the jobs of this account that are not ours and may hold slots: those that may still run."""
        since = self._books.utcnow() - timedelta(seconds=self._follower.longest_s)
        return await self._books.ledger.held(self._gateway.account, since=since)

    async def _claim_of(self, wanted: JobRecord) -> Claim:
        claim = await self._books.ledger.claim(wanted)
        try:
            self.check_same(claim.record, wanted)
        except IdempotencyConflict:
            if claim.ours:  # nobody followed it, and we shall not
                await self._books.ledger.release(wanted.key)
            raise
        return claim

    async def _go_on(self, entry: Entry, claim: Claim) -> float:
        if claim.record != entry.stored:  # else we may know more than the ledger: its last write may have failed
            entry.stored = claim.record
            entry.moved(claim.record)
        entry.elsewhere = not claim.ours and not entry.over
        if entry.elsewhere:
            entry.tell()
            return self._clock() + ELSEWHERE_LOOK_S
        if claim.ours and claim.record.state is not JobState.PENDING:
            self._slots.adopted()
        try:
            return await self._take_up(entry)
        except LedgerError:
            entry.written = True  # it stands there as ours: it is let go when it stops
            raise

    async def _take_up(self, entry: Entry) -> float:
        """Go on with a job where its state says."""
        match entry.record.state:
            case JobState.PENDING:
                return self._clock()
            case JobState.SUBMITTING:
                return await self._buyer.take_up(entry)
            case JobState.RUNNING:
                self._slots.hold(entry)
                self._books.purse.found(entry)
                entry.running_at = self._follower.running_since(entry)
                return self._follower.begin(entry)
            case JobState.UNCERTAIN if entry.slots:
                return entry.lingers_until
            case _:
                return NEVER

    def check_account(self, record: JobRecord) -> None:
        """Raise `ConfigurationError` for a job of another account: under this one it could be bought again."""
        if record.account != self._gateway.account:
            why = account_conflict(record, self._gateway.name, self._gateway.account)
            raise ConfigurationError(why, key=record.key, safe_to_repeat=not record.perhaps_bought)

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
        elif not same_wish(known.request, wanted.request):
            why = f"another request ({difference(known.request, wanted.request)}): use another key for another request"
        if why is not None:
            raise IdempotencyConflict(f"key {known.key} already stands for {why}", key=known.key, safe_to_repeat=False)
