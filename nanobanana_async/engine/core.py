"""The engine's owner: what is due goes onto the wire, creates first, and comes back with its next due time."""

import asyncio

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.admission import Admission
from nanobanana_async.engine.books import Books
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.line import Line, Overdue
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.timers import Timers
from nanobanana_async.engine.wire import Errand, Wire
from nanobanana_async.errors import LedgerError, NanoBananaError, SessionClosed
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import FINAL, JobRecord, JobState
from nanobanana_async.observe import log

# While the retry budget is empty nothing else rings for the repeats that wait for it.
BUDGET_LOOK_S = 0.5


class Engine:
    """Owns every live job of a session. All bookkeeping is synchronous; only errands await."""

    def __init__(
        self,
        gateway: Gateway,
        books: Books,
        slots: Slots,
        buyer: Buyer,
        follower: Follower,
        *,
        max_requests: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._gateway = gateway
        self._books = books
        self.slots = slots
        self.follower = follower
        self._buyer = buyer
        self._admission = Admission(gateway.account, books, slots, buyer, follower, clock=loop.time)
        self.wire = Wire(max_requests, freed=self.pump, crashed=self._crashed)
        self._rung = asyncio.Event()
        self._timers = Timers(loop, self._rung.set)
        self.live: dict[str, Entry] = {}
        self._came_in = 0
        self._pending = Line()
        self._repeats = Line()
        self._overdue = Overdue()
        self._looking = 0
        self._owed = 0
        """Errands that closing waits for: creates, and what must be written down."""
        self._closing = False
        self._settled = asyncio.Event()

    def start(self, group: TaskGroup) -> None:
        """Begin to work in this task group."""
        self.wire.start(group)
        group.start_soon(self._beat)

    @property
    def queued(self) -> int:
        """How many jobs wait for a slot."""
        return sum(1 for entry in self._pending if _may_leave(entry))

    def enter(self, record: JobRecord) -> Entry:
        """Take a job in, or return the live one under its key; no await stands between look and seat."""
        self._check_open(record)
        entry = self.live.get(record.key)
        if entry is None:
            entry = self._seat(self.entry_for(record))
            self._spawn(self._claim, entry)
        else:
            self._admission.check_same(entry.record, record)
        return entry

    def entry_for(self, record: JobRecord) -> Entry:
        """Return a seat for a record, not yet taken."""
        return Entry(record, 1 if record.request is None else self._gateway.weight(record.request))

    def go_on(self, entry: Entry) -> Entry:
        """Go on with a job whose following had stopped, or that was only looked up; return its live entry."""
        record = entry.record
        if entry.live or record.state in FINAL:
            return entry
        if record.key in self.live:
            return self.live[record.key]
        if record.state in (JobState.SUBMITTING, JobState.RUNNING):
            self._check_open(record)
            self._admission.check_ours(record)
            entry.stopped = None
            entry.failures, entry.imageless_at = 0, NEVER
            self._seat(entry)
            self._spawn(self._take_up, entry)
        return entry

    def withdraw(self, entry: Entry) -> bool:
        """Take back a job that was not yet sent; say False when it is too late."""
        taken = entry.leaving or entry.on_wire or entry.stopped is not None
        if self._closing or taken or entry.record.state is not JobState.PENDING:
            return False
        if not entry.live:  # it was only looked up
            self._admission.check_ours(entry.record)
            self._seat(entry)
        entry.leaving = True
        if entry.written:  # else its claim is on the way, and will see that it leaves
            self._spawn(self._withdraw, entry)
        return True

    def leave(self, entry: Entry) -> bool:
        """Let a caller go; say whether the job is withdrawn since he was its only one and nothing was sent."""
        entry.callers -= 1
        # Until its claim has come back, nobody knows what the ledger holds under its key.
        return not entry.callers and not entry.kept and self.withdraw(entry) and entry.written

    async def aclose(self, grace_s: float) -> None:
        """Stop feeding, and give creates on the wire their time to be answered and written down."""
        self._closing = True
        self._timers.stop()
        with anyio.move_on_after(grace_s):
            if self._owed:
                await self._settled.wait()

    def dismiss(self) -> None:
        """Send away everybody who still waits; what is unfinished stays in the ledger."""
        self._closing = True
        self._timers.stop()
        for entry in list(self.live.values()):
            self._stop(entry, SessionClosed("the session was closed while you waited; the job stays in the ledger"))

    def pump(self) -> None:
        """Put onto the wire what is due and may go; then set the timer."""
        if self._closing:
            return
        now = self._clock()
        for entry in self._timers.due(now):
            self._queue(entry)
        opens_at = min(self._feed_creates(now), self._feed_looks(now))
        self._timers.arm(now, opens_at)

    async def _beat(self) -> None:
        """Pump whenever the timer rings.

        In a task of its own and not in the timer's callback: anyio starts no task from outside of any where sniffio is
        installed, since that can't tell there which event loop runs.
        """
        while True:
            await self._rung.wait()
            self._rung.clear()
            self.pump()

    def _feed_creates(self, now: float) -> float:
        # Jobs must not pile up unseen: what has ended would be taken to be held.
        seen_enough = len(self._overdue) <= (self.wire.free if self.slots.throttle.met_a_limit else 0)
        for queue in (self._repeats, self._pending) if seen_enough else (self._repeats,):
            while queue:
                entry = queue.first()
                if not _may_leave(entry):
                    queue.popleft()
                    continue
                if self.wire.full:
                    return NEVER
                if not self.slots.admits(entry, now):
                    break
                queue.popleft()
                self._owed += 1
                self.slots.sent(entry, now)
                self._send(self._buy, entry)
        if self._repeats:
            return self.slots.gate.opens_at if self.slots.gate.opens_at > now else now + BUDGET_LOOK_S
        opens_at = self.slots.opens_at(now)
        return opens_at if self._pending and opens_at > now else NEVER

    def _feed_looks(self, now: float) -> float:
        while self._overdue:
            if self.wire.full:
                return NEVER
            if not self.follower.admits(now, self._looking):
                opens_at = self.follower.opens_at()
                return opens_at if opens_at > now else NEVER
            entry = self._overdue.take(self.wire.free, self.follower.gain)
            if _may_be_seen(entry):
                self._looking += 1
                self.slots.budget.earn()
                self.follower.sent(now)
                self._send(self._look, entry)
        return NEVER

    def _send(self, errand: Errand, entry: Entry) -> None:
        entry.on_wire = True
        self.wire.send(errand, entry)

    def _spawn(self, errand: Errand, entry: Entry) -> None:
        self._owed += 1
        self.wire.spawn(errand, entry)

    async def _buy(self, entry: Entry) -> None:
        try:
            self._place(entry, await self._buyer.buy(entry))
        finally:
            self._paid_off()

    async def _look(self, entry: Entry) -> None:
        try:
            self._place(entry, await self.follower.look(entry))
        finally:
            self._looking -= 1

    async def _claim(self, entry: Entry) -> None:
        try:
            due = await self._admission.claim(entry)
            entry.written = True
            entry.leaving = entry.leaving and entry.record.state is JobState.PENDING
            entry.wake()
            if entry.leaving:
                self._spawn(self._withdraw, entry)
            else:
                self._place(entry, due)
        except NanoBananaError as error:
            self._stop(entry, error)
        finally:
            self._paid_off()

    async def _take_up(self, entry: Entry) -> None:
        try:
            entry.written = True
            self._place(entry, await self._admission.take_up(entry))
        except NanoBananaError as error:
            self._stop(entry, error)
        finally:
            self._paid_off()

    async def _withdraw(self, entry: Entry) -> None:
        try:
            await self._books.move(entry, JobState.WITHDRAWN, ended_at=self._books.utcnow())
            self._retire(entry)
        except LedgerError as error:
            self._stop(entry, error)
        finally:
            self._paid_off()

    def _place(self, entry: Entry, due: float) -> None:
        """Put a job where its state says, for when it is due."""
        entry.on_wire = False
        if entry.over:
            self._retire(entry, lingers_until=due)
        elif due > self._clock():
            self._timers.set(entry, due)
        else:
            self._queue(entry)

    def _queue(self, entry: Entry) -> None:
        match entry.record.state:
            case JobState.PENDING:
                self._pending.append(entry)
            case JobState.SUBMITTING:  # behind the other repeats: no job shall use up its attempts as the only probe
                self._repeats.append(self._numbered(entry))
            case JobState.RUNNING:
                self._overdue.append(entry)
            case _:  # an uncertain job has had its time to run
                self.slots.release(entry)

    def _seat(self, entry: Entry) -> Entry:
        self._numbered(entry).live = True
        self.live[entry.key] = entry
        return entry

    def _numbered(self, entry: Entry) -> Entry:
        self._came_in += 1
        entry.number = self._came_in
        return entry

    def _retire(self, entry: Entry, lingers_until: float = NEVER) -> None:
        """Let go of a job; an uncertain one may still run, and holds its slot for a while."""
        entry.live = False
        self.live.pop(entry.key, None)
        self.follower.end(entry)
        if entry.slots and entry.record.state in (JobState.SUCCEEDED, JobState.FAILED):
            self.slots.ended(self.follower.mean_s(entry))
        if entry.record.state is JobState.UNCERTAIN and lingers_until < NEVER:
            self._timers.set(entry, lingers_until)
        else:
            self.slots.release(entry)

    def _stop(self, entry: Entry, error: NanoBananaError) -> None:
        """End the waiting, not the job."""
        entry.stopped = error
        entry.on_wire = False
        self._retire(entry)
        entry.wake()

    def _crashed(self, entry: Entry, bug: Exception) -> None:
        log.error("engine.crashed job=%s", entry.key, exc_info=bug)
        self._stop(entry, NanoBananaError(f"a bug in nanobanana_async: {type(bug).__name__}: {bug}; see the log"))

    def _paid_off(self) -> None:
        self._owed -= 1
        if self._closing and not self._owed:
            self._settled.set()

    def _check_open(self, record: JobRecord) -> None:
        if self._closing:
            raise SessionClosed("the session is closed", key=record.key, safe_to_repeat=not record.perhaps_bought)


def _may_leave(entry: Entry) -> bool:
    """Whether a queued create is still wanted: jobs that were withdrawn or stopped are passed over."""
    wanted = entry.live and not entry.leaving and not entry.on_wire
    return wanted and entry.record.state in (JobState.PENDING, JobState.SUBMITTING)


def _may_be_seen(entry: Entry) -> bool:
    return entry.live and not entry.on_wire and entry.record.state is JobState.RUNNING
