"""What a session asks of its jobs: take one in, go on with it, decide it, let it go."""

import asyncio
from collections.abc import AsyncIterator

from nanobanana_async.engine.admission import Admission
from nanobanana_async.engine.books import Books
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.runner import Runner
from nanobanana_async.engine.slots import Slots
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import UNFINISHED, JobRecord, JobState

# Jobs taken over in one go: each is a task for a moment, and one flush of the ledger serves them all.
TAKEN_AT_ONCE = 200


class Engine:
    """The commands on jobs; no await stands between a look at the live ones and the change that follows from it."""

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
        self._clock = asyncio.get_running_loop().time
        self._gateway = gateway
        self._books = books
        self.slots = slots
        self.follower = follower
        self._admission = Admission(gateway, books, slots, buyer, follower, clock=self._clock)
        self.runner = Runner(books, slots, buyer, follower, self._admission, max_requests=max_requests)
        self.live = self.runner.live

    def enter(self, record: JobRecord) -> Entry:
        """Take a job in, or return the live one under its key; no await stands between look and seat."""
        self.runner.check_open(record)
        entry = self.live.get(record.key)
        if entry is None:
            entry = self.runner.seat(self.entry_for(record))
            self.runner.spawn(self.runner.claim, entry)
        else:
            self._admission.check_same(entry.record, record)
        entry.wanted = True
        return entry

    def entry_for(self, record: JobRecord) -> Entry:
        """Return a seat for a record, not yet taken."""
        return Entry(record, 1 if record.request is None else self._gateway.weight(record.request))

    def go_on(self, entry: Entry) -> Entry:
        """Go on with a job whose following had stopped, or that was only looked up; return its live entry."""
        record = entry.record
        if record.key in self.live:
            return self.live[record.key]
        if record.state not in UNFINISHED:
            return entry
        self.runner.check_open(record)
        self._admission.check_account(record)
        if record.state is not JobState.PENDING or not entry.stopped:
            entry.failures, entry.imageless_at = 0, NEVER
            entry.stopped = None
            self.runner.spawn(self.runner.look_elsewhere, self.runner.seat(entry))
        return entry

    async def refresh(self, entry: Entry) -> Entry:
        """Go on with a job, also with one that was uncertain and that somebody may have settled meanwhile."""
        if entry.record.state is JobState.UNCERTAIN and not entry.live:
            record = await self._books.ledger.find(entry.key)
            if record is not None and record.revision != entry.stored.revision:
                entry.stored = record
                entry.moved(record)
        return self.go_on(entry)

    async def take_over(self, records: AsyncIterator[JobRecord]) -> list[Entry]:
        """Go on with jobs that nobody follows; return those that are ours now."""
        entries: list[Entry] = []
        waiting: list[Entry] = []
        async for record in records:
            if record.key not in self.live:
                entry = self.entry_for(record)
                entry.wanted = True
                waiting.append(self.go_on(entry))
            if len(waiting) >= TAKEN_AT_ONCE:
                entries += await self._taken(waiting)
                waiting = []
        return entries + await self._taken(waiting)

    async def _taken(self, waiting: list[Entry]) -> list[Entry]:
        for entry in waiting:
            while not entry.written and not entry.stopped:
                await entry.change()
        return [entry for entry in waiting if not entry.elsewhere]

    def settle(self, entry: Entry, *, task_id: str | None = None, body: bytes | None = None) -> Entry:
        """Decide a job by hand: it has this task id, is bought anew with this body, or was not bought."""
        self.runner.check_open(entry.record)
        self._admission.check_account(entry.record)
        entry.wanted, entry.stopped = True, None

        async def settled(entry: Entry) -> float:
            return await self._admission.settle(entry, task_id=task_id, body=body)

        self.runner.spawn(self.runner.errand(settled), self.runner.seat(entry))
        return entry

    def refetch(self, entry: Entry) -> Entry:
        """Ask the gateway once more for the pictures of a job that succeeded: the ledger does not hold inline ones."""
        known = self.live.get(entry.key)
        if known is not None:
            return known
        self.runner.check_open(entry.record)
        self._admission.check_account(entry.record)
        entry.refetching, entry.stopped = True, None
        entry.failures, entry.running_at = 0, self._clock()
        self.runner.feed.append(self.runner.seat(entry))
        self.runner.pump()
        return entry

    def withdraw(self, entry: Entry) -> bool:
        """Take back a job that was not yet sent; say False when it is too late, or somebody else's."""
        taken = entry.leaving or entry.on_wire or entry.elsewhere or entry.stopped is not None
        if self.runner.closing or taken or entry.record.state is not JobState.PENDING:
            return False
        entry.leaving = True
        if not entry.live:  # it was only looked up, and may be somebody else's
            self._admission.check_account(entry.record)
            self.runner.spawn(self.runner.look_elsewhere, self.runner.seat(entry))
        elif entry.written:  # else its claim is on the way, and will see that it leaves
            self.runner.spawn(self.runner.withdraw, entry)
        return True

    def leave(self, entry: Entry) -> bool:
        """Let a caller go; say whether the job is withdrawn since he was its only one and nothing was sent."""
        entry.callers -= 1
        # Until its claim has come back, nobody knows what the ledger holds under its key.
        return not entry.callers and not entry.kept and self.withdraw(entry) and entry.written
