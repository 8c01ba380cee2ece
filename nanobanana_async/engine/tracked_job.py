"""One job in this session: its record, its phase, its waiters, and when it is due.

`JobRecord.state` says where a job stands at the gateway, and moves along `TRANSITIONS`. `TrackedJob.phase` says what
this session does with the job, and moves along `PHASES`. Only the `Scheduler` moves it:

- The `Engine` brings a job in: CLAIMING (new, or found) or RECOVERING (resolved by hand).
- In CLAIMING, FOREIGN, RECOVERING, IN_FLIGHT and WITHDRAWING a step of the job runs, one at a time. It returns a
  `Next`, and `Scheduler._apply` alone carries that out.
- In QUEUED the `Dispatcher` decides when the job leaves; in SCHEDULED, FOREIGN and HOLDING a timer does; in CHECKING
  the `Reconciler`.
- `withdraw_requested` is an intent, set while a step runs. It is carried out when the step is over, if the job is then
  PENDING.
- Who wants the job (`callers`, `has_handle`, `may_buy`) is no phase: `Engine.add_caller`, `drop_caller` and `keep`.
"""

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from nanobanana_async.errors import NanoBananaError
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState, Observation
from nanobanana_async.policy.budget import Cap
from nanobanana_async.policy.poll_schedule import PollSchedule

Watchers = list[asyncio.Future[NanoBananaError | None]] | None

NEVER = float("inf")
NOT_YET = -NEVER


class Phase(enum.Enum):
    """What this session does with a job."""

    KNOWN = "known, and not followed by this session"
    CLAIMING = "a ledger call decides who owns it"
    FOREIGN = "another owner follows it; we read its record from the ledger"
    RECOVERING = "ours; a write to the ledger decides how it goes on"
    QUEUED = "waits in a queue to be sent, or to be polled"
    SCHEDULED = "waits for its time"
    IN_FLIGHT = "a request of it is in flight, or its answer is being written"
    CHECKING = "in doubt; the gateway's history decides how it goes on"
    WITHDRAWING = "its withdrawal is being written"
    HOLDING = "uncertain, not followed; holds its slots while it may still run"
    DONE = "ended, or the waiting for it ended with `wait_error`"

    __hash__ = object.__hash__  # as in `JobState`


_P = Phase

# What a phase may become. Any other move is a bug.
PHASES: Mapping[Phase, frozenset[Phase]] = {
    _P.KNOWN: frozenset({_P.CLAIMING, _P.RECOVERING}),
    _P.CLAIMING: frozenset(
        {_P.FOREIGN, _P.RECOVERING, _P.QUEUED, _P.SCHEDULED, _P.WITHDRAWING, _P.HOLDING, _P.KNOWN, _P.DONE}
    ),
    # FOREIGN -> FOREIGN: its owner still follows it.
    _P.FOREIGN: frozenset({_P.FOREIGN, _P.RECOVERING, _P.QUEUED, _P.SCHEDULED, _P.HOLDING, _P.KNOWN, _P.DONE}),
    _P.RECOVERING: frozenset({_P.QUEUED, _P.SCHEDULED, _P.CHECKING, _P.WITHDRAWING, _P.HOLDING, _P.DONE}),
    _P.QUEUED: frozenset({_P.IN_FLIGHT, _P.WITHDRAWING, _P.DONE}),
    # SCHEDULED -> SCHEDULED: a poll is planned again, as durations are learned or when a callback came.
    # SCHEDULED -> RECOVERING: a job in doubt waits for its repeat, and the gateway's history shows its task.
    _P.SCHEDULED: frozenset({_P.SCHEDULED, _P.RECOVERING, _P.QUEUED, _P.WITHDRAWING, _P.DONE}),
    _P.IN_FLIGHT: frozenset({_P.QUEUED, _P.SCHEDULED, _P.CHECKING, _P.WITHDRAWING, _P.HOLDING, _P.DONE}),
    _P.CHECKING: frozenset({_P.RECOVERING, _P.DONE}),
    _P.WITHDRAWING: frozenset({_P.DONE}),
    _P.HOLDING: frozenset({_P.CLAIMING, _P.RECOVERING, _P.DONE}),
    _P.DONE: frozenset({_P.CLAIMING, _P.RECOVERING}),
}

LIVE_PHASES = frozenset(Phase) - {_P.KNOWN, _P.HOLDING, _P.DONE}
"""The job is followed, and is in `Scheduler.tracked`."""

JOINING_PHASES = frozenset({_P.CLAIMING, _P.RECOVERING})
"""It is not decided yet how the job goes on."""

UNREAD_PHASES = frozenset({_P.CLAIMING, _P.FOREIGN})
"""After a failure in one of these, the job's state in the ledger is unknown."""


def is_safe_to_repeat(record: JobRecord, phase: Phase) -> bool:
    """Whether a job of this session can be generated again under another key and never be paid for twice.

    A live job may still be bought, unless it is being withdrawn.
    """
    return phase not in LIVE_PHASES - {Phase.WITHDRAWING} and not record.possibly_bought


class TrackedJob:
    """One job in this session. It has slots because there may be tens of thousands."""

    __slots__ = (
        "_phase",
        "budgets",
        "callback_pending",
        "callers",
        "claimed_task_id",
        "draws_retry_budget",
        "due",
        "end_watchers",
        "expected_credits",
        "failures",
        "first_attempt_at",
        "first_imageless_at",
        "followed_since",
        "has_handle",
        "holding_before",
        "last_failure",
        "ledger_record",
        "listeners",
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
        """The record in the ledger: the same, unless a write failed after the gateway had answered."""
        self.weight = weight
        self.slots = 0
        """How many job slots it holds now."""
        self.place = 0
        """Its place in the queue for creates: first come, first served."""
        self.due = NEVER
        self.first_attempt_at = NEVER
        self.running_at = NEVER
        self.followed_since = NOT_YET
        """When polling last began: `Timeouts.job_s` counts from here, so each wait gets the whole time."""
        self.sent_at = NEVER
        self.schedule: PollSchedule[TrackedJob] | None = None
        """The poll schedule of its price class; set once it runs."""
        self.first_imageless_at = NEVER
        self.polls = 0
        self.polled_at = NOT_YET
        """When its last poll left."""
        self.callback_pending = False
        """A callback came after its last poll."""
        self.claimed_task_id: str | None = None
        """The task id in a callback, while the create has no answer."""
        self.failures = 0
        """How many creates in a row were not accepted, or polls not answered."""
        self.last_failure: NanoBananaError | None = None
        """Why its last request in this session failed; None if it did not, or if there was none."""
        self.draws_retry_budget = False
        """Its last create had no usable answer: a repeat is extra load on a gateway that may be down."""
        self.callers = 0
        """How many `generate` calls and batches wait for it. When the last one leaves, an unsent job is withdrawn."""
        self.has_handle = False
        """A handle was given out: the job outlives its callers."""
        self.budgets: tuple[Cap, ...] = ()
        """The caps that its price is reserved on."""
        self.expected_credits: Decimal | None = None
        """The user's estimate of the price, until the gateway states one."""
        self.listeners: list[Callable[[TrackedJob], None]] | None = None
        """Called synchronously when its state has changed, and when it is no longer followed."""
        self.may_buy = False
        """A caller asked to buy it. Otherwise a PENDING job is not sent."""
        self.retry_failed: frozenset[str] = frozenset()
        """If the job is FAILED in the ledger, it is bought again."""
        self.holding_before: TrackedJob | None = None
        """The earlier, uncertain `TrackedJob` of this key whose slots it took."""
        self._phase = Phase.KNOWN
        self.withdraw_requested = False
        """It is withdrawn if its current step leaves it PENDING."""
        self.observation: Observation | None = None
        self.wait_error: NanoBananaError | None = None
        self.watchers: Watchers = None
        """Futures of those that wait for any change."""
        self.end_watchers: Watchers = None
        """Futures of those that wait until the job is over; other changes would wake them for nothing."""
        self.updates: list[deque[JobState]] | None = None

    def __lt__(self, other: Any) -> bool:
        return bool(self.place < other.place)

    @property
    def key(self) -> str:
        """Our key of the job."""
        return self.record.key

    @property
    def phase(self) -> Phase:
        """What this session does with the job."""
        return self._phase

    def move(self, phase: Phase) -> None:
        """Enter a phase; only the scheduler calls this. Raises `RuntimeError` for a move that is not in `PHASES`."""
        if phase not in PHASES[self._phase]:
            raise RuntimeError(f"job {self.key} cannot go {self._phase.name} -> {phase.name}")
        self._phase = phase
        self.due = NEVER

    def take_over(self, before: "TrackedJob") -> None:
        """Take over the slots, caps and price that the same job, tracked before, has held while it was uncertain."""
        self.holding_before = before
        self.slots, before.slots = before.slots, 0
        self.budgets, self.expected_credits = before.budgets, before.expected_credits

    @property
    def is_followed(self) -> bool:
        """Whether this session follows it."""
        return self._phase in LIVE_PHASES

    @property
    def joining(self) -> bool:
        """Whether it is not decided yet how the job goes on."""
        return self._phase in JOINING_PHASES

    @property
    def leaving(self) -> bool:
        """Whether it is being withdrawn, or will be when its current step is over."""
        return self.withdraw_requested or self._phase is Phase.WITHDRAWING

    @property
    def done(self) -> bool:
        """Whether the job has ended, or the waiting for it."""
        return self.wait_error is not None or self.record.state not in ACTIVE_STATES

    @property
    def safe_to_repeat(self) -> bool:
        """What an error about the job says: see `is_safe_to_repeat`."""
        return is_safe_to_repeat(self.record, self._phase)

    @property
    def holds_slots_until(self) -> float:
        """Until when it holds its slots if it is still uncertain, as it was when it was tracked."""
        return NEVER if self.holding_before is None else self.holding_before.due

    @property
    def is_wanted(self) -> bool:
        """Whether a caller may still need its outcome."""
        waited_for = self.watchers or self.end_watchers or self.updates or self.listeners
        return self.may_buy or self.has_handle or bool(waited_for)

    @property
    def images_missing(self) -> bool:
        """Whether its images must be fetched again: the ledger does not store inline images."""
        return self.observation is None and "" in self.record.images

    def listen(self, listener: Callable[["TrackedJob"], None]) -> None:
        """Add a listener."""
        self.listeners = [*(self.listeners or ()), listener]

    async def wait_for_change(self, *, until_over: bool = False) -> None:
        """Wait for the next change, or until the job is done or not followed. Raises the error that interrupts it."""
        watcher: asyncio.Future[NanoBananaError | None] = asyncio.get_running_loop().create_future()
        if until_over:
            self.end_watchers = [*(self.end_watchers or ()), watcher]
        else:
            self.watchers = [*(self.watchers or ()), watcher]
        try:
            interruption = await watcher
        finally:
            if not watcher.done() or watcher.cancelled():
                self._forget(watcher)
        if interruption is not None:
            # Each waiter raises its own copy: a shared exception would collect the tracebacks of all.
            raise interruption.for_job(self.key, safe_to_repeat=self.safe_to_repeat)

    def wake(self, interruption: NanoBananaError | None = None) -> None:
        """Wake the waiters after a change; they check the job again, or raise the error."""
        woken, self.watchers = self.watchers or (), None
        if interruption is not None or self.done or not self.is_followed:
            woken, self.end_watchers = [*woken, *(self.end_watchers or ())], None
        for watcher in woken:
            if not watcher.done():
                watcher.set_result(interruption)

    def notify_listeners(self) -> None:
        """Call the listeners."""
        for listener in self.listeners or ():
            listener(self)

    def set_record(self, record: JobRecord, interruption: NanoBananaError | None = None) -> None:
        """Set the record after a transition. Notify listeners, and wake the waiters or interrupt them with an error."""
        changed = record.state is not self.record.state
        self.record = record
        if changed:
            for feed in self.updates or ():
                feed.append(record.state)
            self.wake(interruption)
            self.notify_listeners()

    def _forget(self, watcher: asyncio.Future[NanoBananaError | None]) -> None:
        self.watchers = [other for other in self.watchers or () if other is not watcher] or None
        self.end_watchers = [other for other in self.end_watchers or () if other is not watcher] or None
