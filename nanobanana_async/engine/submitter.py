"""The whole purchase: written down, sent, answered, written down again, and only then told.

    PENDING -> SUBMITTING (durable) -> POST -> RUNNING with its task id (durable) -> told

Each step returns when the job is due again, in the loop's time; what is to be done then follows from its state:
PENDING waits for a slot, SUBMITTING is repeated under its key, RUNNING is looked at, UNCERTAIN gives its slot back.
"""

import random
from collections.abc import Callable
from datetime import datetime

from attrs import evolve

from nanobanana_async.engine.contained_send import send_contained
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore, failure_of
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.errors import (
    MAX_RETRY_AFTER_S,
    GatewayError,
    IdempotencyConflict,
    JobUncertain,
    LedgerError,
    NanoBananaError,
    RateLimited,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.events import CreateFailed
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.http.threads import AnswerReader
from nanobanana_async.jobs import Accepted, Failure, JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, TaskTaken
from nanobanana_async.policy.retry import (
    Attempt,
    FailureKind,
    RetryAction,
    RetryDecision,
    RetryPolicy,
    decide_create,
    is_outage,
)


class Submitter:
    """Buys one job at a time; all it knows of a job is its entry."""

    def __init__(
        self,
        gateway: Gateway,
        transport: Transport,
        books: JobStore,
        slots: Slots,
        retry: RetryPolicy,
        *,
        create_s: float,
        begin: Callable[[TrackedJob], float],
        lingers_s: Callable[[TrackedJob], float],
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._store = books
        self._slots = slots
        self._retry = retry
        self._create_s = create_s
        self._begin = begin
        self._may_run_for_s = lingers_s
        self._clock = clock
        self._answers = AnswerReader()
        self._jitter = random.Random()
        self._last_limits: tuple[object, ...] = ()

    async def submit(self, entry: TrackedJob) -> float:
        """Make one create for the job, first or repeated; return when it is due again."""
        sent_before = entry.record.first_sent_at is not None
        if entry.record.in_doubt and self._expired(entry):  # it may have waited long for its turn
            self._slots.create_returned(entry)
            return await self._mark_uncertain(entry, "its idempotency key is too old to be sent again")
        answer = await self._attempt_create(entry)
        match answer:
            case Accepted():
                return await self._accepted(entry, answer)
            case Allowance():  # it waits for its turn again, or is declined
                self._store.credits.refused(entry, answer, self._clock())
                return self._clock()
            case LedgerError():  # no durable intent, no POST
                entry.wait_error = answer
                entry.wake()
                return NEVER
            case _:
                return await self._not_accepted(entry, answer, sent_before)

    async def _attempt_create(self, entry: TrackedJob) -> Accepted | Allowance | NanoBananaError:
        try:
            if entry.record.state is JobState.PENDING:
                allowance = await self._write_intent(entry)
                if allowance is not None and allowance.refusal is not None:
                    return allowance
            return await self._post(entry)
        except NanoBananaError as error:
            return error
        finally:
            self._slots.create_returned(entry)

    async def _write_intent(self, entry: TrackedJob) -> Allowance | None:
        record = entry.record
        if entry.first_attempt_at == NEVER:
            entry.first_attempt_at = self._clock()
        return await self._store.set_aside(entry, first_sent_at=record.first_sent_at or self._store.utcnow())

    async def _post(self, entry: TrackedJob) -> Accepted:
        request = self._gateway.build_create(entry.record.body, wire_key=entry.record.wire_key)
        # A pooled connection that the server has just closed looks like a lost answer: without a key that is doubt.
        fresh = not self._gateway.supports_idempotency_keys
        response = await send_contained(self._transport, request, timeout_s=self._create_s, fresh_connection=fresh)
        return await self._answers.read(self._gateway.read_create, response)

    async def _accepted(self, entry: TrackedJob, accepted: Accepted) -> float:
        self._slots.breaker.succeeded()
        entry.failures = 0
        entry.running_at = self._clock()
        self._slots.on_accepted(entry, entry.running_at)
        self._emit_limits(entry.running_at)
        if accepted.credits_remaining is not None:
            self._store.credits.remaining = accepted.credits_remaining
        attempts = entry.record.attempts + 1
        try:
            await self._store.record_known(  # if it can't be written down the waiters hear of it, the following goes on
                entry,
                JobState.RUNNING,
                task_id=accepted.task_id,
                running_since=self._store.utcnow(),
                in_doubt=False,
                body=b"",  # it is never sent again
                attempts=attempts,
                credits_used=accepted.credits_used,
                model=accepted.model,
            )
        except TaskTaken as taken:  # what was paid for is unknown: the task shows the other job's images
            why = f"the gateway answered with task {accepted.task_id}, which is the task of job {taken.holder} already"
            failure = Failure(kind=UnexpectedResponse.__name__, message=why, request_id=accepted.request_id)
            facts = {"attempts": attempts, "credits_used": accepted.credits_used, "failure": failure}
            await self._store.transition(entry, JobState.UNCERTAIN, in_doubt=True, **facts)
            return self._clock() + self._may_run_for_s(entry)
        return self._begin(entry)

    async def _not_accepted(self, entry: TrackedJob, error: NanoBananaError, sent_before: bool) -> float:
        entry.failures += 1
        attempt = self._attempt(entry, sent_before)
        verdict = decide_create(error, attempt, self._retry)
        now = self._clock()
        wait_s = self._wait_s(entry, error, verdict)
        self._update_limits(entry, error, verdict, now)
        self._emit_limits(now)
        move, doubt = verdict.action.name.lower(), verdict.in_doubt
        self._store.emit(CreateFailed(record=entry.record, error=error, action=move, wait_s=wait_s, in_doubt=doubt))
        try:
            return await self._carry_out(entry, error, verdict, attempt, now + wait_s)
        except LedgerError as unwritten:  # the record stays SUBMITTING, which is true: it may have been sent
            entry.wait_error = unwritten
            entry.wake()
            return NEVER

    async def _carry_out(
        self, entry: TrackedJob, error: NanoBananaError, verdict: RetryDecision, attempt: Attempt, due: float
    ) -> float:
        attempts = entry.record.attempts + verdict.costs_attempt
        unsent = verdict.kind is FailureKind.NOT_SENT and not attempt.sent_before
        first_sent_at = None if unsent else entry.record.first_sent_at
        match verdict.action:
            case RetryAction.REPEAT if verdict.in_doubt:
                self._slots.acquire(entry)
                entry.draws_retry_budget = verdict.kind in (FailureKind.SERVER_ERROR, FailureKind.NO_ANSWER)
                await self._store.transition(entry, JobState.SUBMITTING, attempts=attempts, in_doubt=True)
                return due
            case RetryAction.REPEAT | RetryAction.REQUEUE:
                if verdict.action is RetryAction.REQUEUE:
                    entry.failures = 0
                    entry.first_attempt_at = NEVER  # waiting for a slot is no trouble, and does not use up `max_wait_s`
                await self._store.transition(entry, JobState.PENDING, attempts=attempts, first_sent_at=first_sent_at)
                return due
            case RetryAction.REFUSE:
                await self._store.transition(
                    entry,
                    JobState.REFUSED,
                    attempts=attempts,
                    failure=failure_of(error),
                    ended_at=self._store.utcnow(),
                )
                return NEVER
            case RetryAction.PARK:
                failure = _reason(error, entry.record, verdict)
                if verdict.kind is not FailureKind.KEY_TAKEN:
                    self._slots.acquire(entry)
                await self._store.transition(
                    entry, JobState.UNCERTAIN, attempts=attempts, in_doubt=True, failure=failure
                )
                # This create took no slot: a job that somebody else bought under the key counts as theirs.
                return self._clock() + self._may_run_for_s(entry) if entry.slots else NEVER
            case RetryAction.GIVE_UP:
                # Whoever generates it again has all attempts before him.
                await self._store.transition(entry, JobState.PENDING, attempts=0, first_sent_at=first_sent_at)
                entry.wait_error = error
                entry.wake()
                return NEVER

    async def recover(self, entry: TrackedJob) -> float:
        """Go on with a job found in the ledger half-way through its purchase; return when it is due."""
        self._slots.acquire(entry)
        attempt = self._attempt(entry, sent_before=True)
        entry.first_attempt_at = self._clock()
        why = "the session ended before an answer came"
        verdict = decide_create(TransportError(why, possibly_sent=True), attempt, self._retry)
        if verdict.action is not RetryAction.REPEAT:
            return await self._mark_uncertain(entry, why)
        await self._store.transition(entry, JobState.SUBMITTING, in_doubt=True)
        return self._clock()

    def _expired(self, entry: TrackedJob) -> bool:
        """Whether the key of a repeat is no longer trusted at the moment it would leave."""
        attempt = self._attempt(entry, sent_before=True)
        return attempt.keyed and not attempt.key_lives

    async def _mark_uncertain(self, entry: TrackedJob, why: str) -> float:
        failure = entry.record.failure or failure_of(TransportError(why, possibly_sent=True))
        await self._store.transition(entry, JobState.UNCERTAIN, in_doubt=True, failure=failure)
        return self._clock() + self._may_run_for_s(entry)

    def _key_age_s(self, entry: TrackedJob, first_sent_at: datetime) -> float:
        """By the wall clock, which outlives us; but not less than what the loop has seen, whatever that clock does."""
        age_s = self._store.age_s(first_sent_at)
        return age_s if age_s < 0 else max(age_s, self._clock() - entry.first_attempt_at)

    def _attempt(self, entry: TrackedJob, sent_before: bool) -> Attempt:
        record = entry.record
        return Attempt(
            keyed=self._gateway.supports_idempotency_keys,
            sent_before=sent_before,
            in_doubt=record.in_doubt,
            number=record.attempts + 1,
            waited_s=max(0.0, self._clock() - entry.first_attempt_at),
            key_age_s=0.0 if record.first_sent_at is None else self._key_age_s(entry, record.first_sent_at),
            key_lifetime_s=self._gateway.key_lifetime_s,
        )

    def _wait_s(self, entry: TrackedJob, error: NanoBananaError, verdict: RetryDecision) -> float:
        if verdict.action is not RetryAction.REPEAT:
            return 0.0
        asked = min(getattr(error, "retry_after_s", None) or 0.0, MAX_RETRY_AFTER_S)
        return max(asked, self._retry.backoff_s(entry.failures, self._jitter.random()))

    def _update_limits(self, entry: TrackedJob, error: NanoBananaError, verdict: RetryDecision, now: float) -> None:
        if isinstance(error, RateLimited) and not entry.slots:
            self._slots.on_throttled(entry, now, error.kind, error.retry_after_s)
        if is_outage(error):
            self._slots.breaker.failed(now, self._jitter.random())
        else:
            self._slots.breaker.succeeded()
        if isinstance(error, (GatewayError, UnexpectedResponse)) and error.retry_after_s is not None:
            self._slots.breaker.pause_until(now, error.retry_after_s)

    def _emit_limits(self, now: float) -> None:
        """Announce what is known of the limits, when it has changed."""
        standing = self._slots.snapshot(now)
        known = (
            standing.job_limit,
            standing.creates_per_s,
            standing.limit_kind,
            standing.gate_open,
            standing.throttled,
        )
        if known != self._last_limits:
            self._last_limits = known
            self._store.emit(standing)


def _reason(error: NanoBananaError, record: JobRecord, verdict: RetryDecision) -> Failure:
    """Return why nobody knows whether a job was bought; a conflict is one only if the job was never sent before."""
    failure = failure_of(error)
    if verdict.kind is FailureKind.KEY_TAKEN:
        why = (
            f"the gateway has had key {record.wire_key} before, and not from this job: another host may have bought job"
            f" {record.key} under it, or this one before its ledger was lost or pruned. Nothing was bought now, and"
            f" nothing will be: look for the task in the gateway's own list, then settle the job ({error.message})"
        )
        return evolve(failure, message=why)
    if isinstance(error, IdempotencyConflict):
        return evolve(failure, kind=JobUncertain.__name__)
    return failure
