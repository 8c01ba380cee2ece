"""A callback causes one poll; what it says is not believed."""

import asyncio
from functools import partial

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.callback_urls import CallbackUrls
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.tracked_job import Phase, TrackedJob
from nanobanana_async.errors import LedgerError, NanoBananaError, RateLimited
from nanobanana_async.events import CallbackReceived, log
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.policy.retry import is_outage

# How often word is fetched that other processes have left for us in the ledger.
NOTICE_POLL_S = 0.5

# At most one question about a doubtful job in this time; longer and longer while no answer comes.
CONFIRM_GAP_S = 1.0
LONGEST_WAIT_S = 30.0

# So many doubtful jobs are asked about at the same time.
MAX_CONFIRMATIONS = 8


class CallbackHandler:
    """Finds the job of a callback: live here, followed by another process, or in doubt and without an owner."""

    def __init__(self, gateway: Gateway, engine: Engine, callbacks: CallbackUrls) -> None:
        self._gateway = gateway
        self._engine = engine
        self._callbacks = callbacks
        self._clock = asyncio.get_running_loop().time
        self._confirmations = asyncio.Semaphore(MAX_CONFIRMATIONS)
        self._unconfirmed: dict[str, str | None] = {}
        """Doubtful jobs that are asked about now, or were a moment ago; and the task id that waits for its turn."""

    async def handle(self, key: str, body: bytes) -> bool:
        """Take a call that came to a job's own URL; False when the session is closing."""
        runner = self._engine.scheduler
        if runner.closing:
            return False
        task_id = self._task_id_in(body)
        entry = self._engine.tracked.get(key)
        if entry is not None and entry.phase is not Phase.FOREIGN:
            self._wake(entry, task_id)
        else:  # what we know of a job of others may be old
            await self._route_to_owner(await self._engine.store.ledger.find(key), task_id)
        return not runner.closing

    async def fetch_notices(self) -> None:
        """Fetch, as long as the session lives, what other processes have heard of our jobs."""
        await self._callbacks.enabled.wait()
        while True:
            await anyio.sleep(NOTICE_POLL_S)
            try:
                notices = await self._engine.store.ledger.take_notices() if self._engine.tracked else ()
            except LedgerError as error:
                log.warning("ledger.failed error=%s", error.message)
                continue
            for key, task_id in notices:
                if (entry := self._engine.tracked.get(key)) is not None:
                    self._wake(entry, task_id)

    def _task_id_in(self, body: bytes) -> str | None:
        try:
            return self._gateway.read_callback(body).task_id
        except NanoBananaError:
            return None

    def _wake(self, entry: TrackedJob, task_id: str | None) -> None:
        entry.callback_pending = True
        self._engine.store.emit(CallbackReceived(record=entry.record))
        if entry.record.state is JobState.RUNNING:
            self._engine.scheduler.poll_soon(entry)
        elif entry.record.state is JobState.SUBMITTING and task_id is not None:
            # The call was faster than the answer, or the answer is lost.
            if entry.claimed_task_id is None:
                entry.listeners = [*(entry.listeners or ()), self._confirm_if_uncertain]
            entry.claimed_task_id = task_id

    async def _route_to_owner(self, record: JobRecord | None, task_id: str | None) -> None:
        if record is None or self._engine.scheduler.closing:
            return
        ledger, ours = self._engine.store.ledger, record.account == self._gateway.account
        match record.state:
            case JobState.UNCERTAIN if task_id is not None and ours:
                self._confirm_later(record.key, task_id)
            case JobState.RUNNING | JobState.SUBMITTING:
                claim = await ledger.adopt(record.key) if ours else None
                if claim is not None and claim.owned:
                    entry = self._engine.tracked.get(record.key) or self._engine.track(claim.record)
                    self._wake(self._engine.follow(entry), task_id)
                else:
                    await ledger.notify_owner(record.key, task_id)
            case _:
                pass  # it has ended, or was never sent: the caller knows a URL that it should not

    def _confirm_if_uncertain(self, entry: TrackedJob) -> None:
        in_doubt = not entry.live and entry.record.state is JobState.UNCERTAIN
        if in_doubt and entry.claimed_task_id is not None and not self._engine.scheduler.closing:
            self._confirm_later(entry.key, entry.claimed_task_id)

    def _confirm_later(self, key: str, task_id: str) -> None:
        """Have a doubtful job asked about; what is claimed meanwhile waits until it may be asked again."""
        asking = key in self._unconfirmed
        self._unconfirmed[key] = task_id
        if not asking:
            self._engine.scheduler.start_background(partial(self._confirm_loop, key))

    async def _confirm_loop(self, key: str, _: TaskGroup) -> None:
        """Ask about a doubtful job until no claim is left to ask about."""
        since, failures = self._clock(), 0
        try:
            while (task_id := self._unconfirmed[key]) is not None:
                self._unconfirmed[key] = None
                wait_s = CONFIRM_GAP_S
                try:
                    async with self._confirmations:
                        settled = await self._confirm(key, task_id)
                except NanoBananaError as error:
                    log.info("callback.unconfirmed job=%s error=%s", key, type(error).__name__)
                    again = is_outage(error) or isinstance(error, RateLimited)
                    settled = not again or self._clock() - since >= self._engine.poller.job_s
                    if not settled:
                        wait_s, failures = min(LONGEST_WAIT_S, CONFIRM_GAP_S * 2**failures), failures + 1
                if not settled and self._unconfirmed[key] is None:
                    self._unconfirmed[key] = task_id
                await anyio.sleep(wait_s)
        finally:
            del self._unconfirmed[key]

    async def _confirm(self, key: str, task_id: str) -> bool:
        """Give a doubtful job its task id, if there is such a task and it is no other job's; False: try again."""
        engine, ledger = self._engine, self._engine.store.ledger
        record = await ledger.find(key)
        if record is None or record.state is not JobState.UNCERTAIN:  # another process was faster
            await self._route_to_owner(record, task_id)
            return True
        known = await ledger.find_task(record.account, task_id)
        if known is not None and known.key != key:
            return True
        if key in engine.tracked:  # about to learn that it is in doubt
            return False
        asked_at = self._clock()
        seen = await engine.poller.query_once(task_id)
        if key in engine.tracked:
            return False
        if seen.state is JobState.FAILED and record.generation > 1:  # that of an earlier purchase, as like as not
            return True
        entry = engine.scheduler.holding.get(key)
        if entry is None or entry.record.revision != record.revision:
            entry = engine.track(record)
        entry = engine.resolve(entry, task_id=task_id, buy_again=False)
        entry.callback_pending, entry.polled_at = True, asked_at
        return True
