"""Make one create of a job: write the intent, send the POST, write the answer.

    PENDING -> SUBMITTING (durable) -> POST -> RUNNING with its task id (durable) -> waiters are woken

A step leaves the job PENDING (waits for a slot), SUBMITTING (is repeated under its key, or waits for the gateway's
history), RUNNING (is polled), UNCERTAIN (holds its slots while it may run) or REFUSED.
"""

import random
from collections.abc import Callable
from typing import Any

from attrs import evolve

from nanobanana_async.engine.attempts import attempt_of
from nanobanana_async.engine.contained_send import send_contained
from nanobanana_async.engine.doubt import fields_if_interrupted, fields_in_doubt, may_be_processed, why_in_doubt
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.history import History
from nanobanana_async.engine.late_answer import LateAnswer
from nanobanana_async.engine.limit_events import LimitEvents
from nanobanana_async.engine.next_step import AwaitHistory, Enqueue, Finish, HoldSlots, Next, Prepare, ScheduleAt
from nanobanana_async.engine.ownership import fields_of_accepted, set_late_answer_not_bought, wait_until_owner
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.references import References
from nanobanana_async.engine.route import AfterFailedCreate, keep_decision
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore, to_failure
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.errors import (
    GatewayError,
    LedgerError,
    NanoBananaError,
    RateLimited,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.events import CreateFailed
from nanobanana_async.failures import Failure
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.http.threads import AnswerReader
from nanobanana_async.jobs import Accepted, JobState
from nanobanana_async.ledger.base import Allowance, NotOurs, TaskTaken
from nanobanana_async.policy.retry import (
    Attempt,
    FailureKind,
    RetryAction,
    RetryDecision,
    RetryPolicy,
    asked_wait_s,
    decide_failed_create,
    is_outage,
)


class Submitter:
    """Makes the creates of jobs. Each step returns a `Next`."""

    def __init__(
        self,
        gateway: Gateway,
        transport: Transport,
        store: JobStore,
        slots: Slots,
        poller: Poller,
        estimates: JobEstimates,
        references: References,
        history: History,
        retry: RetryPolicy,
        *,
        create_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._store = store
        self._slots = slots
        self._retry = retry
        self._create_s = create_s
        self._poller = poller
        self._estimates = estimates
        self._references = references
        self._history = history
        self._clock = clock
        self._answers = AnswerReader()
        self._jitter = random.Random()
        self._limits = LimitEvents(slots, store, gateway.account)
        self.after_failed_create: AfterFailedCreate = keep_decision

    async def submit(self, job: TrackedJob) -> Next:
        """Make one create, the first or a repeat."""
        sent_before = job.record.first_sent_at is not None
        if job.record.in_doubt and self._is_key_expired(job):  # it may have waited long in the queue
            self._slots.on_create_returned(job)
            return await self._mark_uncertain(job, "its idempotency key is too old to be sent again")
        if job.record.state is JobState.PENDING and self._references.must_prepare_again(job):
            self._slots.on_create_returned(job)
            return Prepare()
        try:
            body, held = await self._references.load_body(job)
        except NanoBananaError as error:  # a local image can't be read: nothing was sent now
            self._slots.on_create_returned(job)
            return Finish(error.for_job(job.key, safe_to_repeat=not job.record.possibly_bought))
        try:
            answer = await self._attempt_create(job, body)
        finally:
            self._references.release_bytes(held)
        match answer:
            case Accepted():
                return await self._on_accepted(job, answer)
            case Allowance():  # the ledger does not allow it: it waits again, or is declined
                self._store.credits.on_ledger_refused(job, answer, self._clock(), self._store.utcnow())
                return Enqueue()
            case NotOurs():
                set_late_answer_not_bought(job)
                raise answer
            case LedgerError():  # no durable intent, no POST
                return Finish(answer)
            case _:
                return await self._on_failed_create(job, answer, sent_before)

    async def _attempt_create(self, job: TrackedJob, body: bytes) -> Accepted | Allowance | NanoBananaError:
        try:
            if job.record.state is JobState.PENDING:
                allowance = await self._write_intent(job)
                if allowance is not None and allowance.refusal is not None:
                    return allowance
            return await self._post(job, body)
        except NanoBananaError as error:
            return error
        finally:
            self._slots.on_create_returned(job)

    async def _write_intent(self, job: TrackedJob) -> Allowance | None:
        job.first_attempt_at = self._clock() if job.first_attempt_at == NEVER else job.first_attempt_at
        now = self._store.utcnow()
        times = {"first_sent_at": job.record.first_sent_at or now, "sent_at": now}
        try:
            return await self._store.advance_and_reserve(job, **times)
        except NotOurs:  # it may be in the ledger all the same, if the answer to its commit was lost
            job.rare = evolve(job.rare, late_answer=LateAnswer(job.record.transition_to(JobState.SUBMITTING, **times)))
            raise

    async def _post(self, job: TrackedJob, body: bytes) -> Accepted:
        request = self._gateway.build_create(body, wire_key=job.record.wire_key)
        await wait_until_owner(job, self._store.lease)
        # A pooled connection that the server has just closed looks like a lost answer, and without a key that is doubt.
        fresh = not self._gateway.supports_idempotency_keys
        response = await send_contained(self._transport, request, timeout_s=self._create_s, fresh_connection=fresh)
        return await self._answers.read(self._gateway.read_create, response)

    async def _on_accepted(self, job: TrackedJob, accepted: Accepted) -> Next:
        self._slots.create_outage.answered()
        self._poller.outage.gateway_answered()
        job.failures, job.last_failure, job.rare = 0, None, job.rare.without_images()
        job.place = 0  # it has had its turn: the number need not stay in memory
        job.running_at = self._clock()
        self._slots.on_accepted(job, job.running_at)
        self._history.record_accepted_create(accepted.task_id, job.running_at - job.sent_at)
        if job.record.in_doubt:
            self._slots.spacing.on_repeat_answered(named_task=True)
        self._limits.emit_changes(job.running_at)
        if accepted.credits_remaining is not None:
            self._store.credits.remaining = accepted.credits_remaining
        attempts = job.record.attempts + 1
        changes = fields_of_accepted(
            task_id=accepted.task_id,
            running_since=self._store.utcnow(),
            attempts=attempts,
            credits_used=accepted.credits_used,
            model=accepted.model,
        )
        try:
            # If the write fails, the waiters get its error and the polls go on.
            await self._store.transition_as_reported(job, JobState.RUNNING, **changes)
        except NotOurs:
            job.rare = evolve(job.rare, late_answer=LateAnswer(job.record, changes))
            raise
        except TaskTaken as taken:  # unknown what was paid for: the task is another job's
            why = f"the gateway answered with task {accepted.task_id}, which belongs to job {taken.holder}"
            failure = Failure(kind=UnexpectedResponse.__name__, message=why, request_id=accepted.request_id)
            changes = {"attempts": attempts, "credits_used": accepted.credits_used, "failure": failure}
            await self._store.transition(job, JobState.UNCERTAIN, in_doubt=True, **changes)
            return self._hold_slots_step(job)
        return ScheduleAt(self._poller.begin_polling(job))

    async def _on_failed_create(self, job: TrackedJob, error: NanoBananaError, sent_before: bool) -> Next:
        job.failures += 1
        job.last_failure = error.for_job(job.key, safe_to_repeat=error.safe_to_repeat)  # a copy without its traceback
        outage, creates, now = self._poller.outage, self._slots.create_outage, self._clock()
        attempt = evolve(self._attempt_of(job, sent_before=sent_before), never_answered=outage.never_answered)
        outage.request_failed(error, job.sent_at)
        attempt = evolve(attempt, hopeless=outage.is_hopeless(error), outage_s=creates.waited_s(job, now))
        decision = decide_failed_create(error, attempt, self._retry)
        if decision.action is RetryAction.REFUSE and self._references.may_have_lost_uploads(job, error):
            decision = evolve(decision, action=RetryAction.REQUEUE)
        decision, error = self.after_failed_create(job, error, decision, sent_before)
        wait_s = self._retry_wait_s(job, error, decision, now)
        self._update_limits(job, error, decision, now)
        self._limits.emit_changes(now)
        action, doubt = decision.action.name.lower(), decision.in_doubt
        self._store.emit(CreateFailed(record=job.record, error=error, action=action, wait_s=wait_s, in_doubt=doubt))
        self._poller.used_up_budgets.report(job, error)
        if decision.action is not RetryAction.GIVE_UP:  # the caller gets the error at once
            outage.report(job.record, retried=decision.action is not RetryAction.PARK)
        try:
            return await self._carry_out_decision(job, error, decision, attempt, now + wait_s)
        except NotOurs:
            if not decision.in_doubt and decision.action is not RetryAction.PARK:
                set_late_answer_not_bought(job)
            raise
        except LedgerError as unwritten:  # the record stays SUBMITTING: it may have been sent
            return Finish(unwritten)

    async def _carry_out_decision(
        self, job: TrackedJob, error: NanoBananaError, decision: RetryDecision, attempt: Attempt, due: float
    ) -> Next:
        attempts = job.record.attempts + decision.costs_attempt
        doubt = fields_in_doubt(job.record, decision.kind, self._store.utcnow(), self._history.lateness_s)
        unsent = decision.kind is FailureKind.NOT_SENT and not attempt.sent_before
        first_sent_at = None if unsent else job.record.first_sent_at
        match decision.action:
            case RetryAction.REPEAT if decision.in_doubt:
                self._slots.hold(job)
                unanswered = decision.kind in (FailureKind.SERVER_ERROR, FailureKind.NO_ANSWER)
                job.rare = evolve(job.rare, spends_retry_budget=unanswered)
                await self._store.transition(job, JobState.SUBMITTING, attempts=attempts, **doubt)
                self._history.watch_repeats(job)
                return ScheduleAt(due)
            case RetryAction.REPEAT | RetryAction.REQUEUE:
                if decision.action is RetryAction.REQUEUE:
                    job.failures = 0
                    job.ready_at, job.first_attempt_at = job.first_attempt_at, NEVER  # it waits for a slot
                await self._store.transition(job, JobState.PENDING, attempts=attempts, first_sent_at=first_sent_at)
                if self._references.may_have_lost_uploads(job, error):
                    await self._references.restart_with_new_uploads(job)
                return ScheduleAt(due)
            case RetryAction.REFUSE:
                changes = {"attempts": attempts, "failure": to_failure(error), "ended_at": self._store.utcnow()}
                await self._store.transition(job, JobState.REFUSED, **changes)
                return Finish()
            case RetryAction.PARK:
                failure = why_in_doubt(error, job.record, decision)
                if decision.kind is not FailureKind.KEY_TAKEN:
                    self._slots.hold(job)
                    return await self._leave_to_history(job, attempts=attempts, failure=failure, **doubt)
                await self._store.transition(job, JobState.UNCERTAIN, attempts=attempts, in_doubt=True, failure=failure)
                # This create took no slot: if another host bought a job under the key, the slot is counted as foreign.
                return self._hold_slots_step(job) if job.slots else Finish()
            case RetryAction.GIVE_UP if decision.in_doubt:  # it stays SUBMITTING, to be repeated under its key
                await self._store.transition(job, JobState.SUBMITTING, attempts=attempts, **doubt)
                doubtful = error.for_job(job.key, safe_to_repeat=False)
                doubtful.message += "; the job may have been bought: await it again to send it again under its key"
                return Finish(doubtful)
            case RetryAction.GIVE_UP:
                # If it is generated again, it has all attempts again.
                await self._store.transition(job, JobState.PENDING, attempts=0, first_sent_at=first_sent_at)
                return Finish(error.for_job(job.key, safe_to_repeat=True))

    async def continue_interrupted(self, job: TrackedJob) -> Next:
        """Continue a job that an earlier session left in SUBMITTING."""
        self._slots.hold(job)
        attempt = self._attempt_of(job, sent_before=True)
        job.first_attempt_at = self._clock()
        why = "the session ended before an answer came"
        decision = decide_failed_create(TransportError(why, possibly_sent=True), attempt, self._retry)
        doubt = fields_if_interrupted(job.record, self._store.utcnow(), self._history.lateness_s)
        if decision.action is not RetryAction.REPEAT:
            return await self._mark_uncertain(job, why, **doubt)
        await self._store.transition(job, JobState.SUBMITTING, **doubt)
        self._history.watch_repeats(job)
        return Enqueue()

    def _hold_slots_step(self, job: TrackedJob) -> Next:
        return HoldSlots(self._clock() + self._estimates.may_run_for_s(job))

    def _is_key_expired(self, job: TrackedJob) -> bool:
        """Whether the idempotency key is too old to repeat the create with it."""
        attempt = self._attempt_of(job, sent_before=True)
        return attempt.keyed and not attempt.is_key_alive

    def _attempt_of(self, job: TrackedJob, *, sent_before: bool) -> Attempt:
        return attempt_of(job, self._gateway, self._store, self._clock(), sent_before=sent_before)

    async def _mark_uncertain(self, job: TrackedJob, why: str, **changes: Any) -> Next:
        failure = job.record.failure or to_failure(TransportError(why, possibly_sent=True))
        return await self._leave_to_history(job, failure=failure, **changes)

    async def _leave_to_history(self, job: TrackedJob, **changes: Any) -> Next:
        """Let the gateway's history decide how a job in doubt goes on; without one it is UNCERTAIN."""
        if self._history.can_show(evolve(job.record, **changes)):
            await self._store.transition(job, JobState.SUBMITTING, **changes)
            if self._history.watch_parked(job):
                return AwaitHistory()
        await self._store.transition(job, JobState.UNCERTAIN, **{"in_doubt": True, **changes})
        return self._hold_slots_step(job)

    def _retry_wait_s(self, job: TrackedJob, error: NanoBananaError, decision: RetryDecision, now: float) -> float:
        if decision.action is not RetryAction.REPEAT:
            return 0.0
        backoff_s = self._retry.backoff_s(job.failures, self._jitter.random())
        wait_s = self._history.conflict_proven_after_s(job.record) if decision.kind is FailureKind.IN_PROGRESS else 0.0
        wait_s = max(asked_wait_s(error), wait_s, self._poller.outage.limited_wait_s(error, backoff_s))
        return wait_s if decision.in_doubt else self._slots.create_outage.limited_wait_s(job, wait_s, now)

    def _update_limits(self, job: TrackedJob, error: NanoBananaError, decision: RetryDecision, now: float) -> None:
        used_up = isinstance(error, RateLimited) and self._poller.used_up_budgets.pause_if_used_up(error, job.sent_at)
        if isinstance(error, RateLimited) and not used_up and not job.slots:
            self._slots.on_throttled(job, now, error)
        if is_outage(error) and not self._poller.outage.may_be_hopeless(error):
            self._slots.create_outage.failed(job, error, now, self._jitter.random())
        else:
            self._slots.create_outage.answered()
        if self._history.is_readable:
            if may_be_processed(job.record, decision.kind, self._history.lateness_s):
                self._slots.spacing.on_answer_lost(now, self._history.lateness_s)
            if decision.kind is FailureKind.IN_PROGRESS:
                self._slots.spacing.on_repeat_answered(named_task=False)
        if isinstance(error, (GatewayError, UnexpectedResponse)) and error.retry_after_s is not None:
            self._slots.breaker.pause_for(now, error.retry_after_s)
