"""The queues in which jobs wait to be sent or polled, and who is next: creates first."""

import enum
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from attrs import frozen

from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.store import CreditAccount
from nanobanana_async.engine.tracked_job import NEVER, Phase, TrackedJob
from nanobanana_async.engine.workers import WorkerPool
from nanobanana_async.jobs import JobState
from nanobanana_async.policy.budget import Affordable

# While the retry budget is empty, no other event wakes the repeats that wait for it.
RETRY_BUDGET_CHECK_S = 0.5


class Step(enum.Enum):
    """What the dispatcher lets a job do."""

    CREATE = "create"
    POLL = "poll"


@frozen
class Decline:
    """The credits of a job do not suffice. Why is said at once: the caps change with the next create."""

    why: str


Start = tuple[TrackedJob, Step | Decline]


class Dispatcher:
    """The jobs that wait for their turn. It decides who is next; the scheduler starts them."""

    def __init__(
        self, slots: Slots, poller: Poller, estimates: JobEstimates, workers: WorkerPool, account: CreditAccount
    ) -> None:
        self._slots = slots
        self._poller = poller
        self._estimates = estimates
        self._workers = workers
        self._credits = account
        self._places = 0
        self._pending = SubmitQueue()
        self._repeats = SubmitQueue()
        self._overdue = PollQueue()

    @property
    def queued(self) -> int:
        """How many jobs wait for a slot."""
        return sum(1 for job in self._pending if job.phase is Phase.QUEUED)

    def assign_place(self, job: TrackedJob) -> TrackedJob:
        """Give a job the last place among all that came in."""
        self._places += 1
        job.place = self._places
        return job

    def put(self, job: TrackedJob) -> None:
        """Let a job that is due wait for its turn."""
        match job.record.state:
            case JobState.PENDING:
                self._pending.append(job)
            case JobState.SUBMITTING:  # behind the other repeats: no job uses up its attempts as the only probe
                self._repeats.append(self.assign_place(job))
            case _:
                self._overdue.append(job)

    def admit(self, now: float) -> tuple[list[Start], float]:
        """Take out what may start now, creates first; and return when time alone lets more start."""
        starts: list[Start] = []
        creates_at = self._admit_creates(now, starts)
        return starts, min(creates_at, self._admit_polls(now, starts))

    def _admit_creates(self, now: float, starts: list[Start]) -> float:
        # Jobs must not end unseen in numbers: what has ended would be taken to be held.
        seen_enough = len(self._overdue) <= (self._workers.free_requests if self._slots.limiter.was_throttled else 0)
        asks_at = NEVER
        for queue in (self._repeats, self._pending) if seen_enough else (self._repeats,):
            while queue:
                job = queue.first()
                if job.phase is not Phase.QUEUED:  # it was withdrawn, or its waiting has ended
                    queue.popleft()
                    continue
                consent = self._credits.check(job, now)
                if consent is Affordable.NEVER:
                    starts.append((queue.popleft(), Decline(self._credits.explain(job))))
                    continue
                if not self._free_requests(starts):
                    return NEVER
                if consent is Affordable.LATER:
                    asks_at = min(asks_at, self._credits.asks_at(job))
                    break
                if not self._slots.admits(job, now):
                    break
                queue.popleft()
                self._credits.reserve(job)
                self._slots.sent(job, now)
                starts.append((job, Step.CREATE))
        if self._repeats:
            opens_at = (
                self._slots.breaker.opens_at if self._slots.breaker.opens_at > now else now + RETRY_BUDGET_CHECK_S
            )
            return min(opens_at, asks_at)
        opens_at = self._slots.opens_at(now)
        return min(opens_at if self._pending and opens_at > now else NEVER, asks_at)

    def _admit_polls(self, now: float, starts: list[Start]) -> float:
        while self._overdue:
            if not (free := self._free_requests(starts)):
                return NEVER
            if not self._poller.admits(now):
                opens_at = self._poller.opens_at()
                return opens_at if opens_at > now else NEVER
            job = self._overdue.pop_best(free, self._estimates.ended_probability)
            if job.phase is Phase.QUEUED:
                self._slots.retry_budget.earn()
                self._poller.sent(now)
                starts.append((job, Step.POLL))
        return NEVER

    def _free_requests(self, starts: list[Start]) -> int:
        """How many more requests may leave, beside those that were just taken out."""
        return self._workers.free_requests - sum(1 for _, step in starts if isinstance(step, Step))


# How many overdue polls are compared when not all can be sent: the longest overdue are among them.
COMPARED = 16


class SubmitQueue:
    """First come, first served: a job that was sent back takes its old place."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, TrackedJob]] = []

    def __bool__(self) -> bool:
        return bool(self._heap)

    def __iter__(self) -> Iterator[TrackedJob]:
        return (job for _, job in self._heap)

    def append(self, job: TrackedJob) -> None:
        """Let a job wait at the place that its number gives it."""
        heapq.heappush(self._heap, (job.place, job))

    def first(self) -> TrackedJob:
        """Return the next job."""
        return self._heap[0][1]

    def popleft(self) -> TrackedJob:
        """Take out the next job."""
        return heapq.heappop(self._heap)[1]


class PollQueue:
    """Polls that are due, in the order in which they fell due."""

    def __init__(self) -> None:
        self._queue: deque[TrackedJob] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def append(self, job: TrackedJob) -> None:
        """Let a job wait to be polled."""
        self._queue.append(job)

    def pop_best(self, room: int, gain: Callable[[TrackedJob], float]) -> TrackedJob:
        """Take out the job to poll next: the first, or when there is no room for all the likeliest to have ended."""
        if len(self._queue) <= room:
            return self._queue.popleft()
        best = max(islice(self._queue, COMPARED), key=gain)
        self._queue.remove(best)
        return best
