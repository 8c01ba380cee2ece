"""One live job: its record, who waits for it, and when it is due."""

import asyncio
from collections import deque
from collections.abc import Callable
from decimal import Decimal

from nanobanana_async.errors import NanoBananaError
from nanobanana_async.jobs import UNFINISHED, JobRecord, JobState, Observation
from nanobanana_async.policy.caps import Cap
from nanobanana_async.policy.schedule import Schedule

NEVER = float("inf")
NOT_YET = -NEVER


class Entry:
    """A job as the engine holds it. Slotted: there may be tens of thousands."""

    __slots__ = (
        "after_trouble",
        "budgets",
        "callers",
        "due",
        "elsewhere",
        "expected_credits",
        "failures",
        "ghost",
        "hint",
        "imageless_at",
        "kept",
        "leaving",
        "listeners",
        "live",
        "looked_at",
        "looks",
        "news",
        "number",
        "observation",
        "on_wire",
        "record",
        "refetching",
        "retries_failed",
        "running_at",
        "schedule",
        "sent_at",
        "slots",
        "stopped",
        "stored",
        "tried_at",
        "updates",
        "wanted",
        "watchers",
        "weight",
        "written",
    )

    def __init__(self, record: JobRecord, weight: int) -> None:
        self.record = record
        self.stored = record
        """What the ledger holds: the same, unless a write failed after the gateway had answered."""
        self.weight = weight
        self.slots = 0
        """How many job slots it takes at this moment."""
        self.number = 0
        """Its place among all that came in: who came first is served first."""
        self.due = NEVER
        self.tried_at = NEVER
        self.running_at = NEVER
        self.sent_at = NEVER
        self.schedule: Schedule[Entry] | None = None
        """When its class of jobs is looked at; set once it runs."""
        self.imageless_at = NEVER
        self.looks = 0
        self.looked_at = NOT_YET
        """When it was last asked about."""
        self.news = False
        """A callback came since then."""
        self.hint: str | None = None
        """The task id that a callback claims, while no answer has told one."""
        self.failures = 0
        """In a row: creates that were not accepted, or queries that were not answered."""
        self.after_trouble = False
        """Its last create brought nothing usable: a repeat is extra load on a gateway that may be down."""
        self.callers = 0
        """How many `generate` calls and batches wait for it; when the last one leaves, an unsent job is withdrawn."""
        self.kept = False
        """A handle was given out: the job outlives its callers."""
        self.budgets: tuple[Cap, ...] = ()
        """What its price is drawn on."""
        self.expected_credits: Decimal | None = None
        """What the user expects such a job to cost, until the gateway says it."""
        self.listeners: list[Callable[[Entry], None]] | None = None
        """Called at once when its state has changed, and when nothing more happens to it by itself."""
        self.wanted = False
        """Somebody asked to buy it; else a job that was let go unsent stays so."""
        self.retries_failed = False
        """A job that the gateway failed at is bought again."""
        self.elsewhere = False
        """Another owner of the ledger follows it: we wait through the ledger."""
        self.refetching = False
        """It has succeeded, and the gateway is asked for its pictures once more."""
        self.ghost: Entry | None = None
        """Whose slots it took over: an earlier entry of this job, when nobody knew whether it runs."""
        self.live = False
        self.written = False
        self.leaving = False
        self.on_wire = False
        self.observation: Observation | None = None
        self.stopped: NanoBananaError | None = None
        self.watchers: list[asyncio.Future[NanoBananaError | None]] | None = None
        self.updates: list[deque[JobState]] | None = None

    @property
    def key(self) -> str:
        """Our key of the job."""
        return self.record.key

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.stopped is not None or (self.record.state not in UNFINISHED and not self.refetching)

    @property
    def lingers_until(self) -> float:
        """Until when a job holds its slots that was in doubt when it came, and still is."""
        return NEVER if self.ghost is None else self.ghost.due

    @property
    def awaited(self) -> bool:
        """Whether anybody may still ask what became of it."""
        return self.wanted or self.kept or bool(self.watchers or self.updates or self.listeners)

    @property
    def lacks_pictures(self) -> bool:
        """Whether the ledger alone can't tell its result: pictures that came inline are not kept in it."""
        return self.observation is None and "" in self.record.images

    async def change(self) -> None:
        """Wait for the next change; raise what interrupts the waiting."""
        watcher: asyncio.Future[NanoBananaError | None] = asyncio.get_running_loop().create_future()
        if self.watchers is None:
            self.watchers = []
        self.watchers.append(watcher)
        try:
            interruption = await watcher
        finally:
            if not watcher.done() or watcher.cancelled():
                self._forget(watcher)
        if interruption is not None:
            # Each waiter raises a copy of its own: a shared exception would gather everybody's traceback.
            raise interruption.about(self.key, safe_to_repeat=not self.record.perhaps_bought)

    def wake(self, interruption: NanoBananaError | None = None) -> None:
        """Let all who wait look again, or go with an error."""
        watchers, self.watchers = self.watchers, None
        for watcher in watchers or ():
            if not watcher.done():
                watcher.set_result(interruption)

    def tell(self) -> None:
        """Call the listeners."""
        for listener in self.listeners or ():
            listener(self)

    def moved(self, record: JobRecord, interruption: NanoBananaError | None = None) -> None:
        """Take the record after a move and let everybody know, or interrupt all who wait."""
        changed = record.state is not self.record.state
        self.record = record
        if changed:
            for feed in self.updates or ():
                feed.append(record.state)
            self.wake(interruption)
            self.tell()

    def _forget(self, watcher: asyncio.Future[NanoBananaError | None]) -> None:
        if self.watchers is not None and watcher in self.watchers:
            self.watchers.remove(watcher)
