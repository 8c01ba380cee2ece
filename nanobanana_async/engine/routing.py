"""Several accounts in one session: which of them buys a job, and when a job goes to another.

Each account has an engine of its own; all share one ledger and one event loop. A job is stored PENDING for one account,
and only that account may send it. While it waits for a slot there, it moves to an account that would send it now. It
also moves when its account plainly refuses to buy anything (401, 402, 403, an outage before anything was sent).

A move is one write: the job's next generation, under the other account, compared and swapped like each transition. A
kill leaves the record with one account or the other. A job that was sent and not plainly refused never moves: a second
account would pay for it again.
"""

from collections import ChainMap, deque
from collections.abc import Sequence
from functools import partial

from attrs import evolve

from nanobanana_async.engine.credit_account import ASK_AGAIN_S
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.movable import (
    ACCOUNT_REFUSALS,
    MOVABLE_UPLOAD_ERRORS,
    UNBOUGHT_KINDS,
    may_move,
    no_account_error,
    request_as_made,
    why_not,
)
from nanobanana_async.engine.next_step import Enqueue, Finish, Next, Prepare
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.references import has_local_images
from nanobanana_async.engine.route import Rest, Route
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.engine.uploaded_image import NO_UPLOADS
from nanobanana_async.errors import LedgerError, NanoBananaError, RateLimited
from nanobanana_async.events import log
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import NotOurs
from nanobanana_async.models import ImageRequest, with_model
from nanobanana_async.policy.retry import RetryAction, RetryDecision

REST_S = 60.0
"""How long an account gets no creates after it has refused to buy anything. Then it is tried again."""
DOWN_AFTER_S = 5.0
"""After how long without a usable answer, of polls too, an account's gateway counts as down."""
MOST_COMPARED_JOBS = 64
"""How many of the jobs that wait with an account are compared at a time."""


class Router:
    """Decides which account buys a job, and moves jobs that were surely not bought."""

    def __init__(self, engines: Sequence[Engine], *, by_wait: bool) -> None:
        self.engines = tuple(engines)
        """In the order in which they are preferred."""
        self.by_account, self._by_wait = {engine.account: engine for engine in engines}, by_wait
        self._why_not = partial(why_not, one_of_several=len({each.gateway.name for each in engines}) > 1)
        self._arriving: dict[str, deque[TrackedJob]] = {engine.account: deque() for engine in engines}
        """Jobs that were placed with an account, and are not in its queue yet."""
        self._preparing: dict[str, list[TrackedJob]] = {engine.account: [] for engine in engines}
        """Of these, those that wait for uploads of their reference images."""
        self._repeated: dict[str, dict[str, TrackedJob]] = {engine.account: {} for engine in engines}
        """Jobs whose create an account plainly refused, and that wait for their time to be sent there again."""
        for engine in engines:
            engine.submitter.after_failed_create = partial(self.after_failed_create, engine)
            engine.references.after_failure = partial(self._move_unsent, engine)
            engine.references.uploader.on_retry = self.rebalance_jobs
            engine.claimer.follow_with_account = partial(self._follow_with_account, engine)
            engine.scheduler.dispatcher.after_admission = self.rebalance_jobs
            engine.scheduler.dispatcher.after_wait = partial(self._move_unsent, engine)
            engine.scheduler.dispatcher.ask_again_every_s = ASK_AGAIN_S
            engine.store.credits.tracked_in_session = ChainMap(*(each.scheduler.tracked for each in engines))

    def find_follower(self, key: str) -> Engine | None:
        """Return the engine that follows a job, or holds its slots while it is uncertain."""
        return next((each for each in self.engines if key in each.tracked or key in each.scheduler.holding), None)

    def home_of(self, record: JobRecord) -> Engine:
        """Return the engine of a job's account; any engine, which refuses it, if the session does not have it."""
        return self.find_follower(record.key) or self.by_account.get(record.account) or self.engines[0]

    def choose(self, request: ImageRequest, priority: int) -> Engine:
        """Return the engine that should buy a new job. Raises `InvalidRequest` if none can take the request."""
        problems = {engine.account: self._why_not(engine.gateway, request) for engine in self.engines}
        able = [engine for engine in self.engines if problems[engine.account] is None]
        if not able:
            raise no_account_error(problems)
        return min(able, key=lambda engine: self._rank(engine, request, priority))

    def count_arriving(self, job: TrackedJob, engine: Engine, asked: ImageRequest | None) -> None:
        """Count a job that was just placed with an account, until it is in its queue."""
        if job.route is None:
            job.route = Route(asked)
        elif asked is not None:
            job.route.asked = asked
        if job.phase is Phase.CLAIMING:
            self._arriving[engine.account].append(job)

    def after_failed_create(
        self, engine: Engine, job: TrackedJob, error: NanoBananaError, decision: RetryDecision, sent_before: bool
    ) -> tuple[RetryDecision, NanoBananaError]:
        """Return the decision about a failed create, and its error: the job may wait for another account instead."""
        if job.route is None:
            job.route = Route()
        unbought_here, revision = not decision.in_doubt and decision.kind in UNBOUGHT_KINDS, job.record.revision
        unbought = unbought_here and (not sent_before or job.route.unbought_revision == revision - 1)
        job.route.unbought_revision = revision + 1 if unbought else None
        if unbought and decision.action is RetryAction.REPEAT:
            self._repeated[engine.account][job.key] = job
        by_account = isinstance(error, ACCOUNT_REFUSALS) and decision.action is RetryAction.REFUSE
        if not unbought_here or not (by_account or decision.action is RetryAction.GIVE_UP):
            return decision, error
        if self._next_account(engine, job, error) is None:
            return decision, self._explain(engine, job, error)
        self._let_rest(engine, error)
        return evolve(decision, action=RetryAction.REQUEUE), error

    def _next_account(self, engine: Engine, job: TrackedJob, error: NanoBananaError) -> Engine | None:
        """Note that an account does not buy a job, and why; return the one that buys it best now, or None."""
        job.route = job.route or Route()
        job.route.refusals = {**job.route.refusals, engine.account: error.for_job(job.key, safe_to_repeat=True)}
        request, priority, now = job.record.request, job.priority, engine.clock()
        if request is None or not may_move(job):
            return None
        able = [other for other in self.engines if self._may_take(other, job, now)]
        return min(able, key=lambda other: self._rank(other, request, priority), default=None)

    def _let_rest(self, engine: Engine, error: NanoBananaError) -> None:
        now = engine.clock()
        before, engine.rest = engine.rest, Rest(now + REST_S, error)
        engine.slots.breaker.pause_for(now, REST_S)
        if before is not None and now < before.until:
            return
        log.warning(
            "account.rests account=%s for=%gs error=%s",
            engine.account,
            REST_S,
            type(error).__name__,
            extra={"event": "account.rests", "account": engine.account},
        )

    def _move_unsent(self, engine: Engine, job: TrackedJob, error: NanoBananaError) -> NanoBananaError | None:
        """Let another account buy a job that its own can't send or take an image of; return the error if none can."""
        if not isinstance(error, (*ACCOUNT_REFUSALS, *MOVABLE_UPLOAD_ERRORS, RateLimited)):
            return error
        target = self._next_account(engine, job, error)
        if target is None:
            return self._explain(engine, job, error)
        # Else the job is too large for this account, or it may be the storage that does not answer.
        if isinstance(error, ACCOUNT_REFUSALS) or (job.phase is Phase.QUEUED and not isinstance(error, RateLimited)):
            self._let_rest(engine, error)
        self._start_move(engine, target, job)
        return None

    def rebalance_jobs(self) -> None:
        """Move jobs that wait with one account to others that would send them now."""
        now = self.engines[0].clock()
        roomy = [engine for engine in self.engines if self._has_room(engine, 1, now)]
        for source in self.engines if roomy else ():
            if source.scheduler.closing:
                return
            if source in roomy and len(roomy) == 1:
                continue
            for job in self._waiting_with(source):
                if not may_move(job) or self._has_slot_with(source, job, now):
                    continue
                targets = (each for each in roomy if each is not source and self._sends_now(each, job, now))
                target = next(targets, None)
                if target is not None:
                    self._start_move(source, target, job)
                    roomy = [engine for engine in roomy if self._has_room(engine, 1, now)]
                    if not roomy:
                        return

    def record_for(self, engine: Engine, record: JobRecord, asked: ImageRequest) -> JobRecord:
        """Return the record of a new job as another account would store it."""
        gateway, request = engine.gateway, with_model(asked, engine.gateway.model)
        body, slots = engine.references.body_to_store(request), gateway.slots_for(request)
        return evolve(record, gateway=gateway.name, account=engine.account, request=request, body=body, slots=slots)

    def _waiting_with(self, source: Engine) -> list[TrackedJob]:
        """Return jobs that wait to be sent by an account, or for uploads that its gateway does not answer."""
        queued = (job for job in source.scheduler.dispatcher.waiting(MOST_COMPARED_JOBS) if job.phase is Phase.QUEUED)
        unanswered = self._refresh_preparing(source) if source.poller.outage.error is not None else []
        return [*queued, *self._refresh_repeated(source), *unanswered[:MOST_COMPARED_JOBS]]

    def _start_move(self, source: Engine, target: Engine, job: TrackedJob) -> None:
        if job.phase is Phase.QUEUED:
            source.scheduler.dispatcher.take_out(job)
        job.enter_phase(Phase.MOVING)
        self._arriving[target.account].append(job)
        target.scheduler.start_step(partial(self._move, source, target), job)

    async def _move(self, source: Engine, target: Engine, job: TrackedJob) -> Next:
        """Write that another account buys a job from now on. Its engine follows the job, also if the write fails."""
        asked = request_as_made(job)
        assert asked is not None
        buyer = {"account": target.account, "gateway": target.gateway.name}
        try:
            asked = await target.callbacks.with_callback_url(asked, target.gateway, job.key)
            known, moved = job.ledger_record, self.record_for(target, job.record, asked)
            job.weight = moved.slots
            await source.store.start_generation(job, known, moved.body, moved.request, job.record.budget, **buyer)
        except NotOurs:
            raise
        except LedgerError as error:
            return Finish(error)
        finally:
            self._hand_on(source, target, job)
        log.info(
            "job.moved job=%s from=%s to=%s",
            job.key,
            source.account,
            target.account,
            extra={"event": "job.moved", "job": job.key, "account": target.account},
        )
        return Prepare() if has_local_images(moved.request) else Enqueue()

    def _hand_on(self, source: Engine, target: Engine, job: TrackedJob) -> None:
        """Let another engine follow a job, which applies the next step."""
        if source.scheduler.tracked.pop(job.key, None) is not None:  # else closing has ended the waiting
            source.store.credits.mark_not_under_way(job)
            source.slots.release(job)
            source.estimates.forget(job)
            if job.rare.uploads or job.rare.uploads_renewed:  # another account can't use them
                job.rare = evolve(job.rare, uploads=NO_UPLOADS, uploads_renewed=False)
            target.scheduler.dispatcher.assign_place(job)
            target.scheduler.tracked[job.key] = job
            target.scheduler.job_tracked.set()

    def _follow_with_account(self, source: Engine, job: TrackedJob, record: JobRecord) -> bool:
        """Let the engine of the job's present account follow it; return whether the session has that account."""
        target = self.by_account.get(record.account)
        if target is None:
            return False
        self._hand_on(source, target, job)
        target.store.replace_record(job, record)
        target.scheduler.start_step(target.claimer.check_owner, job)
        return True

    def _rank(self, engine: Engine, request: ImageRequest, priority: int) -> tuple[float, ...]:
        now, weight = engine.clock(), engine.gateway.slots_for(request)
        coming = self._jobs_ahead(engine, priority) * weight
        rests = self._rests(engine, now)
        has_room = not rests and engine.slots.has_room(weight, now, coming)
        learned = engine.estimates.best_known_durations
        typical_job_s = engine.gateway.expected_job_s if learned is None else learned.median_s
        taken = engine.slots.load.taken
        slots = engine.slots.limiter.job_limit.cap_in_slots or max(taken, 1)
        surplus = coming + taken + weight - slots
        wait_s = 0.0 if has_room else max(surplus / slots * typical_job_s, engine.slots.breaker.paused_until - now, 0.0)
        if self._by_wait:
            return rests, wait_s + typical_job_s
        return rests, not has_room, wait_s, self.engines.index(engine)

    def _has_room(self, engine: Engine, weight: int, now: float) -> bool:
        """Return whether an account would send one more job now, beside those that it has."""
        return not self._rests(engine, now) and engine.slots.has_room(weight, now, self._jobs_ahead(engine) * weight)

    def _sends_now(self, engine: Engine, job: TrackedJob, now: float) -> bool:
        """Return whether an account would send a job of another account now, or upload its reference images."""
        answers = job.phase is not Phase.PREPARING or engine.poller.outage.error is None
        return answers and self._has_room(engine, job.weight, now) and self._may_take(engine, job, now)

    def _has_slot_with(self, source: Engine, job: TrackedJob, now: float) -> bool:
        """Return whether a job waits with its account for something else than a slot."""
        if job.phase is Phase.PREPARING:
            return False
        return not self._rests(source, now) and source.slots.has_room_for(job, now)

    def _jobs_ahead(self, engine: Engine, priority: int | None = None) -> int:
        """Return how many jobs an account sends before a new one: of this priority, or of any."""
        preparing, arriving = self._refresh_preparing(engine), self._arriving[engine.account]
        return len(arriving) + len(preparing) + engine.scheduler.dispatcher.queue_length(priority)

    def _refresh_repeated(self, engine: Engine) -> list[TrackedJob]:
        """Return the jobs that wait for their time to be sent again; forget those that do so no longer."""
        live = [job for job in self._repeated[engine.account].values() if engine.tracked.get(job.key) is job]
        unsent = [job for job in live if job.record.task_id is None and job.phase in (Phase.IN_FLIGHT, Phase.SCHEDULED)]
        self._repeated[engine.account] = {job.key: job for job in unsent}
        return [job for job in unsent if job.phase is Phase.SCHEDULED and job.record.state is JobState.PENDING]

    def _refresh_preparing(self, engine: Engine) -> list[TrackedJob]:
        """Return the jobs placed with an account that wait for uploads; forget those that arrive no longer."""
        arriving, arrived = self._arriving[engine.account], self._preparing[engine.account]
        while arriving and arriving[0].phase not in (Phase.CLAIMING, Phase.MOVING):
            arrived.append(arriving.popleft())
        arrived[:] = [job for job in arrived if job.phase is Phase.PREPARING and engine.tracked.get(job.key) is job]
        return arrived

    def _rests(self, engine: Engine, now: float) -> bool:
        """Return whether an account gets no jobs that others can take: it refused one, or its gateway is down.

        Its own jobs, which are repeated and polled, show when a gateway is back; without any it is tried again.
        """
        if engine.rest is not None and now < engine.rest.until:
            return True
        is_down = engine.slots.breaker.is_half_open or engine.poller.outage.for_s >= DOWN_AFTER_S
        return is_down and bool(engine.tracked)

    def _may_take(self, engine: Engine, job: TrackedJob, now: float) -> bool:
        """Return whether an account may get a job: it has not refused it, and can take its request."""
        asked = request_as_made(job)
        refused = engine.slots.refuses(job) or (job.route is not None and engine.account in job.route.refusals)
        rests = engine.rest is not None and now < engine.rest.until
        return not (refused or rests or asked is None) and self._why_not(engine.gateway, asked) is None

    def _explain(self, engine: Engine, job: TrackedJob, error: NanoBananaError) -> NanoBananaError:
        """Return the error of the last account that refused a job, with the reasons of the others."""
        now = engine.clock()
        resting = [(each.account, each.rest) for each in self.engines if each.rest is not None]
        reasons = {account: rest.error for account, rest in resting if now < rest.until}
        reasons |= {} if job.route is None else job.route.refusals
        reasons.pop(engine.account, None)
        if not reasons:
            return error
        explained = error.for_job(job.key, safe_to_repeat=error.safe_to_repeat)
        listed = "; ".join(f"{account}: {reason.message}" for account, reason in reasons.items())
        explained.message = f"{error.message} (account {engine.account}); no other account buys it: {listed}"
        return explained
