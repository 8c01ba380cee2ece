"""Who is next: the lines in which jobs wait for the wire, creates first."""

from collections.abc import Callable

from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.line import Line, Overdue
from nanobanana_async.engine.purse import Purse
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.wire import Wire
from nanobanana_async.jobs import JobState
from nanobanana_async.policy.caps import Consent

# While the retry budget is empty nothing else rings for the repeats that wait for it.
BUDGET_LOOK_S = 0.5

Send = Callable[[Entry], None]


class Feed:
    """The jobs that wait for their turn. It decides who is next, never what becomes of him."""

    def __init__(
        self,
        slots: Slots,
        follower: Follower,
        wire: Wire,
        purse: Purse,
        *,
        create: Send,
        query: Send,
        decline: Send,
    ) -> None:
        self._slots = slots
        self._follower = follower
        self._wire = wire
        self._purse = purse
        self._create = create
        self._query = query
        self._decline = decline
        self._came_in = 0
        self._pending = Line()
        self._repeats = Line()
        self._overdue = Overdue()

    @property
    def queued(self) -> int:
        """How many jobs wait for a slot."""
        return sum(1 for entry in self._pending if _may_be_sent(entry))

    def number(self, entry: Entry) -> Entry:
        """Give a job the last place among all that came in."""
        self._came_in += 1
        entry.number = self._came_in
        return entry

    def append(self, entry: Entry) -> None:
        """Let a job that is due wait for its turn."""
        match entry.record.state:
            case JobState.PENDING:
                self._pending.append(entry)
            case JobState.SUBMITTING:  # behind the other repeats: no job shall use up its attempts as the only probe
                self._repeats.append(self.number(entry))
            case _:
                self._overdue.append(entry)

    def pump(self, now: float) -> float:
        """Put onto the wire what may go; return when time alone lets more go."""
        return min(self._feed_creates(now), self._feed_queries(now))

    def _feed_creates(self, now: float) -> float:
        # Jobs must not pile up unseen: what has ended would be taken to be held.
        seen_enough = len(self._overdue) <= (self._wire.free if self._slots.throttle.met_a_limit else 0)
        asks_at = NEVER
        for line in (self._repeats, self._pending) if seen_enough else (self._repeats,):
            while line:
                entry = line.first()
                if not _may_be_sent(entry):
                    line.popleft()
                    continue
                consent = self._purse.consent(entry, now)
                if consent is Consent.NEVER:
                    self._decline(line.popleft())
                    continue
                if self._wire.full:
                    return NEVER
                if consent is Consent.LATER:
                    asks_at = min(asks_at, self._purse.asks_at(entry))
                    break
                if not self._slots.admits(entry, now):
                    break
                line.popleft()
                self._purse.reserve(entry)
                self._slots.sent(entry, now)
                self._create(entry)
        if self._repeats:
            opens_at = self._slots.gate.opens_at if self._slots.gate.opens_at > now else now + BUDGET_LOOK_S
            return min(opens_at, asks_at)
        opens_at = self._slots.opens_at(now)
        return min(opens_at if self._pending and opens_at > now else NEVER, asks_at)

    def _feed_queries(self, now: float) -> float:
        while self._overdue:
            if self._wire.full:
                return NEVER
            if not self._follower.admits(now):
                opens_at = self._follower.opens_at()
                return opens_at if opens_at > now else NEVER
            entry = self._overdue.take(self._wire.free, self._follower.gain)
            if _may_be_seen(entry):
                self._slots.budget.earn()
                self._follower.sent(now)
                self._query(entry)
        return NEVER


def _may_be_sent(entry: Entry) -> bool:
    """Whether a queued create is still wanted: jobs that were withdrawn or stopped are passed over."""
    wanted = entry.live and not entry.leaving and not entry.on_wire
    return wanted and entry.record.state in (JobState.PENDING, JobState.SUBMITTING)


def _may_be_seen(entry: Entry) -> bool:
    wanted = entry.live and not entry.on_wire
    return wanted and (entry.record.state is JobState.RUNNING or entry.refetching)
