"""The commands of a session on its jobs: submit, find, follow, resolve, withdraw."""

import asyncio
from collections.abc import Hashable, Mapping
from decimal import Decimal

from attrs import evolve

from nanobanana_async.engine.callback_router import CallbackRouter
from nanobanana_async.engine.claimer import Claimer
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.history import History
from nanobanana_async.engine.next_step import HoldSlots, Next, ScheduleAt
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.rare_facts import NO_RARE_FACTS, NO_SOURCES, RareFacts
from nanobanana_async.engine.references import References
from nanobanana_async.engine.route import Rest
from nanobanana_async.engine.scheduler import Scheduler
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.submitter import Submitter
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.errors import ConfigurationError, LedgerError, NanoBananaError, SessionClosed
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.local import LocalImagesByDigest
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState, Observation, with_indexes
from nanobanana_async.keys import key_for_task, validate_key, validate_task_id
from nanobanana_async.ledger.base import TaskTaken
from nanobanana_async.loop_guard import LoopGuard
from nanobanana_async.models import ImageRequest, with_model
from nanobanana_async.policy.budget import Affordable, Cap, LedgerCap, MemoryCap
from nanobanana_async.policy.named_budget import Budget


class Engine:
    """The commands on jobs. None awaits between reading `tracked` and changing it, so that none acts on stale data."""

    def __init__(
        self,
        gateway: Gateway,
        store: JobStore,
        slots: Slots,
        submitter: Submitter,
        poller: Poller,
        estimates: JobEstimates,
        references: References,
        history: History,
        *,
        budgets: tuple[Cap, ...],
        callbacks: CallbackRouter,
        guard: LoopGuard,
        max_requests: int,
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self.gateway, self.store, self.guard, self._session_caps = gateway, store, guard, budgets
        self.account = gateway.account  # each reading of it hashes the key again, and makes another string
        self.slots, self.poller, self.submitter = slots, poller, submitter
        self.callbacks, self.estimates, self.history, self.references = callbacks, estimates, history, references
        self.claimer = Claimer(gateway, store, slots, poller, estimates, clock=self.clock)
        self.scheduler = Scheduler(
            store, slots, submitter, poller, self.claimer, estimates, references, max_requests=max_requests
        )
        self.tracked: Mapping[str, TrackedJob] = self.scheduler.tracked
        self.members: tuple[Engine, ...] = (self,)  # the engines of the session: one for each account
        self.orphans_seen = asyncio.Event()  # an exchange has found jobs that run and have no living owner
        self.rest: Rest | None = None  # the account's last one; it may be over

    def home_of(self, job: TrackedJob) -> "Engine":
        """Return the engine of the job's account."""
        return self

    def submit(
        self,
        record: JobRecord,
        *caps: Cap,
        expected_credits: Decimal | None = None,
        retry_failed: frozenset[str] = frozenset(),
        sources: LocalImagesByDigest = NO_SOURCES,
        group: Hashable = None,
    ) -> TrackedJob:
        """Track a new job and claim its key, or return the job under it; `group` is for a job that has no other."""
        self.scheduler.check_open(record, is_known=False)
        job = self.tracked.get(record.key)
        if job is None:
            job = self.scheduler.track(self.build_tracked_job(record), Phase.CLAIMING)
            job.caps += caps
            if job.rare is not NO_RARE_FACTS or expected_credits is not None or retry_failed or sources:
                job.rare = RareFacts(
                    expected_credits=expected_credits, retry_failure_kinds=retry_failed, sources=sources
                )
            job.group = group if job.group is None else job.group
            self.scheduler.start_step(self.claimer.claim, job)
        else:
            self.claimer.check_same_purchase(job.record, record)
            self.claimer.put_under_budget(job, record.budget)
            self.scheduler.dispatcher.raise_priority(job, record.priority)
            if record.request is not None:
                self.references.take_newer_request(job, record.request, sources)
        job.may_buy = True
        return job

    def attach(self, record: JobRecord, seen: Observation) -> TrackedJob:
        """Track a job that was bought outside this ledger, or return the job that is tracked under its key.

        `seen` is the answer to a query of its task: if the task has ended, no further poll is needed.
        """
        self.scheduler.check_open(record)
        job = self.tracked.get(record.key)
        if job is not None:
            self.claimer.check_same_purchase(job.record, record)
            return job

        async def claim(job: TrackedJob) -> Next:
            next_step = await self.claimer.claim(job)
            if not isinstance(next_step, ScheduleAt) or seen.state is JobState.RUNNING:
                return next_step
            self.estimates.forget(job)
            job.schedule = None  # it is unknown when the task began: its duration is not learned
            return await self.poller.apply_observation(job, seen)

        job = self.scheduler.track(self.build_tracked_job(record), Phase.CLAIMING)
        job.polls, job.polled_at = 1, self.clock()
        self.scheduler.start_step(claim, job)
        return job

    async def new_record(
        self,
        request: ImageRequest,
        key: str,
        *,
        batch: str | None = None,
        budget: Budget | None = None,
        priority: int = 0,
        group: str | None = None,
        with_callback: bool = True,
    ) -> JobRecord:
        """Return the record of a new job. Raises `InvalidRequest` for a request that this gateway doesn't support.

        Local images of the request must be in their stored form (`References.digest_images`). The record names the
        model even if the gateway chose it: another model is another request. One for another host has no callback.
        """
        key = validate_key(key)
        request = with_model(request, self.gateway.model)
        if with_callback:
            request = await self.callbacks.with_callback_url(request, self.gateway, key)
        self.gateway.check(request)
        if budget is not None:
            await self.store.set_budget(budget)
        return JobRecord(
            key=key,
            gateway=self.gateway.name,
            account=self.account,
            request=request,
            body=self.references.body_to_store(request),
            created_at=self.store.utcnow(),
            batch=batch,
            budget=None if budget is None else budget.name,
            priority=priority,
            group_name=group,
            slots=self.gateway.slots_for(request),
        )

    def new_attached_record(self, task_id: str, key: str, request: ImageRequest | None) -> JobRecord:
        """Return the record of a job that was bought outside this ledger, by its task id."""
        now = self.store.utcnow()
        return JobRecord(
            key=validate_key(key),
            gateway=self.gateway.name,
            account=self.account,
            slots=1 if request is None else self.gateway.slots_for(request),
            request=None if request is None else with_model(request, self.gateway.model),
            body=b"",
            created_at=now,
            state=JobState.RUNNING,
            task_id=task_id,
            running_since=now,
        )

    def make_cap(self, max_credits: Decimal, batch: str | None) -> Cap:
        """Return a cap of credits. The ledger counts what a named batch spends, this session the rest."""
        return MemoryCap(max_credits, self.store.credits.prices) if batch is None else LedgerCap(max_credits)

    async def find(self, key: str) -> TrackedJob | None:
        """Return the job with this key, tracked or from the ledger; None if there is none."""
        job = self.tracked.get(key)
        if job is None and (record := await self.store.ledger.find(key)) is not None:
            job = self.tracked.get(key) or self.build_tracked_job(record)
        return job

    def build_tracked_job(self, record: JobRecord) -> TrackedJob:
        """Return a `TrackedJob` for a record; it is not followed yet."""
        job = TrackedJob(record, 1 if record.request is None else self.gateway.slots_for(record.request))
        job.caps = self._session_caps
        return job

    def ensure_followed(self, job: TrackedJob) -> TrackedJob:
        """Follow a job that is not followed (any more). Return the one that is tracked under its key."""
        record = job.record
        if record.key in self.tracked:
            return self.tracked[record.key]
        if record.state not in ACTIVE_STATES:
            return job
        self.scheduler.check_open(record, is_known=job.wait_error is None or job.wait_error.safe_to_repeat)
        self.claimer.check_account(record)
        if record.state is not JobState.PENDING or not job.wait_error:
            job.failures = 0
            if job.rare.first_imageless_at < NEVER:
                job.rare = evolve(job.rare, first_imageless_at=NEVER)
            self.scheduler.start_step(self.claimer.check_owner, self.scheduler.track(job, Phase.CLAIMING))
        return job

    async def reload_and_follow(self, job: TrackedJob) -> TrackedJob:
        """Follow a job. Read it from the ledger first if another process may have resolved or continued it."""
        given_up = job.wait_error is not None and job.record.state is JobState.PENDING
        if (given_up or job.record.state is JobState.UNCERTAIN) and not (job.is_followed or self.scheduler.closing):
            record = await self.store.ledger.find(job.key)
            moved_on = record is not None and record.revision != job.ledger_record.revision
            if record is not None and moved_on and not (given_up and record.state is JobState.PENDING):
                self.scheduler.take_newer_record(job, record)
        return self.ensure_followed(job)

    def resolve(self, job: TrackedJob, *, task_id: str | None, buy_again: bool) -> TrackedJob:
        """Resolve a job: it has this task id, is bought again, or was not bought. Return the tracked job.

        A RUNNING job must be ours, and the gateway must not know its task (`ManualResolver` checks that).
        """
        record = job.record
        if task_id is not None:
            validate_task_id(task_id)
        self.check_resolvable(job, buy_again=buy_again)
        if buy_again and self.store.credits.affordability_of_another_purchase(job, self.clock()) is Affordable.NEVER:
            raise self.store.credits.cap_exceeded_error(job).for_job(record.key, safe_to_repeat=False)
        body = self.references.body_to_store(record.request) if buy_again and record.request is not None else None
        job.may_buy = True

        async def resolved(job: TrackedJob) -> Next:
            try:
                next_step = await self.claimer.store_resolution(job, task_id=task_id, body=body)
                job.wake()
                return next_step
            except LedgerError as error:  # the record is unchanged: it can be resolved again
                taken = isinstance(error, TaskTaken)
                job.wake(ConfigurationError(f"{error.message}: nothing was changed") if taken else error)
                if job.record.state is JobState.RUNNING:  # `ManualResolver` releases it
                    raise
                return HoldSlots(job.holds_slots_until)

        self.scheduler.start_step(resolved, self.scheduler.track(job, Phase.RECOVERING))
        return job

    def check_resolvable(self, job: TrackedJob, *, buy_again: bool) -> None:
        """Raise `ConfigurationError` if the job can't be resolved this way."""
        record = job.record
        resolvable = record.state in (JobState.UNCERTAIN, JobState.RUNNING)
        if not (resolvable or (buy_again and record.state is JobState.FAILED)):
            raise ConfigurationError(f"job {record.key} is {record.state.value}: there is nothing to resolve")
        if buy_again and record.request is None:
            raise ConfigurationError(f"the request of job {record.key} is not in the ledger: it cannot be bought again")
        if job.is_followed and record.state is JobState.RUNNING:
            raise ConfigurationError(f"job {record.key} is running and polled by this session: nothing to resolve")
        if job.is_followed:
            raise ConfigurationError(f"job {record.key} is being resolved by another call")
        self.scheduler.check_open(record)
        self.claimer.check_account(record)

    async def poll_again_for_images(self, job: TrackedJob) -> None:
        """Poll a job that has succeeded once more for its images: the ledger does not store inline ones."""
        self.claimer.check_account(job.record)
        job.observation = await self._poll_images(job.record.task_id or "", job.key)

    async def fetch_image_links(self, task_id: str) -> dict[int, str]:
        """Poll a task once more for new links to its images, by their index: links expire."""
        seen = await self._poll_images(task_id, key_for_task(task_id))
        return dict(with_indexes(seen.images, seen.missing))

    async def _poll_images(self, task_id: str, key: str) -> Observation:
        if self.scheduler.closing:
            raise SessionClosed("the session is closed", key=key, safe_to_repeat=False)
        poll = self.scheduler.image_polls.start(task_id, self.clock())
        self.scheduler.tick()
        answer = await asyncio.shield(poll.answer)
        if isinstance(answer, NanoBananaError):
            raise answer.for_job(key, safe_to_repeat=False)
        return answer

    def request_withdrawal(self, job: TrackedJob) -> bool:
        """Withdraw a job that was not sent yet. Return False if it was sent, or if another owner follows it."""
        taken = job.is_being_withdrawn or job.phase in (Phase.IN_FLIGHT, Phase.FOREIGN) or job.wait_error is not None
        if self.scheduler.closing or taken or job.record.state is not JobState.PENDING:
            return False
        self.claimer.check_account(job.record)
        if job.phase in (Phase.PREPARING, Phase.QUEUED, Phase.SCHEDULED):
            self.scheduler.withdraw(job)
            return True
        job.request_withdrawal()
        if not job.is_followed:  # another owner may have it; a live job is withdrawn when its current step is over
            self.scheduler.start_step(self.claimer.check_owner, self.scheduler.track(job, Phase.CLAIMING))
        return True

    def add_caller(self, job: TrackedJob) -> None:
        """Count a caller that waits for the job."""
        job.callers += 1

    def keep_for_handle(self, job: TrackedJob) -> None:
        """Let the job outlive its callers, since a handle was given out."""
        job.has_handle = True

    def drop_caller(self, job: TrackedJob, *, if_requeued: bool = False) -> None:
        """Count one caller less. Without another caller or a handle, a job that was not sent is withdrawn.

        With `if_requeued`, a job whose create is in flight is withdrawn too, if the gateway refuses it for now.
        """
        job.callers -= 1
        if job.callers or job.has_handle:
            return
        job.may_buy = False
        if if_requeued and job.phase is Phase.IN_FLIGHT:
            job.request_withdrawal()
        self.request_withdrawal(job)
