"""Who is next: the lines in which jobs wait for the wire, creates first."""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import CreditAccount
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.engine.workers import WorkerPool
from nanobanana_async.jobs import JobState
from nanobanana_async.policy.budget import Affordable

# While the retry budget is empty nothing else rings for the repeats that wait for it.
RETRY_BUDGET_CHECK_S = 0.5

Send = Callable[[TrackedJob], None]


class Dispatcher:
    """The jobs that wait for their turn. It decides who is next, never what becomes of him."""

    def __init__(
        self,
        slots: Slots,
        follower: Poller,
        wire: WorkerPool,
        purse: CreditAccount,
        *,
        create: Send,
        query: Send,
        decline: Send,
    ) -> None:
        self._slots = slots
        self._poller = follower
        self._workers = wire
        self._credits = purse
        self._create = create
        self._query = query
        self._decline = decline
        self._places = 0
        self._pending = SubmitQueue()
        self._repeats = SubmitQueue()
        self._overdue = PollQueue()

    @property
    def queued(self) -> int:
        """How many jobs wait for a slot."""
        return sum(1 for entry in self._pending if _still_wanted(entry))

    def assign_place(self, entry: TrackedJob) -> TrackedJob:
        """Give a job the last place among all that came in."""
        self._places += 1
        entry.place = self._places
        return entry

    def put(self, entry: TrackedJob) -> None:
        """Let a job that is due wait for its turn."""
        match entry.record.state:
            case JobState.PENDING:
                self._pending.append(entry)
            case JobState.SUBMITTING:  # behind the other repeats: no job shall use up its attempts as the only probe
                self._repeats.append(self.assign_place(entry))
            case _:
                self._overdue.append(entry)

    def admit(self, now: float) -> float:
        """Put onto the wire what may go; return when time alone lets more go."""
        return min(self.admit_creates(now), self.admit_polls(now))

    def admit_creates(self, now: float) -> float:
        # Jobs must not pile up unseen: what has ended would be taken to be held.
        seen_enough = len(self._overdue) <= (self._workers.free_requests if self._slots.limiter.was_throttled else 0)
        asks_at = NEVER
        for line in (self._repeats, self._pending) if seen_enough else (self._repeats,):
            while line:
                entry = line.first()
                if not _still_wanted(entry):
                    line.popleft()
                    continue
                consent = self._credits.check(entry, now)
                if consent is Affordable.NEVER:
                    self._decline(line.popleft())
                    continue
                if self._workers.full:
                    return NEVER
                if consent is Affordable.LATER:
                    asks_at = min(asks_at, self._credits.asks_at(entry))
                    break
                if not self._slots.admits(entry, now):
                    break
                line.popleft()
                self._credits.reserve(entry)
                self._slots.sent(entry, now)
                self._create(entry)
        if self._repeats:
            opens_at = (
                self._slots.breaker.opens_at if self._slots.breaker.opens_at > now else now + RETRY_BUDGET_CHECK_S
            )
            return min(opens_at, asks_at)
        opens_at = self._slots.opens_at(now)
        return min(opens_at if self._pending and opens_at > now else NEVER, asks_at)

    def admit_polls(self, now: float) -> float:
        while self._overdue:
            if self._workers.full:
                return NEVER
            if not self._poller.admits(now):
                opens_at = self._poller.opens_at()
                return opens_at if opens_at > now else NEVER
            entry = self._overdue.pop_best(self._workers.free_requests, self._poller.ended_probability)
            if _still_running(entry):
                self._slots.retry_budget.earn()
                self._poller.sent(now)
                self._query(entry)
        return NEVER


def _still_wanted(entry: TrackedJob) -> bool:
    """Whether a queued create is still wanted: jobs that were withdrawn or stopped are passed over."""
    wanted = entry.live and not entry.withdraw_requested and not entry.in_flight
    return wanted and entry.record.state in (JobState.PENDING, JobState.SUBMITTING)


def _still_running(entry: TrackedJob) -> bool:
    wanted = entry.live and not entry.in_flight
    return wanted and (entry.record.state is JobState.RUNNING or entry.fetching_images)


# How many overdue looks are compared when the wire can't carry all: the longest overdue are among them.
COMPARED = 16


class SubmitQueue:
    """First come, first served: who was sent back takes his old place."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, TrackedJob]] = []

    def __bool__(self) -> bool:
        return bool(self._heap)

    def __iter__(self) -> Iterator[TrackedJob]:
        return (entry for _, entry in self._heap)

    def append(self, entry: TrackedJob) -> None:
        """Let a job wait at the place that its number gives it."""
        heapq.heappush(self._heap, (entry.place, entry))

    def first(self) -> TrackedJob:
        """Return whose turn it is."""
        return self._heap[0][1]

    def popleft(self) -> TrackedJob:
        """Take out whose turn it is."""
        return heapq.heappop(self._heap)[1]


class PollQueue:
    """Looks that are due, in the order in which they fell due."""

    def __init__(self) -> None:
        self._queue: deque[TrackedJob] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def append(self, entry: TrackedJob) -> None:
        """Let a job wait to be looked at."""
        self._queue.append(entry)

    def pop_best(self, room: int, gain: Callable[[TrackedJob], float]) -> TrackedJob:
        """Take out the job to look at next: the first, or when there is no room for all the one with most to gain."""
        if len(self._queue) <= room:
            return self._queue.popleft()
        best = max(islice(self._queue, COMPARED), key=gain)
        self._queue.remove(best)
        return best
