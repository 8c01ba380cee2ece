"""Handle callbacks: each causes one poll of its job, and its content is not believed."""

import asyncio
from functools import partial

import anyio
from anyio.abc import TaskGroup
from attrs import evolve

from nanobanana_async.engine.callback_router import CallbackRouter
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import LedgerError, NanoBananaError, RateLimited
from nanobanana_async.events import CallbackReceived, log
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.policy.retry import is_outage

# How often the callback notices are fetched that other processes left for us in the ledger, while jobs are tracked.
NOTICE_FETCH_S = 0.5

# The gap between two queries about an uncertain job; it grows while queries fail, up to `LONGEST_CONFIRM_GAP_S`.
LEAST_CONFIRM_GAP_S = 1.0
LONGEST_CONFIRM_GAP_S = 30.0

# How many uncertain jobs are queried at the same time.
MAX_CONFIRMATIONS = 8


class CallbackHandler:
    """Finds the job of a callback: tracked here, followed by another process, or uncertain and without an owner."""

    def __init__(self, gateway: Gateway, engine: Engine, callbacks: CallbackRouter) -> None:
        self._gateway = gateway
        self._engine = engine
        self._callbacks = callbacks
        self._clock = asyncio.get_running_loop().time
        self._confirmations = asyncio.Semaphore(MAX_CONFIRMATIONS)
        self._unconfirmed: dict[str, str | None] = {}
        """The keys of uncertain jobs that are being confirmed, each with the task id to query next, if there is one."""

    async def handle(self, key: str, body: bytes) -> bool:
        """Handle a callback to the URL of a job; return False when the session is closing."""
        scheduler = self._engine.scheduler
        if scheduler.closing:
            return False
        task_id = self._task_id_in(body)
        if not self._receive_if_ours(key, task_id):  # the copy of a job that another owner follows may be stale
            await self._handle_untracked(await self._engine.store.ledger.find(key), task_id)
        return not scheduler.closing

    async def handle_task(self, record: JobRecord, task_id: str) -> None:
        """Handle a callback about a task, which the ledger has just returned as the task of this job."""
        if not self._receive_if_ours(record.key, task_id):
            await self._handle_untracked(record, task_id)

    async def keep_fetching_notices(self) -> None:
        """Fetch the notices that other processes leave about callbacks of our jobs, as long as the session is open."""
        await self._callbacks.enabled.wait()
        while True:
            if not self._engine.tracked:  # a session without jobs sleeps
                self._engine.scheduler.job_tracked.clear()
                await self._engine.scheduler.job_tracked.wait()
            await anyio.sleep(NOTICE_FETCH_S)
            try:
                notices = await self._engine.store.ledger.take_notices() if self._engine.tracked else ()
            except LedgerError as error:
                log.warning("ledger.failed error=%s", error.message)
                continue
            for key, task_id in notices:
                self._callbacks.receive_notice(key, task_id)

    def follows(self, key: str) -> bool:
        """Return whether the session follows the job with this account."""
        return key in self._engine.tracked

    def receive_notice(self, key: str, task_id: str | None) -> None:
        """Handle a callback that another process got, if the session follows the job with this account."""
        if (job := self._engine.tracked.get(key)) is not None:
            self._receive_callback(job, task_id)

    def _task_id_in(self, body: bytes) -> str | None:
        try:
            return self._gateway.read_callback(body).task_id
        except NanoBananaError:
            return None

    def _receive_if_ours(self, key: str, task_id: str | None) -> bool:
        job = self._engine.tracked.get(key)
        if job is None or job.phase is Phase.FOREIGN:
            return False
        self._receive_callback(job, task_id)
        return True

    def _receive_callback(self, job: TrackedJob, task_id: str | None) -> None:
        job.callback_pending = True
        self._engine.store.emit(CallbackReceived(record=job.record))
        if job.record.state is JobState.RUNNING:
            self._engine.scheduler.poll_soon(job)
        elif job.record.state is JobState.SUBMITTING and task_id is not None:
            # The callback came before the answer to the create, or that answer is lost.
            if job.rare.task_id_of_callback is None:
                job.add_listener(self._start_confirming_if_uncertain)
            job.rare = evolve(job.rare, task_id_of_callback=task_id)

    async def _handle_untracked(self, record: JobRecord | None, task_id: str | None) -> None:
        if record is None or self._engine.scheduler.closing:
            return
        ledger, ours = self._engine.store.ledger, record.account == self._gateway.account
        match record.state:
            case JobState.UNCERTAIN if task_id is not None and ours:
                self._confirm_task_later(record.key, task_id)
            case JobState.RUNNING | JobState.SUBMITTING:
                claim = await ledger.adopt(record.key) if ours else None
                if claim is not None and claim.is_ours:
                    job = self._engine.tracked.get(record.key) or self._engine.build_tracked_job(claim.record)
                    self._receive_callback(self._engine.ensure_followed(job), task_id)
                else:
                    await ledger.notify_owner(record.key, task_id)
            case _:
                pass  # the job has ended, or was never sent: no callback is due

    def _start_confirming_if_uncertain(self, job: TrackedJob) -> None:
        in_doubt, claimed = not job.is_followed and job.record.state is JobState.UNCERTAIN, job.rare.task_id_of_callback
        if in_doubt and claimed is not None and not self._engine.scheduler.closing:
            self._confirm_task_later(job.key, claimed)

    def _confirm_task_later(self, key: str, task_id: str) -> None:
        """Have an uncertain job confirmed. A task id that comes while a query is in flight is queried after it."""
        confirming = key in self._unconfirmed
        self._unconfirmed[key] = task_id
        if not confirming:
            self._engine.scheduler.start_background_task(partial(self._confirm_loop, key))

    async def _confirm_loop(self, key: str, _: TaskGroup) -> None:
        """Query the task ids claimed for an uncertain job, one after the other, until none is left."""
        since, failures = self._clock(), 0
        try:
            while (task_id := self._unconfirmed[key]) is not None:
                self._unconfirmed[key] = None
                wait_s = LEAST_CONFIRM_GAP_S
                try:
                    async with self._confirmations:
                        decided = await self._try_to_confirm(key, task_id)
                except NanoBananaError as error:
                    log.info("callback.unconfirmed job=%s error=%s", key, type(error).__name__)
                    again = is_outage(error) or isinstance(error, RateLimited)
                    decided = not again or self._clock() - since >= self._engine.poller.deadlines.job_s
                    if not decided:
                        wait_s, failures = min(LONGEST_CONFIRM_GAP_S, LEAST_CONFIRM_GAP_S * 2**failures), failures + 1
                if not decided and self._unconfirmed[key] is None:
                    self._unconfirmed[key] = task_id
                await anyio.sleep(wait_s)
        finally:
            del self._unconfirmed[key]

    async def _try_to_confirm(self, key: str, task_id: str) -> bool:
        """Give an uncertain job its task id, if the task exists and is no other job's. Return False to try again."""
        engine, ledger = self._engine, self._engine.store.ledger
        record = await ledger.find(key)
        if record is None or record.state is not JobState.UNCERTAIN:  # another process was faster
            await self._handle_untracked(record, task_id)
            return True
        known = await ledger.find_task(record.account, task_id)
        if known is not None and known.key != key:
            return True
        if key in engine.tracked:  # it is not uncertain yet: its last create is still being handled
            return False
        asked_at = self._clock()
        seen = await engine.poller.query_once(task_id)
        if key in engine.tracked:
            return False
        if seen.state is JobState.FAILED and record.generation > 1:  # probably the task of an earlier generation
            return True
        job = engine.scheduler.holding.get(key)
        if job is None or job.record.revision != record.revision:
            job = engine.build_tracked_job(record)
        job = engine.resolve(job, task_id=task_id, buy_again=False)
        job.callback_pending, job.polled_at = True, asked_at
        return True
