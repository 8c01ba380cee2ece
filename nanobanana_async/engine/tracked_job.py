"""One live job: its record, who waits for it, and when it is due."""

import asyncio
from collections import deque
from collections.abc import Callable
from decimal import Decimal

from nanobanana_async.errors import NanoBananaError
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState, Observation
from nanobanana_async.policy.budget import Cap
from nanobanana_async.policy.poll_schedule import PollSchedule

NEVER = float("inf")
NOT_YET = -NEVER


class TrackedJob:
    """A job as the engine holds it. Slotted: there may be tens of thousands."""

    __slots__ = (
        "budgets",
        "callback_pending",
        "callers",
        "claimed",
        "claimed_task_id",
        "draws_retry_budget",
        "due",
        "expected_credits",
        "failures",
        "fetching_images",
        "first_attempt_at",
        "first_imageless_at",
        "followed_since",
        "foreign",
        "has_handle",
        "holding_before",
        "in_flight",
        "ledger_record",
        "listeners",
        "live",
        "may_buy",
        "observation",
        "place",
        "polled_at",
        "polls",
        "record",
        "retry_failed",
        "running_at",
        "schedule",
        "sent_at",
        "slots",
        "updates",
        "wait_error",
        "watchers",
        "weight",
        "withdraw_requested",
    )

    def __init__(self, record: JobRecord, weight: int) -> None:
        self.record = record
        self.ledger_record = record
        """What the ledger holds: the same, unless a write failed after the gateway had answered."""
        self.weight = weight
        self.slots = 0
        """How many job slots it takes at this moment."""
        self.place = 0
        """Its place among all that came in: who came first is served first."""
        self.due = NEVER
        self.first_attempt_at = NEVER
        self.running_at = NEVER
        self.followed_since = NOT_YET
        """When polling last began: `Timeouts.job_s` counts from here, so each wait gets the whole time."""
        self.sent_at = NEVER
        self.schedule: PollSchedule[TrackedJob] | None = None
        """When its class of jobs is looked at; set once it runs."""
        self.first_imageless_at = NEVER
        self.polls = 0
        self.polled_at = NOT_YET
        """When it was last asked about."""
        self.callback_pending = False
        """A callback came since then."""
        self.claimed_task_id: str | None = None
        """The task id that a callback claims, while no answer has told one."""
        self.failures = 0
        """In a row: creates that were not accepted, or queries that were not answered."""
        self.draws_retry_budget = False
        """Its last create brought nothing usable: a repeat is extra load on a gateway that may be down."""
        self.callers = 0
        """How many `generate` calls and batches wait for it; when the last one leaves, an unsent job is withdrawn."""
        self.has_handle = False
        """A handle was given out: the job outlives its callers."""
        self.budgets: tuple[Cap, ...] = ()
        """What its price is drawn on."""
        self.expected_credits: Decimal | None = None
        """What the user expects such a job to cost, until the gateway says it."""
        self.listeners: list[Callable[[TrackedJob], None]] | None = None
        """Called at once when its state has changed, and when nothing more happens to it by itself."""
        self.may_buy = False
        """Somebody asked to buy it; else a job that was let go unsent stays so."""
        self.retry_failed = False
        """A job that the gateway failed at is bought again."""
        self.foreign = False
        """Another owner of the ledger follows it: we wait through the ledger."""
        self.fetching_images = False
        """It has succeeded, and the gateway is asked for its pictures once more."""
        self.holding_before: TrackedJob | None = None
        """Whose slots it took over: an earlier entry of this job, when nobody knew whether it runs."""
        self.live = False
        self.claimed = False
        self.withdraw_requested = False
        self.in_flight = False
        self.observation: Observation | None = None
        self.wait_error: NanoBananaError | None = None
        self.watchers: list[asyncio.Future[NanoBananaError | None]] | None = None
        self.updates: list[deque[JobState]] | None = None

    @property
    def key(self) -> str:
        """Our key of the job."""
        return self.record.key

    @property
    def done(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.wait_error is not None or (self.record.state not in ACTIVE_STATES and not self.fetching_images)

    @property
    def holds_until(self) -> float:
        """Until when a job holds its slots that was in doubt when it came, and still is."""
        return NEVER if self.holding_before is None else self.holding_before.due

    @property
    def has_waiters(self) -> bool:
        """Whether anybody may still ask what became of it."""
        return self.may_buy or self.has_handle or bool(self.watchers or self.updates or self.listeners)

    @property
    def images_missing(self) -> bool:
        """Whether the ledger alone can't tell its result: pictures that came inline are not kept in it."""
        return self.observation is None and "" in self.record.images

    async def wait_for_change(self) -> None:
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
            raise interruption.for_job(self.key, safe_to_repeat=not self.record.possibly_bought)

    def wake(self, interruption: NanoBananaError | None = None) -> None:
        """Let all who wait look again, or go with an error."""
        watchers, self.watchers = self.watchers, None
        for watcher in watchers or ():
            if not watcher.done():
                watcher.set_result(interruption)

    def notify_listeners(self) -> None:
        """Call the listeners."""
        for listener in self.listeners or ():
            listener(self)

    def set_record(self, record: JobRecord, interruption: NanoBananaError | None = None) -> None:
        """Take the record after a move and let everybody know, or interrupt all who wait."""
        changed = record.state is not self.record.state
        self.record = record
        if changed:
            for feed in self.updates or ():
                feed.append(record.state)
            self.wake(interruption)
            self.notify_listeners()

    def _forget(self, watcher: asyncio.Future[NanoBananaError | None]) -> None:
        if self.watchers is not None and watcher in self.watchers:
            self.watchers.remove(watcher)
