"""What a callback is worth: one question to the gateway."""

import asyncio

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.callbacks import Callbacks
from nanobanana_async.engine.core import Engine
from nanobanana_async.engine.entry import Entry
from nanobanana_async.errors import LedgerError, NanoBananaError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobState
from nanobanana_async.observe import log

# How often word is fetched that other processes have left for us in the ledger.
NUDGES_S = 0.5

# At most one question about a job in this time, however often it is called for.
ONCE_IN_S = 1.0

# Doubtful jobs of which it is remembered when they were asked about.
REMEMBERED = 1000


class Hearing:
    """Finds the job that a call is about: live here, or followed by another process, or in doubt and nobody's."""

    def __init__(self, gateway: Gateway, engine: Engine, callbacks: Callbacks) -> None:
        self._gateway = gateway
        self._engine = engine
        self._callbacks = callbacks
        self._clock = asyncio.get_running_loop().time
        self._asked_at: dict[str, float] = {}

    async def heard(self, key: str, body: bytes) -> bool:
        """Take a call that came to a job's own URL; False when the session is closing."""
        runner = self._engine.runner
        if runner.closing:
            return False
        task_id = self._claimed(body)
        entry = self._engine.live.get(key)
        if entry is not None and not entry.elsewhere:
            self._news(entry, task_id)
            return True
        entry = await self._engine.look_up(key)
        if entry is not None and not runner.closing:
            await self._news_of_another(entry, task_id)
        return True

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
        if entry.record.state is JobState.RUNNING:
            self._engine.runner.look_soon(entry)
        elif entry.record.state is JobState.SUBMITTING and task_id is not None:
            # The call was faster than the answer, or the answer is lost.
            if entry.hint is None:
                entry.listeners = [*(entry.listeners or ()), self._settle_if_in_doubt]
            entry.hint = task_id

    async def _news_of_another(self, entry: Entry, task_id: str | None) -> None:
        match entry.record.state:
            case JobState.UNCERTAIN if task_id is not None:
                self._ask(entry, task_id)
            case JobState.RUNNING | JobState.SUBMITTING:
                claim = await self._engine.books.ledger.adopt(entry.key)
                if claim is None:
                    return
                if claim.ours:
                    self._news(self._engine.go_on(entry), task_id)
                else:
                    await self._engine.books.ledger.nudge(entry.key, task_id)
            case _:
                pass  # it has ended, or was never sent: somebody knows a URL that he should not

    def _settle_if_in_doubt(self, entry: Entry) -> None:
        if not entry.live and entry.hint is not None and entry.record.state is JobState.UNCERTAIN:
            self._ask(entry, entry.hint)

    def _ask(self, entry: Entry, task_id: str) -> None:
        now = self._clock()
        if now < self._asked_at.get(entry.key, -ONCE_IN_S) + ONCE_IN_S:
            return
        if len(self._asked_at) >= REMEMBERED:
            self._asked_at = {key: at for key, at in self._asked_at.items() if now < at + ONCE_IN_S}
        self._asked_at[entry.key] = now

        async def settle(_: TaskGroup) -> None:
            try:
                await self._settle(entry, task_id)
            except NanoBananaError as error:
                log.info("callback.unconfirmed job=%s error=%s", entry.key, type(error).__name__)

        self._engine.runner.run_beside(settle)

    async def _settle(self, entry: Entry, task_id: str) -> None:
        """Give a doubtful job its task id, if there is such a task and it is no other job's."""
        known = await self._engine.books.ledger.find_task(self._gateway.account, task_id)
        if known is not None and known.key != entry.key:
            return
        await self._engine.follower.ask(task_id)
        if entry.key in self._engine.live or entry.record.state is not JobState.UNCERTAIN:
            return
        settled = self._engine.settle(entry, task_id=task_id, buy_again=False)
        settled.news = True
