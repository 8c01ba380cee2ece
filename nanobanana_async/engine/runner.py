"""The live jobs and their errands: each errand comes back with the time when its job is due again."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.checks import DAY_S
from nanobanana_async.engine.admission import Admission
from nanobanana_async.engine.books import Books
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.engine.feed import Feed
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.timers import Timers
from nanobanana_async.engine.wire import Errand, Wire
from nanobanana_async.errors import CreditLimitReached, LedgerError, NanoBananaError, SessionClosed
from nanobanana_async.jobs import UNFINISHED, JobRecord, JobState
from nanobanana_async.observe import JobEntered, JobLeft, log, log_failure

# How often the slots of jobs that others follow, or nobody, are counted again while there are any.
ELSEWHERE_COUNT_S = 5.0

# However often it is called back, a job is asked about once in this time.
CONFIRM_GAP_S = 1.0


class Runner:
    """Owns every live job of a session. All bookkeeping is synchronous; only errands await."""

    def __init__(
        self,
        books: Books,
        slots: Slots,
        buyer: Buyer,
        follower: Follower,
        admission: Admission,
        *,
        max_requests: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._books = books
        self._slots = slots
        self._follower = follower
        self._admission = admission
        self.wire = Wire(max_requests, freed=self.pump, crashed=self._crashed)
        self.feed = Feed(
            slots,
            follower,
            self.wire,
            books.purse,
            create=self._send_create,
            query=self._send_query,
            decline=self._decline,
        )
        self._rung = asyncio.Event()
        self._timers = Timers(loop, self._rung.set)
        self.claim = self.errand(admission.claim)
        self.look_elsewhere = self.errand(admission.look_elsewhere)
        self.withdraw = self.errand(admission.withdraw)
        self._buy = self.errand(buyer.buy)
        self.live: dict[str, Entry] = {}
        books.purse.live = self.live
        self.lingering: dict[str, Entry] = {}
        """Jobs of which nobody knows whether they run: they hold their slots for a while."""
        self._owed = 0
        """Errands that closing waits for: creates, and what must be written down."""
        self.beside: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What else runs as long as the session."""
        self.closing = False
        self._settled = asyncio.Event()

    def start(self, group: TaskGroup) -> None:
        """Begin to work in this task group."""
        self._group = group
        self.wire.start(group)
        self.wire.start_task("pump", self._beat, again=True)
        self.wire.start_task("count", self._count_elsewhere)
        for work in self.beside:
            self.wire.start_task("beside", work, again=True)

    def run_beside(self, work: Callable[[TaskGroup], Coroutine[Any, Any, None]]) -> None:
        """Run something else in the session's task group, until the session closes. It must not raise."""
        if self.closing:
            raise SessionClosed("the session is closed")
        self.wire.start_task("beside", partial(work, self._group))

    async def aclose(self, grace_s: float) -> None:
        """Stop feeding, and give creates on the wire their time to be answered and written down."""
        self.closing = True
        self._timers.stop()
        with anyio.move_on_after(grace_s):
            if self._owed:
                await self._settled.wait()

    def dismiss(self) -> None:
        """Send away everybody who still waits; what is unfinished stays in the ledger."""
        self.closing = True
        self._timers.stop()
        for entry in list(self.live.values()):
            self._stop(entry, SessionClosed("the session was closed while you waited; the job stays in the ledger"))

    def disown(self) -> None:
        """Do nothing more: this is a forked child's copy, and the jobs are its parent's."""
        self.closing = True
        self._timers.stop()

    def pump(self) -> None:
        """Let leave what is due and may go; then set the timer."""
        if self.closing:
            return
        now = self._clock()
        for entry in self._timers.due(now):
            self._turn(entry)
        self._timers.arm(now, self.feed.pump(now))

    async def _beat(self) -> None:
        """Pump whenever the timer rings.

        In a task of its own and not in the timer's callback: anyio starts no task from outside of any where sniffio is
        installed, since that can't tell there which event loop runs.
        """
        while True:
            await self._rung.wait()
            self._rung.clear()
            self.pump()

    async def _count_elsewhere(self) -> None:
        """Count what others hold when we open; it only becomes less.

        What they take later shows as a lower limit, as any change of it does.
        """
        try:
            while held := await self._admission.held_elsewhere():
                self._slots.elsewhere = min(held, self._slots.elsewhere or held)
                self.pump()
                await anyio.sleep(ELSEWHERE_COUNT_S)
        except LedgerError as error:
            log.warning("ledger.failed error=%s", error.message)
        except BaseException as failure:
            if not self.wire.contains(failure):
                raise
            log_failure("ledger.failed", failure)
        self._slots.elsewhere = 0
        self.pump()

    def _send_create(self, entry: Entry) -> None:
        self._owed += 1
        entry.on_wire = True
        self.wire.send(self._buy, entry)

    def _decline(self, entry: Entry) -> None:
        """Take back a job for which the credits do not suffice."""
        error = CreditLimitReached(self._books.purse.why(entry))
        entry.leaving = True

        async def withdrawn(entry: Entry) -> float:
            await self._admission.withdraw(entry)
            raise error

        self.spawn(self.errand(withdrawn), entry)

    def _send_query(self, entry: Entry) -> None:
        entry.on_wire = True
        self.wire.send(self._look, entry)

    def spawn(self, errand: Errand, entry: Entry) -> None:
        """Run an errand that makes no request; closing waits for it."""
        self._owed += 1
        self.wire.spawn(errand, entry)

    def errand(self, step: Callable[[Entry], Awaitable[float]]) -> Errand:
        """Return the errand that takes a step with a job, and puts it where it is due next."""

        async def carry_out(entry: Entry) -> None:
            try:
                due = await step(entry)
                if not entry.written:
                    entry.written = True
                    entry.wake()
                if entry.leaving and entry.record.state is JobState.PENDING and not entry.elsewhere:
                    self.spawn(self.withdraw, entry)
                else:
                    self._place(entry, due)
            except NanoBananaError as error:
                self._stop(entry, error)
            finally:
                self._paid_off()

        return carry_out

    async def _look(self, entry: Entry) -> None:
        self._place(entry, await self._follower.look(entry))

    async def _release(self, entry: Entry) -> None:
        """Let others go on with a job that we follow no longer, and that has not ended."""
        try:
            if entry.key not in self.live:
                await self._books.ledger.release(entry.key)
        except LedgerError as error:  # it is ours until we close
            log.warning("ledger.failed job=%s error=%s", entry.key, error.message)
        finally:
            self._paid_off()

    def _place(self, entry: Entry, due: float) -> None:
        """Put a job where its state says, for when it is due."""
        entry.on_wire = False
        if entry.leaving:  # too late
            entry.leaving = False
            entry.wake()
        if entry.over:
            self._retire(entry, lingers_until=due)
        elif due == NEVER and entry.record.state is JobState.PENDING and not entry.wanted:  # nobody asked to buy it
            self._retire(entry)
            entry.wake()
        elif (due := self._with_news(entry, due)) > self._clock():
            self._timers.set(entry, due)
        else:
            self._turn(entry)

    def _with_news(self, entry: Entry, due: float) -> float:
        # A query that failed is repeated in its own time, whoever calls.
        told = entry.news and entry.record.state is JobState.RUNNING and not entry.failures
        due = min(due, entry.looked_at + CONFIRM_GAP_S) if told else due
        # A job that is alive is never left without a due time, whatever a setting or a policy says.
        latest = self._clock() + DAY_S
        return due if due < latest else latest

    def _turn(self, entry: Entry) -> None:
        """Do what is due."""
        if entry.elsewhere and entry.awaited:
            self.spawn(self.look_elsewhere, entry)
        elif entry.elsewhere:
            self._retire(entry)
            entry.elsewhere = False
        elif not entry.live:  # nobody knew whether it runs, and it has had its time
            if self.lingering.get(entry.key) is entry:
                del self.lingering[entry.key]
            self._slots.release(entry)
        elif entry.record.state is JobState.RUNNING and self._follower.reliance.is_early(entry):
            self._timers.set(entry, self._follower.reliance.next_look(entry))
        else:
            self.feed.append(entry)

    def look_soon(self, entry: Entry) -> None:
        """Have a job asked about as soon as it may be: a callback came."""
        due, entry.due = entry.due, NEVER  # else it would be due a second time, and be asked about twice at once
        if due < NEVER:  # else it is on the wire, or the next to go there
            self._place(entry, due)
            self.pump()

    def seat(self, entry: Entry) -> Entry:
        """Make a job live; it takes the slots that it held while it was in doubt."""
        ghost = self.lingering.pop(entry.key, None)
        if ghost is not None and ghost is not entry:
            entry.ghost = ghost
            entry.slots, ghost.slots = ghost.slots, 0
            entry.budgets, entry.expected_credits = ghost.budgets, ghost.expected_credits
        entry.due = NEVER
        self.feed.number(entry).live = True
        self.live[entry.key] = entry
        self._books.tell(JobEntered(record=entry.record, weight=entry.weight))
        return entry

    def _retire(self, entry: Entry, lingers_until: float = NEVER) -> None:
        """Let go of a job; an uncertain one may still run, and holds its slot for a while."""
        entry.live = False
        self.live.pop(entry.key, None)
        self._follower.end(entry)
        self._books.purse.let_go(entry)
        if entry.slots and entry.record.state in (JobState.SUCCEEDED, JobState.FAILED):
            self._slots.ended(self._follower.mean_s(entry))
        if entry.record.state is JobState.UNCERTAIN and lingers_until < NEVER:
            self.lingering[entry.key] = entry
            self._timers.set(entry, lingers_until)
        else:
            self._slots.release(entry)
        entry.ghost = None
        known = entry.written and entry.stored.task_id == entry.record.task_id  # else only we can follow it
        if known and entry.stored.state in UNFINISHED and not entry.elsewhere and not self.closing:
            self.spawn(self._release, entry)
        entry.tell()
        self._books.tell(JobLeft(record=entry.record, error=entry.stopped))

    def _stop(self, entry: Entry, error: NanoBananaError) -> None:
        """End the waiting, not the job."""
        if entry.elsewhere or not entry.written:  # what the ledger holds by now, we don't know
            error = error.about(entry.key, safe_to_repeat=False)
        entry.stopped = error
        entry.on_wire = entry.leaving = entry.elsewhere = False
        if entry.ghost is not None and not entry.written:  # the ledger did not say: it is in doubt as before
            entry.record = entry.stored = entry.ghost.record
        self._retire(entry, entry.lingers_until)
        entry.wake()

    def _crashed(self, entry: Entry, failure: BaseException) -> None:
        log_failure("engine.crashed", failure, job=entry.key)
        why = f"a bug in nanobanana_async: {type(failure).__name__}: {failure}"
        if isinstance(failure, asyncio.CancelledError):
            why = "what the job waited for was cancelled (by an observer, the ledger or the transport)"
        self._stop(entry, NanoBananaError(f"{why}; see the log"))

    def _paid_off(self) -> None:
        self._owed -= 1
        if self.closing and not self._owed:
            self._settled.set()

    def check_open(self, record: JobRecord) -> None:
        """Raise `SessionClosed` when nothing can be begun any more."""
        if self.closing:
            raise SessionClosed("the session is closed", key=record.key, safe_to_repeat=not record.perhaps_bought)
