"""One job in this session: its record, its phase (`phases.py`), its waiters, and when it is due."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Any

from attrs import evolve

from nanobanana_async.engine.next_step import CheckOwnerAt, Finish, Next
from nanobanana_async.engine.phases import (
    FOLLOWED_PHASES,
    PHASE_TRANSITIONS,
    STALE_RECORD_PHASES,
    UNDECIDED_PHASES,
    Phase,
)
from nanobanana_async.engine.rare_facts import NO_RARE_FACTS
from nanobanana_async.engine.route import Route
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState, Observation
from nanobanana_async.policy.budget import Cap
from nanobanana_async.policy.fair_queue import Group
from nanobanana_async.policy.poll_schedule import PollSchedule

Watchers = list[asyncio.Future[NanoBananaError | None]] | None

MOST_PROGRESS = 0.99
"""The most that a job has done that has not ended."""
NEVER = float("inf")
NOT_YET = -NEVER


def is_safe_to_repeat(record: JobRecord, phase: Phase) -> bool:
    """Whether a job of this session can be generated again under another key and never be paid for twice.

    A live job may still be bought, unless it is being withdrawn.
    """
    return phase not in FOLLOWED_PHASES - {Phase.WITHDRAWING} and not record.possibly_bought


class StatedProgress(float):
    """A progress that the gateway has stated: it is not estimated any more."""

    __slots__ = ()


class TrackedJob:
    """One job in this session. It has slots because there may be tens of thousands."""

    __slots__ = (
        "_phase",
        "callback_pending",
        "callers",
        "caps",
        "due",
        "end_watchers",
        "failures",
        "first_attempt_at",
        "followed_since",
        "group",
        "has_handle",
        "last_failure",
        "ledger_record",
        "listeners",
        "may_buy",
        "observation",
        "place",
        "polled_at",
        "polls",
        "priority",
        "progress",
        "rare",
        "ready_at",
        "record",
        "route",
        "running_at",
        "schedule",
        "sent_at",
        "slots",
        "slots_taken_from",
        "turn_cost",
        "wait_error",
        "watchers",
        "weight",
    )

    def __init__(self, record: JobRecord, weight: int) -> None:
        self.record = record
        self.ledger_record = record
        """The record in the ledger: the same, unless a write failed after the gateway had answered."""
        self.weight = weight
        self.slots = 0
        """How many job slots it holds now."""
        self.place, self.priority = 0, record.priority
        """When it is its turn to be sent: at the highest priority that a caller gave it, first come, first served."""
        self.group: Hashable = record.group_name or record.batch
        """With which jobs it shares turns: of a group, or of a batch; None: all that have neither."""
        self.turn_cost: tuple[Group, float] | None = None
        """What its create in flight is to cost its group."""
        self.due = self.first_attempt_at = self.running_at = NEVER
        self.ready_at = NOT_YET
        """When it was first ready to be sent, if creates of its account failed then (`engine/create_outage.py`)."""
        self.followed_since = NOT_YET
        """When this wait began to follow it as running: `Timeouts.job_s` counts from here, for each wait by itself."""
        self.sent_at = NEVER
        self.schedule: PollSchedule[TrackedJob] | None = None
        """The poll schedule of its price class; set once it runs."""
        self.polls = 0
        self.polled_at = NOT_YET
        """When its last poll left."""
        self.progress = 0.0
        """The most that was shown (`engine/progress.py`)."""
        self.callback_pending = False
        """A callback came after its last poll."""
        self.failures = 0
        """How many creates in a row were not accepted, or polls not answered."""
        self.last_failure: NanoBananaError | None = None
        """Why its last request in this session failed; None if it did not, or if there was none."""
        self.rare = NO_RARE_FACTS
        self.route: Route | None = None
        """Which accounts may buy it; None in a session with one account."""
        self.callers = 0
        """How many `generate` calls and batches wait for it. When the last one leaves, an unsent job is withdrawn."""
        self.has_handle = False
        """A handle was given out: the job outlives its callers."""
        self.caps: tuple[Cap, ...] = ()
        """The caps that its price is reserved on."""
        self.listeners: list[Callable[[TrackedJob], None]] | None = None
        """Called synchronously when its state has changed, and when it is no longer followed."""
        self.may_buy = False
        """A caller asked to buy it. Otherwise a PENDING job is not sent."""
        self.slots_taken_from: TrackedJob | None = None
        """The earlier, uncertain `TrackedJob` of this key whose slots it took."""
        self._phase = Phase.KNOWN
        self.observation: Observation | None = None
        self.wait_error: NanoBananaError | None = None
        self.watchers: Watchers = None
        """Futures of those that wait for any change."""
        self.end_watchers: Watchers = None
        """Futures of those that wait until the job is over; other changes would wake them for nothing."""

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

    def enter_phase(self, phase: Phase) -> None:
        """Enter a phase; only the scheduler calls this. Raises `RuntimeError` if `PHASE_TRANSITIONS` forbids it."""
        if phase not in PHASE_TRANSITIONS[self._phase]:
            raise RuntimeError(f"job {self.key} cannot go {self._phase.name} -> {phase.name}")
        self._phase = phase
        self.due = NEVER
        if phase not in FOLLOWED_PHASES:  # a handle may live for long, and bytes with it
            self.rare = self.rare.without_images()

    def inherit_slots(self, before: "TrackedJob") -> None:
        """Take over the slots, caps and price that the same job, tracked before, has held while it was uncertain."""
        self.slots_taken_from = before
        self.slots, before.slots = before.slots, 0
        self.caps = before.caps
        if before.rare.expected_credits is not None:
            self.rare = evolve(self.rare, expected_credits=before.rare.expected_credits)

    @property
    def is_followed(self) -> bool:
        """Whether this session follows it."""
        return self._phase in FOLLOWED_PHASES

    @property
    def awaits_ledger_decision(self) -> bool:
        """Whether it is not decided yet how the job goes on."""
        return self._phase in UNDECIDED_PHASES

    @property
    def is_being_withdrawn(self) -> bool:
        """Whether it is being withdrawn, or will be when its current step is over."""
        return self.rare.withdraw_requested or self._phase is Phase.WITHDRAWING

    def request_withdrawal(self, requested: bool = True) -> None:
        """Have it withdrawn if its current step leaves it PENDING; or not any more."""
        if requested != self.rare.withdraw_requested:
            self.rare = evolve(self.rare, withdraw_requested=requested)

    def can_be_withdrawn_after(self, next_step: Next) -> bool:
        """Whether its withdrawal, which was requested, can begin: its step is over and left it PENDING and ours."""
        if self.record.state is not JobState.PENDING:
            return False
        failed_unread = isinstance(next_step, Finish) and self._phase in STALE_RECORD_PHASES
        return not (failed_unread or isinstance(next_step, CheckOwnerAt))

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
        return NEVER if self.slots_taken_from is None else self.slots_taken_from.due

    @property
    def is_wanted(self) -> bool:
        """Whether a caller may still need its outcome, or this session has to write something of it."""
        waited_for = self.watchers or self.end_watchers or self.rare.state_queues or self.listeners
        unfinished = self.rare.withdraw_requested or self.rare.late_answer is not None
        return self.may_buy or self.has_handle or bool(waited_for) or unfinished

    @property
    def images_missing(self) -> bool:
        """Whether its images must be fetched again: the ledger does not store inline images."""
        return self.observation is None and "" in self.record.images

    def add_listener(self, listener: Callable[["TrackedJob"], None]) -> None:
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
                self._remove_watcher(watcher)
        if interruption is not None:
            # Each waiter raises its own copy: a shared exception would collect the tracebacks of all.
            raise interruption.for_job(self.key, safe_to_repeat=self.safe_to_repeat)

    def wake(self, interruption: NanoBananaError | None = None) -> None:
        """Wake the waiters after a change; they check the job again, or raise the error."""
        woken, self.watchers = self.watchers or (), None
        if self.end_watchers and (interruption is not None or self.done or not self.is_followed):
            woken, self.end_watchers = [*woken, *self.end_watchers], None
        for watcher in woken:
            if not watcher.done():
                watcher.set_result(interruption)

    def notify_listeners(self) -> None:
        """Call the listeners."""
        for listener in self.listeners or ():
            listener(self)

    def on_observed_running(self, stated: float | None) -> None:
        """Record that a poll found it running, with the progress that the gateway stated."""
        if stated is not None:
            self.progress = StatedProgress(max(self.progress, min(MOST_PROGRESS, stated)))
        if self.rare.state_queues:
            for feed in self.rare.state_queues:
                if not feed or feed[-1] is not self.record.state:
                    feed.append(self.record.state)
            self.wake()

    def set_record(self, record: JobRecord, interruption: NanoBananaError | None = None) -> None:
        """Set the record after a transition. Notify listeners, and wake the waiters or interrupt them with an error."""
        changed = record.state is not self.record.state
        self.record = record
        if changed:
            for feed in self.rare.state_queues:
                feed.append(record.state)
            self.wake(interruption)
            self.notify_listeners()

    def _remove_watcher(self, watcher: asyncio.Future[NanoBananaError | None]) -> None:
        self.watchers = [other for other in self.watchers or () if other is not watcher] or None
        self.end_watchers = [other for other in self.end_watchers or () if other is not watcher] or None
