"""Claim a job in the ledger: store it as new, or continue the job that the ledger has under its key."""

from collections.abc import Callable, Mapping
from datetime import timedelta

from attrs import evolve

from nanobanana_async.accounts import account_conflict
from nanobanana_async.engine.doubt import NO_DOUBT
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.late_answer import LateAnswer
from nanobanana_async.engine.next_step import (
    CheckOwnerAt,
    Enqueue,
    Finish,
    HoldSlots,
    Next,
    Prepare,
    Recover,
    ScheduleAt,
    StopFollowing,
)
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.references import has_local_images
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob, is_safe_to_repeat
from nanobanana_async.errors import (
    ConfigurationError,
    CreditLimitReached,
    IdempotencyConflict,
    JobWithdrawn,
    LedgerError,
    NanoBananaError,
)
from nanobanana_async.events import log
from nanobanana_async.failures import Failure
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobRecord, JobState, has_failed_with
from nanobanana_async.ledger.base import Claim, TaskTaken
from nanobanana_async.ledger.stored import WriterLedger
from nanobanana_async.models import difference, same_request

# How often the ledger is read for the state of a job that another owner follows.
OWNER_CHECK_S = 1.0

# Requesting a job in one of these states again is a new purchase.
REBUYABLE = frozenset({JobState.REFUSED, JobState.WITHDRAWN})


class Claimer:
    """Claims keys, adopts jobs, withdraws them and resolves them by hand. Each step returns a `Next`."""

    def __init__(
        self,
        gateway: Gateway,
        store: JobStore,
        slots: Slots,
        poller: Poller,
        estimates: JobEstimates,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._account = gateway.account
        self.follow_with_account: Callable[[TrackedJob, JobRecord], bool] = lambda job, record: False
        """Lets the engine of another account follow a job; returns whether the session has that account (`Router`)."""
        self._store = store
        self._slots = slots
        self._poller = poller
        self._estimates = estimates
        self._clock = clock
        self.ledger_location = store.ledger.location if isinstance(store.ledger, WriterLedger) else None

    async def claim(self, job: TrackedJob) -> Next:
        """Store the job, or adopt the job that the ledger has under its key.

        A job of another account that was never accepted there becomes a new generation of this account.
        """
        wanted = job.record
        claim = await self._claim_and_check(job)
        if claim.is_new:
            return self._next_by_state(job)
        known = claim.record
        again = known.state in REBUYABLE or has_failed_with(known, job.rare.retry_failure_kinds)
        if again or known.account != wanted.account:
            try:
                await self._store.start_generation(job, known, wanted.body, wanted.request, wanted.budget)
                self._slots.release(job)
                return self._next_by_state(job)
            except LedgerError:
                claim = await self._claim_and_check(job)
                if claim.record.revision == known.revision:
                    await self._release_foreign(claim, wanted)
                    raise
                # else another session began the next generation first: that purchase is this job too
                if claim.record.account != wanted.account:
                    await self._release_foreign(claim, wanted)
                    raise self._account_conflict_error(claim.record, wanted) from None
        return self._apply_claim(job, claim, wanted)

    @staticmethod
    def put_under_budget(job: TrackedJob, budget: str | None) -> None:
        """Let a budget that a later caller names count a job that was not sent yet, and that no budget counts."""
        waits = job.record.state is JobState.PENDING and job.phase not in (Phase.IN_FLIGHT, Phase.MOVING)
        if budget is not None and waits and job.record.budget is None:
            job.record = evolve(job.record, budget=budget)

    async def check_owner(self, job: TrackedJob) -> Next | None:
        """Adopt a job that has no owner, or read the state of one that another owner follows."""
        while True:
            claim = await self._store.ledger.adopt(job.key)
            if claim is None:
                raise LedgerError(f"job {job.key} is no longer in the ledger")
            late = job.rare.late_answer
            if late is not None and await self._write_late_answer(job, late, claim):
                continue
            if claim.record.account != self._account:
                return await self._leave_to_account(job, claim)
            wanted = job.may_buy or job.rare.withdraw_requested
            if wanted or not claim.is_ours or claim.record.state is not JobState.PENDING:
                return self._apply_claim(job, claim)
            await self._store.ledger.release(job.key)
            if not (job.may_buy or job.rare.withdraw_requested):  # else another caller has asked for it meanwhile
                return StopFollowing()

    async def _leave_to_account(self, job: TrackedJob, claim: Claim) -> Next | None:
        """Stop following a job that another session gave to another account: polls and repeats are that account's."""
        if self.follow_with_account(job, claim.record):
            return None
        if claim.is_ours:
            await self._store.ledger.release(job.key)
        why = account_conflict(claim.record, self._gateway.name, self._account, self.ledger_location)
        return Finish(ConfigurationError(why, key=job.key, safe_to_repeat=False))

    async def _write_late_answer(self, job: TrackedJob, late: LateAnswer, claim: Claim) -> bool:
        """Write the outcome of a create to a job that this session has lost; return whether it was written."""
        record, keyed = claim.record, self._gateway.supports_idempotency_keys
        if late.may_still_be_written(record, ours=claim.is_ours):
            return False
        if (move := late.transition_for(record, ours=claim.is_ours, keyed=keyed)) is not None:
            state, changes = move
            try:
                await self._store.write_late_answer(job, record, state, **{**changes, **NO_DOUBT})
            except TaskTaken:
                move = None
        job.rare = evolve(job.rare, late_answer=None)
        if move is None and late.task_id not in (None, record.task_id):
            log.warning("answer.unused job=%s task=%s state=%s", job.key, late.task_id, record.state)
        return move is not None

    async def store_resolution(self, job: TrackedJob, *, task_id: str | None, body: bytes | None) -> Next:
        """Store what the user knows of a job: its task id, a body to buy it again with, or neither (not bought)."""
        record = job.record
        if body is not None:
            await self._store.start_generation(job, job.ledger_record, body, record.request)
            self._slots.release(job)
        elif task_id is not None:
            began_at = record.first_sent_at or self._store.utcnow()
            changes = {"task_id": task_id, "running_since": began_at, "body": b"", **NO_DOUBT}
            await self._store.transition(job, JobState.RUNNING, **changes)
        else:
            changes = {**NO_DOUBT, "failure": _not_bought_failure(record), "ended_at": self._store.utcnow()}
            changes |= {
                "task_id": None,
                "running_since": None,
                "credits_used": None,
            }  # the fields of a task that was not the job's own
            await self._store.transition(job, JobState.REFUSED, **changes)
        return self._next_by_state(job)

    async def return_to_pending(self, job: TrackedJob) -> Next:
        """Store that a job in doubt was not bought: it waits to be sent, under the same idempotency key as before.

        If that was wrong after all, the key keeps the gateway from charging twice: `first_sent_at` stays, so that a
        409 is known to be about an earlier create of this job.
        """
        unsent = {"sent_at": None, "attempts": 0}
        await self._store.transition(job, JobState.PENDING, **unsent, **NO_DOUBT)
        self._slots.release(job)
        job.failures, job.last_failure, job.first_attempt_at = 0, None, NEVER
        job.rare = evolve(job.rare, spends_retry_budget=False)
        return self._next_by_state(job)

    async def store_withdrawal(self, job: TrackedJob, why: Failure | None = None) -> Next:
        """Store that a job is withdrawn, which was never sent. The row of a fed batch is left for other workers."""
        if job.rare.released_if_unsent and not job.has_handle:
            return Finish(job.wait_error or NanoBananaError("not bought: it is left for other workers", key=job.key))
        await self._store.transition(job, JobState.WITHDRAWN, ended_at=self._store.utcnow(), failure=why)
        return Finish(job.wait_error)

    async def withdraw_unaffordable(self, error: CreditLimitReached, job: TrackedJob) -> Next:
        """Withdraw a job that a cap of credits does not allow; the ledger keeps why, for all who wait for the job."""
        # A budget counts the job wherever it is asked for. The cap of this session or batch is no cap of others.
        kind = CreditLimitReached if error.budget is not None else JobWithdrawn
        await self.store_withdrawal(job, Failure(kind=kind.__name__, message=error.message))
        return Finish(error)

    async def release_untracked(self, tracked: Mapping[str, TrackedJob], job: TrackedJob) -> None:
        """Let other owners follow an unfinished job that is no longer in `tracked`."""
        if job.key not in tracked:
            await self._store.release(job.key)

    async def count_foreign_slots(self) -> int:
        """Count the slots of the account's jobs that other owners sent, and that may still run."""
        since = self._store.utcnow() - timedelta(seconds=self._estimates.max_run_s)
        return await self._store.ledger.count_foreign_slots(self._gateway.account, since=since)

    async def _claim_and_check(self, job: TrackedJob) -> Claim:
        claim = await self._store.claim(job)
        known, wanted = claim.record, job.record
        try:
            self.check_same_purchase(known, wanted)
            if known.account != wanted.account and known.state is JobState.PENDING and not claim.is_ours:
                raise self._account_conflict_error(known, wanted)  # a session of that account is about to send it
        except IdempotencyConflict:
            if claim.is_ours:  # the claim made us its owner, and we do not follow it
                await self._store.ledger.release(job.key)
            raise
        return claim

    async def _release_foreign(self, claim: Claim, wanted: JobRecord) -> None:
        """Release a job of another account that the claim made ours."""
        if claim.is_ours and claim.record.account != wanted.account:
            await self._store.ledger.release(wanted.key)

    def _account_conflict_error(self, known: JobRecord, wanted: JobRecord) -> IdempotencyConflict:
        why = account_conflict(known, wanted.gateway, wanted.account, self.ledger_location)
        return IdempotencyConflict(why, key=known.key, safe_to_repeat=False)

    def _apply_claim(self, job: TrackedJob, claim: Claim, wanted: JobRecord | None = None) -> Next:
        asked = job.record.budget  # of this caller, or of one that has joined it meanwhile
        if claim.record != job.ledger_record:  # else keep our record: it may be newer, if its last write failed
            self._store.replace_record(job, claim.record)
        if wanted is not None and claim.is_ours and claim.record.state is JobState.PENDING:
            budget = job.record.budget or asked
            # The request may have newer signatures in its URLs. Generated again, it has all attempts again.
            job.record = evolve(job.record, request=wanted.request, body=wanted.body, budget=budget, attempts=0)
        if not claim.is_ours and not job.done:
            return self._wait_for_owner(job)
        if claim.is_ours and claim.record.state is not JobState.PENDING:
            self._slots.on_foreign_adopted(claim.record.slots)
        return self._next_by_state(job)

    def _wait_for_owner(self, job: TrackedJob) -> Next:
        """Return how a job goes on that another owner follows: the ledger is read again, until its deadline."""
        # At full seconds: one flush of the ledger then serves all such jobs.
        due, deadlines = (round(self._clock() / OWNER_CHECK_S) + 1) * OWNER_CHECK_S, self._poller.deadlines
        if job.record.state is not JobState.RUNNING:
            job.followed_since = NOT_YET
            return CheckOwnerAt(due)
        deadlines.begin(job)
        if not deadlines.has_come(job):
            return CheckOwnerAt(min(due, deadlines.of(job)))
        return Finish(deadlines.error(job)) if job.rare.late_answer is None else CheckOwnerAt(due)

    def _next_by_state(self, job: TrackedJob) -> Next:
        """Return how a job of ours goes on, by its state."""
        match job.record.state:
            case JobState.PENDING:
                return Prepare() if has_local_images(job.record.request) else Enqueue()
            case JobState.SUBMITTING:
                return Recover()
            case JobState.RUNNING:
                self._slots.hold(job)
                self._store.credits.mark_under_way(job)
                job.running_at = self._poller.running_at_of(job)
                return ScheduleAt(self._poller.begin_polling(job))
            case JobState.UNCERTAIN if job.slots:
                return HoldSlots(job.holds_slots_until)
            case _:
                return Finish()

    def check_account(self, record: JobRecord) -> None:
        """Raise `ConfigurationError` for a job of another account: this account could buy it a second time."""
        if record.account != self._gateway.account:
            why = account_conflict(record, self._gateway.name, self._gateway.account, self.ledger_location)
            raise ConfigurationError(why, key=record.key, safe_to_repeat=is_safe_to_repeat(record, Phase.KNOWN))

    def check_same_purchase(self, known: JobRecord, wanted: JobRecord) -> None:
        """Raise `IdempotencyConflict` if the key belongs to another request, or to a purchase of another account."""
        if known.account != wanted.account and not (known.gateway == wanted.gateway and known.never_accepted):
            raise self._account_conflict_error(known, wanted)
        why: str | None = None
        if wanted.task_id is not None and known.task_id != wanted.task_id:
            why = f"a job of task {known.task_id}" if known.task_id else "a job without a task id: resolve it"
        elif known.request is None or wanted.request is None:
            if known.task_id != wanted.task_id:
                why = f"task {known.task_id}, which was attached"
        elif not same_request(known.request, wanted.request):
            why = f"another request ({difference(known.request, wanted.request)}): use another key for another request"
        if why is not None:
            raise IdempotencyConflict(f"key {known.key} already belongs to {why}", key=known.key, safe_to_repeat=False)


def _not_bought_failure(record: JobRecord) -> Failure:
    """Return the failure of a job that was resolved by hand as not bought. It keeps the kind of the earlier failure."""
    decision = "resolved by hand as not bought"
    if record.failure is None:
        return Failure(kind="GatewayError", message=decision)
    return Failure(kind=record.failure.kind, message=f"{decision}; before that: {record.failure.message}")
