"""What a callback is worth: one question to the gateway."""

import asyncio
from functools import partial

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.callbacks import Callbacks
from nanobanana_async.engine.core import Engine
from nanobanana_async.engine.entry import Entry
from nanobanana_async.errors import LedgerError, NanoBananaError, RateLimited
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.observe import CallbackReceived, log
from nanobanana_async.policy.retry import is_outage

# How often word is fetched that other processes have left for us in the ledger.
NUDGES_S = 0.5

# At most one question about a doubtful job in this time; longer and longer while no answer comes.
ONCE_IN_S = 1.0
LONGEST_WAIT_S = 30.0

# So many doubtful jobs are asked about at the same time.
ASKERS = 8


class Hearing:
    """Finds the job that a call is about: live here, or followed by another process, or in doubt and nobody's."""

    def __init__(self, gateway: Gateway, engine: Engine, callbacks: Callbacks) -> None:
        self._gateway = gateway
        self._engine = engine
        self._callbacks = callbacks
        self._clock = asyncio.get_running_loop().time
        self._askers = asyncio.Semaphore(ASKERS)
        self._claims: dict[str, str | None] = {}
        """Doubtful jobs that are asked about now, or were a moment ago; and the task id that waits for its turn."""

    async def heard(self, key: str, body: bytes) -> bool:
        """Take a call that came to a job's own URL; False when the session is closing."""
        runner = self._engine.runner
        if runner.closing:
            return False
        task_id = self._claimed(body)
        entry = self._engine.live.get(key)
        if entry is not None and not entry.elsewhere:
            self._news(entry, task_id)
        else:  # what we know of a job of others may be old
            await self._news_of_another(await self._engine.books.ledger.find(key), task_id)
        return not runner.closing

    async def fetch_nudges(self) -> None:
        """Fetch, as long as the session lives, what other processes have heard of our jobs."""
        await self._callbacks.wanted.wait()
        while True:
            await anyio.sleep(NUDGES_S)
            try:
                nudges = await self._engine.books.ledger.nudges() if self._engine.live else ()
            except LedgerError as error:
                log.warning("ledger.failed error=%s", error.message)
                continue
            for key, task_id in nudges:
                if (entry := self._engine.live.get(key)) is not None:
                    self._news(entry, task_id)

    def _claimed(self, body: bytes) -> str | None:
        try:
            return self._gateway.read_callback(body).task_id
        except NanoBananaError:
            return None

    def _news(self, entry: Entry, task_id: str | None) -> None:
        entry.news = True
        self._engine.books.tell(CallbackReceived(record=entry.record))
        if entry.record.state is JobState.RUNNING:
            self._engine.runner.look_soon(entry)
        elif entry.record.state is JobState.SUBMITTING and task_id is not None:
            # The call was faster than the answer, or the answer is lost.
            if entry.hint is None:
                entry.listeners = [*(entry.listeners or ()), self._settle_if_in_doubt]
            entry.hint = task_id

    async def _news_of_another(self, record: JobRecord | None, task_id: str | None) -> None:
        if record is None or self._engine.runner.closing:
            return
        ledger, ours = self._engine.books.ledger, record.account == self._gateway.account
        match record.state:
            case JobState.UNCERTAIN if task_id is not None and ours:
                self._ask(record.key, task_id)
            case JobState.RUNNING | JobState.SUBMITTING:
                claim = await ledger.adopt(record.key) if ours else None
                if claim is not None and claim.ours:
                    entry = self._engine.live.get(record.key) or self._engine.entry_for(claim.record)
                    self._news(self._engine.go_on(entry), task_id)
                else:
                    await ledger.nudge(record.key, task_id)
            case _:
                pass  # it has ended, or was never sent: somebody knows a URL that he should not

    def _settle_if_in_doubt(self, entry: Entry) -> None:
        in_doubt = not entry.live and entry.record.state is JobState.UNCERTAIN
        if in_doubt and entry.hint is not None and not self._engine.runner.closing:
            self._ask(entry.key, entry.hint)

    def _ask(self, key: str, task_id: str) -> None:
        """Have a doubtful job asked about; what is claimed meanwhile waits until it may be asked again."""
        asking = key in self._claims
        self._claims[key] = task_id
        if not asking:
            self._engine.runner.run_beside(partial(self._clear_up, key))

    async def _clear_up(self, key: str, _: TaskGroup) -> None:
        """Ask about a doubtful job until no claim is left to ask about."""
        since, failures = self._clock(), 0
        try:
            while (task_id := self._claims[key]) is not None:
                self._claims[key] = None
                wait_s = ONCE_IN_S
                try:
                    async with self._askers:
                        settled = await self._settle(key, task_id)
                except NanoBananaError as error:
                    log.info("callback.unconfirmed job=%s error=%s", key, type(error).__name__)
                    again = is_outage(error) or isinstance(error, RateLimited)
                    settled = not again or self._clock() - since >= self._engine.follower.job_s
                    if not settled:
                        wait_s, failures = min(LONGEST_WAIT_S, ONCE_IN_S * 2**failures), failures + 1
                if not settled and self._claims[key] is None:
                    self._claims[key] = task_id
                await anyio.sleep(wait_s)
        finally:
            del self._claims[key]

    async def _settle(self, key: str, task_id: str) -> bool:
        """Give a doubtful job its task id, if there is such a task and it is no other job's; False: try again."""
        engine, ledger = self._engine, self._engine.books.ledger
        record = await ledger.find(key)
        if record is None or record.state is not JobState.UNCERTAIN:  # somebody else was faster
            await self._news_of_another(record, task_id)
            return True
        known = await ledger.find_task(record.account, task_id)
        if known is not None and known.key != key:
            return True
        if key in engine.live:  # about to learn that it is in doubt
            return False
        asked_at = self._clock()
        seen = await engine.follower.ask(task_id)
        if key in engine.live:
            return False
        if seen.state is JobState.FAILED and record.generation > 1:  # that of an earlier purchase, as like as not
            return True
        entry = engine.runner.lingering.get(key)
        if entry is None or entry.record.revision != record.revision:
            entry = engine.entry_for(record)
        entry = engine.settle(entry, task_id=task_id, buy_again=False)
        entry.news, entry.looked_at = True, asked_at
        return True
